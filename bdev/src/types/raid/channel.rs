//! A channel to an array: one channel per base. Reads and writes pass straight to their base; what concerns several
//! bases is sent to each of them and ends with the last.

use std::collections::VecDeque;

use super::layout::Layout;
use crate::{Channel, Completion, IoChannel, Op, OpKind, Rejected, Request, Status, Token};

/// A request that concerns several bases.
#[derive(Clone, Copy)]
struct Fan {
    op: Op,
    lba: u64,
    blocks: u64,
    /// The next base to ask.
    next: usize,
    /// Asked and not answered, and one for the asking itself; 0 if the token is no fan's.
    open: u32,
    status: Status,
}

const NO_FAN: Fan = Fan { op: Op::Flush, lba: 0, blocks: 0, next: 0, open: 0, status: Status::Ok };

pub(super) struct RaidChannel {
    bases: Box<[IoChannel]>,
    layout: Layout,
    /// By token.
    fans: Box<[Fan]>,
    /// Tokens of fans that have bases to ask.
    unasked: VecDeque<u32>,
    /// Fans that ended without a base's answer.
    ended: VecDeque<Completion>,
    in_flight: usize,
    /// Where the last reap stopped: bases take turns.
    turn: usize,
    /// Bases with something to kick, by bit; all of the others share the last.
    dirty: u64,
    time: Time,
}

/// The time of this pass, and the bases that were told it: those with something to do are.
struct Time {
    now: u64,
    /// By bit; those that share one are told every time.
    told: u64,
}

impl Time {
    #[inline]
    fn tell(&mut self, base: usize, channel: &mut IoChannel) {
        if self.told & bit(base) == 0 {
            self.told |= bit(base) & !SHARED;
            channel.set_now(self.now);
        }
    }
}

/// The bit of all bases that have none of their own.
const SHARED: u64 = 1 << 63;

#[inline]
fn bit(base: usize) -> u64 {
    1 << base.min(63)
}

impl RaidChannel {
    pub(super) fn new(bases: Box<[IoChannel]>, layout: Layout, depth: u16) -> RaidChannel {
        let depth = usize::from(depth);
        RaidChannel {
            bases,
            layout,
            fans: vec![NO_FAN; depth].into_boxed_slice(),
            unasked: VecDeque::with_capacity(depth),
            ended: VecDeque::with_capacity(depth),
            in_flight: 0,
            turn: 0,
            dirty: 0,
            time: Time { now: 0, told: 0 },
        }
    }

    /// Asks the bases of fans that have not been asked yet, as far as there is room.
    fn ask(&mut self) {
        while let Some(&token) = self.unasked.front() {
            let Some(fan) = self.fans.get_mut(token as usize) else { return };
            while fan.next < self.bases.len() {
                let share = match fan.op {
                    Op::Flush => Some((0, 0)),
                    _ => self.layout.share(fan.next, fan.lba, fan.blocks),
                };
                if let Some((lba, blocks)) = share {
                    self.time.tell(fan.next, &mut self.bases[fan.next]);
                    let request = Request { op: fan.op, lba, blocks, iov: &[], token: Token(token) };
                    match self.bases[fan.next].submit(&request) {
                        Ok(()) => {
                            fan.open += 1;
                            self.dirty |= bit(fan.next);
                        }
                        Err(Rejected::Full) => return,
                        Err(Rejected::Failed(status)) => fan.status = status,
                    }
                }
                fan.next += 1;
            }
            self.unasked.pop_front();
            fan.open -= 1;
            if fan.open == 0 {
                self.ended.push_back(Completion { token: Token(token), status: fan.status });
            }
        }
    }

    /// Whether the completion ends its request, and how.
    #[inline]
    fn finish(&mut self, completion: Completion) -> Option<Completion> {
        let fan = self.fans.get_mut(completion.token.0 as usize)?;
        if fan.open == 0 {
            return Some(completion);
        }
        fan.open -= 1;
        if completion.status != Status::Ok {
            fan.status = completion.status;
        }
        (fan.open == 0).then_some(Completion { status: fan.status, ..completion })
    }
}

impl Channel for RaidChannel {
    #[inline]
    fn submit(&mut self, req: &Request<'_>) -> Result<(), Rejected> {
        let token = req.token.0;
        if req.op.kind().has_data() {
            let (base, lba) = if req.blocks == 0 { (0, 0) } else { self.layout.locate(req.lba) };
            self.time.tell(base, &mut self.bases[base]);
            self.bases[base].submit(&Request { lba, ..*req })?;
            self.dirty |= bit(base);
        } else {
            let fan = self.fans.get_mut(token as usize).ok_or(Rejected::Failed(Status::Invalid))?;
            *fan = Fan { op: req.op, lba: req.lba, blocks: req.blocks, next: 0, open: 1, status: Status::Ok };
            self.unasked.push_back(token);
            self.ask();
        }
        self.in_flight += 1;
        Ok(())
    }

    #[inline]
    fn kick(&mut self) {
        let dirty = std::mem::take(&mut self.dirty);
        for (at, base) in self.bases.iter_mut().enumerate() {
            if dirty & bit(at) != 0 {
                base.kick();
            }
        }
    }

    #[inline]
    fn reap(&mut self, done: &mut [Completion]) -> usize {
        let mut taken = 0;
        if !self.unasked.is_empty() {
            self.ask();
            self.kick();
        }
        while taken < done.len()
            && let Some(completion) = self.ended.pop_front()
        {
            done[taken] = completion;
            taken += 1;
        }
        for _ in 0..self.bases.len() {
            self.turn = if self.turn + 1 >= self.bases.len() { 0 } else { self.turn + 1 };
            if self.bases[self.turn].in_flight() == 0 {
                continue;
            }
            self.time.tell(self.turn, &mut self.bases[self.turn]);
            let n = self.bases[self.turn].reap(&mut done[taken..]);
            let mut kept = taken;
            for at in taken..taken + n {
                if let Some(completion) = self.finish(done[at]) {
                    done[kept] = completion;
                    kept += 1;
                }
            }
            taken = kept;
        }
        self.in_flight -= taken;
        taken
    }

    fn wants_time(&self) -> bool {
        true
    }

    fn set_now(&mut self, tick: u64) {
        self.time = Time { now: tick, told: 0 };
    }

    fn arm(&mut self) -> bool {
        // There is no descriptor that stands for several bases.
        false
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }
}

/// Whether every base does this.
pub(super) fn all_support(bases: &[std::sync::Arc<crate::Descriptor>], kind: OpKind) -> bool {
    bases.iter().all(|base| base.bdev().supports(kind))
}
