"""A file as a disk: made, read by fio in process, and by a bdev in process."""

import json
import subprocess

MIB = 512


def make(path):
    """A file with blocks of its own everywhere."""
    with open(path, "wb") as file:
        for number in range(MIB):
            file.write(bytes([number % 251 + 1]) * (1 << 20))
    subprocess.run(["sync", path], check=True)
    return path


def fio(path, depth, seconds, core, registered=False):
    """fio's io_uring engine on a core."""
    more = ["--registerfiles=1", "--fixedbufs=1"] if registered else []
    # Taken in batches as large as the target's: fio's default is one at a time.
    batch = ["--iodepth_batch_submit=32", "--iodepth_batch_complete_min=1", "--iodepth_batch_complete_max=64"] if depth > 1 else []
    command = ["fio", "--name=read", f"--filename={path}", "--ioengine=io_uring", "--direct=1", "--rw=randread", "--bs=4k", f"--iodepth={depth}",
               "--time_based", f"--runtime={seconds}", "--ramp_time=0.2", f"--cpus_allowed={core}", "--norandommap=1", "--randrepeat=0",
               "--output-format=json", *batch, *more]
    read = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["jobs"][0]["read"]
    percentile = read["clat_ns"]["percentile"]
    return {"iops": read["iops"], "p50_ns": percentile["50.000000"], "p99_ns": percentile["99.000000"], "command": command}


def in_process(binaries, path, depth, seconds, core):
    """A uring bdev in the load generator's process, without a front end."""
    params = json.dumps({"name": "File0", "filename": path, "block_size": 512})
    command = [f"{binaries}/ringside-bench", "bdev", "--create", "bdev_uring_create", params, "-q", str(depth), "-t", str(seconds), "--warmup", "0.2",
               "--core", str(core), "--json", "/dev/stdout"]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return {**told, **told.get("latency", {})}
