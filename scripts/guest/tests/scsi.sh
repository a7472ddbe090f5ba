# What a SCSI disk says of itself and does, asked by sg3-utils. DESTROYS what is on its first MiB.
#
# DEVICE  the disk (default: the only one)
# shellcheck shell=sh source-path=SCRIPTDIR
# shellcheck disable=SC2317 # run_case calls what looks unreachable
# shellcheck source=../cases.sh
. /lib/cases.sh

find_device

says_what_it_is() {
    sg_inq "$DEVICE" | tee /tmp/inq
    grep -q RINGSIDE /tmp/inq
    for page in sv sn di bl bdc lbpv; do
        sg_vpd --page=$page "$DEVICE"
    done
    sg_luns "$DEVICE"
}

is_ready_and_has_its_size() {
    sg_turs "$DEVICE"
    sg_readcap "$DEVICE"
    sg_readcap --long "$DEVICE" | grep -q 'Last LBA='
}

unmapped_blocks_read_as_zero() {
    dd if=/dev/urandom of="$DEVICE" bs=64k count=1 oflag=direct
    sg_unmap --force --lba=0 --num=16 "$DEVICE"
    dd if="$DEVICE" of=/tmp/back bs=4k count=2 iflag=direct
    head -c 8192 /dev/zero | cmp - /tmp/back
}

write_same_repeats_its_block() {
    dd if=/dev/urandom of=/tmp/block bs=512 count=1
    sg_write_same --16 --lba=8 --num=700 --xferlen=512 --in=/tmp/block "$DEVICE"
    dd if="$DEVICE" of=/tmp/back bs=512 skip=707 count=1 iflag=direct
    cmp /tmp/block /tmp/back
}

tells_its_commands() {
    sg_opcodes "$DEVICE" | tee /tmp/opcodes
    grep -q 'Verify(16)' /tmp/opcodes
    sg_opcodes --opcode=93 --rctd "$DEVICE"
    sg_requests "$DEVICE"
    sg_modes --all "$DEVICE"
}

verify_compares() {
    dd if=/dev/urandom of=/tmp/blocks bs=512 count=256
    sg_write_verify --16 --lba=64 --num=256 --in=/tmp/blocks "$DEVICE"
    sg_verify --lba=64 --count=256 "$DEVICE"
    sg_verify --16 --lba=64 --count=256 --bpc=256 --ndo=131072 --in=/tmp/blocks "$DEVICE"
    dd if=/dev/zero of=/tmp/blocks bs=512 seek=255 count=1 conv=notrunc
    # Sense key "miscompare" (sg3_utils(8), exit status).
    rc=0
    sg_verify --lba=64 --count=256 --bpc=256 --ndo=131072 --in=/tmp/blocks "$DEVICE" || rc=$?
    [ "$rc" -eq 14 ]
}

reservation_is_taken_and_given_back() {
    sg_persist --out --register --param-sark=0xabc "$DEVICE"
    sg_persist --out --reserve --param-rk=0xabc --prout-type=1 "$DEVICE"
    sg_persist --in --read-keys "$DEVICE" | grep -q 0xabc
    sg_persist --in --read-reservation "$DEVICE" | grep -q 'Write Exclusive'
    sg_persist --out --release --param-rk=0xabc --prout-type=1 "$DEVICE"
    sg_persist --out --register --param-rk=0xabc --param-sark=0 "$DEVICE"
}

resets_leave_it_working() {
    sg_reset --no-escalate --device "$DEVICE"
    sg_reset --no-escalate --target "$DEVICE" || true
    sg_turs "$DEVICE" || sg_turs "$DEVICE"
    dd if="$DEVICE" of=/dev/null bs=64k count=4 iflag=direct
}

run_case "inquiry, vital product data and luns" says_what_it_is
run_case "ready, with its size" is_ready_and_has_its_size
run_case "unmap" unmapped_blocks_read_as_zero
run_case "write same" write_same_repeats_its_block
run_case "supported operation codes, mode pages" tells_its_commands
run_case "verify with data" verify_compares
run_case "persistent reservation" reservation_is_taken_and_given_back
run_case "task management" resets_leave_it_working
finish_cases
