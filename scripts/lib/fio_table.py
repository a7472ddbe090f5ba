#!/usr/bin/env python3
"""Prints the fio results in a guest's console log as a table. Called by scripts/demo."""

import json
import sys


def side(job):
    """What the job did most: its read or its write half."""
    return max((job["read"], job["write"]), key=lambda half: half["total_ios"])


def row(name, result):
    job = result["jobs"][0]
    options = {**result.get("global options", {}), **job["job options"]}
    halves = [half for half in (job["read"], job["write"]) if half["total_ios"]]
    latency = side(job)["clat_ns"]
    percentile = latency.get("percentile", {})
    return (
        name,
        options.get("bs", "4k"),
        options.get("iodepth", "1"),
        f"{sum(half['iops'] for half in halves):,.0f}",
        f"{sum(half['bw_bytes'] for half in halves) / 2**20:,.1f}",
        f"{latency['mean'] / 1000:,.0f}",
        f"{percentile.get('50.000000', 0) / 1000:,.0f}",
        f"{percentile.get('99.000000', 0) / 1000:,.0f}",
    )


def main(path):
    rows = [("job", "block", "depth", "IOPS", "MiB/s", "mean us", "p50 us", "p99 us")]
    with open(path, encoding="utf-8", errors="replace") as log:
        for line in log:
            if line.startswith("FIO "):
                _, name, text = line.split(" ", 2)
                rows.append(row(name, json.loads(text)))
    if len(rows) == 1:
        sys.exit("the guest printed no results")
    widths = [max(len(r[column]) for r in rows) for column in range(len(rows[0]))]
    for r in rows:
        cells = [r[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(r[1:], widths[1:])]
        print("  ".join(cells))


if __name__ == "__main__":
    main(sys.argv[1])
