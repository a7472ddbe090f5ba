# Test cases inside the guest: sourced by the scripts of tests/ as /lib/cases.sh (scripts/guest/initrd puts it there).
#
# Variables that all of them share, given by `run --env` or by words of the kernel line: DEVICE (default: the only disk there is),
# RUN_ID (set by `run`, the same over the reboots of one run).
# shellcheck shell=sh

failed_cases=0

# run_case NAME FUNCTION [ARGUMENT...]: runs a function, stopping at the first command that fails in it; shows its output then.
run_case() {
    case_name=$1
    shift
    case_start=$(now_centiseconds)
    # Not in an `if`: that would switch -e off inside.
    (set -e; "$@") >/tmp/case.out 2>&1
    case_rc=$?
    case_took=$(($(now_centiseconds) - case_start))
    case_took=$((case_took / 100)).$((case_took / 10 % 10))
    if [ "$case_rc" -eq 0 ]; then
        echo "CASE pass $case_name ($case_took s)"
    else
        failed_cases=$((failed_cases + 1))
        echo "CASE FAIL $case_name ($case_took s), rc=$case_rc:"
        tail -n 60 /tmp/case.out | sed 's/^/    /'
    fi
}

# Ends the script: status 0 only when no case failed.
finish_cases() {
    echo "CASES $failed_cases failed"
    [ "$failed_cases" -eq 0 ]
    exit
}

# must_equal WHAT EXPECTED ACTUAL
must_equal() {
    [ "$2" = "$3" ] && return
    echo "$1: expected '$2', got '$3'"
    return 1
}

now_centiseconds() {
    read -r case_uptime _ </proc/uptime
    # The leading 1 keeps a fraction like .08 from being read as octal.
    echo $((${case_uptime%.*} * 100 + 1${case_uptime#*.} - 100))
}

# The disk under test: /sys/block holds nothing but real disks here (no loop, no RAM disk driver is loaded).
find_device() {
    if [ -z "${DEVICE:-}" ]; then
        for disk in /sys/block/*; do
            DEVICE=/dev/${disk##*/}
        done
    fi
    if [ ! -b "$DEVICE" ]; then
        echo "no disk $DEVICE; /sys/block:" /sys/block/*
        lspci -nn
        exit 1
    fi
    disk=${DEVICE##*/}
    # With native multipath an NVMe disk stands for its paths: the queues are those of a path's hidden disk, nvme0c0n1.
    path_disk=$disk
    for path in /sys/block/"${disk%n*}"c*"n${disk##*n}"; do
        if [ -d "$path" ]; then path_disk=${path##*/}; fi
    done
    echo "DISK $DEVICE"
}

# partition N: its device, vda1 or nvme0n1p1.
partition() {
    case $DEVICE in
        *[0-9]) echo "${DEVICE}p$1" ;;
        *) echo "$DEVICE$1" ;;
    esac
}

# wait_block PATH: until udev, had we one, would have made it.
wait_block() {
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        [ -b "$1" ] && return
        sleep 0.1
    done
    echo "$1 did not appear"
    return 1
}

# The PCI address of the function that the disk hangs on.
pci_address() {
    readlink -f "/sys/block/$path_disk/device" | grep -o '[0-9a-f]\{4\}:[0-9a-f]\{2\}:[0-9a-f]\{2\}\.[0-7]' | tail -n 1
}

# Completion counts of the disk's queues, one "NAME COUNT" a line, from /proc/interrupts. virtio names its vectors virtioN-req.Q,
# nvme nvmeNqQ, where q0 is the admin queue.
queue_interrupts() {
    case $disk in
        nvme*) queue_names="^${disk%n*}q[1-9][0-9]*\$" ;;
        *) queue_names="^$(basename "$(readlink -f "/sys/block/$disk/device")")-req\." ;;
    esac
    awk -v names="$queue_names" '$NF ~ names { n = 0; for (i = 2; $i ~ /^[0-9]+$/; i++) n += $i; print $NF, n }' /proc/interrupts
}
