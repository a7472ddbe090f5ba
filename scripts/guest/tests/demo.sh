# A short fio run for a table: each job's result is one line "FIO NAME JSON" (fio's JSON output, compacted), after the last "FIO-END".
# DESTROYS what is on the disk.
#
# DEVICE        the disk (default: the only one)
# JOB_SECONDS   of each job (default 3)
# JOBS          names of the jobs to run, between blanks (default: all)
# shellcheck shell=sh source-path=SCRIPTDIR source=../cases.sh
. /lib/cases.sh

find_device
dmesg -n 1 # no kernel message amid the JSON

echo "DISK-SIZE $(blockdev --getsize64 "$DEVICE")"

job() { # NAME RW BLOCK_SIZE DEPTH
    case " ${JOBS:-$1} " in *" $1 "*) ;; *) return ;; esac
    fio --name="$1" --filename="$DEVICE" --ioengine=libaio --direct=1 --rw="$2" --bs="$3" --iodepth="$4" \
        --time_based --runtime="${JOB_SECONDS:-3}" --output-format=json --eta=never --output=/tmp/result 2>/tmp/errors
    rc=$?
    if [ "$rc" -ne 0 ]; then
        echo "fio $1 left with status $rc"
        cat /tmp/errors /tmp/result
        exit "$rc"
    fi
    printf 'FIO %s ' "$1"
    tr -s '\n\t ' ' ' </tmp/result
    echo
}

job randread-4k-qd1 randread 4k 1
job randread-4k-qd32 randread 4k 32
job randwrite-4k-qd1 randwrite 4k 1
job randwrite-4k-qd32 randwrite 4k 32
job randrw-4k-qd1 randrw 4k 1
job randrw-4k-qd32 randrw 4k 32
job read-128k-qd32 read 128k 32
echo FIO-END
