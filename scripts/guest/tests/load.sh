# Requests without end, for tests that take something away meanwhile: says "LOADED", and never reports.
#
# DEVICE    the disk (default: the only one)
# shellcheck shell=sh source-path=SCRIPTDIR
# shellcheck source=../cases.sh
. /lib/cases.sh

find_device
fio --name=load --filename="$DEVICE" --ioengine=libaio --direct=1 --rw=randrw --bs=16k --iodepth=32 --numjobs=2 --size=16m \
    --time_based --runtime=600 >/dev/null 2>&1 &
sleep 2
echo "LOADED"
sleep 600
