//! The commands of one request queue: each is parsed, answered at once or handed to its unit's bdev channel, and ends
//! with a response in guest memory.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, atomic::Ordering},
};

use bdev::{Completion, IoChannel, IoVec, MAX_SEGMENTS, Op, OpKind, Rejected, Request, Status, Token};
use rustix::event::epoll;
use zerocopy::{FromZeros, IntoBytes};

use super::{
    cdb::{self, Command},
    compare::Compare,
    opcodes,
    pages::{self, Facts},
    reservation::{Refused, ReserveOut},
    sense::{FIXED_LEN, Sense},
    spec::{CommandHeader, MAX_TARGETS, ResponseHeader, SENSE_LEN, op, response, status},
    steps::{Steps, Tools},
    tasks::Tasks,
    units::{Shared, Unit},
};
use crate::{
    dma::View,
    stages::{Laps, Stage},
    virtio::{
        blk::request::Data,
        device::Verdict,
        queue::{Chain, Segment},
    },
};

const RESPONSE_LEN: usize = size_of::<ResponseHeader>() + SENSE_LEN;
/// Into so many pieces a driver may cut its response.
const RESPONSE_PIECES: usize = 4;
const REAP_BATCH: usize = 64;

/// Where a response goes.
#[derive(Clone, Copy, Debug)]
struct Place {
    pieces: [Segment; RESPONSE_PIECES],
}

impl Place {
    /// The first bytes of what the device writes, and what comes behind them. None where there are too few.
    fn of(chain: &Chain) -> Option<(Self, Data<'_>)> {
        let into = Data::behind(chain.writable(), RESPONSE_LEN as u32)?;
        let mut pieces = [Segment { addr: 0, len: 0 }; RESPONSE_PIECES];
        let mut left = RESPONSE_LEN as u32;
        for (segment, place) in chain.writable().iter().filter(|it| it.len > 0).zip(&mut pieces) {
            let len = segment.len.min(left);
            *place = Segment { addr: segment.addr, len };
            left -= len;
            if left == 0 {
                return Some((Self { pieces }, into));
            }
        }
        None
    }

    fn write(&self, view: &View, header: ResponseHeader, sense: &[u8]) {
        let mut bytes = [0; size_of::<ResponseHeader>() + FIXED_LEN];
        let (head, tail) = bytes.split_at_mut(size_of::<ResponseHeader>());
        head.copy_from_slice(header.as_bytes());
        tail[..sense.len()].copy_from_slice(sense);
        let mut left = &bytes[..size_of::<ResponseHeader>() + sense.len()];
        for piece in &self.pieces {
            let n = left.len().min(piece.len as usize);
            // A response that cannot be written is the driver's own loss.
            let _ = view.write(piece.addr, &left[..n]);
            left = &left[n..];
        }
    }
}

/// A command in flight; its index is the chain's id, and the channel's token.
#[derive(Clone, Copy, Debug)]
struct Slot {
    place: Place,
    target: u8,
    kind: OpKind,
    /// Bytes of data that the driver offered and that are not used; bytes that are written.
    residual: u32,
    written: u32,
    tag: u64,
    /// What is left of a command that is several requests.
    steps: Option<Steps>,
    /// Torn windows when it started, see [`View::torn`].
    torn: usize,
}

/// Handles the commands of one queue.
pub(super) struct Commands {
    shared: Arc<Shared>,
    queue: u16,
    depth: u16,
    lanes: [Option<(Arc<Unit>, IoChannel)>; MAX_TARGETS],
    slots: Box<[Option<Slot>]>,
    /// Commands of several requests whose next one waits for room in its channel.
    stalled: Vec<u16>,
    tools: Tools,
    tasks: Arc<Tasks>,
    drain: Drain,
    /// Readable while completions wait in any channel that can tell; none if the kernel refused one.
    ready: Option<OwnedFd>,
    in_flight: usize,
    /// Guest address of the header that was read last.
    header: u64,
    iov: Vec<IoVec>,
    now: u64,
}

/// Whether somebody waits for the queue to have nothing in flight.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Drain {
    No,
    /// For a change; the queue goes on behind it.
    Change,
    /// For its end.
    Stop,
}

/// How a command ends.
enum End {
    /// Done, with this data for the driver.
    Data(Vec<u8>),
    /// Done.
    Good,
    Check(Sense),
    Conflict,
    /// The transport's own code.
    Transport(u8),
}

impl From<Sense> for End {
    fn from(sense: Sense) -> Self {
        Self::Check(sense)
    }
}

/// How what a command asked of its bdev ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    Bdev(Status),
    /// The medium holds something else than the driver says.
    Miscompare,
}

fn sense_of(status: Status, kind: OpKind) -> Sense {
    match status {
        Status::OutOfRange => Sense::OUT_OF_RANGE,
        Status::Unsupported => Sense::INVALID_OPCODE,
        Status::Invalid => Sense::INVALID_FIELD,
        Status::ReadOnly => Sense::WRITE_PROTECTED,
        Status::NoSpace => Sense::NO_SPACE,
        Status::Removed => Sense::MEDIUM_GONE,
        Status::Aborted => Sense::ABORTED,
        _ if kind == OpKind::Read => Sense::READ_ERROR,
        _ if kind.modifies() => Sense::WRITE_ERROR,
        _ => Sense::HARDWARE,
    }
}

/// Target and unit (virtio 1.2, 5.6.6.1): a fixed byte, the target, and a unit of one level.
pub(super) fn address(lun: [u8; 8]) -> Option<(u8, u16)> {
    let unit = u16::from_be_bytes([lun[2], lun[3]]);
    // Peripheral or flat addressing (SAM-5, 4.7).
    let plain = unit >> 14 <= 1 && lun[4..] == [0; 4];
    (lun[0] == 1 && plain).then_some((lun[1], unit & 0x3fff))
}

pub(super) fn gather(view: &View, data: Data<'_>, to: &mut [u8]) -> Option<()> {
    let mut at = 0;
    for piece in data.pieces() {
        let n = (piece.len as usize).min(to.len() - at);
        view.read(piece.addr, &mut to[at..at + n]).ok()?;
        at += n;
        if at == to.len() {
            return Some(());
        }
    }
    None
}

fn scatter(view: &View, data: Data<'_>, from: &[u8]) -> u32 {
    let mut at = 0;
    for piece in data.pieces() {
        let n = (piece.len as usize).min(from.len() - at);
        if view.write(piece.addr, &from[at..at + n]).is_err() {
            break;
        }
        at += n;
    }
    at as u32
}

impl Commands {
    pub(super) fn new(queue: u16, shared: Arc<Shared>, depth: u16) -> Self {
        shared.has_drained(queue, true);
        let tasks = Arc::new(Tasks::new(depth));
        shared.tasks.add(queue, Arc::clone(&tasks));
        let ready = epoll::create(epoll::CreateFlags::CLOEXEC)
            .inspect_err(|error| tracing::warn!(%error, "completions of SCSI targets are polled for"));
        let mut new = Self {
            shared,
            queue,
            depth,
            lanes: [const { None }; MAX_TARGETS],
            slots: vec![None; usize::from(depth)].into_boxed_slice(),
            stalled: Vec::with_capacity(usize::from(depth)),
            tools: Tools::new(),
            tasks,
            drain: Drain::No,
            ready: ready.ok(),
            in_flight: 0,
            header: 0,
            iov: Vec::with_capacity(MAX_SEGMENTS as usize),
            now: 0,
        };
        new.refresh();
        new
    }

    pub(super) fn set_now(&mut self, now: u64) {
        self.now = now;
        self.lanes.iter_mut().flatten().for_each(|(_, channel)| channel.set_now(now));
    }

    pub(super) fn drain(&mut self, stops: bool) {
        self.drain = if stops { Drain::Stop } else { Drain::Change };
    }

    pub(super) fn refresh(&mut self) {
        self.drain = Drain::No;
        for (lane, unit) in self.lanes.iter_mut().zip(self.shared.units()) {
            let same = matches!((&*lane, &unit), (Some((there, _)), Some(unit)) if Arc::ptr_eq(there, unit));
            if same {
                continue;
            }
            let leaving = lane.as_ref().and_then(|(_, channel)| channel.event_fd());
            if let (Some(ready), Some(fd)) = (&self.ready, leaving) {
                // One that is not in it needs not be taken out.
                let _ = epoll::delete(ready, fd);
            }
            *lane = unit.and_then(|unit| {
                let channel = unit.descriptor.open_channel(self.depth);
                let channel = channel
                    .inspect_err(|error| tracing::error!(target_number = unit.target, %error, "no channel"));
                let channel = channel.ok()?;
                if let (Some(ready), Some(fd)) = (&self.ready, channel.event_fd()) {
                    let added = epoll::add(ready, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN);
                    if let Err(error) = added {
                        tracing::warn!(target_number = unit.target, %error, "completions are polled for");
                        self.ready = None;
                    }
                }
                Some((Arc::clone(&unit), channel))
            });
        }
        self.shared.has_drained(self.queue, true);
    }

    pub(super) fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.ready.as_ref().map(AsFd::as_fd)
    }

    /// Whether [`Self::event_fd`] will tell of the next completion, whichever target it is of.
    pub(super) fn arm(&mut self) -> bool {
        self.ready.is_some()
            && self.stalled.is_empty()
            && self.lanes.iter_mut().flatten().all(|(_, channel)| channel.arm())
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(super) fn is_in_flight(&self, id: u16) -> bool {
        self.slots.get(usize::from(id)).is_none_or(Option::is_some)
    }

    pub(super) fn kick(&mut self) {
        self.lanes.iter_mut().flatten().for_each(|(_, channel)| channel.kick());
    }

    /// Has the processor fetch the header of the next command, which is where the last one's was, if that was alone.
    #[inline]
    pub(super) fn prefetch(&self, view: &View) {
        view.prefetch(self.header);
    }

    pub(super) fn submit(&mut self, chain: &Chain, view: &View, laps: &mut impl Laps) -> Verdict {
        self.header = chain.readable().first().map_or(0, |first| first.addr);
        let Some((place, into)) = Place::of(chain) else { return Verdict::Broken };
        let mut header = CommandHeader::new_zeroed();
        let whole = Data::behind(chain.readable(), 0);
        let out = Data::behind(chain.readable(), size_of::<CommandHeader>() as u32);
        let (Some(whole), Some(out)) = (whole, out) else { return Verdict::Broken };
        if gather(view, whole, header.as_mut_bytes()).is_none() {
            return Verdict::Broken;
        }
        // What the CDB asks for and where its data is belongs to the submission here.
        laps.lap(Stage::Translate);
        match self.execute(&header, place, into, out, (chain.id(), view)) {
            Ok(verdict) => verdict,
            Err(end) => Self::end(view, place, into, &end, into.len().max(out.len())),
        }
    }

    /// Ends a command that never reached a bdev.
    fn end(view: &View, place: Place, into: Data<'_>, end: &End, offered: u64) -> Verdict {
        let mut header = ResponseHeader::default();
        let (mut sense, mut given) = ([0; FIXED_LEN], 0);
        match end {
            End::Data(data) => given = scatter(view, into, data),
            End::Good => {}
            End::Check(why) => {
                header.status = status::CHECK_CONDITION;
                sense = why.bytes();
                header.sense_len = FIXED_LEN as u32;
            }
            End::Conflict => header.status = status::RESERVATION_CONFLICT,
            End::Transport(code) => header.response = *code,
        }
        header.residual = u32::try_from(offered).unwrap_or(u32::MAX).saturating_sub(given);
        place.write(view, header, &sense[..header.sense_len as usize]);
        Verdict::Done(RESPONSE_LEN as u32 + given)
    }

    fn execute(
        &mut self,
        header: &CommandHeader,
        place: Place,
        into: Data<'_>,
        out: Data<'_>,
        (id, view): (u16, &View),
    ) -> Result<Verdict, End> {
        let (target, lun) = address(header.lun).ok_or(End::Transport(response::BAD_TARGET))?;
        let lane = self.lanes.get(usize::from(target)).and_then(Option::as_ref);
        let unit = match lane {
            Some((unit, _)) if !unit.gone.load(Ordering::Acquire) => Arc::clone(unit),
            _ => return Err(End::Transport(response::BAD_TARGET)),
        };
        let always = matches!(header.cdb[0], op::INQUIRY | op::REPORT_LUNS | op::REQUEST_SENSE);
        if lun != 0 && !always {
            return Err(Sense::BAD_LUN.into());
        }
        if !always && let Some(attention) = unit.nexus.take_attention() {
            return Err(attention.into());
        }
        let command = cdb::parse(&header.cdb)?;
        match command {
            Command::Transfer { .. } | Command::Verify { .. } | Command::Compare { .. } | Command::Flush => {}
            Command::Unmap { .. } | Command::WriteSame { .. } => {}
            other => return Err(Self::answer(&unit, lun, other, (out, view))),
        }
        let modifies = !matches!(
            command,
            Command::Transfer { op: Op::Read, .. } | Command::Verify { .. } | Command::Compare { .. }
        );
        if !unit.nexus.may(modifies) {
            return Err(End::Conflict);
        }
        let tag = u64::from_le_bytes(header.id);
        // Before any channel may touch the memory.
        let torn = view.torn();
        let slot =
            Slot { place, target, kind: OpKind::Flush, residual: 0, written: 0, tag, steps: None, torn };
        self.start(&unit, command, slot, (into, out), (id, view))
    }

    /// Commands that need no bdev.
    fn answer(unit: &Arc<Unit>, lun: u16, command: Command, (out, view): (Data<'_>, &View)) -> End {
        let facts = Facts::of(&unit.descriptor, unit.target);
        let cut = |mut data: Vec<u8>, room: u32| {
            data.truncate(room as usize);
            End::Data(data)
        };
        match command {
            Command::Inquiry { page: None, room } => cut(pages::inquiry((lun == 0).then_some(facts)), room),
            Command::Inquiry { page: Some(_), .. } if lun != 0 => Sense::BAD_LUN.into(),
            Command::Inquiry { page: Some(page), room } => match pages::vital(facts, page) {
                Some(data) => cut(data, room),
                None => Sense::INVALID_FIELD.into(),
            },
            Command::ReportLuns { room } => cut(pages::report_luns(true), room),
            Command::ReportCodes { wanted, timeouts, room } => match opcodes::report(wanted, timeouts) {
                Some(data) => cut(data, room),
                None => Sense::INVALID_FIELD.into(),
            },
            Command::RequestSense { room } => {
                let sense = if lun == 0 {
                    unit.nexus.take_attention().unwrap_or(Sense::NONE)
                } else {
                    Sense::BAD_LUN
                };
                cut(sense.bytes().to_vec(), room)
            }
            Command::ModeSense { room, .. } => match pages::mode_sense(facts, command) {
                Some(data) => cut(data, room),
                None => Sense::INVALID_FIELD.into(),
            },
            Command::ReadCapacity => End::Data(pages::capacity(facts.info)),
            Command::ReadCapacityLong { room } => cut(pages::capacity_long(facts), room),
            Command::ReserveIn { action, room } => match unit.nexus.read(action) {
                Some(data) => cut(data, room),
                None => Sense::INVALID_FIELD.into(),
            },
            Command::ReserveOut { action, scope_type, length } => {
                let mut parameters = [0; 24];
                if length != 24 || gather(view, out, &mut parameters).is_none() {
                    return Sense::PARAMETER_LENGTH.into();
                }
                let key = |at: usize| {
                    let mut bytes = [0; 8];
                    bytes.copy_from_slice(&parameters[at..at + 8]);
                    u64::from_be_bytes(bytes)
                };
                // No other ports, and nothing that survives a loss of power.
                if parameters[20] & 0x0d != 0 {
                    return Sense::INVALID_FIELD.into();
                }
                match unit.nexus.change(ReserveOut { action, scope_type, key: key(0), new_key: key(8) }) {
                    Ok(()) => End::Good,
                    Err(Refused::Conflict) => End::Conflict,
                    Err(Refused::Sense(sense)) => sense.into(),
                }
            }
            _ => End::Good,
        }
    }

    /// Commands that are a request of the bdev.
    fn start(
        &mut self,
        unit: &Arc<Unit>,
        command: Command,
        mut slot: Slot,
        (into, out): (Data<'_>, Data<'_>),
        (id, view): (u16, &View),
    ) -> Result<Verdict, End> {
        let info = unit.descriptor.info();
        let block_size = u64::from(info.block_size);
        let rest = |offered: u64, used: u64| u32::try_from(offered - used).unwrap_or(u32::MAX);
        self.iov.clear();
        let (op, lba, blocks) = match command {
            Command::Transfer { op, lba, blocks } => {
                let reads = op == Op::Read;
                let data = if reads { into } else { out };
                let bytes = blocks.saturating_mul(block_size);
                let offered = data.len();
                if bytes > offered {
                    return Err(End::Transport(response::OVERRUN));
                }
                self.translate(data, bytes, reads, view)?;
                slot.residual = rest(offered, bytes);
                slot.written = if reads { bytes as u32 } else { 0 };
                (op, lba, blocks)
            }
            Command::Verify { lba, blocks } => {
                let all = info.num_blocks();
                let inside = blocks <= all && lba <= all - blocks;
                return Err(if inside { End::Good } else { Sense::OUT_OF_RANGE.into() });
            }
            Command::Compare { lba, blocks, is_one } => {
                let all = info.num_blocks();
                if blocks > all || lba > all - blocks {
                    return Err(Sense::OUT_OF_RANGE.into());
                }
                let compare = Compare::new((lba, blocks), block_size, is_one);
                if blocks == 0 {
                    return Err(End::Good);
                }
                if compare.len() > out.len() {
                    return Err(End::Transport(response::OVERRUN));
                }
                match self.tools.desk.take(out, block_size) {
                    Ok(true) => {}
                    Ok(false) => return Ok(Verdict::Full),
                    Err(_no_memory) => return Err(Sense::HARDWARE.into()),
                }
                slot.residual = rest(out.len(), compare.len());
                slot.kind = OpKind::Read;
                slot.steps = Some(Steps::Compare(compare));
                return Ok(self.start_steps(id, slot));
            }
            Command::Flush if !unit.descriptor.bdev().supports(OpKind::Flush) => return Err(End::Good),
            Command::Flush => (Op::Flush, 0, 0),
            Command::Unmap { length } => {
                let Some(list) = self.tools.lists.free() else { return Ok(Verdict::Full) };
                let all = info.num_blocks();
                let inside = |&(lba, blocks): &(u64, u64)| blocks <= all && lba <= all - blocks;
                match self.tools.lists.read(list, length, out, view)? {
                    [] => return Err(End::Good),
                    // All or nothing, as far as that can be seen before.
                    ranges if !ranges.iter().all(inside) => return Err(Sense::OUT_OF_RANGE.into()),
                    &[(lba, blocks)] => (Op::Unmap, lba, blocks),
                    _ => {
                        self.tools.lists.keep(list);
                        slot.kind = OpKind::Unmap;
                        slot.steps = Some(Steps::Unmap { list, at: 0 });
                        return Ok(self.start_steps(id, slot));
                    }
                }
            }
            Command::WriteSame { lba, blocks, unmap, no_data } => {
                let blocks = if blocks == 0 { info.num_blocks().saturating_sub(lba) } else { blocks };
                let zero = Op::WriteZeroes { unmap, fua: false };
                if no_data {
                    (zero, lba, blocks)
                } else {
                    let block = self.same_block(out, block_size, view)?;
                    match block {
                        None => (zero, lba, blocks),
                        Some(_) if blocks > info.num_blocks() || lba > info.num_blocks() - blocks => {
                            return Err(Sense::OUT_OF_RANGE.into());
                        }
                        Some(block) => {
                            slot.steps = Some(Steps::Same { block, lba, left: blocks });
                            slot.kind = OpKind::Write;
                            slot.residual = rest(out.len(), block_size);
                            return Ok(self.start_steps(id, slot));
                        }
                    }
                }
            }
            _ => return Err(Sense::INVALID_OPCODE.into()),
        };
        slot.kind = op.kind();
        let Some((_, channel)) = &mut self.lanes[usize::from(unit.target)] else {
            return Err(End::Transport(response::BAD_TARGET));
        };
        let request = Request { op, lba, blocks, iov: &self.iov, token: Token(u32::from(id)) };
        match channel.submit(&request) {
            Ok(()) => {
                self.hold(id, slot);
                Ok(Verdict::InFlight)
            }
            Err(Rejected::Full) => Ok(Verdict::Full),
            Err(Rejected::Failed(status)) => Err(sense_of(status, slot.kind).into()),
        }
    }

    fn hold(&mut self, id: u16, slot: Slot) {
        self.tasks.started(id, slot.target, slot.tag);
        self.slots[usize::from(id)] = Some(slot);
        self.in_flight += 1;
    }

    /// Accepts a command of several requests; the first is sent by the next reap.
    fn start_steps(&mut self, id: u16, slot: Slot) -> Verdict {
        self.hold(id, slot);
        self.stalled.push(id);
        Verdict::InFlight
    }

    fn translate(&mut self, data: Data<'_>, bytes: u64, device_writes: bool, view: &View) -> Result<(), End> {
        let mut left = bytes;
        for piece in data.pieces() {
            let len = u64::from(piece.len).min(left) as u32;
            if len == 0 {
                break;
            }
            let reached = view.translate(piece.addr, len, device_writes, &mut self.iov);
            reached.map_err(|_fault| End::Transport(response::FAILURE))?;
            left -= u64::from(len);
        }
        Ok(())
    }

    /// The block of a WRITE SAME; none where it is all zeroes.
    fn same_block(&self, out: Data<'_>, block_size: u64, view: &View) -> Result<Option<Segment>, End> {
        let first = out.pieces().next().filter(|piece| u64::from(piece.len) >= block_size);
        let Some(block) = first else { return Err(Sense::INVALID_FIELD.into()) };
        let mut bytes = [0; 512];
        for at in (0..block_size).step_by(bytes.len()) {
            view.read(block.addr + at, &mut bytes).map_err(|_fault| End::Transport(response::FAILURE))?;
            if bytes != [0; 512] {
                return Ok(Some(Segment { addr: block.addr, len: block_size as u32 }));
            }
        }
        Ok(None)
    }

    /// Sends the next request of a command of several, or ends it: a comparison of terabytes is not to be waited for, by a
    /// client that resets the device or takes memory away, or a driver that aborts it. False where its channel has no room.
    fn go_on(&mut self, id: u16, view: &View) -> Result<bool, Status> {
        let Some(slot) = &mut self.slots[usize::from(id)] else { return Ok(true) };
        let (target, Some(steps)) = (slot.target, &mut slot.steps) else { return Ok(true) };
        let in_the_way = match self.drain {
            Drain::No => false,
            // A short one ends by itself; drivers that have a vIOMMU take memory away all the time.
            Drain::Change => steps.is_long(),
            Drain::Stop => true,
        };
        if in_the_way || self.tasks.is_aborted(id) {
            return Err(Status::Aborted);
        }
        let (op, (lba, blocks), rest) = steps.next(&self.tools, view, &mut self.iov)?;
        let Some((_, channel)) = &mut self.lanes[usize::from(target)] else { return Err(Status::Removed) };
        let token = Token(u32::from(id));
        match channel.submit(&Request { op, lba, blocks, iov: &self.iov, token }) {
            Ok(()) => {
                *steps = rest;
                channel.kick();
                Ok(true)
            }
            Err(Rejected::Full) => Ok(false),
            Err(Rejected::Failed(status)) => Err(status),
        }
    }

    /// How a step ended, a comparison included.
    fn ended(&mut self, id: u16, status: Status, view: &View) -> Ended {
        let steps = self.slots[usize::from(id)].and_then(|slot| slot.steps);
        let (Status::Ok, Some(Steps::Compare(compare))) = (status, steps) else { return Ended::Bdev(status) };
        match self.tools.desk.is_equal(compare, view, &mut self.iov) {
            Ok(true) => Ended::Bdev(Status::Ok),
            Ok(false) => Ended::Miscompare,
            Err(_fault) => Ended::Bdev(Status::IoError),
        }
    }

    fn finish(&mut self, id: u16, ended: Ended, view: &View, done: &mut dyn FnMut(u16, u32)) {
        let Some(slot) = self.slots[usize::from(id)].take() else { return };
        self.in_flight -= 1;
        self.tasks.ended(id);
        if let Some(steps) = slot.steps {
            steps.end(&mut self.tools);
        }
        let ended = if view.torn() == slot.torn { ended } else { Ended::Bdev(Status::IoError) };
        let mut header = ResponseHeader { residual: slot.residual, ..ResponseHeader::default() };
        let mut written = slot.written;
        let sense = match ended {
            Ended::Bdev(Status::Ok) => None,
            Ended::Bdev(status) => Some(sense_of(status, slot.kind)),
            Ended::Miscompare => Some(Sense::MISCOMPARE),
        };
        if let Some(sense) = sense.map(Sense::bytes) {
            header.status = status::CHECK_CONDITION;
            header.sense_len = FIXED_LEN as u32;
            slot.place.write(view, header, &sense);
            written = 0;
        } else {
            slot.place.write(view, header, &[]);
        }
        done(id, RESPONSE_LEN as u32 + written);
    }

    pub(super) fn reap(&mut self, view: &View, laps: &mut impl Laps, done: &mut dyn FnMut(u16, u32)) {
        for lane in 0..MAX_TARGETS {
            let mut batch = [Completion::EMPTY; REAP_BATCH];
            while let Some((_, channel)) = &mut self.lanes[lane] {
                let n = channel.reap(&mut batch);
                laps.lap(Stage::Backend);
                for completion in &batch[..n] {
                    let id = completion.token.0 as u16;
                    let ended = self.ended(id, completion.status, view);
                    let more = self.slots[usize::from(id)]
                        .and_then(|slot| slot.steps)
                        .is_some_and(|steps| steps.has_more(&self.tools));
                    if more && ended == Ended::Bdev(Status::Ok) {
                        self.stalled.push(id);
                    } else {
                        self.finish(id, ended, view, done);
                    }
                }
                if n < batch.len() {
                    break;
                }
            }
        }
        for _ in 0..self.stalled.len() {
            let id = self.stalled.remove(0);
            match self.go_on(id, view) {
                Ok(true) => {}
                Ok(false) => self.stalled.push(id),
                Err(status) => self.finish(id, Ended::Bdev(status), view, done),
            }
        }
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        self.shared.has_drained(self.queue, false);
        self.shared.tasks.remove(self.queue, &self.tasks);
    }
}
