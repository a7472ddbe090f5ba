"""The sections of scripts/bench: what is measured, against which limit, and how it is shown."""

import contextlib
import functools
import itertools
import json
import os
import re
import statistics
import subprocess
import tempfile
import time

from . import files, guests, plots
from .samples import Point, interleave
from .target import LOAD_CORE, NQN, TARGET_CORE, WARMUP, Target

FRONTS = ("split", "packed", "nvme")
NAMES = {"split": "virtio split", "packed": "virtio packed", "nvme": "NVMe",
         "split-indirect": "virtio split, indirect", "packed-indirect": "virtio packed, indirect"}
# What a driver may do that has more than a few requests in flight. Linux's and Windows' virtio drivers put the descriptors of a request
# into a table of its own wherever they may (indirect), SPDK's has them in the ring.
LAYOUTS = ("split", "split-indirect", "packed", "packed-indirect", "nvme")
# Entries of a queue of NVMe as Linux asks for them, of a controller that allows as many.
HOSTS_RING = 1024
# SPDK 26.09-pre on a machine of the same kind, the target on one core and a lean client on the other, IOPS in millions:
# ratios carry over, absolutes do not.
INCUMBENT = {
    ("split", 1): 1.24, ("split", 32): 2.9, ("split", 128): 5.3,
    ("packed", 1): 2.7, ("packed", 32): 2.9, ("packed", 128): 3.6,
    ("nvme", 1): 0.95, ("nvme", 32): 2.6, ("nvme", 128): 4.6,
    ("malloc", 1): 0.47, ("malloc", 32): 1.15, ("malloc", 128): 0.91,
}
TARGET_NS = {"split": 50, "packed": 40, "nvme": 60}
IDLE_ENDPOINTS = 100


class Run:
    """What a section works with, and the lines that are told in the end."""

    def __init__(self, root, binaries, rounds, seconds, repeats, out, journal, realtime=False):
        self.root, self.binaries, self.rounds, self.seconds, self.repeats = root, binaries, rounds, seconds, repeats
        self.out, self.journal, self.realtime = out, journal, realtime
        self.bars = []
        self.noisy = self.taken = 0

    def target(self, **more):
        return Target(self.binaries, **more)

    def measure(self, section, points, keys, rounds=None, repeats=None, **more):
        """Takes interleaved samples of all points and writes them down."""
        interleave(points, rounds or self.rounds, self.repeats if repeats is None else repeats, lambda line: print(line, flush=True))
        for point in points:
            if keys:
                self.journal.write(section, point, keys, **more)
            self.noisy += point.noisy()
            self.taken += len(point.samples)

    def bar(self, what, value, wanted, is_met, unit=""):
        """A figure that the project is held to."""
        self.bars.append((what, f"{value}{unit}", wanted, "met" if is_met else "MISSED"))

    def plot(self, name, **what):
        plots.lines(os.path.join(self.out, f"{name}.svg"), **what)

    def summary(self, words):
        print(f"\n== bars\n{words}; {self.noisy} of {self.taken} samples noisy in spite of repeats")
        table([("what", "measured", "wanted", "")] + self.bars)


def table(rows):
    """Prints rows under each other."""
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  " + "  ".join(f"{cell!s:<{width}}" for cell, width in zip(row, widths)).rstrip())
    print(flush=True)


def with_spread(point, key, scale=1.0, digits=2):
    low, high = point.spread(key)
    return f"{point.median(key) * scale:.{digits}f} ({low * scale:.{digits}f} to {high * scale:.{digits}f})"


def limits(run, **more):
    """What the machine can do at best, as a dict of nanoseconds."""
    words = [word for key, value in more.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    command = [f"{run.binaries}/ringside-bench", "limits", "--cpu", str(TARGET_CORE), "--peer", str(LOAD_CORE),
               "--seconds", str(run.seconds / 2), *words]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def front_of(layout):
    return layout.split("-")[0]


def chains_of(layout):
    """What has the load generator lay out requests so."""
    return ["--indirect", "on"] if layout.endswith("-indirect") else []


def loads(run, target, layout, depth, bdev="Null0", share=1, extra=()):
    """A point: the load generator against an endpoint that is there already, for a share of the time of a sample."""
    name, extra = f"{front_of(layout)}-{bdev}", [*chains_of(layout), *extra]
    return Point(f"{NAMES[layout]}, {bdev}, depth {depth}",
                 lambda: flat(target.load(name, depth=depth, seconds=run.seconds * share, warmup=WARMUP * share, extra=extra)))


def flat(figures):
    """The figures of a load with its percentiles beside the rest."""
    figures.update(figures.pop("latency"))
    return figures


LOAD_KEYS = ("iops", "target_ns", "p50_ns", "p99_ns", "p99_9_ns", "own_ns")


def figures(run):
    """The null bdev at three depths by each front, and the round trip of a ring without a device."""
    with run.target() as target:
        bdev = target.null()
        for front in FRONTS:
            target.disk(front, bdev)
        points = {(front, depth): loads(run, target, front, depth) for front in FRONTS for depth in (1, 32, 128)}
        best = Point("ring ping-pong", lambda: limits(run, size_mib=1))
        run.measure("figures", [*points.values(), best], ())
    for point in points.values():
        run.journal.write("figures", point, LOAD_KEYS)
    run.journal.write("figures", best, ("line_ns", "ring_ns"))
    rows = [("null, 4 KiB random reads", "M IOPS", "x incumbent", "target ns/IO", "p50 us", "p99 us", "generator ns/IO")]
    for (front, depth), point in points.items():
        ratio = point.median("iops") / 1e6 / INCUMBENT[front, depth]
        rows.append((f"{NAMES[front]}, depth {depth}", with_spread(point, "iops", 1e-6), f"{ratio:.2f}", with_spread(point, "target_ns", 1, 1),
                     with_spread(point, "p50_ns", 1e-3), f"{point.median('p99_ns') / 1e3:.2f}", f"{point.median('own_ns'):.0f}"))
        run.bar(f"null, {NAMES[front]}, depth {depth}: against the incumbent", f"{ratio:.2f}", "at least 2", ratio >= 2, " x")
    table(rows)
    table([("limits", "ns"), ("a cache line there and one back", with_spread(best, "line_ns", 1, 0)),
           ("a ring's lines there and back (ping-pong)", with_spread(best, "ring_ns", 1, 0))])
    for front in FRONTS:
        ns = points[front, 128].median("target_ns")
        run.bar(f"null, {NAMES[front]}, depth 128: target's time", f"{ns:.1f}", f"under {TARGET_NS[front]} ns", ns < TARGET_NS[front], " ns")
        ratio = points[front, 1].median("p50_ns") / best.median("ring_ns")
        run.bar(f"null, {NAMES[front]}, depth 1: median / ring ping-pong", f"{ratio:.2f}", "at most 1.2", ratio <= 1.2)


def malloc(run):
    """Memory, against a loop that copies; and long reads."""
    with run.target() as target:
        bdev = target.malloc()
        target.disk("split", bdev)
        target.load("split-Malloc0", depth=32, seconds=0.5, extra=["--rw", "write", "--bs", "128k"])
        points = {depth: loads(run, target, "split", depth, bdev) for depth in (1, 32, 128)}
        long = loads(run, target, "split", 32, bdev, extra=["--bs", "128k"])
        long.name += ", 128 KiB"
        best = Point("copy loop", lambda: limits(run))
        run.measure("malloc", [*points.values(), long, best], ())
        for point in [*points.values(), long]:
            run.journal.write("malloc", point, LOAD_KEYS)
        run.journal.write("malloc", best, ("copy_arena_ns", "copy_plain_ns"))
    copies = 1e9 / best.median("copy_arena_ns")
    rows = [("malloc 512 MiB, random reads", "M IOPS", "x incumbent", "target ns/IO", "p50 us", "p99 us")]
    for depth, point in points.items():
        ratio = point.median("iops") / 1e6 / INCUMBENT["malloc", depth]
        rows.append((f"4 KiB, depth {depth}", with_spread(point, "iops", 1e-6), f"{ratio:.2f}", with_spread(point, "target_ns", 1, 0),
                     with_spread(point, "p50_ns", 1e-3), f"{point.median('p99_ns') / 1e3:.2f}"))
        run.bar(f"malloc, depth {depth}: against the incumbent", f"{ratio:.2f}", "at least 1.3", ratio >= 1.3, " x")
    rows.append(("128 KiB, depth 32", f"{long.median('iops') * 131072 / 1e9:.1f} GB/s", f"{long.median('iops') * 131072 / 12e9:.2f}",
                 with_spread(long, "target_ns", 1, 0), with_spread(long, "p50_ns", 1e-3), f"{long.median('p99_ns') / 1e3:.2f}"))
    rows.append(("copy loop, memory as the bdev's", f"{copies / 1e6:.2f}", "", with_spread(best, "copy_arena_ns", 1, 0), "", ""))
    rows.append(("copy loop, plain pages", f"{1e3 / best.median('copy_plain_ns'):.2f}", "", with_spread(best, "copy_plain_ns", 1, 0), "", ""))
    table(rows)
    ratio = points[128].median("iops") / copies
    run.bar("malloc, depth 128: IOPS / copies of the loop", f"{ratio:.3f}", "at least 0.90", ratio >= 0.9)


def load(run):
    """Latency at fixed rates: open loop, timed from when each request was due."""
    shares = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
    with run.target() as target:
        bdev = target.null()
        for front in FRONTS:
            target.disk(front, bdev)
        found = {}
        for front in FRONTS:
            peak = statistics.median(target.load(f"{front}-{bdev}", depth=128, seconds=run.seconds)["iops"] for _ in range(3))
            found[front] = [(share * peak, share, loads(run, target, front, 128, extra=["--rate", int(share * peak)])) for share in shares]
        points = [point for group in found.values() for _, _, point in group]
        run.measure("load", points, (), rounds=min(run.rounds, 3))
        for group in found.values():
            for rate, share, point in group:
                run.journal.write("load", point, LOAD_KEYS, rate=rate, share=share)
    rows = [("open loop, null", "offered M/s", "of peak", "done M/s", "p50 us", "p99 us", "p99.9 us", "p99.9/p50")]
    for front, group in found.items():
        for rate, share, point in group:
            ratio = point.median("p99_9_ns") / max(point.median("p50_ns"), 1)
            rows.append((NAMES[front], f"{rate / 1e6:.2f}", f"{share:.0%}", f"{point.median('iops') / 1e6:.2f}", with_spread(point, "p50_ns", 1e-3),
                         with_spread(point, "p99_ns", 1e-3), with_spread(point, "p99_9_ns", 1e-3), f"{ratio:.1f}"))
            if share == 0.5:
                run.bar(f"open loop at half of the peak, {NAMES[front]}: p99.9 / median", f"{ratio:.1f}", "under 20", ratio < 20)
    table(rows)
    for key, name in (("p50_ns", "median"), ("p99_9_ns", "p99.9")):
        series = [(NAMES[front], [(rate / 1e6, point.median(key) / 1e3, *(value / 1e3 for value in point.spread(key))) for rate, _, point in group])
                  for front, group in found.items()]
        run.plot(f"latency-{name.replace('.', '_')}", title=f"Latency against load: {name}",
                 subtitle="4 KiB random reads of a null bdev, open loop, timed from when each request was due; up to 95 % of the peak",
                 x="requests a second, in millions", y="microseconds (logarithmic)", series=series, y_log=True)


def depth(run):
    """From one request in flight to a thousand."""
    depths = [2**power for power in range(11)]
    with run.target() as target:
        bdev = target.null()
        for front in FRONTS:
            target.disk(front, bdev)
        # One entry of an NVMe queue stays free. Many short samples, none repeated: depths are compared, and the machine changes its
        # state meanwhile.
        found = {layout: {d: loads(run, target, layout, min(d, 1023) if layout == "nvme" else d, share=1 / 4) for d in depths}
                 for layout in LAYOUTS}
        run.measure("depth", [point for group in found.values() for point in group.values()], LOAD_KEYS,
                    rounds=4 * min(run.rounds, 3), repeats=0)
    rows = [("null, M IOPS at depth", *depths)]
    for layout, group in found.items():
        rows.append((NAMES[layout], *(f"{group[d].median('iops') / 1e6:.2f}" for d in depths)))
        worst = min((group[d].median("iops") / max(group[e].median("iops") for e in group if e <= d), d) for d in group)
        run.bar(f"depth 1 to 1024, {NAMES[layout]}: least IOPS / best at a lower depth", f"{worst[0]:.3f} (depth {worst[1]})", "at least 1, noise 0.03", worst[0] >= 0.97)
    table(rows)
    series = [(NAMES[layout], [(d, point.median("iops") / 1e6, *(value / 1e6 for value in point.spread("iops"))) for d, point in group.items()])
              for layout, group in found.items()]
    run.plot("iops-depth", title="Throughput against depth", subtitle="4 KiB random reads of a null bdev, closed loop, one queue, one core each",
             x="requests in flight", y="million requests a second", series=series, x_log=True, x_ticks=[1, 4, 16, 64, 256, 1024])


def endpoints(run):
    """The same load over more and more endpoints: few requests in flight on each of many, and enough of them."""
    counts, totals = (1, 4, 16, 64), (128, 1024)
    layouts = ("split", "split-indirect", "packed-indirect", "nvme")
    with run.target() as target:
        # A bdev each: a namespace claims its own.
        for front in FRONTS:
            for number in range(counts[-1]):
                target.disk(front, target.null(f"{front}-{number}"), f"{front}{number}")

        def spread_over(layout, total, count):
            names = [f"{front_of(layout)}{number}" for number in range(count)]
            # One entry of an NVMe queue stays free.
            each = min(total // count, 1023 if layout == "nvme" else total)
            return Point(f"{NAMES[layout]}, {count} endpoints, {total} in flight",
                         lambda: flat(target.load(names, depth=each, seconds=run.seconds, extra=chains_of(layout))))

        found = {key: spread_over(*key) for key in itertools.product(layouts, totals, counts)}
        run.measure("endpoints", [*found.values()], LOAD_KEYS, rounds=min(run.rounds, 3))
    for total in totals:
        rows = [(f"null, {total} in flight over", *(f"{count}" for count in counts))]
        for layout in layouts:
            points = [found[layout, total, count] for count in counts]
            rows.append((f"{NAMES[layout]}, M IOPS", *(f"{point.median('iops') / 1e6:.2f}" for point in points)))
            rows.append((f"{NAMES[layout]}, target ns/IO", *(f"{point.median('target_ns'):.1f}" for point in points)))
            rows.append((f"{NAMES[layout]}, generator ns/IO", *(f"{point.median('own_ns'):.1f}" for point in points)))
            ratio = points[-1].median("iops") / points[0].median("iops")
            run.bar(f"1 to 64 endpoints, {NAMES[layout]}, {total} in flight: IOPS at 64 / at 1", f"{ratio:.2f}", "at least 0.90", ratio >= 0.9)
        table(rows)
    series = [(f"{NAMES[layout]}, {total} in flight", [(count, point.median("target_ns"), *point.spread("target_ns"))
                                                       for count in counts for point in [found[layout, total, count]]])
              for layout in ("split-indirect", "nvme") for total in totals]
    run.plot("cost-endpoints", title="Cost against number of endpoints", subtitle="Target's time for a 4 KiB read of a null bdev, requests in flight over all of them, one reactor",
             x="endpoints", y="nanoseconds of the reactor per request", series=series, x_log=True, x_ticks=counts)


def queue_pairs(run):
    """The same depth over one NVMe queue pair and over sixteen, in rings as short as they can be, and in those of a host."""
    totals, rings = (128, 512), (None, HOSTS_RING)
    with run.target() as target:
        name = target.disk("nvme", target.null())

        def pairs_of(total, ring, pairs):
            extra = ["--queues", pairs, *(["--ring-size", ring] if ring else [])]
            return Point(f"NVMe, {pairs} queue pairs, {total} in flight, rings of {ring or 'no more'}",
                         lambda: flat(target.load(name, depth=total // pairs, seconds=run.seconds, extra=extra)))

        found = {key: pairs_of(*key) for key in itertools.product(totals, rings, (1, 16))}
        run.measure("queue_pairs", [*found.values()], LOAD_KEYS)
    rows = [("NVMe, null", "M IOPS", "target ns/IO", "generator ns/IO", "p50 us")]
    for (total, ring, pairs), point in found.items():
        rows.append((f"{pairs} queue pairs, {total} in flight, rings of {ring or total // pairs + 1}", with_spread(point, "iops", 1e-6),
                     with_spread(point, "target_ns", 1, 1), f"{point.median('own_ns'):.1f}", with_spread(point, "p50_ns", 1e-3)))
    table(rows)
    for total, ring in itertools.product(totals, rings):
        ratio = found[total, ring, 16].median("iops") / found[total, ring, 1].median("iops")
        run.bar(f"16 queue pairs / 1, {total} in flight, rings of {ring or 'no more'}: IOPS", f"{ratio:.2f}", "at least 0.95", ratio >= 0.95)


def stages(run):
    """Where the target says its time goes."""
    with run.target() as target:
        target.null()
        target.malloc()
        names = [(front, bdev, target.disk(front, bdev)) for bdev in ("Null0", "Malloc0") for front in FRONTS]
        rows = []
        for front, bdev, name in names:
            for in_flight in (1, 128):
                words = [f"{run.binaries}/ringside-bench", "load", *target.words([name]), "--depth", str(in_flight), "--seconds", "1.5",
                         "--warmup", "0", "--cpu", str(LOAD_CORE)]
                with subprocess.Popen(words, stdout=subprocess.DEVNULL) as running:
                    time.sleep(1)
                    told = target.call("vfu_get_stages", name=f"{NQN}:{name}" if front == "nvme" else name)["stages"]
                    running.wait()
                each = told[0]["ns_per_request"]
                rows.append((f"{NAMES[front]}, {bdev}, depth {in_flight}", *(f"{value:.1f}" for value in each.values()), told[0]["passes"]))
        table([("target's ns per request by stage", *each, "passes timed"), *rows])


def idle(run):
    """What nobody's requests cost: time, memory, start, size."""
    size = os.path.getsize(f"{run.binaries}/ringside") / 2**20
    run.bar("size of the binary", f"{size:.1f}", "under 12 MiB", size < 12, " MiB")
    started = subprocess.run([f"{run.root}/scripts/measure-start", f"{run.binaries}/ringside", "21"], check=True, capture_output=True, text=True)
    print(started.stdout)
    ms = float(re.search(r"median ([\d.]+) ms", started.stdout)[1])
    run.bar("start to first answer, median", f"{ms:.1f}", "under 20 ms", ms < 20, " ms")
    with run.target() as target:
        target.null()
        bare = target.resident_kib()
        names = [target.disk("split", "Null0", f"idle{number}", num_queues=1, qsize=256) for number in range(IDLE_ENDPOINTS)]
        made = target.resident_kib()
        words = [f"{run.binaries}/ringside-bench", "idle", *target.words(names), "--pid", str(target.process.pid), "--cpu", str(LOAD_CORE),
                 "--seconds", "10", "--wakes", "5"]
        said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
        connected = target.resident_kib()
    print(said)
    share = float(re.search(r"target's time\s+([\d.]+) %", said)[1])
    run.bar(f"{IDLE_ENDPOINTS} idle guests", f"{share:.3f}", "under 1 % of a core", share < 1, " %")
    run.bar("resident without disks", f"{bare / 1024:.1f}", "under 10 MiB", bare < 10240, " MiB")
    each = max(made - bare, connected - bare) / IDLE_ENDPOINTS
    run.bar("resident per idle endpoint", f"{each:.1f}", "under 64 KiB", each < 64, " KiB")


def uring(run):
    """A file, by the target and in process, and by fio. Each on either core, the load generator on the other: the disk interrupts one of
    them, where the kernel has work of its own for each request then, and whoever does not suffer from that is the faster."""
    cores = (TARGET_CORE, LOAD_CORE)
    with tempfile.TemporaryDirectory(dir=run.out) as folder, contextlib.ExitStack() as targets:
        path = files.make(os.path.join(folder, "disk.img"))
        served = {}
        for core in cores:
            served[core] = targets.enter_context(run.target(mask=f"{1 << core:#x}"))
            served[core].call("bdev_uring_create", name="File0", filename=path, block_size=512)
            served[core].disk("split", "File0")
        seconds, other = run.seconds * 2, dict(zip(cores, reversed(cores)))
        ways = {
            "fio, io_uring": lambda depth, core: files.fio(path, depth, seconds, core),
            "fio, io_uring, buffers and file registered": lambda depth, core: files.fio(path, depth, seconds, core, registered=True),
            "bdev in process": lambda depth, core: files.in_process(run.binaries, path, depth, seconds, core),
            "virtio split over vfio-user": lambda depth, core: flat(served[core].load("split-File0", depth=depth, seconds=seconds, core=other[core])),
        }
        points = {(way, depth, core): Point(f"{way}, depth {depth}, core {core}", functools.partial(measure, depth, core))
                  for (way, measure), (depth, core) in itertools.product(ways.items(), ((1, cores[0]), *((128, core) for core in cores)))}
        run.measure("uring", [*points.values()], ("iops", "p50_ns", "p99_ns"))
    rows = [("uring, 4 KiB random reads, O_DIRECT", "k IOPS", "p50 us", "p99 us")]
    rows.extend((point.name, with_spread(point, "iops", 1e-3, 1), with_spread(point, "p50_ns", 1e-3, 1), with_spread(point, "p99_ns", 1e-3, 1))
                for point in points.values())
    table(rows)
    best = {way: max(points[way, 128, core].median("iops") for core in cores) for way in ways}
    limit = max(rate for way, rate in best.items() if way.startswith("fio"))
    for way in ("bdev in process", "virtio split over vfio-user"):
        run.bar(f"uring, depth 128, {way}, the better core: IOPS / fio's better", f"{best[way] / limit:.3f}", "at least 0.95", best[way] >= 0.95 * limit)


ALL = {"figures": figures, "malloc": malloc, "uring": uring, "load": load, "depth": depth, "endpoints": endpoints,
       "queue_pairs": queue_pairs, "stages": stages, "idle": idle, "guests": guests.section}
