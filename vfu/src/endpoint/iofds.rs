//! GET_REGION_IO_FDS: eventfds that stand for writes to doorbells, made when a client asks for them.
//!
//! The client gives them to KVM, which then signals one instead of leaving the guest for a message. A signal is carried
//! out as the write it stands for, so a device model knows nothing of all this. They live as long as the session.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::{session::Reply, ties::Ties};
use crate::{
    function::Function,
    irq,
    wire::{
        spec::{RegionIoFds, SubRegionIoEventFd, io_fd_kind, region},
        version::MAX_MSG_FDS,
    },
};

/// One eventfd, and the writes it stands for.
struct Shortcut {
    eventfd: OwnedFd,
    region: u32,
    /// Offset and bytes of each doorbell.
    doorbells: Vec<(u64, usize)>,
}

/// The eventfds of one client.
#[derive(Default)]
pub(super) struct Shortcuts(Vec<Shortcut>);

impl Shortcuts {
    /// Answers the request. A client that says it has too little room is told how much it takes, and asks again.
    pub(super) fn hand_out(
        &mut self,
        function: &mut Function,
        payload: &[u8],
        ties: &mut Ties,
        fds_max: usize,
    ) -> Result<Reply, Errno> {
        let request = RegionIoFds::read_from_bytes(payload).map_err(|_length| Errno::INVAL)?;
        let fixed = size_of::<RegionIoFds>();
        if (request.argsz as usize) < fixed
            || request.flags != 0
            || request.count != 0
            || request.index >= region::COUNT
        {
            return Err(Errno::INVAL);
        }
        let bar = u8::try_from(request.index).ok().filter(|_| request.index < region::NUM_BARS);
        let doorbells = bar.map_or_else(Vec::new, |bar| function.model_ref().doorbells(bar));
        let full = fixed + doorbells.len() * size_of::<SubRegionIoEventFd>();
        let count = u32::try_from(doorbells.len()).map_err(|_more| Errno::INVAL)?;
        let argsz = u32::try_from(full).map_err(|_more| Errno::INVAL)?;
        let answer = RegionIoFds { argsz, count, ..request };
        if (request.argsz as usize) < full || doorbells.is_empty() || fds_max == 0 {
            return Ok(Reply::of(&answer));
        }
        if self.0.iter().all(|shortcut| shortcut.region != request.index) {
            self.make(request.index, &doorbells, ties, fds_max.min(MAX_MSG_FDS))?;
        }
        let mine = || self.0.iter().filter(|shortcut| shortcut.region == request.index);
        let mut head = answer.as_bytes().to_vec();
        for &(gpa_offset, size) in &doorbells {
            let at = mine().position(|shortcut| shortcut.doorbells.iter().any(|&(at, _)| at == gpa_offset));
            let entry = SubRegionIoEventFd {
                gpa_offset,
                size: size as u64,
                fd_index: u32::try_from(at.unwrap_or(0)).unwrap_or(0),
                kind: io_fd_kind::IOEVENTFD,
                ..SubRegionIoEventFd::default()
            };
            head.extend_from_slice(entry.as_bytes());
        }
        let fds: Result<Vec<OwnedFd>, _> = mine().map(|shortcut| shortcut.eventfd.try_clone()).collect();
        Ok(Reply { head, fds: fds.map_err(|_limit| Errno::MFILE)? })
    }

    /// As many eventfds as one message carries, shared where there are more doorbells than that.
    fn make(
        &mut self,
        index: u32,
        doorbells: &[(u64, usize)],
        ties: &mut Ties,
        fds_max: usize,
    ) -> Result<(), Errno> {
        let mut made = Vec::new();
        for _ in 0..doorbells.len().min(fds_max) {
            let eventfd = irq::eventfd()?;
            ties.add_eventfd(eventfd.as_fd()).map_err(|_limit| Errno::MFILE)?;
            made.push(Shortcut { eventfd, region: index, doorbells: Vec::new() });
        }
        let number = made.len();
        for (nth, &doorbell) in doorbells.iter().enumerate() {
            made[nth % number].doorbells.push(doorbell);
        }
        self.0.append(&mut made);
        Ok(())
    }

    /// The eventfds.
    pub(super) fn eventfds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(|shortcut| shortcut.eventfd.as_fd())
    }

    /// Carries out what was signalled. True if something was.
    pub(super) fn ring(&self, function: &mut Function) -> bool {
        let mut rung = false;
        for shortcut in self.0.iter().filter(|shortcut| irq::take_eventfd(&shortcut.eventfd) > 0) {
            rung = true;
            for &(at, len) in &shortcut.doorbells {
                function.write(shortcut.region, at, &[0; 8][..len.min(8)]);
            }
        }
        rung
    }
}
