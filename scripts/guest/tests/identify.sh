# What the guest sees of the disk: PCI function, MSI-X in use, block layer attributes.
#
# DEVICE    the disk (default: the only one)
# PCI_ID    expected vendor:device in hexadecimal, such as 1af4:1042; not checked when empty
# SERIAL    expected serial; not checked when empty
# shellcheck shell=sh source-path=SCRIPTDIR
# shellcheck disable=SC2317 # run_case calls what looks unreachable
# shellcheck source=../cases.sh
. /lib/cases.sh

find_device
address=$(pci_address)
lspci -vvv -nn -s "$address" 2>/dev/null # it misses the module index

attribute() {
    [ -r "$1" ] && echo "ATTR ${1#"/sys/block/$disk/"}=$(cat "$1")"
}
for name in size ro serial queue/logical_block_size queue/physical_block_size queue/minimum_io_size queue/optimal_io_size \
    queue/max_hw_sectors_kb queue/max_segments queue/max_segment_size queue/nr_requests queue/write_cache queue/fua queue/rotational \
    queue/discard_max_bytes queue/discard_granularity queue/write_zeroes_max_bytes queue/scheduler; do
    attribute "/sys/block/$disk/$name"
done
echo "ATTR mq=$(cd "/sys/block/$disk/mq" && echo *)"
queue_interrupts | sed 's/^/IRQ /'
case $disk in
    nvme*)
        nvme id-ctrl "/dev/${disk%n*}"
        nvme id-ns "$DEVICE"
        ;;
esac

msix_is_enabled() {
    lspci -vv -s "$address" 2>/dev/null | grep 'MSI-X: Enable+'
}
pci_id_matches() {
    must_equal "vendor:device" "$PCI_ID" "$(lspci -n -s "$address" | awk '{ print $3 }')"
}
serial_matches() {
    must_equal serial "$SERIAL" "$(sed 's/ *$//' "/sys/block/$disk/serial")"
}
reads_first_and_last_block() {
    block=$(blockdev --getss "$DEVICE")
    last=$(($(blockdev --getsize64 "$DEVICE") / block - 1))
    dd if="$DEVICE" of=/dev/null bs="$block" count=1 iflag=direct
    dd if="$DEVICE" of=/dev/null bs="$block" count=1 iflag=direct skip="$last"
}

run_case msix_is_enabled msix_is_enabled
[ -z "${PCI_ID:-}" ] || run_case pci_id_matches pci_id_matches
[ -z "${SERIAL:-}" ] || run_case serial_matches serial_matches
run_case reads_first_and_last_block reads_first_and_last_block
finish_cases
