# Two SCSI disks with data that are verified, and a third that comes, is used, and goes. Whoever runs this watches the console for
# "PLUG n" and "UNPLUG n" and does so. DESTROYS what is on them.
#
# Disks are found by their address: target 0 and 1 are there from the start, target 2 comes and goes.
# shellcheck shell=sh source-path=SCRIPTDIR
# shellcheck disable=SC2317 # run_case calls what looks unreachable
# shellcheck source=../cases.sh
. /lib/cases.sh

# disk_of TARGET: its device, nothing while there is none.
disk_of() {
    for found in /sys/class/scsi_device/*:0:"$1":0/device/block/*; do
        if [ -e "$found" ]; then echo "/dev/${found##*/}"; fi
    done
}

# wait_for TARGET: prints its device once it is there and can be opened.
wait_for() {
    for _ in $(seq 200); do
        found=$(disk_of "$1")
        [ -n "$found" ] && [ -b "$found" ] && break
        sleep 0.1
    done
    echo "$found"
    [ -b "$found" ]
}

vanishes() {
    for _ in $(seq 400); do
        [ -z "$(disk_of 2)" ] && return
        sleep 0.1
    done
    return 1
}

verify() {
    fio --name=verify --filename="$1" --ioengine=libaio --direct=1 --rw=randwrite --bs="$2" --iodepth="$3" --size=8m \
        --numjobs=2 --offset_increment=8m --verify=crc32c --verify_fatal=1 --do_verify=1 --group_reporting
}

units_are_two() {
    wait_for 0
    wait_for 1
    must_equal "disks" 2 "$(find /sys/class/scsi_device -mindepth 1 -maxdepth 1 | wc -l)"
    for target in 0 1; do
        sg_luns "$(disk_of $target)"
        sg_turs "$(disk_of $target)"
    done
    must_equal "names differ" 2 "$(for target in 0 1; do sg_vpd --page=sn "$(disk_of $target)"; done | sort -u | grep -c 'serial number: ')"
}

# Both at once, so that the units' channels work side by side.
both_verify() {
    verify "$(disk_of 0)" 4k 16 >/tmp/first 2>&1 &
    verify "$(disk_of 1)" 64k 8
    wait $! || { cat /tmp/first; return 1; }
}

many_ranges_are_unmapped() {
    device=$(disk_of 0)
    dd if=/dev/urandom of="$device" bs=64k count=1 oflag=direct
    sg_unmap --force --lba=0,16,64 --num=8,8,8 "$device"
    dd if="$device" of=/tmp/back bs=512 count=72 iflag=direct
    for at in 0 16 64; do
        dd if=/tmp/back of=/tmp/part bs=512 skip=$at count=8
        head -c 4096 /dev/zero | cmp - /tmp/part
    done
    dd if=/tmp/back of=/tmp/part bs=512 skip=8 count=8
    ! head -c 4096 /dev/zero | cmp -s - /tmp/part
}

file_system_is_trimmed() {
    device=$(disk_of 1)
    mkfs.ext4 -q -F "$device"
    mount -t ext4 "$device" /mnt
    dd if=/dev/urandom of=/mnt/file bs=1M count=4 conv=fsync
    rm /mnt/file
    fstrim -v /mnt
    umount /mnt
    e2fsck -f -n "$device"
}

appears() { wait_for 2; }
takes_requests() { verify "$(disk_of 2)" 4k 16; }
others_are_there() {
    for target in 0 1; do
        dd if="$(disk_of $target)" of=/dev/null bs=64k count=16 iflag=direct
    done
}

run_case units_are_two units_are_two
run_case both_verify both_verify
run_case many_ranges_are_unmapped many_ranges_are_unmapped
run_case file_system_is_trimmed file_system_is_trimmed
for round in 1 2; do
    echo "PLUG $round"
    run_case "appears_$round" appears
    run_case "takes_requests_$round" takes_requests
    fio --name=load --filename="$(disk_of 2)" --ioengine=libaio --direct=1 --rw=randread --bs=4k --iodepth=16 --size=8m \
        --time_based --runtime=60 >/dev/null 2>&1 &
    sleep 1
    echo "UNPLUG $round"
    run_case "vanishes_$round" vanishes
    run_case "others_are_there_$round" others_are_there
done
finish_cases
