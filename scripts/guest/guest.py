"""What the programs of this folder share: where the cache is, the kernel line, the initramfs of one guest with its script.

Imported by run and bootimage, and for the cache's place by initrd.
"""

import os
import pathlib
import re
import shutil
import subprocess
import uuid

import cpio

HERE = pathlib.Path(__file__).resolve().parent
CACHE = pathlib.Path(os.environ.get("RINGSIDE_CACHE") or HERE.parent.parent / ".cache").absolute() / "guest"

# Mitigations and self tests cost an emulated CPU seconds; there is no entropy source to wait for and no network.
KERNEL_LINE = (
    "console=ttyS0 quiet mitigations=off nokaslr no_timer_check tsc=reliable random.trust_cpu=1 apparmor=0 audit=0"
    " cryptomgr.notests ipv6.disable=1 panic=-1"
)


def fetch():
    """Fills the cache, where it is not."""
    subprocess.run([HERE / "fetch"], check=True)


def add_payload_arguments(parser):
    """The options that say what a guest runs."""
    parser.add_argument("--script", type=pathlib.Path, help="guest-side script for a POSIX sh")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="variable for the script")
    parser.add_argument("--file", action="append", default=[], metavar="GUEST=HOST", help="file to add to the guest's root")
    parser.add_argument("--append", action="append", default=[], metavar="ARGS", help="more words for the kernel line")


def check_payload_arguments(parser, options):
    """Refuses files that are not there and variables that are none, before anything starts."""
    paths = [pathlib.Path(item.partition("=")[2]) for item in options.file]
    for path in paths + [options.script] * bool(options.script):
        if path.is_dir() or not path.exists():
            parser.error(f"no such file: {path}")
    for item in options.env:
        if not re.match(r"[A-Za-z_]\w*=", item):
            parser.error(f"not NAME=VALUE: {item}")


def kernel_line(options):
    """The whole kernel line."""
    return " ".join([KERNEL_LINE, *options.append])


def write_initrd(path, options):
    """The initramfs with this guest's payload behind it."""
    base = subprocess.run([HERE / "initrd"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    with open(path, "wb") as joined, open(base, "rb") as archive:
        shutil.copyfileobj(archive, joined)
        joined.write(overlay(options.script.read_bytes(), options.env, options.file))


def overlay(script, env, files):
    """The second archive: the test's script, its variables, its files."""
    archive = cpio.Archive()
    archive.file("test.sh", script, 0o755)
    # Tells the boots of one run, which share a disk, from those of an earlier one.
    pairs = [("RUN_ID", uuid.uuid4().hex)] + [item.split("=", 1) for item in env]
    archive.file("test.env", "".join(f"{name}={quote(value)}\n" for name, value in pairs).encode())
    for item in files:
        target, _, source = item.partition("=")
        source = pathlib.Path(source)
        archive.file(target.lstrip("/"), source.read_bytes(), source.stat().st_mode & 0o777)
    return archive.finish()


def quote(value):
    return "'" + value.replace("'", "'\\''") + "'"
