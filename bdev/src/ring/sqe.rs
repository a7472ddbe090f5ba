//! Submission entries: one function per job. Pure.

use std::fs::File;
use std::os::fd::AsRawFd;

use io_uring::opcode;
use io_uring::squeue::Entry;
use io_uring::types::{Fd, Fixed, FsyncFlags};

use crate::IoVec;

/// RWF_DSYNC: the write is on stable storage when it completes.
const DSYNC: i32 = libc::RWF_DSYNC;

/// A file as an entry names it.
#[derive(Clone, Copy)]
pub(super) enum Target {
    /// A place in the ring's table.
    Table(u32),
    /// A descriptor.
    Descriptor(i32),
}

/// The file of client `at`.
#[inline]
pub(super) fn target(at: u32, file: &File, has_table: bool) -> Target {
    if has_table { Target::Table(at) } else { Target::Descriptor(file.as_raw_fd()) }
}

/// Builds the entry with whichever kind of file it is.
macro_rules! with {
    ($target:expr, $fd:ident => $entry:expr) => {
        match $target {
            Target::Table(at) => {
                let $fd = Fixed(at);
                $entry.build()
            }
            Target::Descriptor(fd) => {
                let $fd = Fd(fd);
                $entry.build()
            }
        }
    };
}

#[inline]
fn flags(fua: bool) -> i32 {
    if fua { DSYNC } else { 0 }
}

#[inline]
pub(super) fn read(file: Target, offset: u64, one: IoVec) -> Entry {
    with!(file, fd => opcode::Read::new(fd, one.as_ptr(), one.len() as u32).offset(offset))
}

#[inline]
pub(super) fn write(file: Target, offset: u64, one: IoVec, fua: bool) -> Entry {
    with!(file, fd => opcode::Write::new(fd, one.as_ptr(), one.len() as u32).offset(offset).rw_flags(flags(fua)))
}

pub(super) fn read_many(file: Target, offset: u64, iov: *const libc::iovec, count: u32) -> Entry {
    with!(file, fd => opcode::Readv::new(fd, iov, count).offset(offset))
}

pub(super) fn write_many(file: Target, offset: u64, iov: *const libc::iovec, count: u32, fua: bool) -> Entry {
    with!(file, fd => opcode::Writev::new(fd, iov, count).offset(offset).rw_flags(flags(fua)))
}

pub(super) fn sync(file: Target) -> Entry {
    with!(file, fd => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC))
}

pub(super) fn fallocate(file: Target, mode: i32, offset: u64, len: u64) -> Entry {
    with!(file, fd => opcode::Fallocate::new(fd, len).offset(offset).mode(mode))
}

pub(super) fn nothing() -> Entry {
    opcode::Nop::new().build()
}
