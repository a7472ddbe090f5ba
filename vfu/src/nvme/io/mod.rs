//! The I/O commands of one completion queue's submission queues, executed over bdev channels of its own.
//!
//! Used by a transport's queue owner, on its reactor. Reads and writes go straight to the bdev; what takes several
//! requests, or memory of our own, is a [`job`]. It knows no rings: commands come with a tag, completions leave with it.

mod job;
mod reserve;
mod space;
mod transfer;

use std::{
    os::fd::BorrowedFd,
    sync::{Arc, atomic::Ordering},
};

use bdev::{Completion, IoVec, MAX_SEGMENTS, Op, OpKind, Rejected, Request, Token};
use job::{Job, Kind};
use space::{Access, Space};
use zerocopy::IntoBytes;

use super::{
    controller::{ControllerOptions, oncs},
    data::{self, ABSENT, Data},
    link::{Counters, Link},
    spec::{Command, DsmRange, NSID_ALL, Status, nvm},
    subsystem::Subsystem,
};
use crate::stages::{Laps, Stage};

/// Most commands of one completion queue that are executed at a time.
pub const MAX_IN_FLIGHT: u16 = 1024;
/// Completions taken from a channel at a time.
const REAP_BATCH: usize = 64;
/// Most ranges of one command: of Dataset Management; Copy has fewer.
const MAX_RANGES: usize = 256;
/// Force Unit Access (NVM, figure 58).
const FUA: u32 = 1 << 30;
/// Deallocate, of Write Zeroes (NVM, figure 81).
const DEAC: u32 = 1 << 25;
/// Attribute Deallocate of Dataset Management (NVM, figure 42).
const DSM_DEALLOCATE: u32 = 1 << 2;

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is done; with [`ABSENT`], it is to be given again.
    Done(Status),
    /// [`Executor::reap`] will give it back.
    InFlight,
    /// No room now: to be tried again.
    Full,
}

/// A command that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// What it was submitted with.
    pub tag: u16,
    /// Its identifier.
    pub cid: u16,
    /// How it ended.
    pub status: Status,
    /// Command specific.
    pub dw0: u32,
}

/// A command in flight; its index is the token at the bdev.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    tag: u16,
    cid: u16,
    /// Blocks of 512 bytes, for the counters.
    sectors: u32,
    kind: SlotKind,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum SlotKind {
    #[default]
    Free,
    Read,
    Write,
    /// A read or a write while which memory was lost.
    Torn,
    Other,
    /// A job, by its index.
    Job(u8),
}

/// What ended in a pass, not yet in the queue's [`Counters`].
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    reads: u64,
    writes: u64,
    sectors_read: u64,
    sectors_written: u64,
}

/// Tokens are indexes of slots.
#[inline(always)]
fn index_of(token: Token) -> u16 {
    #[expect(clippy::cast_possible_truncation, reason = "as it was made")]
    let index = token.0 as u16;
    index
}

/// How much memory was lost, as it is kept: a number of windows.
#[inline]
fn torn(data: &impl Data) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "a guest has far fewer windows")]
    let torn = data.torn() as u32;
    torn
}

/// Most jobs at a time; further commands that need one wait in their queue.
const MAX_JOBS: u8 = 16;

/// Executes the commands of one completion queue.
pub struct Executor {
    subsystem: Arc<Subsystem>,
    link: Arc<Link>,
    options: ControllerOptions,
    counters: Arc<Counters>,
    /// By namespace number, less one.
    spaces: Vec<Option<Space>>,
    /// Indexes of those that are there.
    present: Vec<usize>,
    slots: Box<[Slot]>,
    free: Vec<u16>,
    tally: Tally,
    /// What was lost of the memory when it was looked last, see [`Data::torn`].
    torn: u32,
    /// Completions on their way from a channel; made once.
    batch: Box<[Completion]>,
    iov: Vec<IoVec>,
    /// The data of the second of two fused commands, and the ranges of a command that has several; for [`job`].
    second: Vec<IoVec>,
    ranges: Vec<(u64, u64)>,
    jobs: Vec<Option<Box<Job>>>,
    #[expect(clippy::vec_box, reason = "a job is large, and moves between the lists")]
    idle_jobs: Vec<Box<Job>>,
    /// Slots of jobs whose next step found no room, or has to wait for a change.
    stuck: Vec<u16>,
    /// A change waits for the bdevs: jobs make no further steps.
    pausing: bool,
    /// The volatile write cache is off: every write goes through it.
    write_through: bool,
    /// Some command has failed since it was asked.
    has_failed: bool,
}

/// The status of a command for how its bdev request ended.
fn status_of(status: bdev::Status, writes: bool) -> Status {
    use bdev::Status as B;
    match status {
        B::Ok => Status::SUCCESS,
        B::Invalid => Status::INVALID_FIELD,
        B::OutOfRange => Status::LBA_OUT_OF_RANGE,
        B::Unsupported => Status::INVALID_OPCODE,
        B::ReadOnly => Status::NAMESPACE_WRITE_PROTECTED,
        B::NoSpace => Status::CAPACITY_EXCEEDED,
        B::MediaError if writes => Status::WRITE_FAULT,
        B::MediaError => Status::UNRECOVERED_READ,
        B::Aborted => Status::ABORT_REQUESTED,
        B::Removed => Status::INVALID_NAMESPACE,
        _ => Status::INTERNAL_ERROR,
    }
}

impl Executor {
    /// An executor for at most `depth` commands at a time, without channels until [`Self::refresh`].
    #[must_use]
    pub fn new(subsystem: Arc<Subsystem>, link: Arc<Link>, options: ControllerOptions, depth: u16) -> Self {
        let depth = depth.clamp(1, MAX_IN_FLIGHT);
        let counters = link.open_counters();
        let mut new = Self {
            subsystem,
            link,
            options,
            counters,
            spaces: Vec::new(),
            present: Vec::new(),
            slots: vec![Slot::default(); usize::from(depth)].into_boxed_slice(),
            free: (0..depth).rev().collect(),
            tally: Tally::default(),
            torn: 0,
            batch: vec![Completion::EMPTY; REAP_BATCH].into_boxed_slice(),
            iov: Vec::with_capacity(MAX_SEGMENTS as usize),
            second: Vec::with_capacity(MAX_SEGMENTS as usize),
            ranges: Vec::with_capacity(MAX_RANGES),
            jobs: (0..MAX_JOBS).map(|_| None).collect(),
            idle_jobs: Vec::with_capacity(usize::from(MAX_JOBS)),
            stuck: Vec::with_capacity(usize::from(MAX_JOBS)),
            pausing: false,
            write_through: false,
            has_failed: false,
        };
        new.refresh();
        new
    }

    /// Follows the subsystem: channels to namespaces that came, none to those that went. Nothing is at a bdev.
    pub fn refresh(&mut self) {
        let depth = u16::try_from(self.slots.len()).unwrap_or(MAX_IN_FLIGHT);
        let namespaces = self.subsystem.namespaces();
        let len = namespaces.last().map_or(0, |last| last.nsid as usize);
        for job in self.jobs.iter_mut().flatten() {
            let space = self.spaces.get(job.at).and_then(Option::as_ref);
            // A job that rests does not go on with another namespace of the same number.
            if !space.is_some_and(|space| namespaces.iter().any(|there| space.is_of(there))) {
                job.abort();
            }
        }
        let mut old = std::mem::take(&mut self.spaces);
        self.spaces.resize_with(len, || None);
        for namespace in namespaces {
            let at = namespace.nsid as usize - 1;
            let kept = old.get_mut(at).and_then(Option::take).filter(|space| space.is_of(&namespace));
            self.spaces[at] = Some(kept.map_or_else(
                || Space::open(namespace, &self.link, depth),
                |space| space.refreshed(&self.link),
            ));
        }
        self.present = (0..len).filter(|&at| self.spaces[at].is_some()).collect();
    }

    /// The counters.
    #[must_use]
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// A pass begins: the clock, and the memory that it is made with.
    #[inline(always)]
    pub fn begin(&mut self, now: u64, data: &impl Data) {
        self.look_for_torn(data);
        self.write_through = self.link.is_write_through();
        for &at in &self.present {
            if let Some(channel) = self.spaces[at].as_mut().and_then(|space| space.channel.as_mut()) {
                channel.set_now(now);
            }
        }
    }

    /// Commands that were accepted and not yet given back.
    #[must_use]
    #[inline]
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Descriptors that are readable while completions wait; none in place of a channel that must be polled.
    pub fn event_fds(&self) -> impl Iterator<Item = Option<BorrowedFd<'_>>> {
        self.present
            .iter()
            .filter_map(|&at| self.spaces[at].as_ref()?.channel.as_ref())
            .map(bdev::IoChannel::event_fd)
    }

    fn space(&mut self, nsid: u32) -> Result<usize, Status> {
        let at = (nsid as usize).wrapping_sub(1);
        match self.spaces.get(at) {
            Some(Some(_)) => Ok(at),
            _ => Err(Status::INVALID_NAMESPACE),
        }
    }

    /// Whether the host may do this with the namespace now.
    #[inline]
    fn admit(&mut self, nsid: u32, access: Access) -> Result<usize, Status> {
        let at = self.space(nsid)?;
        if let Some(space) = &self.spaces[at] {
            space.admit(access, &self.link)?;
        }
        Ok(at)
    }

    /// Takes a command that is not one of two fused. The time until the bdev is asked is lapped as translation.
    pub fn submit(&mut self, tag: u16, command: &Command, data: &impl Data, laps: &mut impl Laps) -> Verdict {
        let outcome = match command.opcode {
            nvm::READ | nvm::WRITE => self.transfer(tag, command, data, laps),
            _ => self.other(tag, command, data),
        };
        outcome.unwrap_or_else(|status| self.refused(status))
    }

    #[cold]
    fn refused(&mut self, status: Status) -> Verdict {
        if status != ABSENT {
            self.has_failed = true;
            Counters::add(&self.counters.commands, 1);
        }
        Verdict::Done(status)
    }

    /// One request without data.
    fn single(
        &mut self,
        tag: u16,
        command: &Command,
        at: usize,
        op: Op,
        blocks: u64,
    ) -> Result<Verdict, Status> {
        let Some(&slot) = self.free.last() else { return Ok(Verdict::Full) };
        let channel = self.spaces[at].as_mut().and_then(|space| space.channel.as_mut());
        let Some(channel) = channel else { return Err(Status::NAMESPACE_NOT_READY) };
        let lba = if op == Op::Flush { 0 } else { command.slba() };
        match channel.submit(&Request { op, lba, blocks, iov: &[], token: Token(slot.into()) }) {
            Ok(()) => {
                self.free.pop();
                self.slots[usize::from(slot)] =
                    Slot { tag, cid: command.cid, kind: SlotKind::Other, ..Slot::default() };
                Ok(Verdict::InFlight)
            }
            Err(Rejected::Full) => Ok(Verdict::Full),
            Err(Rejected::Failed(status)) => Err(status_of(status, op.kind().modifies())),
        }
    }

    fn supports(&self, at: usize, kind: OpKind) -> bool {
        self.spaces[at].as_ref().is_some_and(|space| space.supports(kind))
    }

    #[cold]
    fn other(&mut self, tag: u16, command: &Command, data: &impl Data) -> Result<Verdict, Status> {
        let offered =
            |bit: u16| if self.options.oncs() & bit != 0 { Ok(()) } else { Err(Status::INVALID_OPCODE) };
        self.iov.clear();
        match command.opcode {
            nvm::FLUSH => self.flush(tag, command),
            nvm::COMPARE => {
                offered(oncs::COMPARE)?;
                self.compare(tag, command, data)
            }
            nvm::WRITE_ZEROES => {
                offered(oncs::WRITE_ZEROES)?;
                self.write_zeroes(tag, command)
            }
            nvm::DATASET_MANAGEMENT => {
                offered(oncs::DSM)?;
                self.dataset_management(tag, command, data)
            }
            nvm::VERIFY => {
                offered(oncs::VERIFY)?;
                let at = self.admit(command.nsid, Access::Read)?;
                self.check_range(at, command.slba(), u64::from(command.blocks()))?;
                self.start(tag, command, at, Kind::Verify)
            }
            nvm::COPY => {
                offered(oncs::COPY)?;
                self.copy(tag, command, data)
            }
            nvm::RESERVATION_REGISTER
            | nvm::RESERVATION_REPORT
            | nvm::RESERVATION_ACQUIRE
            | nvm::RESERVATION_RELEASE => {
                offered(oncs::RESERVATIONS)?;
                self.reserve(tag, command, data)
            }
            // Write Uncorrectable is not offered: no bdev can mark blocks as bad.
            _ => Err(Status::INVALID_OPCODE),
        }
    }

    fn check_range(&self, at: usize, lba: u64, blocks: u64) -> Result<(), Status> {
        let total = self.spaces[at].as_ref().map_or(0, Space::num_blocks);
        if blocks <= total && lba <= total - blocks { Ok(()) } else { Err(Status::LBA_OUT_OF_RANGE) }
    }

    fn flush(&mut self, tag: u16, command: &Command) -> Result<Verdict, Status> {
        if command.nsid == NSID_ALL {
            return self.start(tag, command, usize::MAX, Kind::FlushAll);
        }
        let at = self.admit(command.nsid, Access::Write)?;
        if !self.supports(at, OpKind::Flush) {
            // Nothing is cached.
            Counters::add(&self.counters.commands, 1);
            return Ok(Verdict::Done(Status::SUCCESS));
        }
        self.single(tag, command, at, Op::Flush, 0)
    }

    fn write_zeroes(&mut self, tag: u16, command: &Command) -> Result<Verdict, Status> {
        let at = self.admit(command.nsid, Access::Write)?;
        let blocks = u64::from(command.blocks());
        self.check_range(at, command.slba(), blocks)?;
        let fua = command.cdw12 & FUA != 0 || self.write_through;
        if !self.supports(at, OpKind::WriteZeroes) {
            return self.start(tag, command, at, Kind::Zero { fua });
        }
        let unmap = command.cdw12 & DEAC != 0;
        self.single(tag, command, at, Op::WriteZeroes { unmap, fua }, blocks)
    }

    /// Compare (NVM, 3.2.1): the data is read and looked at here, as no bdev can.
    fn compare(&mut self, tag: u16, command: &Command, data: &impl Data) -> Result<Verdict, Status> {
        let at = self.admit(command.nsid, Access::Read)?;
        self.map_range(at, command, data, false)?;
        self.start(tag, command, at, Kind::Compare)
    }

    /// Maps the data of a command that has a range of blocks like Read's.
    fn map_range(
        &mut self,
        at: usize,
        command: &Command,
        data: &impl Data,
        device_writes: bool,
    ) -> Result<(), Status> {
        let shift = self.spaces[at].as_ref().map_or(9, |space| space.block_shift);
        let blocks = u64::from(command.blocks());
        let bytes = blocks << shift;
        if bytes > u64::from(self.options.max_io_size) {
            return Err(Status::INVALID_FIELD);
        }
        self.check_range(at, command.slba(), blocks)?;
        self.iov.clear();
        data.map(command, bytes, device_writes, &mut self.iov)
    }

    /// Takes two fused commands: Compare and Write (NVM, 2.1.2). Each is done, or both are in flight, or neither is taken.
    ///
    /// # Errors
    /// The status of the first, when both are done at once; the second is then aborted.
    pub fn submit_fused(
        &mut self,
        tag: u16,
        (first, second): (&Command, &Command),
        data: &impl Data,
    ) -> Result<Verdict, Status> {
        if first.opcode != nvm::COMPARE || second.opcode != nvm::WRITE || self.options.fuses() == 0 {
            return Err(Status::INVALID_OPCODE);
        }
        let same =
            first.nsid == second.nsid && first.slba() == second.slba() && first.blocks() == second.blocks();
        if !same {
            return Err(Status::INVALID_FIELD);
        }
        if !self.has_job() {
            return Ok(Verdict::Full);
        }
        let at = self.admit(first.nsid, Access::Write)?;
        self.map_range(at, second, data, false)?;
        std::mem::swap(&mut self.iov, &mut self.second);
        self.map_range(at, first, data, false)?;
        let fua = second.cdw12 & FUA != 0 || self.write_through;
        self.start(tag, first, at, Kind::Fused { second: second.cid, fua })
    }

    /// Dataset Management (NVM, 3.2.3): only Deallocate does something; the rest are hints.
    fn dataset_management(
        &mut self,
        tag: u16,
        command: &Command,
        data: &impl Data,
    ) -> Result<Verdict, Status> {
        let deallocates = command.cdw11 & DSM_DEALLOCATE != 0;
        let at = self.admit(command.nsid, Access::Write)?;
        let count = (command.cdw10 & 0xff) as usize + 1;
        let mut ranges = [DsmRange::default(); MAX_RANGES];
        let ranges = &mut ranges[..count];
        data::fetch_by(data, command, ranges.as_mut_bytes(), &mut self.iov)?;
        let limit = self.subsystem.options().dmrsl;
        for range in &*ranges {
            if limit != 0 && range.blocks > limit {
                return Err(Status::COMMAND_SIZE_LIMIT);
            }
            self.check_range(at, range.slba, range.blocks.into())?;
        }
        if !deallocates || !self.supports(at, OpKind::Unmap) {
            Counters::add(&self.counters.commands, 1);
            return Ok(Verdict::Done(Status::SUCCESS));
        }
        let ranges = ranges.iter().filter(|range| range.blocks > 0);
        self.ranges.clear();
        self.ranges.extend(ranges.map(|range| (range.slba, u64::from(range.blocks))));
        self.start(tag, command, at, Kind::Discard)
    }

    /// Sends on what was submitted in this pass.
    #[inline]
    pub fn kick(&mut self) {
        for &at in &self.present {
            if let Some(channel) = self.spaces[at].as_mut().and_then(|space| space.channel.as_mut())
                && channel.in_flight() > 0
            {
                channel.kick();
            }
        }
    }

    /// From now on, until [`Self::resume`], jobs make no further steps, so that a change has not to wait for all of them. Those
    /// that have vectors over guest memory, which are short, do: a change may take the memory away.
    pub fn pause(&mut self) {
        self.pausing = true;
    }

    /// Ends a pause.
    pub fn resume(&mut self) {
        self.pausing = false;
    }

    /// Commands that a change has to wait for.
    #[must_use]
    pub fn unpaused(&self) -> usize {
        self.in_flight() - self.stuck.iter().filter(|&&slot| self.can_pause(slot)).count()
    }

    fn can_pause(&self, slot: u16) -> bool {
        let SlotKind::Job(job) = self.slots[usize::from(slot)].kind else { return false };
        self.pausing && self.jobs[usize::from(job)].as_ref().is_some_and(|job| job.can_rest())
    }

    /// Aborts every command that has steps still to make: the queue is going.
    pub fn abort_all(&mut self) {
        for job in self.jobs.iter_mut().flatten() {
            job.abort();
        }
    }

    /// Aborts a command that has steps still to make; they are not made. False if there is none.
    #[cold]
    pub fn abort(&mut self, tag: u16, cid: u16) -> bool {
        let ours = |slot: &Slot| match slot.kind {
            SlotKind::Job(job) if slot.tag == tag && slot.cid == cid => Some(job),
            _ => None,
        };
        let job = self.slots.iter().find_map(ours).and_then(|job| self.jobs[usize::from(job)].as_mut());
        job.is_some_and(|job| job.abort())
    }

    /// Asked before the caller sleeps with commands in flight: has the descriptors polled readable as soon as one
    /// completes. False: there is something to do at once.
    pub fn arm(&mut self) -> bool {
        let mut armed = self.stuck.is_empty();
        // Every one is armed, whatever the others say.
        for &at in &self.present {
            if let Some(channel) = self.spaces[at].as_mut().and_then(|space| space.channel.as_mut()) {
                armed &= channel.arm();
            }
        }
        armed
    }

    /// Gives finished commands back. What the bdevs take for it is lapped as the backend's.
    #[inline]
    pub fn reap(&mut self, data: &impl Data, laps: &mut impl Laps, done: &mut impl FnMut(Finished)) {
        if !self.stuck.is_empty() {
            self.unstick(data, done);
        }
        // Out of the way of what the completions change.
        let mut batch = std::mem::take(&mut self.batch);
        for index in 0..self.present.len() {
            let at = self.present[index];
            loop {
                let channel = self.spaces[at].as_mut().and_then(|space| space.channel.as_mut());
                let Some(channel) = channel.filter(|channel| channel.in_flight() > 0) else { break };
                let n = channel.reap(&mut batch);
                laps.lap(Stage::Backend);
                // After the channel has touched the memory of all of them.
                self.look_for_torn(data);
                for &completion in &batch[..n] {
                    match self.finish_transfer(completion) {
                        Some(finished) => done(finished),
                        None => self.finish(completion, data, done),
                    }
                }
                laps.lap(Stage::Complete);
                if n < batch.len() {
                    break;
                }
            }
        }
        self.batch = batch;
        self.add_up();
    }

    /// Puts what a pass has done into the counters.
    #[inline]
    fn add_up(&mut self) {
        let Tally { reads, writes, sectors_read, sectors_written } = std::mem::take(&mut self.tally);
        if reads > 0 {
            Counters::add(&self.counters.reads, reads);
            Counters::add(&self.counters.sectors_read, sectors_read);
        }
        if writes > 0 {
            Counters::add(&self.counters.writes, writes);
            Counters::add(&self.counters.sectors_written, sectors_written);
        }
        if reads + writes > 0 {
            Counters::add(&self.counters.commands, reads + writes);
        }
    }

    /// Gives back what failed, and what is no read or write; a job goes on.
    #[cold]
    fn finish(&mut self, completion: Completion, data: &impl Data, done: &mut impl FnMut(Finished)) {
        let index = index_of(completion.token);
        let Slot { tag, cid, kind, .. } = self.slots[usize::from(index)];
        let status = match kind {
            SlotKind::Job(job) => return self.advance(index, job, Some(completion.status), data, done),
            SlotKind::Torn => Status::DATA_TRANSFER_ERROR,
            _ => status_of(completion.status, kind != SlotKind::Read),
        };
        if completion.status == bdev::Status::MediaError {
            Counters::add(&self.counters.media_errors, 1);
        }
        self.has_failed |= !status.is_success();
        Counters::add(&self.counters.commands, 1);
        self.release(index);
        done(Finished { tag, cid, status, dw0: 0 });
    }

    /// Whether some command has failed since this was asked last.
    pub fn take_failed(&mut self) -> bool {
        std::mem::take(&mut self.has_failed)
    }

    #[inline]
    fn release(&mut self, slot: u16) {
        self.slots[usize::from(slot)].kind = SlotKind::Free;
        self.free.push(slot);
    }

    /// Publishes how much is in flight, for those who ask over RPC.
    pub fn publish(&self) {
        self.counters.in_flight.store(self.in_flight() as u64, Ordering::Relaxed);
    }
}
