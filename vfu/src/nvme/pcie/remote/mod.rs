//! Commands whose entries, completions or data only messages reach: slower, and correct.
//!
//! A queue whose rings lie in memory that is not shared has its entries brought here; one whose rings are shared hands over
//! the single commands whose data are not. Each is an [`Errand`]: its lists and data are brought to a buffer of our own, it
//! is executed on that, what it wrote goes back, and then its completion. Who executes it is the queue's owner's business.
//! Nothing blocks, and nobody is asked for memory that is mapped.

mod errand;
mod reach;

use std::{collections::VecDeque, sync::Arc};

pub(super) use errand::Brought;
use errand::{Buffers, Errand, Step};
pub(super) use reach::Reach;
use reach::Reading;
use zerocopy::FromBytes;

use super::ring::{Cq, Sq, last_half};
use crate::{
    device::Bus,
    dma::{Asker, View},
    nvme::{
        data::ABSENT,
        io::Finished,
        spec::{Command, SQE_LEN, Status},
    },
};

/// Errands of one completion queue at a time.
const ERRANDS_MAX: usize = 32;
/// Entries that one message brings at most.
const ENTRIES_MAX: u16 = 16;
/// Set in the tag of a command that is an errand; the rest says which.
pub(super) const TAG: u16 = 1 << 15;

/// What an executor has done with an errand's commands.
pub(super) enum Outcome {
    /// They are done; with [`ABSENT`] there are data to be brought first.
    Done(Status, u32),
    /// [`Errands::finished`] will tell.
    InFlight,
    /// There was no room.
    Full,
    /// It has no end for now; whoever ends it posts that.
    Held,
}

/// What a look at the errands has led to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moves {
    /// Something moved.
    pub(super) moved: bool,
    /// Completions have reached the driver: it is to be interrupted.
    pub(super) arrived: bool,
    /// So many completions need no room any more.
    pub(super) released: u16,
}

/// The errands of one completion queue.
pub(super) struct Errands {
    bus: Arc<Bus>,
    asker: Asker,
    /// By the rest of their tags.
    places: Vec<Option<Errand>>,
    /// Entries on their way: of which queue, and how many.
    coming: Option<(u16, u16, Reading)>,
    /// Entries that came and have no place yet.
    waiting: VecDeque<(u16, Command)>,
    buffers: Buffers,
    /// Answers that there were when the errands were looked at last.
    seen: u64,
    /// Commands were taken since.
    is_untried: bool,
    /// Which queue is looked at first.
    turn: usize,
    /// The executor had no room when it was given something last.
    is_refused: bool,
}

impl Errands {
    pub(super) fn new(bus: &Arc<Bus>, asker: Asker) -> Self {
        Self {
            bus: Arc::clone(bus),
            asker,
            places: (0..ERRANDS_MAX).map(|_| None).collect(),
            coming: None,
            waiting: VecDeque::new(),
            buffers: Buffers::default(),
            seen: 0,
            is_untried: false,
            turn: 0,
            is_refused: false,
        }
    }

    /// Whether there is none that has come.
    pub(super) fn is_empty(&self) -> bool {
        self.places.iter().all(Option::is_none)
    }

    /// They go on with another owner, on another reactor. How many completions will need room there.
    pub(super) fn move_to(&mut self, asker: Asker) -> u16 {
        self.asker = asker;
        self.owed()
    }

    /// Whether answers came since it was looked at, or commands were taken: asked before its poller sleeps.
    pub(super) fn has_news(&self) -> bool {
        self.is_untried || self.seen != self.bus.remote.settled()
    }

    /// Whether the executor is to be tried again: it tells nobody when its bdev's rate limit lets it go on.
    pub(super) fn is_refused(&self) -> bool {
        self.is_refused
    }

    /// Whatever came so far counts as looked at.
    pub(super) fn glance(&mut self) {
        (self.seen, self.is_untried) = (self.bus.remote.settled(), false);
    }

    /// Completions that will need room.
    pub(super) fn owed(&self) -> u16 {
        let coming = self.coming.as_ref().map_or(0, |(_, n, _)| *n);
        let waiting = u16::try_from(self.waiting.len()).unwrap_or(u16::MAX);
        coming + waiting + self.places.iter().flatten().map(Errand::owed).sum::<u16>()
    }

    /// Whether one more command finds a place.
    pub(super) fn has_room(&self) -> bool {
        self.room() > 0
    }

    fn room(&self) -> usize {
        let free = self.places.iter().filter(|place| place.is_none()).count();
        let coming = self.coming.as_ref().map_or(0, |(_, n, _)| usize::from(*n));
        free.saturating_sub(self.waiting.len() + coming)
    }

    /// Takes one command, or two fused ones, off a queue whose entries are mapped. False if there is no room.
    pub(super) fn take(&mut self, qid: u16, commands: &[Command]) -> bool {
        let taken = self.has_room() && self.place(Errand::new(qid, commands.to_vec()));
        self.is_untried |= taken;
        taken
    }

    /// Posts a completion to a queue that is not mapped.
    pub(super) fn post(&mut self, qid: u16, end: Finished) {
        let mut errand = Errand::new(qid, Vec::new());
        errand.finish(end);
        if self.places.iter().all(Option::is_some) {
            // Rare: events and deletions beside a full queue.
            self.places.push(None);
        }
        self.place(errand);
    }

    fn place(&mut self, errand: Errand) -> bool {
        let free = self.places.iter_mut().find(|place| place.is_none());
        free.map(|place| *place = Some(errand)).is_some()
    }

    fn errand(&mut self, tag: u16) -> Option<&mut Errand> {
        self.places.get_mut(usize::from(tag & !TAG))?.as_mut()
    }

    /// A command that was in flight has ended.
    pub(super) fn finished(&mut self, finished: Finished) {
        if let Some(errand) = self.errand(finished.tag) {
            errand.finish(finished);
        }
    }

    /// Starts to bring entries of queues that are not mapped, if their completion queue has so much room.
    pub(super) fn bring_entries(&mut self, sqs: &mut [Sq], room: u16, view: &View) -> u16 {
        let most = u16::try_from(self.room()).unwrap_or(0).min(room).min(ENTRIES_MAX);
        if self.coming.is_some() || most == 0 || sqs.is_empty() {
            return 0;
        }
        let start = self.turn;
        for nth in 0..sqs.len() {
            let at = (start + nth) % sqs.len();
            let Some((address, n)) = sqs[at].next_remote(most) else { continue };
            self.turn = at + 1;
            let reach = Reach { bus: &self.bus, view, asker: &self.asker };
            match reach.read(&[(address, u32::from(n) * SQE_LEN as u32)]) {
                Ok(reading) => {
                    self.coming = Some((sqs[at].setup.qid, n, reading));
                    return n;
                }
                Err(_) => sqs[at].rest(),
            }
        }
        0
    }

    /// Takes entries that have come. True if some have, or never will.
    fn take_entries(&mut self, sqs: &mut [Sq], moves: &mut Moves) {
        let Some((qid, n, reading)) = &mut self.coming else { return };
        let Some(outcome) = reading.poll() else { return };
        let (qid, n) = (*qid, *n);
        self.coming = None;
        moves.moved = true;
        let sq = sqs.iter_mut().find(|sq| sq.setup.qid == qid);
        match (outcome, sq) {
            (Ok(bytes), Some(sq)) => {
                sq.advance(n);
                let entries =
                    bytes.chunks_exact(SQE_LEN).filter_map(|entry| Command::read_from_bytes(entry).ok());
                self.waiting.extend(entries.map(|command| (qid, command)));
            }
            (_, sq) => {
                moves.released += n;
                if let Some(sq) = sq {
                    sq.rest();
                }
            }
        }
    }

    /// Gives places to entries that came. Two fused ones go together (Base, 3.4.2).
    fn place_entries(&mut self, sqs: &[Sq]) {
        while self.places.iter().any(Option::is_none)
            && let Some(&(qid, first)) = self.waiting.front()
        {
            let is_paired = first.fuse() != Command::FUSE_NONE && qid != 0;
            let next =
                self.waiting.iter().skip(1).find(|(other, _)| *other == qid).map(|(_, command)| *command);
            if is_paired && first.fuse() == Command::FUSE_FIRST && next.is_none() && self.more(qid, sqs) {
                return;
            }
            self.waiting.pop_front();
            let mut errand = Errand::new(qid, vec![first]);
            if is_paired {
                let second = next.filter(|next| {
                    first.fuse() == Command::FUSE_FIRST && next.fuse() == Command::FUSE_SECOND
                });
                match second {
                    Some(second) => {
                        errand.commands.push(second);
                        let at = self.waiting.iter().position(|(other, _)| *other == qid);
                        at.map(|at| self.waiting.remove(at));
                    }
                    None => errand.end(Status::MISSING_FUSED, 0),
                }
            }
            self.place(errand);
        }
    }

    /// Whether entries of this queue are still to come.
    fn more(&self, qid: u16, sqs: &[Sq]) -> bool {
        let is_coming = self.coming.as_ref().is_some_and(|(of, ..)| *of == qid);
        is_coming || sqs.iter().any(|sq| sq.setup.qid == qid && sq.next_remote(1).is_some())
    }

    /// Moves everything on as far as answers are there, and posts what is over.
    pub(super) fn advance(&mut self, sqs: &mut [Sq], cq: &mut Cq, view: &View) -> Moves {
        self.glance();
        let mut moves = Moves::default();
        self.take_entries(sqs, &mut moves);
        self.place_entries(sqs);
        let Self { bus, asker, places, buffers, .. } = self;
        let reach = Reach { bus, view, asker };
        let head = |qid: u16| sqs.iter().find(|sq| sq.setup.qid == qid).map_or(0, |sq| sq.head);
        for place in places {
            let Some(errand) = place else { continue };
            let owed = errand.owed();
            let over = loop {
                let claim = || cq.is_remote.then(|| cq.claim());
                let half = |qid, end: &Finished, phase| last_half(head(qid), qid, end.cid, end.status, phase);
                match errand.step(&reach, buffers, claim, half) {
                    Step::Waits => break false,
                    Step::Moved => moves.moved = true,
                    Step::Arrived => break true,
                    Step::Posts if !cq.is_resolved() => {
                        errand.rest();
                        break false;
                    }
                    Step::Posts => {
                        for end in &errand.ends {
                            cq.post_raw(head(errand.qid), errand.qid, end.cid, end.status, end.dw0);
                        }
                        break true;
                    }
                }
            };
            if !over {
                moves.released += owed - errand.owed();
                continue;
            }
            moves.released += owed;
            (moves.moved, moves.arrived) = (true, true);
            buffers.take_back(place.take());
        }
        moves
    }

    /// Has the executor take what is ready. True if it took something.
    pub(super) fn execute(
        &mut self,
        view: &View,
        mut by: impl FnMut(u16, &[Command], &Brought<'_>) -> Outcome,
    ) -> bool {
        let mut moved = false;
        let Self { bus, asker, places, buffers, is_refused, .. } = self;
        *is_refused = false;
        let reach = Reach { bus, view, asker };
        let lent: u64 = places.iter().flatten().map(Errand::lent).sum();
        for (at, place) in places.iter_mut().enumerate() {
            let Some(errand) = place.as_mut().filter(|errand| errand.is_ready()) else { continue };
            // Others will give theirs back.
            if lent >= Buffers::BYTES_MAX && errand.lent() == 0 {
                continue;
            }
            if errand.is_aborted() {
                errand.end(Status::ABORT_REQUESTED, 0);
                moved = true;
                continue;
            }
            let data = errand.data(view.torn());
            let tag = TAG | u16::try_from(at).unwrap_or(0);
            match by(tag, &errand.commands, &data) {
                Outcome::Done(ABSENT, _) => {
                    let wanted = data.wanted();
                    errand.bring(wanted, &reach, buffers);
                }
                Outcome::Done(status, dw0) => errand.end(status, dw0),
                Outcome::InFlight => errand.runs(),
                Outcome::Full => {
                    *is_refused = true;
                    return moved;
                }
                Outcome::Held => {
                    buffers.take_back(place.take());
                }
            }
            moved = true;
        }
        moved
    }

    /// Whether entries are on their way.
    pub(super) fn is_coming(&self) -> bool {
        self.coming.is_some()
    }

    /// Aborts a command: what became of it, once that can be said, or the tag of one that is executed now.
    pub(super) fn abort(&mut self, qid: u16, cid: u16) -> Result<Option<bool>, u16> {
        let is_it = |command: &Command| command.cid == cid && command.fuse() == Command::FUSE_NONE;
        if let Some(at) = self.waiting.iter().position(|(of, command)| *of == qid && is_it(command)) {
            // It ends as such where it stands.
            let mut errand =
                Errand::new(qid, self.waiting.remove(at).map(|(_, command)| command).into_iter().collect());
            errand.end(Status::ABORT_REQUESTED, 0);
            if self.places.iter().all(Option::is_some) {
                self.places.push(None);
            }
            return Ok(Some(self.place(errand)));
        }
        let ours = |errand: &Errand| errand.qid == qid && errand.commands.iter().any(is_it);
        let Some(at) = self.places.iter().position(|place| place.as_ref().is_some_and(ours)) else {
            let is_coming = self.coming.as_ref().is_some_and(|(of, ..)| *of == qid);
            return Ok(if is_coming { None } else { Some(false) });
        };
        match &mut self.places[at] {
            Some(errand) if errand.is_running() => Err(TAG | u16::try_from(at).unwrap_or(0)),
            place => Ok(Some(place.as_mut().is_some_and(Errand::abort))),
        }
    }

    /// The queues have found their memory anew: what rests is tried again, and entries on their way are dropped, as their
    /// queue may take them itself now. How many completions need no room any more.
    pub(super) fn retry(&mut self, view: &View) -> u16 {
        let reach = Reach { bus: &self.bus, view, asker: &self.asker };
        self.places.iter_mut().flatten().for_each(|errand| errand.retry(&reach));
        self.coming.take().map_or(0, |(_, n, _)| n)
    }

    /// Drops what was not executed yet of queues that are not kept, and what waits for its completion queue to be mapped; how many
    /// completions need no room any more.
    pub(super) fn forget(&mut self, keeps: impl Fn(u16) -> bool) -> u16 {
        let before = self.owed();
        self.waiting.retain(|(qid, _)| keeps(*qid));
        self.coming.take_if(|(qid, ..)| !keeps(*qid));
        for place in &mut self.places {
            place.take_if(|errand| (errand.is_fresh() || errand.is_unclaimed()) && !keeps(errand.qid));
        }
        before - self.owed()
    }

    /// Whether something is under way of queues that are not kept. What rests until the windows change is not: it may be for ever.
    pub(super) fn works_for_others(&self, keeps: impl Fn(u16) -> bool) -> bool {
        let is_coming = self.coming.iter().any(|(qid, ..)| !keeps(*qid));
        let waits = self.waiting.iter().any(|(qid, _)| !keeps(*qid));
        let works = |errand: &Errand| !keeps(errand.qid) && !errand.is_resting();
        is_coming || waits || self.places.iter().flatten().any(works)
    }

    /// Drops everything, as nobody waits for it any more. True once nothing of it is under way to the guest or at a bdev.
    pub(super) fn is_over(&mut self) -> bool {
        self.glance();
        (self.coming, self.turn) = (None, 0);
        self.waiting.clear();
        for place in &mut self.places {
            place.take_if(|errand| errand.is_over());
        }
        self.places.iter().all(Option::is_none)
    }
}
