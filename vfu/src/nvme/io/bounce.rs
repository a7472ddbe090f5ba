//! Memory of our own that a bdev can read into and write from, for commands that no bdev knows.

use bdev::IoVec;
use rustix::{
    fs::{MemfdFlags, ftruncate, memfd_create},
    io::Errno,
};

use crate::dma::{Protection, View, Windows};

/// Bytes of a bounce buffer.
pub(super) const LEN: usize = 64 << 10;

/// A page-aligned buffer; it must live until the bdev is done with it.
pub(super) struct Bounce {
    view: View,
}

impl Bounce {
    pub(super) fn new() -> Result<Self, Errno> {
        let file = memfd_create("ringside-bounce", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, LEN as u64)?;
        let windows = Windows::default();
        windows.map(0, LEN as u64, Protection { read: true, write: true }, Some((file, 0)))?;
        Ok(Self { view: View::new(&windows) })
    }

    /// A vector over its first bytes.
    pub(super) fn vector(&self, len: usize, out: &mut Vec<IoVec>) {
        out.clear();
        let len = u32::try_from(len.min(LEN)).unwrap_or(0);
        self.view
            .translate(0, len, true, out)
            .expect("inside its one window, and there is room for a vector");
    }
}
