# A disk that is plugged in while the guest runs, used, unplugged under load, and plugged in again, three times. Whoever runs
# this watches the console for "PLUG n" and "UNPLUG n", and does so by QMP. DESTROYS what is on the disk.
# shellcheck shell=sh source-path=SCRIPTDIR
# shellcheck disable=SC2317 # run_case calls what looks unreachable
# shellcheck source=../cases.sh
. /lib/cases.sh

DEVICE=/dev/vda
appears() {
    for _ in $(seq 200); do
        [ -b "$DEVICE" ] && return
        sleep 0.1
    done
    return 1
}
vanishes() {
    for _ in $(seq 300); do
        [ -b "$DEVICE" ] || return 0
        sleep 0.1
    done
    return 1
}
takes_requests() {
    fio --name=verify --filename="$DEVICE" --ioengine=libaio --direct=1 --rw=randwrite --bs=4k --iodepth=16 --size=4m \
        --verify=crc32c --verify_fatal=1
}
start_load() {
    fio --name=load --filename="$DEVICE" --ioengine=libaio --direct=1 --rw=randread --bs=64k --iodepth=16 --size=16m \
        --time_based --runtime=60 >/dev/null 2>&1 &
    load=$!
}
# fio takes a disk that is gone for one at its end, and goes on; while it holds it open, the next one gets another name.
stop_load() {
    kill "$load"
    wait "$load" || true
}

for round in 1 2 3; do
    echo "PLUG $round"
    run_case "appears_$round" appears
    run_case "takes_requests_$round" takes_requests
    start_load
    sleep 1
    echo "UNPLUG $round"
    run_case "vanishes_$round" vanishes
    stop_load
    # Linux takes no notice of a slot for a second after it has switched it off (drivers/pci/hotplug/pciehp_ctrl.c).
    sleep 3
done
finish_cases
