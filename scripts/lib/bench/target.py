"""A running target in a folder of its own, what it has used, and the load generator against it."""

import json
import os
import re
import socket
import subprocess
import tempfile
import time

# The target has the first core, the load the second: interrupts of the host land where they will.
TARGET_CORE, LOAD_CORE = 0, 1
# Seconds of load before a sample.
WARMUP = 0.15
DISK_MIB = 512
NQN = "nqn.2016-06.io.spdk:bench"


def stolen_ticks():
    """Time that the hypervisor took from all processors, in clock ticks (proc(5))."""
    with open("/proc/stat", encoding="ascii") as stat:
        return int(stat.readline().split()[8])


class Target:
    """`ringside` of one build, with the disks it is asked for."""

    def __init__(self, binaries, mask="0x1", arguments=(), generator=None):
        self.generator = f"{generator or binaries}/ringside-bench"
        self.folder = tempfile.TemporaryDirectory()
        self.path = self.folder.name
        self.endpoints = {}
        with open(f"{self.path}/log", "wb") as log:
            self.process = subprocess.Popen(
                [f"{binaries}/ringside", "-m", mask, "--disable-cpumask-locks", "-r", f"{self.path}/rpc.sock", "-S", self.path, *arguments],
                stderr=log)
        for _ in range(2000):
            try:
                self.call("spdk_get_version")
                return
            except OSError:
                time.sleep(0.005)
        self.close()
        raise RuntimeError("the target does not start")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.process.terminate()
        self.process.wait()
        self.folder.cleanup()

    def call(self, method, **params):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{self.path}/rpc.sock")
            request = {"jsonrpc": "2.0", "id": 1, "method": method}
            if params:
                request["params"] = params
            client.sendall(json.dumps(request).encode())
            client.shutdown(socket.SHUT_WR)
            reply = json.loads(b"".join(iter(lambda: client.recv(65536), b"")))
        if "error" in reply:
            raise RuntimeError(f"{method}: {reply['error']}")
        return reply["result"]

    def null(self, name="Null0"):
        self.call("bdev_null_create", name=name, num_blocks=2097152, block_size=512)
        return name

    def malloc(self, name="Malloc0"):
        self.call("bdev_malloc_create", name=name, num_blocks=DISK_MIB * 2048, block_size=512)
        return name

    def disk(self, front, bdev, name=None, **more):
        """An endpoint over a bdev; `front` is split, packed or nvme. Its name. `more` are params of a virtio endpoint."""
        name = name or f"{front}-{bdev}"
        if front == "nvme":
            if not any(end["front"] == "nvme" for end in self.endpoints.values()):
                self.call("nvmf_create_transport", trtype="VFIOUSER", max_queue_depth=1024)
            nqn = f"{NQN}:{name}"
            os.mkdir(f"{self.path}/{name}")
            self.call("nvmf_create_subsystem", nqn=nqn, allow_any_host=True)
            self.call("nvmf_subsystem_add_ns", nqn=nqn, namespace={"bdev_name": bdev})
            self.call("nvmf_subsystem_add_listener", nqn=nqn,
                      listen_address={"trtype": "VFIOUSER", "traddr": f"{self.path}/{name}", "trsvcid": "0"})
        else:
            more = {"num_queues": 2, "qsize": 1024, **more}
            self.call("vfu_virtio_create_blk_endpoint", name=name, bdev_name=bdev, packed_ring=front == "packed", **more)
        self.endpoints[name] = {"front": front, "bdev": bdev}
        return name

    def words(self, names):
        """What points the load generator at these endpoints."""
        fronts = {self.endpoints[name]["front"] for name in names}
        (front,) = fronts
        tail = "/cntrl" if front == "nvme" else ""
        extra = {"split": [], "packed": ["--packed-ring"], "nvme": ["--nvme"]}[front]
        return [word for name in names for word in ("--socket", f"{self.path}/{name}{tail}")] + extra

    def used(self):
        """What its first reactor has done, how long its reactors have waited for a processor, and what the bdevs have served."""
        reactors = self.call("framework_get_reactors")
        waited = 0
        for thread in os.listdir(f"/proc/{self.process.pid}/task"):
            task = f"/proc/{self.process.pid}/task/{thread}"
            with open(f"{task}/comm", encoding="ascii") as comm, open(f"{task}/schedstat", encoding="ascii") as stat:
                # The others may wait: they are asked between the samples only.
                waited += int(stat.read().split()[1]) if comm.read().startswith("reactor") else 0
        stats = self.call("bdev_get_iostat")
        served = sum(bdev["num_read_ops"] + bdev["num_write_ops"] for bdev in stats["bdevs"])
        return {"busy": reactors["reactors"][0]["busy"], "rate": reactors["tick_rate"], "waited_ns": waited, "served": served}

    def resident_kib(self):
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as status:
            return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1])

    def load(self, names, *, depth=1, seconds=0.5, warmup=WARMUP, extra=(), core=LOAD_CORE):
        """One run of the load generator, with what it cost the target. A dict of its figures."""
        names = [names] if isinstance(names, str) else names
        command = [self.generator, "load", *self.words(names), "--depth", str(depth), "--seconds", str(seconds),
                   "--warmup", str(warmup), "--cpu", str(core), "--json", "-", *map(str, extra)]
        before = self.used()
        ran = subprocess.run(command, check=False, capture_output=True, text=True)
        after = self.used()
        if ran.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {ran.stderr}")
        figures = json.loads(ran.stdout.splitlines()[-1])
        served = max(after["served"] - before["served"], 1)
        figures["target_ns"] = (after["busy"] - before["busy"]) * 1e9 / after["rate"] / served
        figures["target_waited_ns"] = after["waited_ns"] - before["waited_ns"]
        return figures
