//! DMA_READ and DMA_WRITE: the session's side of [`crate::dma::Remote`].
//!
//! Commands go to the client on the connection itself, or on the twin socket where the client wanted one. Replies come
//! back in any order and among the client's own commands; they are matched by id.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use reactor::Interest;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use zerocopy::{FromBytes, IntoBytes};

use super::{
    session::{End, MESSAGES_PER_PASS},
    ties::Ties,
};
use crate::{
    dma::{Ask, Fault, Order, Remote},
    wire::{
        frame::{Received, Receiver, Sender},
        spec::{Command, DmaAccess, Header, flags},
    },
};

/// Commands that wait for a client's answer at a time.
const OUTSTANDING_MAX: usize = 4;
/// Data of one command. With [`OUTSTANDING_MAX`] of them all fit into a socket's buffer (208 KiB on Linux): QEMU 11.1
/// stops at a request of a megabyte that it has to take in pieces.
pub(super) const DMA_MESSAGE_MAX: u32 = 32 << 10;

/// Where the data of DMA messages start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// Not known yet; see [`Layout::of`].
    Unknown,
    /// Behind a `count` of 64 bits (vfio-user: DMA_READ).
    Spec,
    /// Behind a `count` of 32 bits, and padded to the length the specification gives: QEMU 10.1 to 11.1.
    Narrow,
}

impl Layout {
    /// What a reply to DMA_READ of `len` bytes tells. With the narrow layout the upper half of `count` holds the first
    /// four bytes of the data, so anything there gives it away; while those are zero, the two say the same.
    fn of(reply: &DmaAccess, data: &[u8], len: u32) -> Self {
        let first = data.iter().take(4).any(|&byte| byte != 0);
        match (reply.count == u64::from(len), first) {
            (false, _) => Self::Narrow,
            (true, true) => Self::Spec,
            (true, false) => Self::Unknown,
        }
    }
}

/// The second socket of a client that wanted one.
struct Twin {
    socket: OwnedFd,
    receiver: Receiver,
    sender: Sender,
}

/// Commands under way to the client.
pub(super) struct Messages {
    twin: Option<Twin>,
    layout: Layout,
    next_id: u16,
    outstanding: BTreeMap<u16, Order>,
    /// Commands that were given up: their replies may still come.
    given_up: usize,
}

impl Messages {
    pub(super) fn new() -> Self {
        Self { twin: None, layout: Layout::Unknown, next_id: 0, outstanding: BTreeMap::new(), given_up: 0 }
    }

    /// Makes the twin socket; the client's end of it.
    pub(super) fn make_twin(&mut self, ties: &mut Ties) -> std::io::Result<OwnedFd> {
        let kind = SocketFlags::CLOEXEC;
        let (socket, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, kind, None)?;
        ties.add_twin(socket.as_fd())?;
        self.twin = Some(Twin { socket, receiver: Receiver::default(), sender: Sender::default() });
        Ok(theirs)
    }

    /// The twin socket.
    pub(super) fn twin(&self) -> Option<BorrowedFd<'_>> {
        self.twin.as_ref().map(|twin| twin.socket.as_fd())
    }

    /// Whether replies may come among the client's commands.
    pub(super) fn expects_replies_here(&self) -> bool {
        self.twin.is_none() && !self.outstanding.is_empty()
    }

    /// Whether a reply among the client's commands is one to us, even if nobody waits for it any more.
    pub(super) fn takes_replies_here(&self) -> bool {
        self.expects_replies_here() || (self.twin.is_none() && self.given_up > 0)
    }

    /// Whether one more command may wait for its answer.
    pub(super) fn has_room(&self) -> bool {
        self.outstanding.len() < OUTSTANDING_MAX
    }

    /// Whether answers are awaited.
    pub(super) fn are_awaited(&self) -> bool {
        !self.outstanding.is_empty()
    }

    /// Gives up on everything under way.
    pub(super) fn fail_all(&mut self) {
        self.given_up += self.outstanding.len();
        self.outstanding.clear();
    }

    /// Refuses what queues ask for. True if they asked for something.
    pub(super) fn refuse(&mut self, remote: &Remote) -> bool {
        // One that asks again at once does not keep the reactor.
        let orders = std::iter::from_fn(|| remote.next_order());
        orders.take(MESSAGES_PER_PASS).map(drop).count() > 0
    }

    /// Whether messages that were given up wait for their reader still. Further ones would only wait behind them, and be more
    /// and more.
    fn is_stuck(&self, here: &Sender) -> bool {
        let sender = self.twin.as_ref().map_or(here, |twin| &twin.sender);
        self.given_up > 0 && !sender.is_empty()
    }

    /// Sends what queues ask for, and takes what came on the twin socket, up to a pass's share of it. True if something
    /// moved.
    pub(super) fn relay(&mut self, remote: &Remote, here: &mut Sender, ties: &mut Ties) -> Result<bool, End> {
        let mut moved = self.is_stuck(here) && self.refuse(remote);
        while self.has_room() && !self.is_stuck(here) {
            let Some(order) = remote.next_order() else { break };
            let sender = self.twin.as_mut().map_or(&mut *here, |twin| &mut twin.sender);
            push(&order.ask, self.next_id, self.layout, sender);
            self.outstanding.insert(self.next_id, order);
            self.next_id = self.next_id.wrapping_add(1);
            moved = true;
        }
        if let Some(mut twin) = self.twin.take() {
            let outcome = self.tend_twin(&mut twin, ties);
            self.twin = Some(twin);
            moved |= outcome?;
        }
        Ok(moved)
    }

    fn tend_twin(&mut self, twin: &mut Twin, ties: &mut Ties) -> Result<bool, End> {
        let mut moved = false;
        let sent = twin.sender.flush(&twin.socket).map_err(End::Send)?;
        for _ in 0..MESSAGES_PER_PASS {
            match twin.receiver.receive(&twin.socket)? {
                Received::Message { header, .. } => self.reply(&header, twin.receiver.payload()),
                Received::TooLong(_) | Received::Skipped => {}
                Received::Closed => return Err(End::Closed),
                Received::Pending => break,
            }
            moved = true;
        }
        ties.await_twin(if sent { Interest::Read } else { Interest::ReadWrite })?;
        Ok(moved)
    }

    /// Takes a reply. One that nobody waits for is dropped: its order was given up.
    pub(super) fn reply(&mut self, header: &Header, payload: &[u8]) {
        let command = |ask: &Ask| match ask {
            Ask::Read { .. } => Command::DMA_READ,
            Ask::Write { .. } => Command::DMA_WRITE,
        };
        let matches =
            self.outstanding.get(&header.message_id).map(|order| command(&order.ask) == header.command);
        if matches != Some(true) || header.flags & flags::TYPE_MASK != flags::REPLY {
            self.given_up = self.given_up.saturating_sub(1);
            return;
        }
        let Some(order) = self.outstanding.remove(&header.message_id) else { return };
        let fault = Err(Fault(order.ask.address()));
        let result = match order.ask {
            _ if header.flags & flags::ERROR != 0 => fault,
            // QEMU answers with a bare header, the specification asks for address and count: either will do.
            Ask::Write { .. } => Ok(Vec::new()),
            Ask::Read { address, len } => self.data(address, len, payload).ok_or(Fault(address)),
        };
        order.settle(result);
    }

    /// The data of a reply to DMA_READ.
    fn data(&mut self, address: u64, len: u32, payload: &[u8]) -> Option<Vec<u8>> {
        let (reply, data) = DmaAccess::read_from_prefix(payload).ok()?;
        if reply.address != address || data.len() != len as usize {
            return None;
        }
        if self.layout == Layout::Unknown {
            self.layout = Layout::of(&reply, data, len);
            if self.layout == Layout::Narrow {
                tracing::info!("the client's DMA messages have a count of 32 bits, as QEMU's");
            }
        }
        match self.layout {
            Layout::Narrow => payload.get(12..12 + len as usize).map(<[u8]>::to_vec),
            _ => (reply.count == u64::from(len)).then(|| data.to_vec()),
        }
    }
}

fn push(ask: &Ask, message_id: u16, layout: Layout, sender: &mut Sender) {
    let header = |command| Header { message_id, command, flags: flags::COMMAND, ..Header::default() };
    match ask {
        Ask::Read { address, len } => {
            let access = DmaAccess { address: *address, count: u64::from(*len) };
            sender.push(header(Command::DMA_READ), &[access.as_bytes()], Vec::new());
        }
        Ask::Write { address, data } => {
            let access = DmaAccess { address: *address, count: data.len() as u64 };
            let bytes = access.as_bytes();
            let parts: [&[u8]; 3] =
                if layout == Layout::Narrow { [&bytes[..12], data, &[0; 4]] } else { [bytes, data, &[]] };
            sender.push(header(Command::DMA_WRITE), &parts, Vec::new());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(address: u64, count: u64, data: &[u8]) -> Vec<u8> {
        [DmaAccess { address, count }.as_bytes(), data].concat()
    }

    #[test]
    fn reply_by_the_specification_is_read_behind_its_count() {
        let mut messages = Messages::new();
        assert_eq!(messages.data(0x1000, 4, &reply(0x1000, 4, b"data")), Some(b"data".to_vec()));
        assert_eq!(messages.layout, Layout::Spec);
        assert_eq!(messages.data(0x1000, 4, &reply(0x1000, 4 | 7 << 32, b"data")), None);
    }

    #[test]
    fn narrow_reply_is_recognised_by_data_in_the_upper_half_of_the_count() {
        let mut messages = Messages::new();
        let narrow =
            |data: &[u8]| [&0x1000_u64.to_ne_bytes()[..], &8_u32.to_ne_bytes(), data, &[0; 4]].concat();
        assert_eq!(messages.data(0x1000, 8, &narrow(&[0; 8])), Some(vec![0; 8]), "both say zero");
        assert_eq!(messages.data(0x1000, 8, &narrow(b"12345678")), Some(b"12345678".to_vec()));
        assert_eq!(messages.layout, Layout::Narrow);
        assert_eq!(messages.data(0x1000, 8, &narrow(b"\0\0\0\x005678")), Some(b"\0\0\0\x005678".to_vec()));
    }

    #[test]
    fn reply_of_another_address_or_length_is_no_data() {
        let mut messages = Messages::new();
        assert_eq!(messages.data(0x1000, 4, &reply(0x2000, 4, b"data")), None);
        assert_eq!(messages.data(0x1000, 4, &reply(0x1000, 4, b"dat")), None);
        assert_eq!(messages.data(0x1000, 4, b"short"), None);
    }
}
