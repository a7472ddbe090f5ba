#!/usr/bin/env python3
"""The project's own rules that no other tool checks: where unsafe may be, how long files are, how they open.

Prints every breach and exits 1 if there is one.
"""

import re
import subprocess
import sys

# Modules that may contain unsafe code; each says why at its top. A new one is a decision: add it here, with a reason.
UNSAFE = {
    "bdev/src/arena/hugepage.rs": "memory from hugepage-rs",
    "bdev/src/arena/memfd.rs": "mmap of a memfd",
    "bdev/src/arena/mod.rs": "the contract of an arena",
    "bdev/src/arena/pages.rs": "mmap of anonymous memory",
    "bdev/src/iov.rs": "copies to and from memory that others write",
    "bdev/src/ring/mod.rs": "entries of an io_uring point at memory",
    "bdev/tests/no_allocation.rs": "a counting allocator",
    "reactor/tests/no_alloc.rs": "a counting allocator",
    "reactor/src/clock.rs": "the time stamp counter",
    "reactor/trace/src/words.rs": "mmap of the trace's file",
    "reactor/tests/no_alloc.rs": "a counting allocator",
    "tgt/tests/sandbox.rs": "system calls that the sandbox refuses",
    "vfu/src/dma/mapping.rs": "mmap of client memory",
    "vfu/src/dma/release.rs": "munmap of client memory",
    "vfu/src/dma/sigbus.rs": "the handler that outlives a client's truncated memory",
    "vfu/src/dma/slice.rs": "volatile and atomic access to guest memory",
    "vfu/tests/no_allocation.rs": "a counting allocator",
    "vfu/src/dma/view.rs": "the one place that makes IoVecs of guest memory",
}

MAX_LINES = 700


def tracked(pattern):
    out = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", pattern], check=True, capture_output=True)
    return [name for name in out.stdout.decode().split("\0") if name]


def breaches(path, text):
    lines = text.splitlines()
    if len(lines) > MAX_LINES:
        yield f"{path}: {len(lines)} lines, more than {MAX_LINES}: split it by what it holds"
    if not any(line.startswith("//!") for line in lines[:5]):
        yield f"{path}: does not open with a //! that says what it is"
    has_unsafe = re.search(r"\bunsafe\b\s*(\{|impl|fn|extern)", text)
    if has_unsafe and path not in UNSAFE:
        yield f"{path}: unsafe code outside the list in scripts/lib/rules.py"
    for number, line in enumerate(lines, 1):
        if re.search(r"\bunsafe\b\s*(\{|impl)", line):
            above = lines[max(0, number - 7):number]
            if not any("SAFETY" in other for other in above):
                yield f"{path}:{number}: unsafe without a SAFETY comment above it"
        if re.search(r"#!?\[allow\(", line):
            yield f"{path}:{number}: allow; use expect with a reason, which tells when it is stale"
        if re.search(r"#\[ignore", line):
            yield f"{path}:{number}: a test that does not run"
        if re.search(r"\b(todo!|unimplemented!)\(|\b(TODO|FIXME|XXX)\b", line):
            yield f"{path}:{number}: something left open"


def main():
    found = []
    sources = tracked("*.rs")
    for path in sources:
        try:
            with open(path, encoding="utf-8") as file:
                found += breaches(path, file.read())
        except FileNotFoundError:
            pass  # deleted, not committed yet
    found += [f"scripts/lib/rules.py: {path} is listed and does not exist" for path in UNSAFE if path not in sources]
    for breach in found:
        print(breach)
    print(f"{len(sources)} files, {len(found)} breaches")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
