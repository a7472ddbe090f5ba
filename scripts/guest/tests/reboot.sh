# Data outlive reboots of the guest, and the device works again after each. DESTROYS what is on the disk.
#
# Run with `run --allow-reboot`. Each boot but the last leaves with requests in flight and a file system mounted.
#
# DEVICE    the disk (default: the only one), 64 MiB or more
# REBOOTS   how often (default 1)
# shellcheck shell=sh source-path=SCRIPTDIR
# shellcheck disable=SC2317 # run_case calls what looks unreachable
# shellcheck source=../cases.sh
. /lib/cases.sh

find_device
MIB=1048576
# The disk's layout here: in its first MiB the state "RUN_ID BOOT", then at PATTERN_MIB a pattern, at SCRATCH_MIB what is overwritten
# while the guest goes down, and behind it a file system without partition table.
PATTERN_MIB=1
SCRATCH_MIB=8
FILESYSTEM_MIB=16
# Not zero, larger than one request, and the same in each boot.
PATTERN=/bin/fio

boot=0
state=$(dd if="$DEVICE" bs=4096 count=1 iflag=direct 2>/dev/null | tr -d '\000' | head -n 1)
if [ "${state% *}" = "$RUN_ID" ]; then
    boot=${state#* }
fi
echo "BOOT $boot of ${REBOOTS:=1}"

# A loop device onto the tail of the disk, so that the raw parts before it stay ours.
attach_filesystem() {
    load loop
    wait_block /dev/loop0
    losetup -o $((FILESYSTEM_MIB * MIB)) /dev/loop0 "$DEVICE"
}

writes_pattern() {
    dd if="$PATTERN" of="$DEVICE" bs=1M seek="$PATTERN_MIB" conv=fsync
    attach_filesystem
    mkfs.ext4 -q -F /dev/loop0
    mount -t ext4 /dev/loop0 /mnt
}

finds_pattern() {
    dd if="$DEVICE" bs=1M skip="$PATTERN_MIB" count=$((SCRATCH_MIB - PATTERN_MIB)) iflag=direct of=/tmp/back
    head -c "$(wc -c <"$PATTERN")" /tmp/back | cmp - "$PATTERN"
}

finds_files() {
    attach_filesystem
    mount -t ext4 /dev/loop0 /mnt # replays the journal
    for i in $(seq "$boot"); do
        cmp "$PATTERN" "/mnt/file$i"
    done
}

device_takes_requests() {
    fio --name=verify --filename="$DEVICE" --ioengine=libaio --direct=1 --rw=randwrite --bs=4k --iodepth=32 \
        --offset="${SCRATCH_MIB}m" --size=4m --verify=crc32c --verify_fatal=1
}

filesystem_is_clean() {
    umount /mnt
    e2fsck -f -n /dev/loop0
}

writes_next_file() {
    cp "$PATTERN" "/mnt/file$((boot + 1))"
    sync
    printf '%s %s\n' "$RUN_ID" $((boot + 1)) >/tmp/state
    dd if=/tmp/state of="$DEVICE" bs=4096 conv=sync,fsync
}

if [ "$boot" -eq 0 ]; then
    run_case writes_pattern writes_pattern
else
    run_case finds_pattern finds_pattern
    run_case finds_files finds_files
fi
run_case device_takes_requests device_takes_requests
if [ "$boot" -lt "$REBOOTS" ]; then
    run_case writes_next_file writes_next_file
    [ "$failed_cases" -eq 0 ] || finish_cases
    fio --name=inflight --filename="$DEVICE" --ioengine=libaio --direct=1 --rw=randwrite --bs=64k --iodepth=32 \
        --offset="${SCRATCH_MIB}m" --size=4m --time_based --runtime=60 >/dev/null 2>&1 &
    sleep 1
    echo "REBOOT"
    reboot -f
    sleep 60
    exit 1
fi
run_case filesystem_is_clean filesystem_is_clean
finish_cases
