//! Reads and writes, which go straight to the bdev: as nearly all of them are, in few steps ([`Executor::submit_transfer`]),
//! and as any of them may be.

use bdev::{Completion, Op, Rejected, Request, Token};

use super::{Executor, FUA, Finished, Slot, SlotKind, Verdict, index_of, space::Access, status_of, torn};
use crate::{
    nvme::{
        data::Data,
        spec::{Command, Status, Transfer, nvm},
    },
    stages::{Laps, Stage},
};

impl Executor {
    /// Takes a Read or a Write whose data are at hand. None where they are not, or something else is out of the ordinary:
    /// nothing was done, and [`Self::submit`] will tell.
    #[inline(always)]
    pub fn submit_transfer(
        &mut self,
        tag: u16,
        transfer: &Transfer,
        data: &impl Data,
        laps: &mut impl Laps,
    ) -> Option<Verdict> {
        // Each with code of its own, most of whose questions are answered by which it is.
        if transfer.is_write {
            let fua = transfer.cdw12 & FUA != 0 || self.write_through;
            self.move_page(tag, transfer, (Op::Write { fua }, Access::Write, SlotKind::Write), data, laps)
        } else {
            self.move_page(tag, transfer, (Op::Read, Access::Read, SlotKind::Read), data, laps)
        }
    }

    #[inline(always)]
    fn move_page(
        &mut self,
        tag: u16,
        transfer: &Transfer,
        (op, access, kind): (Op, Access, SlotKind),
        data: &impl Data,
        laps: &mut impl Laps,
    ) -> Option<Verdict> {
        let space = self.spaces.get_mut((transfer.nsid as usize).wrapping_sub(1))?.as_mut()?;
        space.admit(access, &self.link).ok()?;
        let blocks = u64::from(transfer.cdw12 & 0xffff) + 1;
        let bytes = blocks << space.block_shift;
        if bytes > u64::from(self.options.max_io_size) {
            return None;
        }
        let vector = data.map_page(transfer.prp1, bytes, op == Op::Read)?;
        let channel = space.channel.as_mut()?;
        let slot = *self.free.last()?;
        let token = Token(slot.into());
        laps.lap(Stage::Translate);
        let request = Request { op, lba: transfer.slba, blocks, iov: &[vector], token };
        match channel.submit(&request) {
            Ok(()) => {
                self.free.pop();
                #[expect(clippy::cast_possible_truncation, reason = "at most a page")]
                let sectors = (bytes >> 9) as u32;
                self.slots[usize::from(slot)] = Slot { tag, cid: transfer.cid, sectors, kind };
                Some(Verdict::InFlight)
            }
            Err(Rejected::Full) => Some(Verdict::Full),
            Err(Rejected::Failed(status)) => Some(self.refused(status_of(status, access == Access::Write))),
        }
    }

    /// Read and Write (NVM, 3.2.4 and 3.2.6).
    pub(super) fn transfer(
        &mut self,
        tag: u16,
        command: &Command,
        data: &impl Data,
        laps: &mut impl Laps,
    ) -> Result<Verdict, Status> {
        let write = command.opcode == nvm::WRITE;
        let Some(&slot) = self.free.last() else { return Ok(Verdict::Full) };
        let space = self.spaces.get_mut((command.nsid as usize).wrapping_sub(1)).and_then(Option::as_mut);
        let space = space.ok_or(Status::INVALID_NAMESPACE)?;
        space.admit(if write { Access::Write } else { Access::Read }, &self.link)?;
        let blocks = u64::from(command.blocks());
        let bytes = blocks << space.block_shift;
        if bytes > u64::from(self.options.max_io_size) {
            return Err(Status::INVALID_FIELD);
        }
        self.iov.clear();
        data.map(command, bytes, !write, &mut self.iov)?;
        let fua = command.cdw12 & FUA != 0 || self.write_through;
        let op = if write { Op::Write { fua } } else { Op::Read };
        let Some(channel) = &mut space.channel else { return Err(Status::NAMESPACE_NOT_READY) };
        let request = Request { op, lba: command.slba(), blocks, iov: &self.iov, token: Token(slot.into()) };
        laps.lap(Stage::Translate);
        match channel.submit(&request) {
            Ok(()) => {
                self.free.pop();
                let kind = if write { SlotKind::Write } else { SlotKind::Read };
                #[expect(clippy::cast_possible_truncation, reason = "below the largest transfer")]
                let sectors = (bytes >> 9) as u32;
                self.slots[usize::from(slot)] = Slot { tag, cid: command.cid, sectors, kind };
                Ok(Verdict::InFlight)
            }
            Err(Rejected::Full) => Ok(Verdict::Full),
            Err(Rejected::Failed(status)) => Err(status_of(status, write)),
        }
    }

    /// Ends a read or a write that went well; none for anything else, with which nothing was done.
    #[inline(always)]
    pub(super) fn finish_transfer(&mut self, completion: Completion) -> Option<Finished> {
        let index = index_of(completion.token);
        let slot = &mut self.slots[usize::from(index)];
        let Slot { tag, cid, sectors, kind } = *slot;
        if completion.status != bdev::Status::Ok {
            return None;
        }
        let (count, sum) = match kind {
            SlotKind::Read => (&mut self.tally.reads, &mut self.tally.sectors_read),
            SlotKind::Write => (&mut self.tally.writes, &mut self.tally.sectors_written),
            _ => return None,
        };
        *count += 1;
        *sum += u64::from(sectors);
        slot.kind = SlotKind::Free;
        self.free.push(index);
        Some(Finished { tag, cid, status: Status::SUCCESS, dw0: 0 })
    }

    /// What was in flight while memory was lost has failed, whatever its bdev says; jobs look for themselves.
    #[inline(always)]
    pub(super) fn look_for_torn(&mut self, data: &impl Data) {
        let torn = torn(data);
        if torn != self.torn {
            self.torn = torn;
            self.fail_transfers();
        }
    }

    #[cold]
    fn fail_transfers(&mut self) {
        let transfers =
            self.slots.iter_mut().filter(|slot| matches!(slot.kind, SlotKind::Read | SlotKind::Write));
        transfers.for_each(|slot| slot.kind = SlotKind::Torn);
    }
}
