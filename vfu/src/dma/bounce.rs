//! Memory of our own that stands in for guest memory: for data that no bdev can get at where they are, and for commands
//! that no bdev knows.

use rustix::{
    fs::{MemfdFlags, ftruncate, memfd_create},
    io::Errno,
};

use super::{Protection, View, Windows};

/// A page-aligned buffer, at addresses of its maker's choice. It must live until whoever was given vectors over it is done.
/// Its pages come to be when they are used.
#[derive(Debug)]
pub struct Bounce {
    windows: Windows,
    view: View,
    len: u64,
}

impl Bounce {
    /// `len` bytes at `address`.
    ///
    /// # Errors
    /// No descriptor, or no memory.
    pub fn new(address: u64, len: u64) -> Result<Self, Errno> {
        let file = memfd_create("ringside-bounce", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, len)?;
        let windows = Windows::default();
        windows.map(address, len, Protection { read: true, write: true }, Some((file, 0)))?;
        Ok(Self { view: View::new(&windows), windows, len })
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The way to it.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Another way to it, for who cannot share this one.
    #[must_use]
    pub fn another_view(&self) -> View {
        View::new(&self.windows)
    }
}
