//! A completion queue's owner: the poller that takes commands off its submission queues, executes them, and posts what is
//! done. One owner per completion queue, on one reactor, with channels of its own.

use std::sync::Arc;

use reactor::{Handle, Interest, Park, Poller, PollerCx, PollerSpec, SendError, Tick, Watch, Work};

use super::{
    control::{Abort, Control, Rings, State, Wanted},
    doorbells::Doorbells,
    memory::GuestData,
    remote::{Errands, Outcome},
    ring::{Cq, Setup, Sq},
};
use crate::{
    device::Bus,
    dma::{Asker, View},
    irq::Signal,
    last_words::LastWords,
    lookout::Lookout,
    moderation::{Moderation, Moderator},
    nvme::{
        controller::ControllerOptions,
        io::{Executor, Finished, MAX_IN_FLIGHT, Verdict},
        link::{Counters, Link, flag},
        spec::Status,
        subsystem::Subsystem,
    },
    points::{NVME, QUEUE_START, QUEUE_STOP},
    stages::{Laps, Sampler, Stage, Untimed},
};

/// How often the silence of a queue doubles beyond a millisecond: to eight for an I/O queue, to 32 for the admin queue,
/// where nobody minds.
const DOUBLINGS: u32 = 3;
pub(super) const ADMIN_DOUBLINGS: u32 = 5;

/// All that is needed to start a completion queue on another reactor.
pub(super) struct Start {
    pub(super) name: String,
    pub(super) group: reactor::Group,
    pub(super) bus: Arc<Bus>,
    pub(super) doorbells: Arc<Doorbells>,
    pub(super) control: Arc<Control>,
    pub(super) subsystem: Arc<Subsystem>,
    pub(super) link: Arc<Link>,
    pub(super) options: ControllerOptions,
    pub(super) setup: Setup,
    /// MSI-X vector, if interrupts are enabled.
    pub(super) vector: Option<u16>,
    /// The control block that it had on another reactor, if it comes from there.
    pub(super) from: Option<Arc<Control>>,
}

/// Sends a queue to its reactor.
pub(super) fn start(reactor: &Handle, start: Start) -> Result<(), SendError> {
    reactor.send(Box::new(move |reactor| {
        let faulted = Arc::clone(&start.control);
        let spec =
            PollerSpec::new(start.name.clone(), &start.group).on_fault(move |_| faulted.ended(State::Failed));
        reactor.add(spec, move |cx| {
            let owner = Owner::new(start, cx);
            owner.control.started(cx.waker());
            Box::new(owner)
        });
    }))
}

struct Owner {
    name: String,
    bus: Arc<Bus>,
    doorbells: Arc<Doorbells>,
    control: Arc<Control>,
    link: Arc<Link>,
    vector: Option<u16>,
    cq: Cq,
    sqs: Vec<Sq>,
    io: Executor,
    view: View,
    signal: Option<Signal>,
    /// What only messages reach, once there was something.
    remote: Option<Box<Errands>>,
    /// Holds its interrupts back, if the host wants that; and the tail of the completion queue when it was told last.
    moderator: Option<Moderator>,
    told: u16,
    /// There is a pin to let go of, something that only messages reach, or an interrupt that may be held back.
    attends: bool,
    /// Completions that commands in flight will need.
    owed: u16,
    /// Those of this pass that are not to be posted in the completion queue from here.
    strays: Vec<Finished>,
    /// The queue holds the pin up.
    asserted: bool,
    /// The last pass left commands for want of room in the completion queue.
    blocked: bool,
    epoch: u64,
    lookout: Lookout,
    sampler: Sampler,
    cx: PollerCx,
    watches: Vec<Watch>,
    /// Some channel must be polled for completions.
    unwatched: bool,
    /// That it has stopped; must stay the last field.
    last_words: LastWords,
}

impl Owner {
    fn new(start: Start, cx: &PollerCx) -> Self {
        let Start { name, bus, doorbells, control, subsystem, link, options, setup, vector, from, .. } =
            start;
        let depth = setup.size.saturating_sub(1).min(MAX_IN_FLIGHT);
        let io = Executor::new(subsystem, Arc::clone(&link), options, depth);
        let new = || Rings { cq: Cq::new(setup, &doorbells), sqs: Vec::new(), remote: None };
        let Rings { cq, sqs, mut remote } = from.and_then(|from| control.succeed(&from)).unwrap_or_else(new);
        let owed = remote.as_mut().map_or(0, |remote| remote.move_to(Asker::Queue(cx.waker())));
        let view = View::new(&bus.windows);
        NVME.record_text(QUEUE_START, vector.map_or(u64::MAX, u64::from), &name);
        Self {
            name,
            bus,
            doorbells,
            control,
            link,
            vector,
            cq,
            sqs,
            io,
            view,
            signal: None,
            remote,
            moderator: None,
            told: 0,
            attends: false,
            owed,
            strays: Vec::new(),
            asserted: false,
            blocked: false,
            epoch: 0,
            lookout: Lookout::new(cx.clock(), DOUBLINGS),
            sampler: Sampler::new(cx.clock()),
            cx: cx.clone(),
            watches: Vec::new(),
            unwatched: false,
            last_words: LastWords::default(),
        }
    }

    /// Looks at the tails: commands that wait.
    #[inline(always)]
    fn look(&mut self) -> u32 {
        let mut waiting = 0;
        let mut is_bad = false;
        for sq in &mut self.sqs {
            match sq.look() {
                Ok(n) => waiting += u32::from(n),
                Err(_) => is_bad = true,
            }
        }
        if is_bad {
            self.tell_bad_doorbell();
        }
        waiting
    }

    #[cold]
    fn tell_bad_doorbell(&self) {
        // At debug level: a guest can have this written as often as it likes.
        tracing::debug!(queue = self.name, "a doorbell was set to a value outside its queue");
        self.link.notify(flag::BAD_DOORBELL);
    }

    /// Posts what has finished, and raises the interrupt. True if something had. What finds its completion queue unmapped (a
    /// job that rested while a change took its memory) waits among the errands until it is back.
    #[inline]
    fn complete(&mut self, mut posted: bool, now: Tick, laps: &mut impl Laps) -> bool {
        let Self { io, cq, sqs, owed, view, strays, .. } = self;
        let mut done = 0;
        io.reap(&GuestData { view, admin: false }, laps, &mut |finished: Finished| {
            done += 1;
            match sqs.get(usize::from(finished.tag)) {
                Some(sq) if cq.post(sq.head, sq.setup.qid, finished) => {
                    *owed -= 1;
                    posted = true;
                }
                _ => strays.push(finished),
            }
        });
        let elsewhere = !self.strays.is_empty();
        if elsewhere {
            self.post_strays();
        }
        laps.count(0, done);
        if posted && (self.moderator.is_none() || self.raises_now(now)) {
            self.raise();
            laps.lap(Stage::Interrupt);
        }
        posted || elsewhere
    }

    /// What did not go to the completion queue from here goes by the errands: theirs, and what finds the queue unmapped.
    #[cold]
    fn post_strays(&mut self) {
        let Self { sqs, remote, attends, bus, cx, strays, .. } = self;
        for finished in strays.drain(..) {
            if let Some(sq) = sqs.get(usize::from(finished.tag)) {
                *attends = true;
                remote.get_or_insert_with(|| errands(bus, cx)).post(sq.setup.qid, finished);
            } else if let Some(remote) = remote {
                remote.finished(finished);
            }
        }
    }

    /// Whether what was posted is told at once, by the host's rules. They should not delay what failed (Base, feature 08h).
    #[cold]
    fn raises_now(&mut self, now: Tick) -> bool {
        let (posted, tail) = self.cq.since(self.told);
        self.told = tail;
        let Some(moderator) = &mut self.moderator else { return true };
        moderator.published(posted.into(), true, now) || (self.io.take_failed() && moderator.flush())
    }

    /// Takes the host's rules for interrupts.
    fn moderate(&mut self, moderation: Option<Moderation>) {
        self.told = self.cq.since(0).1;
        self.io.take_failed();
        self.moderator = moderation.map(|it| Moderator::new(it, self.cx.clock().ticks(it.time)));
    }

    /// What few queues need in a pass. True if something moved.
    #[cold]
    fn attend(&mut self, now: Tick) -> bool {
        if self.asserted {
            self.settle_pin();
        }
        if self.moderator.as_mut().is_some_and(|moderator| moderator.is_due(now)) {
            self.raise();
        }
        self.serve_remote(true, now)
    }

    /// Moves on what only messages reach; takes more of it if it `brings`. True if something moved.
    #[cold]
    fn serve_remote(&mut self, brings: bool, now: Tick) -> bool {
        let Self { remote: Some(remote), sqs, cq, io, view, owed, blocked, .. } = self else { return false };
        let moves = remote.advance(sqs, cq, view);
        *owed -= moves.released;
        let executed = remote.execute(view, |tag, commands, data| match commands {
            [command] => match io.submit(tag, command, data, &mut Untimed) {
                Verdict::Done(status) => Outcome::Done(status, 0),
                Verdict::InFlight => Outcome::InFlight,
                Verdict::Full => Outcome::Full,
            },
            [first, second] => match io.submit_fused(tag, (first, second), data) {
                Ok(Verdict::InFlight) => Outcome::InFlight,
                Ok(_) => Outcome::Full,
                Err(status) => Outcome::Done(status, 0),
            },
            _ => Outcome::Done(Status::INTERNAL_ERROR, 0),
        });
        io.kick();
        let mut brought = 0;
        if brings {
            let room = cq.room(*owed + 1).saturating_sub(*owed);
            brought = remote.bring_entries(sqs, room, view);
            *owed += brought;
            *blocked |= room == 0;
        }
        if moves.arrived && (self.moderator.is_none() || self.raises_now(now)) {
            self.raise();
        }
        moves.moved || executed || brought > 0
    }

    /// Before a change is followed: ends what only messages reach as far as the change needs it. Whether something moved, and
    /// whether there is something left to wait for.
    #[cold]
    fn end_remote(&mut self, stops: bool, sqs: &[Setup], now: Tick) -> (bool, bool) {
        let Some(remote) = &mut self.remote else { return (false, false) };
        if self.control.is_discarding() {
            return (false, !remote.is_over());
        }
        let keeps = |qid| sqs.iter().any(|setup| setup.qid == qid);
        let is_needed = |remote: &Errands| remote.works_for_others(|qid| !stops && keeps(qid));
        self.owed -= remote.forget(keeps);
        if !is_needed(remote) {
            remote.glance();
            return (false, false);
        }
        let moved = self.serve_remote(false, now);
        let Some(remote) = &mut self.remote else { return (moved, false) };
        self.owed -= remote.forget(keeps);
        (moved, is_needed(remote))
    }

    /// One pass over the rings.
    #[inline]
    fn pass(&mut self, now: Tick, laps: &mut impl Laps) -> Work {
        self.io.begin(now.raw(), &GuestData { view: &self.view, admin: false });
        let waiting = self.look();
        // After the rings were looked at: a window mapped before the driver used it is seen.
        let epoch = self.control.epoch();
        let has_aborts = self.control.has_aborts();
        if epoch != self.epoch {
            return self.follow(epoch, now);
        }
        let moved = self.attends && self.attend(now);
        if has_aborts {
            self.abort(now);
        }
        let mut posted = false;
        if waiting > 0 {
            posted = self.take(laps);
            self.io.kick();
            laps.lap(Stage::Backend);
        }
        if waiting == 0 && self.io.in_flight() == 0 && !moved {
            return Work::Idle;
        }
        self.lookout.found();
        let blocked = self.blocked;
        // A queue whose driver does not look at its completions has nothing to do, however much waits.
        if self.complete(posted, now, laps) || (waiting > 0 && !blocked) || moved {
            Work::Busy
        } else {
            Work::Idle
        }
    }

    /// A pass whose stages are timed.
    #[cold]
    fn timed_pass(&mut self, now: Tick) -> Work {
        let mut watch = self.sampler.start();
        let work = self.pass(now, &mut watch);
        self.io.counters().stages.add(&watch);
        work
    }

    #[inline]
    fn raise(&mut self) {
        let Some(signal) = &self.signal else { return };
        Counters::add(&self.io.counters().interrupts, 1);
        if signal.is_pin() && !self.asserted {
            (self.asserted, self.attends) = (true, true);
            self.bus.irqs.assert_level();
        }
        signal.raise_level();
    }

    /// Lets go of the pin when the driver has seen everything.
    #[cold]
    fn settle_pin(&mut self) {
        if self.cq.is_consumed() {
            self.release_pin();
        }
    }

    fn release_pin(&mut self) {
        if std::mem::take(&mut self.asserted) {
            self.bus.irqs.deassert_level();
        }
    }

    /// Aborts what it was told to, if it is not with a bdev: steps that a command still has to make, and commands that were
    /// not taken yet for want of room.
    #[cold]
    fn abort(&mut self, now: Tick) {
        self.serve_remote(true, now);
        let Self { control, sqs, io, remote, .. } = self;
        control.settle_aborts(|Abort { sqid, cid, .. }| {
            let Some(tag) = sqs.iter().position(|sq| sq.setup.qid == sqid) else { return Some(false) };
            match remote.as_mut().map_or(Ok(Some(false)), |remote| remote.abort(sqid, cid)) {
                Ok(Some(false)) => {
                    Some(io.abort(u16::try_from(tag).unwrap_or(u16::MAX), cid) || sqs[tag].abort(cid))
                }
                Ok(known) => known,
                Err(tag) => Some(io.abort(tag, cid)),
            }
        });
    }

    /// Follows a change when nothing is in flight.
    #[cold]
    fn follow(&mut self, epoch: u64, now: Tick) -> Work {
        let stops = self.control.is_stopping();
        let Wanted { sqs, buffers, moderation } = self.control.wanted();
        // Commands are known by the place of their queue: with one less, there must be none.
        let shrinks = self.sqs.iter().any(|sq| !sqs.contains(&sq.setup));
        if stops || shrinks {
            self.io.resume();
        } else {
            self.io.pause();
        }
        if self.control.is_discarding() {
            self.io.abort_all();
        }
        let finished = self.complete(false, now, &mut Untimed);
        let (moved, is_left) = self.end_remote(stops, &sqs, now);
        if self.io.unpaused() > 0 || is_left {
            if self.io.unpaused() == 0 {
                self.control.await_client(epoch);
            }
            return if finished || moved { Work::Busy } else { Work::Idle };
        }
        // What is held back by the old rules is told before the new ones.
        if self.moderator.as_mut().is_some_and(Moderator::flush) {
            self.raise();
        }
        if stops {
            NVME.record_text(QUEUE_STOP, self.vector.map_or(u64::MAX, u64::from), &self.name);
            self.release_pin();
            self.io.publish();
            let empty = Cq::new(Setup { qid: 0, size: 2, base: 0 }, &self.doorbells);
            let cq = std::mem::replace(&mut self.cq, empty);
            let remote = self.remote.take().filter(|remote| !remote.is_empty());
            self.control.leave(Rings { cq, sqs: std::mem::take(&mut self.sqs), remote });
            let control = Arc::clone(&self.control);
            self.last_words.set(move || control.ended(State::Stopped));
            return Work::Done;
        }
        self.view.refresh(&self.bus.windows);
        self.io.refresh();
        self.watch();
        self.sqs.retain(|sq| sqs.contains(&sq.setup));
        for setup in sqs {
            if !self.sqs.iter().any(|sq| sq.setup == setup) {
                self.sqs.push(Sq::new(setup, &self.doorbells));
            }
        }
        // Memory comes and goes in steps; the last one brings the rings back.
        let view = self.bus.bus_master().then_some(&self.view);
        let cq = &mut self.cq;
        let mut resolved = cq.resolve(view, buffers) || view.is_some_and(|view| cq.go_remote(view));
        let mut is_remote = cq.is_remote;
        for sq in &mut self.sqs {
            // What is executed here is posted here: behind a completion queue that takes messages, so does its entry.
            let is_mapped = sq.resolve(view, buffers) && !cq.is_remote;
            resolved &= is_mapped || view.is_some_and(|view| sq.go_remote(view));
            is_remote |= sq.is_remote;
        }
        if is_remote {
            self.remote.get_or_insert_with(|| errands(&self.bus, &self.cx));
        }
        if let Some(remote) = &mut self.remote {
            self.owed -= remote.retry(&self.view);
        }
        if !resolved {
            tracing::debug!(queue = self.name, "queue suspended");
        }
        self.signal = self.vector.map(|vector| self.bus.irqs.signal(vector));
        if !self.signal.as_ref().is_some_and(Signal::is_pin) {
            self.release_pin();
        }
        self.moderate(moderation);
        // One that has moved let go of the pin where it was, with completions that the driver may not have seen.
        let has_come = self.epoch == 0;
        if has_come && self.signal.as_ref().is_some_and(Signal::is_pin) && !self.cq.is_consumed() {
            self.raise();
        }
        self.attends = self.asserted || self.remote.is_some() || self.moderator.is_some();
        self.io.resume();
        self.epoch = epoch;
        self.control.acknowledge(epoch);
        Work::Busy
    }

    /// Has completions bring a sleeping queue back, where its bdevs can.
    fn watch(&mut self) {
        self.watches.clear();
        self.unwatched = false;
        for fd in self.io.event_fds() {
            match fd.map(|fd| self.cx.watch(fd, Interest::Read)) {
                Some(Ok(watch)) => self.watches.push(watch),
                Some(Err(error)) => {
                    tracing::error!(queue = self.name, %error, "completions cannot be watched");
                    self.unwatched = true;
                }
                None => self.unwatched = true,
            }
        }
    }
}

#[cold]
fn errands(bus: &Arc<Bus>, cx: &PollerCx) -> Box<Errands> {
    Box::new(Errands::new(bus, Asker::Queue(cx.waker())))
}

impl Poller for Owner {
    fn poll(&mut self, now: Tick) -> Work {
        if self.sampler.is_due() {
            return self.timed_pass(now);
        }
        self.pass(now, &mut Untimed)
    }

    fn prefetch(&self) {
        self.sqs.iter().for_each(Sq::prefetch);
    }

    fn park(&mut self, now: Tick) -> Park {
        self.io.publish();
        // A change that came since the last poll woke nobody: wakes count only from now on.
        let awaits = self.control.is_awaiting();
        let is_coming = self.remote.as_ref().is_some_and(|remote| remote.is_coming());
        if !awaits && (self.control.epoch() != self.epoch || (self.control.has_aborts() && !is_coming)) {
            return Park::Ready;
        }
        if self.io.in_flight() > 0 && (self.unwatched || !self.io.arm()) {
            return Park::Ready;
        }
        let in_flight = self.io.in_flight() > 0;
        if self.remote.as_ref().is_some_and(|it| it.has_news() || (it.is_refused() && !in_flight)) {
            return Park::Ready;
        }
        if awaits {
            return Park::Wait;
        }
        // The head is of interest while room is wanted, or while the pin is up.
        let head = (self.blocked || self.asserted) && self.cq.is_resolved();
        let mut changed = head && self.cq.arm();
        // Every one is armed, whatever the others say.
        for sq in &self.sqs {
            changed |= sq.arm();
        }
        if changed {
            self.unpark();
            return Park::Ready;
        }
        let held = self.moderator.as_ref().and_then(Moderator::deadline);
        // Even a client that maps them may trap for a while (QEMU, while an INTx is up), and then map again.
        let look = self.doorbells.is_mapped.then(|| now.after(self.lookout.next()));
        held.into_iter().chain(look).min().map_or(Park::Wait, Park::Until)
    }

    fn unpark(&mut self) {
        self.sqs.iter().for_each(Sq::disarm);
        self.cq.disarm();
    }
}

mod take;
#[cfg(test)]
mod tests;
