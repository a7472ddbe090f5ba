# When the kernel saw the disk, in seconds since its start: one line of its log.
#
# DEVICE    the disk (default: the only one)
# shellcheck shell=sh source-path=SCRIPTDIR
# shellcheck source=../cases.sh
. /lib/cases.sh

find_device
dmesg | grep -E " $disk: |\[$disk\]" | head -n 1
finish_cases
