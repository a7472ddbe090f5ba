# SPDK's own NVMe driver instead of Linux': all of spdk/initiator.c, then Linux' driver again, which must find what SPDK's has
# written. DESTROYS what is on the disk. Wants the files that scripts/guest/spdk/build names (run --file), and 1 GiB of RAM.
#
# DEVICE      the disk (default: the only one), 16 MiB or more
# shellcheck shell=sh source-path=SCRIPTDIR
# shellcheck disable=SC2317 # run_case calls what looks unreachable
# shellcheck source=../cases.sh
. /lib/cases.sh

find_device
address=$(pci_address)
pages=160

# By the override, as no other function is to follow.
hand_to() {
    echo "$1" >"/sys/bus/pci/devices/$address/driver_override"
    echo "$address" >"/sys/bus/pci/devices/$address/driver/unbind"
    echo "$address" >/sys/bus/pci/drivers_probe
    must_equal "driver of $address" "$1" "$(basename "$(readlink -f "/sys/bus/pci/devices/$address/driver")")"
}
given_to_spdk() {
    load spdk
    # Where DPDK keeps its own files, and its memory.
    mkdir -p /dev/hugepages /var/run
    mount -t hugetlbfs hugetlbfs /dev/hugepages
    echo "$pages" >/proc/sys/vm/nr_hugepages
    must_equal "huge pages" "$pages" "$(cat /proc/sys/vm/nr_hugepages)"
    hand_to uio_pci_generic
}
spdk_does_all_of_it() {
    grep -q '^ok   all of it' /tmp/initiator.out || {
        tail -n 40 /tmp/spdk.log
        tail -n 1 /tmp/initiator.out
        return 1
    }
}
linux_finds_what_spdk_wrote() {
    hand_to nvme
    wait_block "$DEVICE"
    spdk-initiator --left-behind "$DEVICE"
}

run_case given_to_spdk given_to_spdk
# What it shows is of interest when it passes, too; what the driver says goes to its log.
spdk-initiator "$address" 2>/tmp/spdk.log | tee /tmp/initiator.out
run_case spdk_does_all_of_it spdk_does_all_of_it
run_case linux_finds_what_spdk_wrote linux_finds_what_spdk_wrote
finish_cases
