//! Bytes on their way between guest memory, shared or not, and us: what is mapped is copied at once, for the rest there
//! are messages whose answers are awaited.

use std::sync::atomic::{Ordering, fence};

use crate::{
    device::Bus,
    dma::{Ask, Asker, Fault, Ticket, View},
};

/// How to get at guest memory, wherever it is.
#[derive(Clone, Copy)]
pub(in super::super) struct Reach<'a> {
    pub(in super::super) bus: &'a Bus,
    pub(in super::super) view: &'a View,
    pub(in super::super) asker: &'a Asker,
}

/// A part of a read that a message brings: where it goes, and its length.
type Part = (Ticket, usize, usize);

/// Bytes on their way from guest memory.
#[derive(Debug)]
pub(super) struct Reading {
    bytes: Vec<u8>,
    parts: Vec<Part>,
}

impl Reading {
    /// The bytes, once all are there, or that some never will be. It is over then.
    pub(super) fn poll(&mut self) -> Option<Result<Vec<u8>, Fault>> {
        while let Some((ticket, at, len)) = self.parts.last() {
            match ticket.take()? {
                Ok(part) if part.len() == *len => self.bytes[*at..*at + *len].copy_from_slice(&part),
                Ok(_) => return Some(Err(Fault(0))),
                Err(fault) => return Some(Err(fault)),
            }
            self.parts.pop();
        }
        Some(Ok(std::mem::take(&mut self.bytes)))
    }
}

/// Bytes on their way to guest memory.
#[derive(Debug, Default)]
pub(super) struct Writing {
    tickets: Vec<Ticket>,
    refused: Option<Fault>,
}

impl Writing {
    /// Whether all arrived, once nothing is under way any more.
    pub(super) fn poll(&mut self) -> Option<Result<(), Fault>> {
        while let Some(ticket) = self.tickets.last() {
            if let Err(fault) = ticket.take()? {
                self.refused = Some(fault);
            }
            self.tickets.pop();
        }
        Some(self.refused.map_or(Ok(()), Err))
    }
}

impl Reach<'_> {
    /// Calls `each` with every piece of a range that lies in one window, small enough for a message: address, place in
    /// the range, length, and whether it takes a message.
    fn split(
        &self,
        (address, len): (u64, u64),
        device_writes: bool,
        mut each: impl FnMut(u64, usize, usize, bool) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let most = u64::from(self.bus.remote.transfer_max()).max(1);
        let mut done = 0;
        while done < len {
            let at = address.checked_add(done).ok_or(Fault(address))?;
            let (piece, is_remote) = self.view.reach(at, (len - done).min(most), device_writes)?;
            #[expect(clippy::cast_possible_truncation, reason = "both are parts of a buffer of ours")]
            each(at, done as usize, piece as usize, is_remote)?;
            done += piece;
        }
        Ok(())
    }

    /// Starts to read ranges, one behind the other.
    ///
    /// # Errors
    /// [`Fault`] where the device may not read, or where data were lost.
    pub(super) fn read(&self, ranges: &[(u64, u32)]) -> Result<Reading, Fault> {
        let len: usize = ranges.iter().map(|(_, len)| *len as usize).sum();
        let (mut bytes, mut parts) = (vec![0; len], Vec::new());
        let (mut start, torn) = (0, self.view.torn());
        for &(address, len) in ranges {
            self.split((address, len.into()), false, |at, done, piece, is_remote| {
                let from = start + done;
                if !is_remote {
                    return self.view.read(at, &mut bytes[from..from + piece]);
                }
                let len = u32::try_from(piece).map_err(|_more| Fault(at))?;
                parts.push((self.bus.remote.ask(Ask::Read { address: at, len }, self.asker), from, piece));
                Ok(())
            })?;
            start += len as usize;
        }
        if self.view.torn() == torn { Ok(Reading { bytes, parts }) } else { Err(Fault(0)) }
    }

    /// Starts to write a range.
    pub(super) fn write(&self, address: u64, bytes: &[u8], writing: &mut Writing) {
        let torn = self.view.torn();
        let outcome = self.split((address, bytes.len() as u64), true, |at, done, piece, is_remote| {
            let from = &bytes[done..done + piece];
            if !is_remote {
                return self.view.write(at, from);
            }
            let ask = Ask::Write { address: at, data: from.to_vec() };
            writing.tickets.push(self.bus.remote.ask(ask, self.asker));
            Ok(())
        });
        let outcome = outcome.and_then(|()| (self.view.torn() == torn).then_some(()).ok_or(Fault(address)));
        // What is under way already is awaited all the same.
        writing.refused = outcome.err().or(writing.refused);
    }

    /// Starts to write a word that makes valid what was written before it: whole, and not before that.
    pub(super) fn publish(&self, address: u64, word: u64, writing: &mut Writing) {
        match self.view.reach(address, 8, true) {
            Ok((8, false)) => {
                fence(Ordering::Release);
                writing.refused = self.view.put(address, word).err().or(writing.refused);
            }
            // Clients copy eight aligned bytes at once.
            _ => self.write(address, &word.to_le_bytes(), writing),
        }
    }
}
