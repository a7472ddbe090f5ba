# Namespaces that come and go while the first one is under load. Whoever runs this watches the console for "ADD n" and "REMOVE n"
# and does so. DESTROYS what is on them.
#
# ROUNDS    how often (default 3)
# shellcheck shell=sh source-path=SCRIPTDIR
# shellcheck disable=SC2317 # run_case calls what looks unreachable
# shellcheck source=../cases.sh
. /lib/cases.sh

DEVICE=/dev/nvme0n1
find_device
second=/dev/nvme0n2

appears() {
    for _ in $(seq 300); do
        [ -b "$second" ] && return
        sleep 0.1
    done
    return 1
}
vanishes() {
    for _ in $(seq 300); do
        [ -b "$second" ] || return 0
        sleep 0.1
    done
    return 1
}
takes_requests() {
    fio --name=verify --filename="$second" --ioengine=libaio --direct=1 --rw=randwrite --bs=4k --iodepth=16 --size=4m \
        --verify=crc32c --verify_fatal=1
}
load_is_unharmed() {
    kill -INT "$load"
    # A case runs in a shell of its own, whose child it is not: its last words tell that it is over.
    for _ in $(seq 300); do
        grep -q 'err=' /tmp/load.out && break
        sleep 0.1
    done
    cat /tmp/load.out
    grep -q 'err= 0' /tmp/load.out
}

fio --name=load --filename="$DEVICE" --ioengine=libaio --direct=1 --rw=randwrite --bs=4k --iodepth=16 --size=8m --time_based \
    --runtime=600 --verify=crc32c --verify_backlog=64 --verify_fatal=1 >/tmp/load.out 2>&1 &
load=$!
for round in $(seq "${ROUNDS:-3}"); do
    echo "ADD $round"
    run_case "appears_$round" appears
    run_case "takes_requests_$round" takes_requests
    # Removed under load too.
    fio --name=second --filename="$second" --ioengine=libaio --direct=1 --rw=randread --bs=4k --iodepth=16 --size=4m \
        --time_based --runtime=60 >/dev/null 2>&1 &
    sleep 1
    echo "REMOVE $round"
    run_case "vanishes_$round" vanishes
done
run_case load_is_unharmed load_is_unharmed
finish_cases
