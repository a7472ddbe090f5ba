# Disks of three kinds, and what happens to them while the guest runs. Whoever runs this watches the console for "RESIZE NOW" and
# "REMOVE NOW" and does so. DESTROYS what is on the first disk.
#
# /dev/vda  with a cache, with discard, four queues; is removed under load at the end
# /dev/vdb  without a cache; is resized
# /dev/vdc  read-only
# /dev/vdd  one queue; the guest has four CPUs
# NEW_SIZE  sectors of /dev/vdb after the change
# shellcheck shell=sh source-path=SCRIPTDIR
# shellcheck disable=SC2317 # run_case calls what looks unreachable
# shellcheck source=../cases.sh
. /lib/cases.sh

MIB=1048576

# The 16th number of a disk's stat is flushes done (Documentation/block/stat.rst).
flushes() { awk '{ print $16 }' "/sys/block/$1/stat"; }

# verified DISK QUEUES: a job on each CPU, so that each queue has requests.
verified() {
    must_equal "queues" "$2" "$(find "/sys/block/$1/mq" -mindepth 1 -maxdepth 1 | wc -l)"
    fio --name=verify --filename="/dev/$1" --ioengine=libaio --direct=1 --rw=randwrite --bssplit=4k/60:64k/40 --iodepth=16 \
        --numjobs=4 --size=4m --offset_increment=4m --cpus_allowed=0-3 --cpus_allowed_policy=split --verify=crc32c \
        --verify_fatal=1 --do_verify=1 --group_reporting
}

cached_disk_is_flushed() {
    must_equal "cache" "write back" "$(cat /sys/block/vda/queue/write_cache)"
    before=$(flushes vda)
    dd if=/dev/urandom of=/dev/vda bs=64k count=16 conv=fsync
    [ "$(flushes vda)" -gt "$before" ]
}

disk_without_cache_is_not_flushed() {
    must_equal "cache" "write through" "$(cat /sys/block/vdb/queue/write_cache)"
    before=$(flushes vdb)
    dd if=/dev/zero of=/dev/vdb bs=64k count=16 conv=fsync
    must_equal "flushes" "$before" "$(flushes vdb)"
}

read_only_disk_is_read_and_not_written() {
    must_equal "read-only" 1 "$(blockdev --getro /dev/vdc)"
    dd if=/dev/vdc of=/tmp/head bs=512 count=1 iflag=direct
    must_equal "its first bytes" "read-only disk" "$(head -c 14 /tmp/head)"
    ! dd if=/dev/zero of=/dev/vdc bs=4k count=1 oflag=direct
}

# zeroed OFFSET LENGTH: the range of the first disk reads as zeroes, in MiB.
zeroed() {
    dd if=/dev/vda of=/tmp/back bs=1M skip="$1" count="$2" iflag=direct
    head -c "$(($2 * MIB))" /dev/zero | cmp - /tmp/back
}

fallocate_punches_and_zeroes() {
    dd if=/dev/urandom of=/dev/vda bs=1M count=8 oflag=direct
    fallocate --punch-hole --offset $((1 * MIB)) --length $((2 * MIB)) /dev/vda
    zeroed 1 2
    fallocate --zero-range --offset $((4 * MIB)) --length $((2 * MIB)) /dev/vda
    zeroed 4 2
    ! zeroed 3 1
    blkdiscard --zeroout --offset 0 --length $((8 * MIB)) /dev/vda
    zeroed 0 8
    blkdiscard --offset 0 --length $((8 * MIB)) /dev/vda
}

file_system_is_trimmed() {
    mkfs.ext4 -q -F /dev/vda
    mount -t ext4 /dev/vda /mnt
    dd if=/dev/urandom of=/mnt/file bs=1M count=8 conv=fsync
    fallocate --punch-hole --offset $((2 * MIB)) --length $((4 * MIB)) /mnt/file
    rm /mnt/file
    sync
    # The 13th number of a disk's stat is sectors discarded; the 12th, discards done.
    before=$(awk '{ print $12 }' /sys/block/vda/stat)
    fstrim -v /mnt
    umount /mnt
    [ "$(awk '{ print $12 }' /sys/block/vda/stat)" -gt "$before" ]
    e2fsck -f -n /dev/vda
}

size_changes() {
    for _ in $(seq 200); do
        [ "$(cat /sys/block/vdb/size)" = "$NEW_SIZE" ] && break
        sleep 0.1
    done
    must_equal "sectors" "$NEW_SIZE" "$(cat /sys/block/vdb/size)"
    dd if=/dev/vdb of=/dev/null bs=512 skip=$((NEW_SIZE - 1)) count=1 iflag=direct
}

# It runs for a minute unless its disk goes.
start_load() {
    fio --name=load --filename=/dev/vda --ioengine=libaio --direct=1 --rw=randrw --bs=4k --iodepth=16 --size=16m \
        --time_based --runtime=60 >/tmp/load 2>&1
    echo "$?" >/tmp/load.status
}

load_fails_and_the_guest_lives() {
    for _ in $(seq 400); do
        [ -s /tmp/load.status ] && break
        sleep 0.1
    done
    cat /tmp/load
    [ "$(cat /tmp/load.status)" -ne 0 ]
    ! dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct
    dd if=/dev/vdb of=/dev/null bs=4k count=16 iflag=direct
    dd if=/dev/vdc of=/dev/null bs=4k count=1 iflag=direct
}

run_case verified_on_four_queues verified vda 4
run_case verified_on_one_queue verified vdd 1
run_case cached_disk_is_flushed cached_disk_is_flushed
run_case disk_without_cache_is_not_flushed disk_without_cache_is_not_flushed
run_case read_only_disk_is_read_and_not_written read_only_disk_is_read_and_not_written
run_case fallocate_punches_and_zeroes fallocate_punches_and_zeroes
run_case file_system_is_trimmed file_system_is_trimmed
echo "RESIZE NOW"
run_case size_changes size_changes
start_load &
sleep 1
echo "REMOVE NOW"
run_case load_fails_and_the_guest_lives load_fails_and_the_guest_lives
finish_cases
