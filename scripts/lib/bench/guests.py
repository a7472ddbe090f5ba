"""The same file under the same guest and the same fio, through Ringside and through what QEMU has itself.

A guest without hardware virtualization spends most of its time in QEMU's translator: the figures are for each other, and
for nothing else. It has one virtual processor, so that whoever serves the disk has the other core. Rounds are interleaved:
every way boots once, then every way again.
"""

import contextlib
import json
import os
import statistics
import subprocess
import tempfile
import time

from . import files

JOBS = ("randread-4k-qd1", "randread-4k-qd32", "randwrite-4k-qd32", "read-128k-qd32")


def cache(root):
    return os.environ.get("RINGSIDE_CACHE", os.path.join(root, ".cache")) + "/guest"


def vfio_user(path):
    device = {"driver": "vfio-user-pci", "addr": "4.0", "socket": {"type": "unix", "path": path}}
    return ["--device", json.dumps(device)]


@contextlib.contextmanager
def ringside(run, path, front):
    with run.target() as target:
        target.call("bdev_uring_create", name="File0", filename=path, block_size=512)
        name = target.disk(front, "File0")
        yield vfio_user(f"{target.path}/{name}" + ("/cntrl" if front == "nvme" else ""))


BLOCKDEV = "driver=file,node-name=disk,filename={path},aio=io_uring,cache.direct=on,discard=unmap"


@contextlib.contextmanager
def storage_daemon(run, path, _front):
    """vhost-user-blk, run by the loader and the libraries of the cache, as its launchers do."""
    host = f"{cache(run.root)}/host"
    lib = f"{host}/usr/lib/x86_64-linux-gnu"
    with tempfile.TemporaryDirectory() as folder:
        sock = f"{folder}/vhost"
        command = [f"{lib}/ld-linux-x86-64.so.2", "--argv0", "qemu-storage-daemon", "--library-path", lib, f"{host}/usr/bin/qemu-storage-daemon",
                   "--blockdev", BLOCKDEV.format(path=path),
                   "--export", f"type=vhost-user-blk,id=disk,node-name=disk,addr.type=unix,addr.path={sock},writable=on,num-queues=2"]
        daemon = subprocess.Popen(command, env={**os.environ, "QEMU_MODULE_DIR": f"{lib}/qemu"})
        try:
            while not os.path.exists(sock):
                if daemon.poll() is not None:
                    raise RuntimeError("qemu-storage-daemon has ended")
                time.sleep(0.02)
            yield ["--", "-chardev", f"socket,id=vhost,path={sock}", "-device", "vhost-user-blk-pci,chardev=vhost,num-queues=2"]
        finally:
            daemon.terminate()
            daemon.wait()


@contextlib.contextmanager
def own(run, path, device):
    del run
    yield ["--", "-object", "iothread,id=io", "-blockdev", BLOCKDEV.format(path=path), "-device", device]


WAYS = {
    "Ringside, virtio-blk": (ringside, "split"),
    "Ringside, NVMe": (ringside, "nvme"),
    "qemu-storage-daemon, vhost-user-blk": (storage_daemon, None),
    "QEMU, virtio-blk": (own, "virtio-blk-pci,drive=disk,num-queues=2,iothread=io"),
    "QEMU, nvme": (own, "nvme,drive=disk,serial=bench"),
}


def boot(run, words, log):
    """One guest that runs its jobs; their figures by name."""
    command = [f"{run.root}/scripts/guest/run", "--script", f"{run.root}/scripts/guest/tests/demo.sh", "--env", "JOB_SECONDS=2", "--env", f"JOBS={' '.join(JOBS)}",
               "--smp", "1", "--quiet", "--log", log, *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    told = {}
    with open(log, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("FIO "):
                _, name, text = line.split(" ", 2)
                job = json.loads(text)["jobs"][0]
                half = max((job["read"], job["write"]), key=lambda half: half["total_ios"])
                told[name] = {"iops": half["iops"], "p50_ns": half["clat_ns"]["percentile"]["50.000000"]}
    return told


def section(run):
    """All ways, interleaved."""
    from .sections import table  # the sections name this one

    subprocess.run([f"{run.root}/scripts/guest/fetch"], check=True)
    found = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(dir=run.out) as folder:
        path = files.make(os.path.join(folder, "disk.img"))
        for number in range(run.rounds):
            for way, (serve, what) in WAYS.items():
                with serve(run, path, what) as words:
                    found[way].append(boot(run, words, os.path.join(folder, "log")))
            print(f"  round {number + 1} of {run.rounds}", flush=True)
    rows = [("the same file in the same guest: IOPS, and of Ringside's virtio-blk", *JOBS, "p50 us at depth 1")]
    base = {job: statistics.median(told[job]["iops"] for told in found["Ringside, virtio-blk"]) for job in JOBS}
    for way, told in found.items():
        cells = []
        for job in JOBS:
            iops = sorted(one[job]["iops"] for one in told)
            middle = statistics.median(iops)
            cells.append(f"{middle:,.0f} ({iops[0]:,.0f} to {iops[-1]:,.0f}), {middle / base[job]:.2f}")
        p50 = statistics.median(one[JOBS[0]]["p50_ns"] for one in told) / 1000
        rows.append((way, *cells, f"{p50:.0f}"))
        with open(run.journal.path, "a", encoding="utf-8") as file:
            line = {"section": "guests", "name": way, **run.journal.facts, "samples": told}
            file.write(json.dumps(line) + "\n")
    table(rows)
