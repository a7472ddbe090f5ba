//! The data of commands in guest memory: PRPs (PCIe, 4.1 of Base) or SGLs, translated by a queue's snapshot of the windows.

use bdev::IoVec;

use super::{prp, sgl};
use crate::{
    dma::View,
    nvme::{
        data::Data,
        spec::{Command, PAGE, Status},
    },
};

/// The data of the commands of one queue.
pub(super) struct GuestData<'a> {
    pub(super) view: &'a View,
    /// Admin commands use PRPs only (PCIe, 4.3.1).
    pub(super) admin: bool,
}

impl Data for GuestData<'_> {
    #[inline(always)]
    fn map(
        &self,
        command: &Command,
        len: u64,
        device_writes: bool,
        out: &mut Vec<IoVec>,
    ) -> Result<(), Status> {
        let [first, _] = command.dptr;
        // Most commands: data inside one page.
        if command.psdt() == 0 && first % PAGE + len <= PAGE && first & 3 == 0 {
            #[expect(clippy::cast_possible_truncation, reason = "at most a page")]
            let translated = self.view.translate(first, len as u32, device_writes, out);
            return translated.map_err(|_unreachable| Status::DATA_TRANSFER_ERROR);
        }
        self.map_pieces(command, len, device_writes, out)
    }

    #[inline]
    fn torn(&self) -> usize {
        self.view.torn()
    }
}

impl GuestData<'_> {
    /// Data over pages, by a list, or by an SGL.
    #[inline(never)]
    fn map_pieces(
        &self,
        command: &Command,
        len: u64,
        device_writes: bool,
        out: &mut Vec<IoVec>,
    ) -> Result<(), Status> {
        let mut runs = Runs { view: self.view, device_writes, out, start: 0, len: 0 };
        match command.psdt() {
            0 => prp::walk(self.view, command.dptr, len, |addr, len| runs.push(addr, len))?,
            1 | 2 if !self.admin => {
                sgl::walk(self.view, command.dptr, len, |addr, len| runs.push(addr, len))?;
            }
            _ => return Err(Status::INVALID_FIELD),
        }
        runs.flush()
    }
}

/// Puts neighbouring pieces together, so that a contiguous buffer is one vector.
struct Runs<'a> {
    view: &'a View,
    device_writes: bool,
    out: &'a mut Vec<IoVec>,
    start: u64,
    len: u32,
}

impl Runs<'_> {
    #[inline]
    fn push(&mut self, addr: u64, len: u32) -> Result<(), Status> {
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
    fn flush(&mut self) -> Result<(), Status> {
        if self.len == 0 {
            return Ok(());
        }
        let (start, len) = (self.start, std::mem::take(&mut self.len));
        self.view
            .translate(start, len, self.device_writes, self.out)
            .map_err(|_unreachable| Status::DATA_TRANSFER_ERROR)
    }
}
