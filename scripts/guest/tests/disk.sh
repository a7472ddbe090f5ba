# Everything a disk must do for a guest, with the data checked. DESTROYS what is on it.
#
# DEVICE       the disk (default: the only one)
# SIZE_BYTES   expected size; not checked when empty
# BLOCK_SIZE   expected logical block size; not checked when empty
# QUEUES       expected number of request queues, each of which must then have completed requests; not checked when empty
# FILESYSTEMS  "ext4" (default), "xfs", both or "none"; xfs wants a disk of 320 MiB or more
# DISCARD      1: the disk must offer discard (where it offers it, it is used in any case)
# shellcheck shell=sh source-path=SCRIPTDIR
# shellcheck disable=SC2317 # run_case calls what looks unreachable
# shellcheck source=../cases.sh
. /lib/cases.sh

find_device
size=$(blockdev --getsize64 "$DEVICE")
block=$(blockdev --getss "$DEVICE")
MIB=1048576
if [ "$size" -lt $((48 * MIB)) ]; then
    echo "$DEVICE has $size bytes, 48 MiB are the least for this test"
    exit 1
fi

size_matches() { must_equal "size in bytes" "$SIZE_BYTES" "$size"; }
block_size_matches() { must_equal "logical block size" "$BLOCK_SIZE" "$block"; }

last_block_is_the_end() {
    last=$((size / block - 1))
    dd if=/dev/urandom of=/tmp/block bs="$block" count=1
    dd if=/tmp/block of="$DEVICE" bs="$block" seek="$last" oflag=direct
    dd if="$DEVICE" of=/tmp/back bs="$block" skip="$last" count=2 iflag=direct
    cmp /tmp/block /tmp/back # one block, though two were asked for
}

# fio_verify BLOCK_SIZE_OPTION DEPTH MIB_PER_JOB: two jobs on two CPUs, so on two queues where the disk has them. Each writes
# every block of its part once, in random order, then reads and compares them all.
fio_verify() {
    part=$(($3 * MIB))
    [ $((2 * part)) -le "$size" ] || part=$((size / 2 / MIB * MIB))
    set -- "$1" "$2" "$part"
    placement=
    [ "$(nproc)" -lt 2 ] || placement="--cpus_allowed=0-1 --cpus_allowed_policy=split"
    # shellcheck disable=SC2086 # several options
    fio --name=verify --filename="$DEVICE" --ioengine=libaio --direct=1 --rw=randwrite "$1" --iodepth="$2" --numjobs=2 \
        --size="$3" --offset_increment="$3" $placement --verify=crc32c --verify_fatal=1 --do_verify=1 --group_reporting
}

# A request goes to the queue of the CPU that makes it, so each CPU makes some: which CPUs ran before is chance.
completed_on_every_queue() {
    for cpu in $(seq 0 $(($(nproc) - 1))); do
        taskset -c "$cpu" dd if="$DEVICE" of=/dev/null bs="$block" count=8 iflag=direct
    done
    queue_interrupts
    must_equal "queues of the block layer" "$QUEUES" "$(find "/sys/block/$path_disk/mq" -mindepth 1 -maxdepth 1 | wc -l)"
    must_equal "queues with interrupts" "$QUEUES" "$(queue_interrupts | awk '$2 > 0' | wc -l)"
}

# The 16th number of a disk's stat is flushes done (Documentation/block/stat.rst); a write-through disk is sent none.
fsync_flushes() {
    before=$(awk '{ print $16 }' "/sys/block/$path_disk/stat")
    fio --name=fsync --filename="$DEVICE" --ioengine=libaio --direct=1 --rw=randwrite --bs=4k --iodepth=8 --size=2m --fsync=4
    after=$(awk '{ print $16 }' "/sys/block/$path_disk/stat")
    cache=$(cat "/sys/block/$disk/queue/write_cache")
    echo "$cache: $before flushes before, $after after"
    [ "$cache" != "write back" ] || [ "$after" -gt "$before" ]
}

# Random data over MiB 4 to 9, also left in /tmp/around.
write_surroundings() {
    dd if=/dev/urandom of=/tmp/around bs=1M count=6
    dd if=/tmp/around of="$DEVICE" bs=1M seek=4 oflag=direct
    dd if="$DEVICE" of=/tmp/back bs=1M skip=4 count=6 iflag=direct
    cmp /tmp/around /tmp/back
}

zeroed_range_reads_zero() {
    write_surroundings
    blkdiscard --zeroout --offset $((5 * MIB)) --length $((4 * MIB)) "$DEVICE"
    dd if=/dev/zero of=/tmp/around bs=1M seek=1 count=4 conv=notrunc
    dd if="$DEVICE" of=/tmp/back bs=1M skip=4 count=6 iflag=direct
    cmp /tmp/around /tmp/back
}

# What a discarded block reads as is the disk's to choose; its neighbours must stay, and it must take data again.
discard_spares_neighbours() {
    write_surroundings
    dd if=/tmp/around of=/tmp/before bs=1M count=1
    dd if=/tmp/around of=/tmp/behind bs=1M skip=5 count=1
    blkdiscard --offset $((5 * MIB)) --length $((4 * MIB)) "$DEVICE"
    dd if="$DEVICE" of=/tmp/back bs=1M skip=4 count=1 iflag=direct
    cmp /tmp/before /tmp/back
    dd if="$DEVICE" of=/tmp/back bs=1M skip=9 count=1 iflag=direct
    cmp /tmp/behind /tmp/back
    dd if=/tmp/before of="$DEVICE" bs=1M seek=6 oflag=direct
    dd if="$DEVICE" of=/tmp/back bs=1M skip=6 count=1 iflag=direct
    cmp /tmp/before /tmp/back
    blkdiscard "$DEVICE"
}

discard_is_offered() {
    [ "$(cat "/sys/block/$disk/queue/discard_max_bytes")" -gt 0 ]
}

# One partition over nearly everything, one small: the first takes the file systems.
partition_table_is_read_back() {
    wipefs --all "$DEVICE"
    small=$((16 * MIB / block))
    printf 'label: gpt\nsize=%s\nsize=+\n' "$small" >/tmp/table
    sfdisk --no-reread "$DEVICE" </tmp/table
    blockdev --rereadpt "$DEVICE"
    wait_block "$(partition 2)"
    sfdisk --dump "$DEVICE"
    must_equal "size of partition 1" $((16 * MIB)) "$(blockdev --getsize64 "$(partition 1)")"
    must_equal "partitions on disk" 2 "$(sfdisk --dump "$DEVICE" | grep -c 'size=')"
    sfdisk --verify "$DEVICE"
}

# fill_and_check TYPE: the programs of this initramfs make a good set of files; checked again from the disk, not from memory.
fill_and_check() {
    mount -t "$1" "$(partition 2)" /mnt
    mkdir /mnt/a /mnt/b
    cp /bin/busybox /bin/fio /bin/nvme /mnt/a
    dd if=/dev/urandom of=/mnt/b/random bs=64k count=64
    for i in $(seq 100); do echo "$i" >"/mnt/b/$i"; done
    (cd /mnt && find . -type f -exec sha256sum {} +) >/tmp/sums
    umount /mnt
    echo 3 >/proc/sys/vm/drop_caches
    mount -t "$1" "$(partition 2)" /mnt
    (cd /mnt && sha256sum -c /tmp/sums) | tail -n 3
    (cd /mnt && sha256sum -c -s /tmp/sums)
    rm -r /mnt/a
    if discard_is_offered; then fstrim -v /mnt; fi
    umount /mnt
}

ext4_holds_files() {
    mkfs.ext4 -q -F "$(partition 2)"
    fill_and_check ext4
    e2fsck -f -n "$(partition 2)"
}

xfs_holds_files() {
    load xfs
    mkfs.xfs -q -f "$(partition 2)"
    fill_and_check xfs
    xfs_repair -n "$(partition 2)"
}

[ -z "${SIZE_BYTES:-}" ] || run_case size_matches size_matches
[ -z "${BLOCK_SIZE:-}" ] || run_case block_size_matches block_size_matches
run_case last_block_is_the_end last_block_is_the_end
run_case fio_verify_4k_depth_1 fio_verify --bs=4k 1 4
run_case fio_verify_4k_depth_32 fio_verify --bs=4k 32 8
run_case fio_verify_64k_depth_1 fio_verify --bs=64k 1 16
run_case fio_verify_64k_depth_32 fio_verify --bs=64k 32 16
run_case fio_verify_512k_depth_1 fio_verify --bs=512k 1 32
run_case fio_verify_512k_depth_32 fio_verify --bs=512k 32 32
run_case fio_verify_mixed_sizes fio_verify "--bssplit=${block}/40:$((block * 3))/20:20k/20:128k/20" 16 8
[ -z "${QUEUES:-}" ] || run_case completed_on_every_queue completed_on_every_queue
run_case fsync_flushes fsync_flushes
run_case zeroed_range_reads_zero zeroed_range_reads_zero
[ -z "${DISCARD:-}" ] || run_case discard_is_offered discard_is_offered
if discard_is_offered; then
    run_case discard_spares_neighbours discard_spares_neighbours
fi
run_case partition_table_is_read_back partition_table_is_read_back
for filesystem in ${FILESYSTEMS:-ext4}; do
    [ "$filesystem" = none ] || run_case "${filesystem}_holds_files" "${filesystem}_holds_files"
done
finish_cases
