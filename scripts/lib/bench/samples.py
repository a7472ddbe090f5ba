"""Samples in interleaved rounds: which are noisy, which are repeated, and what they come to."""

import json
import os
import statistics
import subprocess
import time

from .target import stolen_ticks

# Of a sample's time so much may be lost to others before it is called noisy.
QUIET = 0.005
REPEATS = 2


def lost_share(figures, seconds, stolen):
    """The share of a sample's time in which either side was kept from running."""
    waited = figures.get("waited_ns", 0) + figures.get("target_waited_ns", 0)
    return (waited / 1e9 + stolen / os.sysconf("SC_CLK_TCK")) / max(seconds, 1e-9)


class Point:
    """Something that is measured several times. `measure` returns a dict of figures."""

    def __init__(self, name, measure):
        self.name = name
        self.measure = measure
        self.samples = []

    def take(self, repeats=REPEATS):
        """One sample; a noisy one is repeated, and kept only if no repeat is quieter."""
        best = None
        for _ in range(1 + repeats):
            start, stolen = time.monotonic(), stolen_ticks()
            figures = self.measure()
            lost = lost_share(figures, time.monotonic() - start, stolen_ticks() - stolen)
            figures["lost_share"] = lost
            if best is None or lost < best["lost_share"]:
                best = figures
            if lost <= QUIET:
                break
        best["noisy"] = best["lost_share"] > QUIET
        self.samples.append(best)

    def values(self, key):
        """The quiet samples' values; all of them where fewer than half are quiet: the median of one or two tells little."""
        quiet = [sample[key] for sample in self.samples if not sample["noisy"]]
        return quiet if 2 * len(quiet) >= len(self.samples) else [sample[key] for sample in self.samples]

    def median(self, key):
        return statistics.median(self.values(key))

    def spread(self, key):
        return min(self.values(key)), max(self.values(key))

    def noisy(self):
        return sum(sample["noisy"] for sample in self.samples)


def interleave(points, rounds, repeats=REPEATS, report=None):
    """Measures all points once, then all again backwards, and so on: what drifts hits them alike."""
    for number in range(rounds):
        for point in points[::-1] if number % 2 else points:
            point.take(repeats)
        if report:
            report(f"  round {number + 1} of {rounds}")


def host(root):
    """Where and what this is."""

    def first(path, prefix=""):
        try:
            with open(path, encoding="utf-8") as file:
                return next(line.split(":", 1)[-1].strip() for line in file if line.startswith(prefix))
        except (OSError, StopIteration):
            return "unknown"

    described = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=root, capture_output=True, text=True, check=False)
    return {
        "revision": described.stdout.strip() or "unknown",
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kernel": os.uname().release,
        "cpu": first("/proc/cpuinfo", "model name"),
        "cpus": os.cpu_count(),
        "hugepages_free": first("/proc/meminfo", "HugePages_Free"),
    }


class Journal:
    """Appends a line of JSON for each point to a file."""

    def __init__(self, path, facts):
        self.path = path
        self.facts = facts

    def write(self, section, point, keys, **more):
        line = {"section": section, "name": point.name, **self.facts, **more, "noisy": point.noisy(),
                "lost_shares": [round(sample["lost_share"], 4) for sample in point.samples],
                "medians": {key: point.median(key) for key in keys}, "samples": {key: [s[key] for s in point.samples] for key in keys}}
        command = next((sample["command"] for sample in point.samples if "command" in sample), None)
        if command:
            line["command"] = command
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
