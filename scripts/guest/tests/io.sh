# A short look at a disk: verified data in several sizes and depths, and by which interrupts it works. DESTROYS what is on it.
#
# DEVICE    the disk (default: the only one), 32 MiB or more
# IRQ       "msix" or "pin": what the disk must use; not checked when empty
# IMAGE     another disk, whose content is copied onto DEVICE at the end
# shellcheck shell=sh source-path=SCRIPTDIR
# shellcheck disable=SC2317 # run_case calls what looks unreachable
# shellcheck source=../cases.sh
. /lib/cases.sh

find_device

# fio_verify OPTIONS...: two jobs on two CPUs.
fio_verify() {
    fio --name=verify --filename="$DEVICE" --ioengine=libaio --direct=1 --rw=randwrite --numjobs=2 --size=8m \
        --offset_increment=8m --cpus_allowed=0-1 --cpus_allowed_policy=split --verify=crc32c --verify_fatal=1 \
        --do_verify=1 --group_reporting "$@"
}
works_by_msix() {
    lspci -vv -s "$(pci_address)" 2>/dev/null | grep 'MSI-X: Enable+'
}
works_by_pin() {
    lspci -vv -s "$(pci_address)" 2>/dev/null | grep 'MSI-X: Enable-'
    grep -E "IO-APIC.*(virtio|nvme)" /proc/interrupts
}
copies_image() {
    dd if="$IMAGE" of="$DEVICE" bs=1M oflag=direct
    sync
}

run_case fio_verify_4k fio_verify --bs=4k --iodepth=16
run_case fio_verify_64k fio_verify --bs=64k --iodepth=4
run_case fio_verify_1m fio_verify --bs=1m --iodepth=2
[ -z "${IRQ:-}" ] || run_case "works_by_$IRQ" "works_by_$IRQ"
[ -z "${IMAGE:-}" ] || run_case copies_image copies_image
finish_cases
