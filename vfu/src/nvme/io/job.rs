//! Commands that take several bdev requests, one after the other, or memory of our own.
//!
//! A job has one request at its bdev at a time, under its slot's token. It moves on when that is done
//! ([`Executor::advance`]), and is tried again in the next pass when the bdev had no room.

use bdev::{IoVec, MAX_SEGMENTS, Op, OpKind, Rejected, Request, Token};
use zerocopy::IntoBytes;

use super::{
    Executor, FUA, Finished, MAX_JOBS, MAX_RANGES, Slot, SlotKind, Verdict, space::Access, status_of, torn,
};
use crate::{
    dma::Bounce,
    nvme::{
        data::{self, Data},
        link::Counters,
        spec::{Command, CopyRange, Status},
    },
};

/// Bytes of a job's buffer: of one step.
const BOUNCE_LEN: usize = 64 << 10;

/// What a job does.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// Unmaps its ranges.
    Discard,
    /// Reads, and compares with the command's data.
    Compare,
    /// Compares, then writes.
    Fused { second: u16, fua: bool },
    /// Reads, and looks no further.
    Verify,
    /// Reads its ranges and writes them one behind the other.
    Copy { fua: bool },
    /// Writes zeroes.
    Zero { fua: bool },
    /// Flushes every namespace.
    FlushAll,
    /// Waits until a change of its namespace's reservations is kept.
    Keep { change: u64 },
}

/// A job.
pub(super) struct Job {
    kind: Kind,
    /// Index of its namespace; `usize::MAX` for all of them.
    pub(super) at: usize,
    /// Next block.
    lba: u64,
    /// Blocks left.
    left: u64,
    /// Where Copy writes next.
    to: u64,
    /// The second half of a step: what was read is being written.
    writing: bool,
    /// Blocks of the request at the bdev.
    step: u64,
    /// Which of several ranges, or namespaces, is next.
    next: usize,
    /// First block and number of each of its ranges.
    ranges: Vec<(u64, u64)>,
    /// What a fused write writes.
    write: Vec<IoVec>,
    /// The command's data, and how much of it is done.
    data: Vec<IoVec>,
    /// What was lost of the guest's memory when the pass began that it started in, see [`Data::torn`].
    torn: u32,
    done: usize,
    bounce: Bounce,
    /// The vector of the request at the bdev.
    vector: Vec<IoVec>,
    scratch: Vec<u8>,
    /// It holds its namespace's lock for fused commands.
    locked: bool,
    /// The host wants no further step.
    aborted: bool,
}

/// What a job wants next.
enum Step {
    Ask { at: usize, op: Op, lba: u64, blocks: u64 },
    Wait,
    End(Status),
}

/// Copies between the middle of a list of vectors and a buffer.
fn each_piece(list: &[IoVec], mut skip: usize, len: usize, mut each: impl FnMut(usize, IoVec)) {
    let mut done = 0;
    for vector in list {
        if skip >= vector.len() {
            skip -= vector.len();
            continue;
        }
        let n = (vector.len() - skip).min(len - done);
        if let Some(piece) = vector.slice(skip, n) {
            each(done, piece);
        }
        (skip, done) = (0, done + n);
        if done == len {
            return;
        }
    }
}

impl Job {
    fn new() -> Option<Self> {
        Some(Self {
            kind: Kind::Verify,
            at: 0,
            lba: 0,
            left: 0,
            to: 0,
            writing: false,
            step: 0,
            next: 0,
            ranges: Vec::with_capacity(MAX_RANGES),
            write: Vec::with_capacity(MAX_SEGMENTS as usize),
            data: Vec::with_capacity(MAX_SEGMENTS as usize),
            torn: 0,
            done: 0,
            bounce: Bounce::new(0, BOUNCE_LEN as u64).ok()?,
            vector: Vec::with_capacity(MAX_SEGMENTS as usize),
            scratch: vec![0; BOUNCE_LEN],
            locked: false,
            aborted: false,
        })
    }

    /// It may rest between two steps: it has no vectors over the guest's memory, and one namespace.
    pub(super) fn can_rest(&self) -> bool {
        self.data.is_empty() && self.at != usize::MAX
    }

    /// Ends it behind the step under way. False for two fused commands, which end together or not at all.
    pub(super) fn abort(&mut self) -> bool {
        self.aborted = !matches!(self.kind, Kind::Fused { .. });
        self.aborted
    }

    /// Looks at what the last request brought: the command's end, or nothing.
    fn digest(&mut self, shift: u32) -> Option<Status> {
        let bytes = usize::try_from(self.step << shift).unwrap_or(0);
        match &self.kind {
            Kind::Compare | Kind::Fused { .. } if !self.writing => {
                self.bounced(bytes);
                bdev::iov::gather(&self.vector, &mut self.scratch[..bytes]);
                let scratch = &self.scratch;
                let mut equal = true;
                let mut chunk = [0; 512];
                each_piece(&self.data, self.done, bytes, |at, piece| {
                    for from in (0..piece.len()).step_by(chunk.len()) {
                        let n = piece.copy_to(from, &mut chunk);
                        equal &= chunk[..n] == scratch[at + from..at + from + n];
                    }
                });
                if !equal {
                    return Some(Status::COMPARE_FAILURE);
                }
            }
            _ => {}
        }
        self.done += bytes;
        None
    }

    /// Moves on behind the request that has just ended well.
    fn pass(&mut self) {
        match self.kind {
            Kind::Copy { .. } if !self.writing => self.writing = true,
            Kind::Copy { .. } => {
                self.writing = false;
                self.lba += self.step;
                self.to += self.step;
                self.left -= self.step;
            }
            Kind::Fused { .. } if self.writing => self.left = 0,
            Kind::Discard | Kind::FlushAll => self.next += 1,
            _ => {
                self.lba += self.step;
                self.left -= self.step;
            }
        }
        self.step = 0;
    }

    /// The next request.
    fn step(&mut self, shift: u32) -> Step {
        let most = (BOUNCE_LEN >> shift).max(1) as u64;
        match &self.kind {
            Kind::Discard => match self.ranges.get(self.next) {
                Some(&(lba, blocks)) => Step::Ask { at: self.at, op: Op::Unmap, lba, blocks },
                None => Step::End(Status::SUCCESS),
            },
            Kind::Copy { fua } => {
                let write = Op::Write { fua: *fua };
                if self.left == 0 {
                    match self.ranges.get(self.next) {
                        None => return Step::End(Status::SUCCESS),
                        Some(&(lba, blocks)) => (self.lba, self.left) = (lba, blocks),
                    }
                    self.next += 1;
                }
                self.step = self.left.min(most);
                let (op, lba) = if self.writing { (write, self.to) } else { (Op::Read, self.lba) };
                self.ask_bounced(op, lba, shift)
            }
            Kind::Fused { fua, .. } if self.left == 0 && !self.writing => {
                self.writing = true;
                self.vector.clear();
                self.vector.extend_from_slice(&self.write);
                let blocks = self.done as u64 >> shift;
                Step::Ask { at: self.at, op: Op::Write { fua: *fua }, lba: self.lba - blocks, blocks }
            }
            _ if self.left == 0 => Step::End(Status::SUCCESS),
            Kind::Zero { fua } => {
                let op = Op::Write { fua: *fua };
                self.step = self.left.min(most);
                self.bounced(BOUNCE_LEN);
                self.vector[0].fill(0, BOUNCE_LEN, 0);
                self.ask_bounced(op, self.lba, shift)
            }
            _ => {
                self.step = self.left.min(most);
                self.ask_bounced(Op::Read, self.lba, shift)
            }
        }
    }

    /// Makes the vector one over the first bytes of the buffer.
    fn bounced(&mut self, len: usize) {
        self.vector.clear();
        let len = u32::try_from(len.min(BOUNCE_LEN)).unwrap_or(0);
        let found = self.bounce.view().translate(0, len, true, &mut self.vector);
        found.expect("inside its one window, and there is room for a vector");
    }

    fn ask_bounced(&mut self, op: Op, lba: u64, shift: u32) -> Step {
        self.bounced(usize::try_from(self.step << shift).unwrap_or(0));
        Step::Ask { at: self.at, op, lba, blocks: self.step }
    }
}

impl Executor {
    pub(super) fn has_job(&self) -> bool {
        !self.free.is_empty() && self.jobs.iter().any(Option::is_none)
    }

    /// Starts a job for a command; its data, if any, is what `self.iov` holds, mapped in this pass.
    pub(super) fn start(
        &mut self,
        tag: u16,
        command: &Command,
        at: usize,
        kind: Kind,
    ) -> Result<Verdict, Status> {
        let Some(index) = self.jobs.iter().position(Option::is_none) else { return Ok(Verdict::Full) };
        let Some(slot) = self.free.pop() else { return Ok(Verdict::Full) };
        let job = self.idle_jobs.pop().or_else(|| Job::new().map(Box::new));
        let Some(mut job) = job else {
            self.free.push(slot);
            return Err(Status::INTERNAL_ERROR);
        };
        (job.kind, job.aborted, job.torn) = (kind, false, self.torn);
        (job.at, job.lba, job.left) = (at, command.slba(), command.blocks().into());
        (job.to, job.writing, job.step, job.next, job.done, job.locked) = (0, false, 0, 0, 0, false);
        if let Kind::Copy { .. } = job.kind {
            (job.to, job.left) = (command.slba(), 0);
        }
        // The lists that were made for it; it leaves its old ones, which are as long.
        std::mem::swap(&mut job.data, &mut self.iov);
        std::mem::swap(&mut job.write, &mut self.second);
        std::mem::swap(&mut job.ranges, &mut self.ranges);
        self.jobs[index] = Some(job);
        let index = u8::try_from(index).unwrap_or(MAX_JOBS);
        self.slots[usize::from(slot)] =
            Slot { tag, cid: command.cid, sectors: 0, kind: SlotKind::Job(index) };
        // Its first request goes out with the next pass' completions, so that the end always comes through `reap`.
        self.stuck.push(slot);
        Ok(Verdict::InFlight)
    }

    /// Tries jobs again that found no room.
    #[cold]
    pub(super) fn unstick(&mut self, data: &impl Data, done: &mut impl FnMut(Finished)) {
        for _ in 0..self.stuck.len() {
            let slot = self.stuck.remove(0);
            if self.can_pause(slot) {
                self.stuck.push(slot);
                continue;
            }
            if let SlotKind::Job(job) = self.slots[usize::from(slot)].kind {
                self.advance(slot, job, None, data, done);
            }
        }
        self.kick();
    }

    /// Moves a job on, after a request of it has ended, or none was out.
    #[cold]
    pub(super) fn advance(
        &mut self,
        slot: u16,
        index: u8,
        ended: Option<bdev::Status>,
        data: &impl Data,
        done: &mut impl FnMut(Finished),
    ) {
        let Some(mut job) = self.jobs[usize::from(index)].take() else { return };
        let shift = self.spaces.get(job.at).and_then(Option::as_ref).map_or(9, |space| space.block_shift);
        let mut end = None;
        if let Some(status) = ended {
            let writes = job.writing || matches!(job.kind, Kind::Discard | Kind::Zero { .. });
            end = match status {
                bdev::Status::Ok => job.digest(shift),
                // Deallocating is advice: where the bdev cannot, the blocks stay as they are.
                bdev::Status::Unsupported if matches!(job.kind, Kind::Discard) => None,
                _ => Some(status_of(status, writes)),
            };
            if end.is_none() {
                job.pass();
            }
        }
        if !job.data.is_empty() && torn(data) != job.torn {
            end = Some(Status::DATA_TRANSFER_ERROR);
        }
        if job.aborted && end.is_none() {
            end = Some(Status::ABORT_REQUESTED);
        }
        let step = match end {
            Some(status) => Step::End(status),
            None if self.pausing && job.can_rest() => Step::Wait,
            None if !self.lock_fused(&mut job) => Step::Wait,
            None => match job.kind {
                Kind::FlushAll => self.next_flush(&mut job),
                Kind::Keep { change } => self.kept(job.at, change).map_or(Step::Wait, Step::End),
                _ => job.step(shift),
            },
        };
        match step {
            Step::Wait => self.stuck.push(slot),
            Step::End(status) => return self.end(slot, job, status, done),
            Step::Ask { at, op, lba, blocks } => {
                let Some(Some(space)) = self.spaces.get_mut(at) else {
                    return self.end(slot, job, Status::INVALID_NAMESPACE, done);
                };
                // The host may have been preempted, or its way in closed, since the step before.
                if op.kind().modifies()
                    && let Err(status) = space.admit(Access::Write, &self.link)
                {
                    return self.end(slot, job, status, done);
                }
                let Some(channel) = &mut space.channel else {
                    return self.end(slot, job, Status::INVALID_NAMESPACE, done);
                };
                let iov: &[IoVec] = if op.kind().has_data() { &job.vector } else { &[] };
                match channel.submit(&Request { op, lba, blocks, iov, token: Token(slot.into()) }) {
                    Ok(()) => channel.kick(),
                    Err(Rejected::Full) => {
                        job.rewind();
                        self.stuck.push(slot);
                    }
                    Err(Rejected::Failed(status)) => {
                        return self.end(slot, job, status_of(status, op.kind().modifies()), done);
                    }
                }
            }
        }
        self.jobs[usize::from(index)] = Some(job);
    }

    /// Fused commands of a namespace go one at a time, over all queues.
    fn lock_fused(&self, job: &mut Job) -> bool {
        if !matches!(job.kind, Kind::Fused { .. }) || job.locked {
            return true;
        }
        let space = self.spaces.get(job.at).and_then(Option::as_ref);
        job.locked = space.is_none_or(|space| space.namespace.try_lock_fused());
        job.locked
    }

    fn next_flush(&self, job: &mut Job) -> Step {
        while let Some(&at) = self.present.get(job.next) {
            let open =
                self.spaces[at].as_ref().is_some_and(|space| space.admit(Access::Write, &self.link).is_ok());
            if open && self.supports(at, OpKind::Flush) {
                return Step::Ask { at, op: Op::Flush, lba: 0, blocks: 0 };
            }
            job.next += 1;
        }
        Step::End(Status::SUCCESS)
    }

    fn end(&mut self, slot: u16, mut job: Box<Job>, status: Status, done: &mut impl FnMut(Finished)) {
        let Slot { tag, cid, kind, .. } = self.slots[usize::from(slot)];
        self.has_failed |= !status.is_success();
        if let Kind::Fused { second, .. } = job.kind {
            if job.locked
                && let Some(space) = self.spaces.get(job.at).and_then(Option::as_ref)
            {
                space.namespace.unlock_fused();
            }
            // What the write met is the second's status; what the compare met aborts the second (NVM, 2.1.2).
            let (one, two) =
                if job.writing { (Status::SUCCESS, status) } else { (status, Status::FAILED_FUSED) };
            done(Finished { tag, cid, status: one, dw0: 0 });
            done(Finished { tag, cid: second, status: two, dw0: 0 });
            Counters::add(&self.counters.commands, 2);
        } else {
            // Copy tells which range failed, counted from zero (NVM, 3.2.2).
            let failed = matches!(job.kind, Kind::Copy { .. }) && !status.is_success();
            let dw0 = if failed { u32::try_from(job.next.saturating_sub(1)).unwrap_or(0) } else { 0 };
            done(Finished { tag, cid, status, dw0 });
            Counters::add(&self.counters.commands, 1);
        }
        if let SlotKind::Job(index) = kind {
            self.jobs[usize::from(index)] = None;
        }
        job.kind = Kind::Verify;
        self.idle_jobs.push(job);
        self.release(slot);
    }

    /// Copy (NVM, 3.2.2), of descriptor format 0: read and written here, as no bdev can.
    pub(super) fn copy(&mut self, tag: u16, command: &Command, data: &impl Data) -> Result<Verdict, Status> {
        use crate::nvme::controller::limits::{MAX_COPY_BLOCKS, MAX_COPY_RANGES, MAX_COPY_TOTAL};
        let at = self.admit(command.nsid, Access::Write)?;
        let count = (command.cdw12 & 0xff) as usize + 1;
        if command.cdw12 >> 8 & 0xf != 0 {
            return Err(Status::INVALID_FIELD);
        }
        if count > usize::from(MAX_COPY_RANGES) + 1 {
            return Err(Status::COMMAND_SIZE_LIMIT);
        }
        let mut descriptors = [CopyRange::default(); MAX_COPY_RANGES as usize + 1];
        let descriptors = &mut descriptors[..count];
        data::fetch_by(data, command, descriptors.as_mut_bytes(), &mut self.iov)?;
        self.ranges.clear();
        self.ranges.extend(descriptors.iter().map(|range| (range.slba, u64::from(range.blocks) + 1)));
        let total: u64 = self.ranges.iter().map(|(_, blocks)| blocks).sum();
        let is_long = |&(_, blocks): &(u64, u64)| blocks > u64::from(MAX_COPY_BLOCKS);
        if total > u64::from(MAX_COPY_TOTAL) || self.ranges.iter().any(is_long) {
            return Err(Status::COMMAND_SIZE_LIMIT);
        }
        for &(lba, blocks) in &self.ranges {
            self.check_range(at, lba, blocks)?;
        }
        self.check_range(at, command.slba(), total)?;
        let fua = command.cdw12 & FUA != 0 || self.write_through;
        self.start(tag, command, at, Kind::Copy { fua })
    }
}

impl Job {
    /// The request was not taken: it is made again.
    fn rewind(&mut self) {
        match &self.kind {
            Kind::Fused { .. } if self.writing => self.writing = false,
            // The range was taken off the list already, and is still what is left.
            _ => {}
        }
        self.step = 0;
    }
}
