//! From submission queues to the executor: what an owner takes in a pass.

use super::{Owner, errands};
use crate::{
    nvme::{
        data::ABSENT,
        io::{Executor, Verdict},
        pcie::{
            memory::GuestData,
            ring::{Cq, Sq},
        },
        spec::{Command, Status},
    },
    stages::{Laps, Stage},
};

/// Commands taken off one submission queue in one pass, so that one queue does not keep the reactor from the others.
const COMMANDS_PER_PASS: u16 = 256;
/// How many entries ahead are fetched: a line each, from the driver's processor.
const FETCHED: u16 = 8;

impl Owner {
    /// Takes commands from every submission queue. True if completions were posted at once.
    #[inline]
    pub(super) fn take(&mut self, laps: &mut impl Laps) -> bool {
        self.blocked = false;
        let mut posted = false;
        for index in 0..self.sqs.len() {
            posted |= self.take_from(index, laps);
        }
        posted
    }

    /// The same from one.
    #[inline]
    fn take_from(&mut self, index: usize, laps: &mut impl Laps) -> bool {
        let Self { sqs, cq, io, view, owed, .. } = self;
        let Some(sq) = sqs.get_mut(index) else { return false };
        #[expect(clippy::cast_possible_truncation, reason = "at most 512 queues")]
        let tag = index as u16;
        let waiting = sq.waiting().min(COMMANDS_PER_PASS);
        if waiting == 0 {
            return false;
        }
        // Every command taken has room for its completion, so that posting never waits.
        let room = cq.room(waiting + *owed).saturating_sub(*owed);
        let data = GuestData { view, admin: false };
        let most = waiting.min(room);
        let (mut taken, mut refused, mut full) = (0, 0, false);
        sq.fetch_first(most.min(FETCHED));
        while taken < most
            && let Some(transfer) = sq.peek_transfer()
        {
            laps.lap(Stage::Pickup);
            if most - taken > FETCHED {
                sq.fetch(FETCHED);
            }
            match io.submit_transfer(tag, &transfer, &data, laps) {
                Some(Verdict::InFlight) => sq.advance(1),
                Some(Verdict::Done(status)) => {
                    sq.advance(1);
                    cq.post_raw(sq.head, sq.setup.qid, transfer.cid, status, 0);
                    laps.count(0, 1);
                    refused += 1;
                }
                Some(Verdict::Full) => {
                    full = true;
                    break;
                }
                None => break,
            }
            laps.count(1, 0);
            taken += 1;
            laps.lap(Stage::Submit);
        }
        *owed += taken - refused;
        (taken < waiting && !full && self.take_any(index, waiting - taken, laps)) || refused > 0
    }

    /// Takes commands of any kind, so many at most. True if completions were posted at once.
    #[inline(never)]
    fn take_any(&mut self, index: usize, mut waiting: u16, laps: &mut impl Laps) -> bool {
        let Self { sqs, cq, io, view, owed, remote, bus, cx, attends, blocked, .. } = self;
        let sq = &mut sqs[index];
        #[expect(clippy::cast_possible_truncation, reason = "at most 512 queues")]
        let tag = index as u16;
        let data = GuestData { view, admin: false };
        let mut hand_over = |qid: u16, commands: &[Command]| {
            *attends = true;
            let remote = remote.get_or_insert_with(|| errands(bus, cx));
            remote.take(qid, commands)
        };
        let mut posted = false;
        let mut room = cq.room(waiting + *owed).saturating_sub(*owed);
        while waiting > 0 {
            let Some(command) = sq.peek(0) else { break };
            if room > 0 && sq.is_aborted(command.cid) {
                sq.advance(1);
                cq.post_raw(sq.head, sq.setup.qid, command.cid, Status::ABORT_REQUESTED, 0);
                laps.count(1, 1);
                posted = true;
                waiting -= 1;
                room -= 1;
                continue;
            }
            if command.fuse() != Command::FUSE_NONE {
                let (taken, more) = fused((sq, cq), io, owed, (tag, command, room), &data, &mut hand_over);
                posted |= more;
                if taken == 0 {
                    *blocked = room < 2;
                    break;
                }
                // Two, where the pass had one left: they are not taken apart.
                waiting = waiting.saturating_sub(taken);
                room = cq.room(*owed + waiting).saturating_sub(*owed);
                continue;
            }
            if room == 0 {
                *blocked = true;
                break;
            }
            laps.lap(Stage::Pickup);
            let quick = sq.peek_transfer().and_then(|it| io.submit_transfer(tag, &it, &data, laps));
            let verdict = quick.unwrap_or_else(|| io.submit(tag, &command, &data, laps));
            match verdict {
                Verdict::InFlight => *owed += 1,
                Verdict::Full => break,
                Verdict::Done(ABSENT) => {
                    if !hand_over(sq.setup.qid, &[command]) {
                        *blocked = true;
                        break;
                    }
                    *owed += 1;
                }
                Verdict::Done(status) => {
                    laps.count(1, 1);
                    sq.advance(1);
                    cq.post_raw(sq.head, sq.setup.qid, command.cid, status, 0);
                    posted = true;
                    waiting -= 1;
                    room -= 1;
                    continue;
                }
            }
            laps.count(1, 0);
            sq.advance(1);
            waiting -= 1;
            room -= 1;
            laps.lap(Stage::Submit);
        }
        posted
    }
}

/// Takes two fused commands, or refuses one that stands alone. How many were taken, and whether completions were posted.
#[cold]
fn fused(
    (sq, cq): (&mut Sq, &mut Cq),
    io: &mut Executor,
    owed: &mut u16,
    (tag, first, room): (u16, Command, u16),
    data: &GuestData<'_>,
    hand_over: &mut impl FnMut(u16, &[Command]) -> bool,
) -> (u16, bool) {
    if room < 2 {
        return (0, false);
    }
    let second = (sq.waiting() > 1).then(|| sq.peek(1)).flatten();
    let second =
        second.filter(|second| first.fuse() == Command::FUSE_FIRST && second.fuse() == Command::FUSE_SECOND);
    let Some(second) = second else {
        // Both must have been made visible by one doorbell (Base, 3.4.2).
        sq.advance(1);
        cq.post_raw(sq.head, sq.setup.qid, first.cid, Status::MISSING_FUSED, 0);
        return (1, true);
    };
    match io.submit_fused(tag, (&first, &second), data) {
        Ok(Verdict::InFlight) => {
            *owed += 2;
            sq.advance(2);
            (2, false)
        }
        Ok(_) => (0, false),
        Err(ABSENT) if !hand_over(sq.setup.qid, &[first, second]) => (0, false),
        Err(ABSENT) => {
            *owed += 2;
            sq.advance(2);
            (2, false)
        }
        Err(status) => {
            sq.advance(2);
            cq.post_raw(sq.head, sq.setup.qid, first.cid, status, 0);
            cq.post_raw(sq.head, sq.setup.qid, second.cid, Status::FAILED_FUSED, 0);
            (2, true)
        }
    }
}
