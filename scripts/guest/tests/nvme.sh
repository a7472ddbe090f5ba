# Everything an NVMe controller must do for Linux: nvme-cli's commands, then fio over every block size. DESTROYS what is on it.
#
# DEVICE       the disk (default: the only one)
# QUEUES       expected number of I/O queues
# SIZES        block sizes of the verified fio runs (default: 512 to 1m)
# SHADOW       1: the controller must offer shadow doorbells
# shellcheck shell=sh source-path=SCRIPTDIR
# shellcheck disable=SC2317 # run_case calls what looks unreachable
# shellcheck source=../cases.sh
. /lib/cases.sh

find_device
controller=${DEVICE%n*}
SIZES=${SIZES:-512 1k 2k 4k 8k 16k 32k 64k 128k 256k 512k 1m}
block=$(blockdev --getss "$DEVICE")

identify() {
    nvme list
    nvme list | grep -q "$DEVICE"
    nvme id-ctrl "$controller" | grep -q '^subnqn *: nqn'
    nvme id-ns "$DEVICE" -n 1 | grep -q '^nsze'
    nvme ns-descs "$controller" -n 1
    must_equal "active namespaces" "[   0]:0x1" "$(nvme list-ns "$controller" | head -n 1)"
    nvme list-ctrl "$controller"
    nvme id-nvmset "$controller" -i 1 && return 1
    [ "${SHADOW:-0}" != 1 ] || nvme id-ctrl "$controller" -H | grep -q 'Doorbell Buffer Config Supported'
}

logs() {
    nvme smart-log "$controller" | grep -q 'temperature'
    nvme error-log "$controller" | grep -q 'Entry'
    nvme fw-log "$controller"
    nvme changed-ns-list-log "$controller"
    nvme effects-log "$controller" >/tmp/effects
    grep -q 'Identify' /tmp/effects
    nvme supported-log-pages "$controller"
}

features() {
    for feature in 1 2 4 5 6 7 8 9 0xa 0xb 0xf; do
        nvme get-feature "$controller" -f "$feature" -H
    done
    nvme set-feature "$controller" -f 6 -v 0
    nvme get-feature "$controller" -f 6 | grep -q 'value:0*\(0x\)\?0*$'
    nvme set-feature "$controller" -f 6 -v 1
    nvme get-feature "$controller" -f 0x7f && return 1
    true
}

data_commands() {
    dd if=/dev/urandom of=/tmp/four bs="$block" count=4
    nvme write "$DEVICE" -s 16 -c 3 -z $((4 * block)) -d /tmp/four
    nvme read "$DEVICE" -s 16 -c 3 -z $((4 * block)) -d /tmp/back
    cmp /tmp/four /tmp/back
    nvme compare "$DEVICE" -s 16 -c 3 -z $((4 * block)) -d /tmp/four
    nvme verify "$DEVICE" -s 16 -c 3
    nvme copy "$DEVICE" --sdlba=100 --slbs=16 --blocks=3 --format=0
    nvme compare "$DEVICE" -s 100 -c 3 -z $((4 * block)) -d /tmp/four
    nvme flush "$DEVICE" -n 1
    nvme write-zeroes "$DEVICE" -s 16 -c 1
    nvme dsm "$DEVICE" -n 1 -d -s 18 -b 2
    if nvme compare "$DEVICE" -s 16 -c 3 -z $((4 * block)) -d /tmp/four; then return 1; fi
    nvme read "$DEVICE" -s 16 -c 1 -z $((2 * block)) -d /tmp/two
    dd if=/dev/zero of=/tmp/zero bs="$block" count=2
    cmp /tmp/zero /tmp/two
    if nvme write-uncor "$DEVICE" -s 0 -c 0; then return 1; fi
}

reservations() {
    printf 'ringside-host-01' >/tmp/hostid
    nvme set-feature "$controller" -f 0x81 -v 1 -l 16 -d /tmp/hostid
    nvme resv-register "$DEVICE" -n 1 --nrkey=0xabc --rrega=0
    nvme resv-acquire "$DEVICE" -n 1 --crkey=0xabc --rtype=1 --racqa=0
    nvme resv-report "$DEVICE" -n 1 --eds | tee /tmp/report
    grep -q 'rtype *: 1' /tmp/report
    dd if=/dev/zero of="$DEVICE" bs=4k count=1 oflag=direct
    nvme resv-release "$DEVICE" -n 1 --crkey=0xabc --rtype=1 --rrela=0
    nvme resv-register "$DEVICE" -n 1 --crkey=0xabc --rrega=1
    nvme resv-report "$DEVICE" -n 1 --eds | grep -q 'regctl *: 0'
}

registers() {
    nvme show-regs "$controller" -H | tee /tmp/regs
    grep -q '^version *: 20000' /tmp/regs || grep -q 'NVMe specification 2.0' /tmp/regs
}

reset() {
    nvme reset "$controller"
    nvme id-ctrl "$controller" >/dev/null
    dd if="$DEVICE" of=/dev/null bs=64k count=4 iflag=direct
}

reset_under_load() {
    fio --name=load --filename="$DEVICE" --ioengine=libaio --direct=1 --rw=randread --bs=4k --iodepth=32 --time_based --runtime=6 \
        >/tmp/load.out 2>&1 &
    load=$!
    for _ in 1 2 3; do
        sleep 1
        nvme reset "$controller"
    done
    wait "$load"
    grep -q 'err= 0' /tmp/load.out
}

subsystem_reset() {
    nvme subsystem-reset "$controller"
    sleep 1
    nvme reset "$controller"
    nvme id-ctrl "$controller" >/dev/null
    dd if="$DEVICE" of=/dev/null bs=64k count=4 iflag=direct
}

# Each size writes 4 MiB at random, then reads and compares them.
fio_verify() {
    fio --name=verify --filename="$DEVICE" --ioengine=libaio --direct=1 --rw=randwrite --bs="$1" --iodepth=16 --size=4m --offset=8m \
        --verify=crc32c --verify_fatal=1 --do_verify=1 --group_reporting
}

queues() {
    must_equal "queues of the block layer" "$QUEUES" "$(find "/sys/block/$path_disk/mq" -mindepth 1 -maxdepth 1 | wc -l)"
    fio --name=spread --filename="$DEVICE" --ioengine=libaio --direct=1 --rw=randread --bs=4k --iodepth=4 --numjobs="$QUEUES" --size=1m \
        --cpus_allowed="0-$((QUEUES - 1))" --cpus_allowed_policy=split --group_reporting
    must_equal "queues with interrupts" "$QUEUES" "$(queue_interrupts | awk '$2 > 0' | wc -l)"
}

discard() {
    blkdiscard --offset 1048576 --length 1048576 "$DEVICE"
    blkdiscard --zeroout --offset 1048576 --length 1048576 "$DEVICE"
    mkfs.ext4 -q -F "$DEVICE"
    e2fsck -f -n "$DEVICE"
    mount -t ext4 "$DEVICE" /mnt
    cp /bin/fio /mnt
    umount /mnt
    mount -t ext4 "$DEVICE" /mnt
    cmp /bin/fio /mnt/fio
    umount /mnt
}

run_case identify identify
run_case logs logs
run_case features features
run_case data_commands data_commands
run_case reservations reservations
run_case registers registers
run_case reset reset
run_case reset_under_load reset_under_load
run_case subsystem_reset subsystem_reset
[ -z "${QUEUES:-}" ] || run_case queues queues
for size in $SIZES; do
    run_case "fio_verify_$size" fio_verify "$size"
done
run_case discard discard
finish_cases
