"""The "newc" cpio format, as the kernel's initramfs loader reads it (Documentation/driver-api/early-userspace/buffer-format.rst).

Used by scripts/guest/initrd for the base archive and by scripts/guest/run for the small second one with a test's script: the
kernel unpacks archives that follow one another. Written here so that no cpio program and no root (owners, device nodes) is needed.
It only writes; directories appear before what they hold, and an archive's bytes depend on nothing but what is put in.
"""

import stat


class Archive:
    """Collects entries and writes them with `finish`. Paths are relative to the guest's root."""

    def __init__(self):
        self._parts = []
        self._known = {""}
        self._inode = 0

    def directory(self, path, mode=0o755):
        """A directory and, before it, the directories above it."""
        self._parents(path)
        if path not in self._known:
            self._entry(path, stat.S_IFDIR | mode)

    def file(self, path, content, mode=0o644):
        """A regular file with `content` (bytes)."""
        self._parents(path)
        self._entry(path, stat.S_IFREG | mode, content)

    def symlink(self, path, target):
        """A symbolic link."""
        self._parents(path)
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def char_device(self, path, major, minor):
        """A character device node."""
        self._parents(path)
        self._entry(path, stat.S_IFCHR | 0o600, device=(major, minor))

    def __contains__(self, path):
        return path in self._known

    def finish(self):
        """The archive's bytes, with its trailer, padded so that another archive may follow."""
        self._entry("TRAILER!!!", 0)
        return b"".join(self._parts)

    def _parents(self, path):
        above = path.rpartition("/")[0]
        if above not in self._known:
            self.directory(above)

    def _entry(self, path, mode, content=b"", device=(0, 0)):
        self._inode += 1
        self._known.add(path)
        name = path.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        # Inode, mode, uid, gid, links, mtime, size, device of the file, device of the node, length of the name, checksum.
        fields = (self._inode, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(name), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._parts.append(_pad(header + name))
        self._parts.append(_pad(content))


def _pad(data):
    return data + b"\0" * (-len(data) % 4)
