//! One command, or two fused ones, that needs messages: from its entry to its completion.

use std::{cell::Cell, collections::BTreeMap};

use bdev::{IoVec, MAX_SEGMENTS};

use super::reach::{Reach, Reading, Writing};
use crate::{
    dma::Bounce,
    nvme::{
        data::{ABSENT, Data},
        io::Finished,
        pcie::memory::{self, Lists, Runs},
        spec::{Command, Status},
    },
};

/// Data that an executor asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Want {
    dptr: [u64; 2],
    psdt: u8,
    len: u64,
    device_writes: bool,
}

/// Data of a command: where they are in the guest, and their copy here.
pub(super) struct Part {
    want: Want,
    ranges: Vec<(u64, u32)>,
    bounce: Bounce,
}

/// Buffers that rest.
#[derive(Default)]
pub(super) struct Buffers(Vec<Bounce>);

impl Buffers {
    /// Most bytes that rest, or are lent before further commands wait.
    pub(super) const BYTES_MAX: u64 = 8 << 20;
    /// Least bytes of one.
    const LEN_MIN: u64 = 64 << 10;

    /// One of zeroes, of so many bytes at least: nothing of an earlier command may get through.
    fn take(&mut self, len: u64) -> Result<Bounce, Status> {
        let Some(at) = self.0.iter().position(|bounce| bounce.len() >= len) else {
            let len = len.next_power_of_two().max(Self::LEN_MIN);
            return Bounce::new(0, len).map_err(|_errno| Status::INTERNAL_ERROR);
        };
        let bounce = self.0.swap_remove(at);
        let zeroes = vec![0; usize::try_from(len).unwrap_or(0)];
        bounce.view().write(0, &zeroes).map_err(|_fault| Status::INTERNAL_ERROR)?;
        Ok(bounce)
    }

    /// Takes those of an errand back that is over.
    pub(super) fn take_back(&mut self, errand: Option<Errand>) {
        let mut resting: u64 = self.0.iter().map(Bounce::len).sum();
        for part in errand.map(|errand| errand.parts).unwrap_or_default() {
            resting += part.bounce.len();
            if resting <= Self::BYTES_MAX {
                self.0.push(part.bounce);
            }
        }
    }
}

/// The data of an errand's commands as an executor sees them: what was brought so far.
pub(in super::super) struct Brought<'a> {
    parts: &'a [Part],
    wanted: Cell<Option<Want>>,
    torn: usize,
}

impl Brought<'_> {
    /// What was asked for and is not there.
    pub(super) fn wanted(&self) -> Option<Want> {
        self.wanted.get()
    }
}

impl Data for Brought<'_> {
    fn map(
        &self,
        command: &Command,
        len: u64,
        device_writes: bool,
        out: &mut Vec<IoVec>,
    ) -> Result<(), Status> {
        let want = Want { dptr: command.dptr, psdt: command.psdt(), len, device_writes };
        let Some(part) = self.parts.iter().find(|part| part.want == want) else {
            self.wanted.set(Some(want));
            return Err(ABSENT);
        };
        let len = u32::try_from(len).map_err(|_more| Status::INVALID_FIELD)?;
        part.bounce.view().translate(0, len, true, out).map_err(|_full| Status::DATA_TRANSFER_ERROR)
    }

    fn torn(&self) -> usize {
        // Data are in memory of our own; but what has ended is asked of the queue's view.
        self.torn
    }
}

/// PRP lists and SGL segments as far as they were brought.
struct Fetched<'a> {
    reach: &'a Reach<'a>,
    lists: &'a BTreeMap<u64, Vec<u8>>,
    missing: Cell<Option<(u64, u32)>>,
}

impl Lists for Fetched<'_> {
    fn read(&self, at: u64, to: &mut [u8]) -> Result<(), Status> {
        if let Some(bytes) = self.lists.get(&at).filter(|bytes| bytes.len() >= to.len()) {
            to.copy_from_slice(&bytes[..to.len()]);
            return Ok(());
        }
        let outcome = Lists::read(self.reach.view, at, to);
        if outcome == Err(ABSENT) {
            self.missing.set(u32::try_from(to.len()).ok().map(|len| (at, len)));
        }
        outcome
    }
}

/// Where an errand is.
enum Stage {
    /// A part of a list is on its way.
    Listing(Want, u64, Reading),
    /// Data are on their way.
    Fetching(Box<Part>, Reading),
    /// To be executed, for the first time or again.
    Ready,
    /// With the executor.
    Running,
    /// Executed; nothing has gone back yet.
    Done,
    /// Data are on their way back, and so are the first halves of completions.
    Returning(Writing, Writing),
    /// So are the second halves, which make them valid.
    Publishing(Writing),
    /// The completions cannot be written: until the windows change.
    Resting,
}

/// What a step has led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing to do before something else happens.
    Waits,
    /// It moved; there may be more.
    Moved,
    /// Its completions are to be posted to a queue that is mapped; it is over then.
    Posts,
    /// Its completions have arrived.
    Arrived,
}

/// One command, or two fused ones.
pub(super) struct Errand {
    /// The submission queue.
    pub(super) qid: u16,
    pub(super) commands: Vec<Command>,
    /// How they ended.
    pub(super) ends: Vec<Finished>,
    /// Entries of a completion queue that is not mapped: address and phase of each.
    claimed: Vec<(u64, bool)>,
    parts: Vec<Part>,
    lists: BTreeMap<u64, Vec<u8>>,
    stage: Stage,
    is_aborted: bool,
}

impl Errand {
    pub(super) fn new(qid: u16, commands: Vec<Command>) -> Self {
        Self {
            qid,
            commands,
            ends: Vec::new(),
            claimed: Vec::new(),
            parts: Vec::new(),
            lists: BTreeMap::new(),
            stage: Stage::Ready,
            is_aborted: false,
        }
    }

    /// Completions that it still needs room for.
    pub(super) fn owed(&self) -> u16 {
        let needed = self.commands.len().max(self.ends.len());
        if self.claimed.is_empty() { u16::try_from(needed).unwrap_or(0) } else { 0 }
    }

    /// Bytes of buffers that it has.
    pub(super) fn lent(&self) -> u64 {
        self.parts.iter().map(|part| part.bounce.len()).sum()
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(self.stage, Stage::Ready)
    }

    /// Nothing of it was executed.
    pub(super) fn is_fresh(&self) -> bool {
        matches!(self.stage, Stage::Listing(..) | Stage::Fetching(..) | Stage::Ready)
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self.stage, Stage::Running)
    }

    /// Its completions wait for the windows to change.
    pub(super) fn is_resting(&self) -> bool {
        matches!(self.stage, Stage::Resting)
    }

    /// They do, and no entry of the completion queue waits for them.
    pub(super) fn is_unclaimed(&self) -> bool {
        self.is_resting() && self.claimed.is_empty()
    }

    /// The data, as far as they were brought, while so many windows are torn.
    pub(super) fn data(&self, torn: usize) -> Brought<'_> {
        Brought { parts: &self.parts, wanted: Cell::new(None), torn }
    }

    /// It is with the executor.
    pub(super) fn runs(&mut self) {
        self.stage = Stage::Running;
    }

    /// Has it end as aborted. False where that is too late.
    pub(super) fn abort(&mut self) -> bool {
        self.is_aborted |= self.is_fresh() && self.commands.len() == 1;
        self.is_aborted
    }

    pub(super) fn is_aborted(&self) -> bool {
        self.is_aborted
    }

    /// One of its commands has ended; the last one ends the errand.
    pub(super) fn finish(&mut self, finished: Finished) {
        self.ends.push(finished);
        if self.ends.len() >= self.commands.len() {
            self.stage = Stage::Done;
        }
    }

    /// All of its commands end at once: two fused ones as such do (Base, 3.4.2).
    pub(super) fn end(&mut self, status: Status, dw0: u32) {
        let tag = 0;
        self.ends = self
            .commands
            .iter()
            .zip([status, Status::FAILED_FUSED])
            .map(|(command, status)| Finished { tag, cid: command.cid, status, dw0 })
            .collect();
        self.stage = Stage::Done;
    }

    /// Brings what the executor asked for.
    pub(super) fn bring(&mut self, wanted: Option<Want>, reach: &Reach<'_>, buffers: &mut Buffers) {
        let status = match wanted {
            Some(want) => self.start(want, reach, buffers).err(),
            None => Some(Status::INTERNAL_ERROR),
        };
        if let Some(status) = status {
            self.end(status, 0);
        }
    }

    /// Finds out where data are, and has them brought.
    fn start(&mut self, want: Want, reach: &Reach<'_>, buffers: &mut Buffers) -> Result<(), Status> {
        let unreachable = |_fault| Status::DATA_TRANSFER_ERROR;
        let lists = Fetched { reach, lists: &self.lists, missing: Cell::new(None) };
        let mut ranges = Vec::new();
        let mut runs = Runs::new(|address, len| {
            // Each is a message at least; as many as where data are mapped.
            if ranges.len() == MAX_SEGMENTS as usize {
                return Err(Status::DATA_TRANSFER_ERROR);
            }
            ranges.push((address, len));
            Ok(())
        });
        let data = (want.psdt, want.dptr);
        let walked = memory::walk(&lists, data, self.qid == 0, want.len, |at, len| runs.push(at, len))
            .and_then(|()| runs.flush());
        if let (Err(ABSENT), Some((at, len))) = (walked, lists.missing.get()) {
            self.stage = Stage::Listing(want, at, reach.read(&[(at, len)]).map_err(unreachable)?);
            return Ok(());
        }
        walked?;
        let bounce = buffers.take(want.len)?;
        if want.device_writes {
            let is_there = |&(at, len): &(u64, u32)| reach.view.covers(at, len.into(), true);
            if !ranges.iter().all(is_there) {
                return Err(Status::DATA_TRANSFER_ERROR);
            }
            self.parts.push(Part { want, ranges, bounce });
            self.stage = Stage::Ready;
        } else {
            let reading = reach.read(&ranges).map_err(unreachable)?;
            self.stage = Stage::Fetching(Box::new(Part { want, ranges, bounce }), reading);
        }
        Ok(())
    }

    /// Moves it on as far as answers are there. `claim` takes an entry of a completion queue that is not mapped; `half` makes
    /// the half of one that makes it valid.
    pub(super) fn step(
        &mut self,
        reach: &Reach<'_>,
        buffers: &mut Buffers,
        claim: impl FnMut() -> Option<(u64, bool)>,
        half: impl Fn(u16, &Finished, bool) -> u64,
    ) -> Step {
        match &mut self.stage {
            Stage::Ready | Stage::Running | Stage::Resting => return Step::Waits,
            Stage::Listing(want, at, reading) => match (reading.poll(), *want, *at) {
                (None, ..) => return Step::Waits,
                (Some(Err(_)), ..) => self.end(Status::DATA_TRANSFER_ERROR, 0),
                (Some(Ok(bytes)), want, at) => {
                    self.lists.insert(at, bytes);
                    self.bring(Some(want), reach, buffers);
                }
            },
            Stage::Fetching(_, reading) => match reading.poll() {
                None => return Step::Waits,
                Some(Err(_)) => self.end(Status::DATA_TRANSFER_ERROR, 0),
                Some(Ok(bytes)) => self.fetched(&bytes),
            },
            Stage::Done => {
                let data = self.return_data(reach);
                self.claim(claim);
                self.stage = Stage::Returning(data, self.write_first_halves(reach));
            }
            Stage::Returning(data, halves) => {
                let (Some(data), Some(halves)) = (data.poll(), halves.poll()) else { return Step::Waits };
                if data.is_err() {
                    self.fail();
                }
                // Or claimed only now, if the queue was mapped until now.
                if self.claimed.is_empty() {
                    self.claim(claim);
                    if self.claimed.is_empty() {
                        return Step::Posts;
                    }
                    self.stage = Stage::Returning(Writing::default(), self.write_first_halves(reach));
                    return Step::Moved;
                }
                self.stage = match halves {
                    Ok(()) => Stage::Publishing(self.publish(reach, half)),
                    Err(_) => Stage::Resting,
                };
            }
            Stage::Publishing(writing) => match writing.poll() {
                None => return Step::Waits,
                Some(Ok(())) => return Step::Arrived,
                Some(Err(_)) => self.stage = Stage::Resting,
            },
        }
        Step::Moved
    }

    fn claim(&mut self, mut claim: impl FnMut() -> Option<(u64, bool)>) {
        let claimed = std::iter::from_fn(&mut claim).take(self.ends.len());
        self.claimed.extend(claimed);
    }

    /// Its completions cannot be posted now.
    pub(super) fn rest(&mut self) {
        self.stage = Stage::Resting;
    }

    fn fetched(&mut self, bytes: &[u8]) {
        if let Stage::Fetching(part, _) = std::mem::replace(&mut self.stage, Stage::Ready) {
            match part.bounce.view().write(0, bytes) {
                Ok(()) => self.parts.push(*part),
                Err(_) => self.end(Status::INTERNAL_ERROR, 0),
            }
        }
    }

    /// What a command that succeeded has brought goes to the guest.
    fn return_data(&self, reach: &Reach<'_>) -> Writing {
        let mut writing = Writing::default();
        if !self.ends.iter().all(|end| end.status.is_success()) {
            return writing;
        }
        for Part { want, ranges, bounce } in self.parts.iter().filter(|part| part.want.device_writes) {
            let mut bytes = vec![0; usize::try_from(want.len).unwrap_or(0)];
            if bounce.view().read(0, &mut bytes).is_err() {
                continue;
            }
            let mut rest = &bytes[..];
            for &(address, len) in ranges {
                let (range, more) = rest.split_at(len as usize);
                reach.write(address, range, &mut writing);
                rest = more;
            }
        }
        writing
    }

    fn write_first_halves(&self, reach: &Reach<'_>) -> Writing {
        let mut writing = Writing::default();
        for (end, &(address, _)) in self.ends.iter().zip(&self.claimed) {
            reach.write(address, &u64::from(end.dw0).to_le_bytes(), &mut writing);
        }
        writing
    }

    fn publish(&self, reach: &Reach<'_>, half: impl Fn(u16, &Finished, bool) -> u64) -> Writing {
        let mut writing = Writing::default();
        for (end, &(address, phase)) in self.ends.iter().zip(&self.claimed) {
            reach.publish(address + 8, half(self.qid, end, phase), &mut writing);
        }
        writing
    }

    /// The guest's memory took not all of the data.
    fn fail(&mut self) {
        if self.parts.iter().any(|part| part.want.device_writes) {
            for end in self.ends.iter_mut().filter(|end| end.status.is_success()) {
                end.status = Status::DATA_TRANSFER_ERROR;
            }
        }
    }

    /// The windows changed: completions that could not be written are tried again.
    pub(super) fn retry(&mut self, reach: &Reach<'_>) {
        if matches!(self.stage, Stage::Resting) {
            self.stage = Stage::Returning(Writing::default(), self.write_first_halves(reach));
        }
    }

    /// Nobody waits for its end any more: true once nothing of it is under way to the guest, or at a bdev.
    pub(super) fn is_over(&mut self) -> bool {
        match &mut self.stage {
            Stage::Running => false,
            Stage::Returning(data, halves) => data.poll().is_some() && halves.poll().is_some(),
            Stage::Publishing(writing) => writing.poll().is_some(),
            _ => true,
        }
    }
}
