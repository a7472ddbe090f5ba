"""The same file under the same guest and the same fio, through Ringside and through what QEMU has itself.

A guest without hardware virtualization spends most of its time in QEMU's translator: the figures are for each other, and
for nothing else. QEMU has the second core, with one virtual processor, and whoever serves the disk the first: a program or, in
QEMU, the thread that does. Rounds are interleaved: every way boots once, then every way again. `--realtime` puts those who serve at real-time priority, for a machine that has
other work: a thread that may run on one core only waits for whoever is there otherwise.
"""

import contextlib
import glob
import json
import os
import statistics
import subprocess
import tempfile
import time

from . import files
from .target import LOAD_CORE, TARGET_CORE

# The name here of a process' first thread.
MAIN = "main"
JOBS = ("randread-4k-qd1", "randread-4k-qd32", "randwrite-4k-qd32", "read-128k-qd32")


def cache(root):
    return os.environ.get("RINGSIDE_CACHE", os.path.join(root, ".cache")) + "/guest"


def vfio_user(path):
    device = {"driver": "vfio-user-pci", "addr": "4.0", "socket": {"type": "unix", "path": path}}
    return ["--device", json.dumps(device)]


def place(run, thread):
    """Puts a thread that serves on the first core, ahead of the others if that is wanted."""
    os.sched_setaffinity(thread, {TARGET_CORE})
    if run.realtime:
        os.sched_setscheduler(thread, os.SCHED_RR, os.sched_param(1))


@contextlib.contextmanager
def ringside(run, path, front):
    with run.target() as target:
        target.call("bdev_uring_create", name="File0", filename=path, block_size=512)
        name = target.disk(front, "File0")
        for thread in os.listdir(f"/proc/{target.process.pid}/task"):
            place(run, int(thread))
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
        place(run, daemon.pid)
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


# How it is served, what with, and the thread of QEMU's that serves it.
WAYS = {
    "Ringside, virtio-blk": (ringside, "split", None),
    "Ringside, NVMe": (ringside, "nvme", None),
    "qemu-storage-daemon, vhost-user-blk": (storage_daemon, None, None),
    "QEMU, virtio-blk": (own, "virtio-blk-pci,drive=disk,num-queues=2,iothread=io", "IO io"),
    "QEMU, nvme": (own, "nvme,drive=disk,serial=bench", MAIN),
}


def threads_of_qemu(runner):
    """Threads of the QEMU below a process, by name; none before it has a processor."""
    of = {}
    for stat in glob.glob("/proc/[0-9]*/stat"):
        with contextlib.suppress(OSError), open(stat, encoding="ascii", errors="replace") as file:
            pid, rest = stat.split("/")[2], file.read().rpartition(")")[2].split()
            of.setdefault(rest[1], []).append(pid)
    below = [str(runner)]
    for pid in below:
        below += of.get(pid, [])
    for pid in below:
        with contextlib.suppress(OSError):
            names = {}
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/comm", encoding="ascii", errors="replace") as comm:
                    names[MAIN if task == pid else comm.read().strip()] = int(task)
            if any(name.startswith("CPU ") for name in names):
                return names
    return {}


def boot(run, words, thread, log):
    """One guest that runs its jobs; their figures by name."""
    command = [f"{run.root}/scripts/guest/run", "--script", f"{run.root}/scripts/guest/tests/demo.sh", "--env", "JOB_SECONDS=2", "--env", f"JOBS={' '.join(JOBS)}",
               "--smp", "1", "--quiet", "--log", log, *words]
    with subprocess.Popen(["taskset", "--cpu-list", str(LOAD_CORE), *command], stdout=subprocess.DEVNULL) as runner:
        while thread and runner.poll() is None:
            if serves := threads_of_qemu(runner.pid).get(thread):
                place(run, serves)
                break
            time.sleep(0.05)
    if runner.returncode != 0:
        raise RuntimeError(f"the guest has ended with status {runner.returncode}")
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
            for way, (serve, what, thread) in WAYS.items():
                with serve(run, path, what) as words:
                    found[way].append(boot(run, words, thread, os.path.join(folder, "log")))
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
