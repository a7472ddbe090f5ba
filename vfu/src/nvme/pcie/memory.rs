//! The data of commands in guest memory: PRPs (PCIe, 4.1 of Base) or SGLs, translated by a queue's snapshot of the windows.

use bdev::IoVec;

use super::{prp, sgl};
use crate::{
    dma::{Fault, View},
    nvme::{
        data::{ABSENT, Data},
        spec::{Command, PAGE, Status},
    },
};

/// Where PRP lists and SGL segments are read.
pub(super) trait Lists {
    /// Reads a part of one.
    ///
    /// # Errors
    /// The status of the command.
    fn read(&self, at: u64, to: &mut [u8]) -> Result<(), Status>;
}

impl Lists for View {
    #[inline]
    fn read(&self, at: u64, to: &mut [u8]) -> Result<(), Status> {
        Self::read(self, at, to).map_err(|fault| unreachable(self, fault))
    }
}

/// What becomes of a command whose data or lists the view does not reach: they may be where messages do.
#[cold]
fn unreachable(view: &View, Fault(address): Fault) -> Status {
    if view.is_remote(address, 1) { ABSENT } else { Status::DATA_TRANSFER_ERROR }
}

/// Calls `each` with address and length of every piece of a command's data, in order.
///
/// # Errors
/// The status of the command; `each` may have been called before.
#[inline]
pub(super) fn walk(
    lists: &impl Lists,
    (psdt, dptr): (u8, [u64; 2]),
    is_admin: bool,
    len: u64,
    each: impl FnMut(u64, u32) -> Result<(), Status>,
) -> Result<(), Status> {
    match psdt {
        0 => prp::walk(lists, dptr, len, each),
        1 | 2 if !is_admin => sgl::walk(lists, dptr, len, each),
        _ => Err(Status::INVALID_FIELD),
    }
}

/// The data of the commands of one queue.
pub(super) struct GuestData<'a> {
    pub(super) view: &'a View,
    /// Admin commands use PRPs only (PCIe, 4.3.1).
    pub(super) admin: bool,
}

impl Data for GuestData<'_> {
    fn map(
        &self,
        command: &Command,
        len: u64,
        device_writes: bool,
        out: &mut Vec<IoVec>,
    ) -> Result<(), Status> {
        let mut runs = Runs::new(|addr, len| {
            let translated = self.view.translate(addr, len, device_writes, out);
            translated.map_err(|fault| unreachable(self.view, fault))
        });
        let data = (command.psdt(), command.dptr);
        walk(self.view, data, self.admin, len, |addr, len| runs.push(addr, len))?;
        runs.flush()
    }

    #[inline(always)]
    fn map_page(&self, prp: u64, len: u64, device_writes: bool) -> Option<IoVec> {
        // Inside one page, and at an offset that a PRP may have.
        if prp % PAGE + len > PAGE || prp & 3 != 0 {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most a page")]
        self.view.near_iovec(prp, len as u32, device_writes)
    }

    #[inline]
    fn torn(&self) -> usize {
        self.view.torn()
    }
}

/// Puts neighbouring pieces together, so that a contiguous buffer is one piece.
pub(super) struct Runs<F> {
    each: F,
    start: u64,
    len: u32,
}

impl<F: FnMut(u64, u32) -> Result<(), Status>> Runs<F> {
    pub(super) fn new(each: F) -> Self {
        Self { each, start: 0, len: 0 }
    }

    #[inline]
    pub(super) fn push(&mut self, addr: u64, len: u32) -> Result<(), Status> {
        if self.start.wrapping_add(u64::from(self.len)) == addr
            && let Some(sum) = self.len.checked_add(len)
        {
            self.len = sum;
            return Ok(());
        }
        self.flush()?;
        (self.start, self.len) = (addr, len);
        Ok(())
    }

    #[inline]
    pub(super) fn flush(&mut self) -> Result<(), Status> {
        match std::mem::take(&mut self.len) {
            0 => Ok(()),
            len => (self.each)(self.start, len),
        }
    }
}
