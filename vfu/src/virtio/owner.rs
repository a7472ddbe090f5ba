//! A queue's owner: the poller that takes chains off one ring, hands them to its handler, gives them back, and raises
//! the queue's interrupt. One owner per queue, on one reactor, with a channel of its own.

use std::sync::{
    Arc,
    atomic::{Ordering, fence},
};

use reactor::{Handle, Interest, Park, Poller, PollerCx, PollerSpec, SendError, Tick, Watch, Work};

use super::{
    control::{QueueControl, QueueState},
    device::{Handler, MakeHandler, Verdict, offer_chain, offer_triple},
    queue::{ActivateError, Chain, Format, Head, Position, QueueConfig, Ring, RingError, RingLayout},
    remote::{Ended, RemoteQueue},
};
use crate::{
    device::Bus,
    dma::View,
    irq::Signal,
    last_words::LastWords,
    lookout::Lookout,
    moderation::{Moderation, Moderator},
    points::{QUEUE_START, QUEUE_STOP, VIRTIO},
    stages::{Laps, Sampler, Stage, Untimed},
};

/// Chains taken in one pass, so that one queue does not keep the reactor from the others.
const CHAINS_PER_PASS: u32 = 256;
/// Buffers that these chains may have together, beyond what each has anyway ([`USUAL_SEGMENTS`]), give or take the last
/// chain's. A guest may make every chain as long as chains can be, of buffers that say nothing; then a pass takes one.
const EXTRA_SEGMENTS_PER_PASS: usize = 256;
/// Header and status.
const FRAME_SEGMENTS: usize = 2;
/// And data.
const USUAL_SEGMENTS: usize = FRAME_SEGMENTS + 1;

/// All that is needed to start a queue on another reactor.
pub(super) struct Start<H: Handler> {
    pub(super) name: String,
    pub(super) group: reactor::Group,
    pub(super) bus: Arc<Bus>,
    pub(super) control: Arc<QueueControl>,
    pub(super) layout: RingLayout,
    /// Where the ring starts, if not at [`Ring::START`].
    pub(super) position: Option<Position>,
    pub(super) moderation: Option<Moderation>,
    /// Entries of the device's queues.
    pub(super) queue_size: u16,
    pub(super) handler: MakeHandler<H>,
}

/// Sends a queue to its reactor. A queue that cannot start there says so through its control block.
pub(super) fn start<R: Ring + 'static, H: Handler>(
    reactor: &Handle,
    start: Start<H>,
) -> Result<(), SendError> {
    reactor.send(Box::new(move |reactor| {
        let Start { name, group, bus, control, layout, position, moderation, queue_size, handler } = start;
        let position = position.unwrap_or(R::START);
        let handler = match handler() {
            Ok(handler) => handler,
            Err(error) => {
                tracing::error!(queue = name, %error, "a queue cannot start");
                control.ended(QueueState::Failed, position);
                return;
            }
        };
        let faulted = Arc::clone(&control);
        let spec = PollerSpec::new(name.clone(), &group)
            .on_fault(move |_| faulted.ended(QueueState::Faulted, Position::default()));
        reactor.add(spec, move |cx| {
            let moderator = moderation.map(|it| Moderator::new(it, cx.clock().ticks(it.time)));
            let parts = Parts { name, bus, control, layout, position, moderator, queue_size, handler };
            let owner = Owner::<R, H>::new(parts, cx);
            owner.control.started(cx.waker());
            Box::new(owner)
        });
    }))
}

/// What one pass took off a ring.
#[derive(Default)]
struct Taken {
    chains: u32,
    /// How many of them are done already.
    done: u32,
}

/// What an owner is made of.
struct Parts<H> {
    name: String,
    bus: Arc<Bus>,
    control: Arc<QueueControl>,
    layout: RingLayout,
    position: Position,
    moderator: Option<Moderator>,
    queue_size: u16,
    handler: H,
}

struct Owner<R, H> {
    name: String,
    bus: Arc<Bus>,
    control: Arc<QueueControl>,
    layout: RingLayout,
    /// Where the ring stands while there is none.
    position: Position,
    /// None while it cannot be reached: bus mastering is off, or its memory is unmapped (SeaBIOS does that to live
    /// queues, and maps it again).
    ring: Option<R>,
    /// Stands in for the ring where only messages reach its memory.
    remote: Option<RemoteQueue>,
    /// Kicks when the remote ring was looked at last.
    remote_kicks: u64,
    /// Asks that were done when its tickets were looked at last.
    remote_settled: u64,
    /// The change that it was told to stop for.
    remote_epoch: u64,
    /// A change was followed before the chain under way was back: the handler is still to be told.
    owes_refresh: bool,
    cx: PollerCx,
    handler: H,
    view: View,
    signal: Signal,
    moderator: Option<Moderator>,
    /// The driver wanted no interrupt when it was asked last.
    is_quiet: bool,
    /// What was given back in the last pass was published, and the driver not asked yet.
    unasked: bool,
    sampler: Sampler,
    chain: Chain,
    /// The driver broke the ring.
    is_broken: bool,
    /// The epoch that was followed last.
    epoch: u64,
    lookout: Lookout,
    _completions: Option<Watch>,
    /// How it ended; must stay the last field.
    last_words: LastWords,
}

impl<R: Ring, H: Handler> Owner<R, H> {
    fn new(parts: Parts<H>, cx: &PollerCx) -> Self {
        let Parts { name, bus, control, layout, position, moderator, queue_size, handler } = parts;
        VIRTIO.record_text(QUEUE_START, control.vector().into(), &name);
        let completions = handler.event_fd().and_then(|fd| {
            let watch = cx.watch(fd, Interest::Read);
            watch
                .inspect_err(|error| tracing::error!(queue = name, %error, "completions cannot be watched"))
                .ok()
        });
        let view = View::new(&bus.windows);
        let signal = bus.irqs.signal(control.vector());
        Self {
            name,
            bus,
            control,
            layout,
            position,
            ring: None,
            remote: None,
            remote_kicks: 0,
            remote_settled: 0,
            remote_epoch: 0,
            owes_refresh: false,
            cx: cx.clone(),
            handler,
            view,
            signal,
            moderator,
            is_quiet: false,
            unasked: false,
            sampler: Sampler::new(cx.clock()),
            // Of the smallest queues, room for a header, data and a status.
            chain: Chain::with_room(usize::from(queue_size) + FRAME_SEGMENTS),
            is_broken: false,
            epoch: 0,
            lookout: Lookout::new(cx.clock(), 0),
            _completions: completions,
            last_words: LastWords::default(),
        }
    }

    /// Gives back what has finished, and raises the interrupt if the driver wants one; a driver that wanted none when it was asked
    /// last is asked in the next pass ([`Self::ask`]). `given_back` have been before. True if something was given back.
    #[inline]
    fn complete(&mut self, mut given_back: u32, now: Tick, laps: &mut impl Laps) -> bool {
        let Some(ring) = &mut self.ring else { return self.complete_without_ring(given_back) };
        self.handler.reap(&self.view, laps, |id, len| {
            ring.push_used(id, len);
            given_back += 1;
        });
        if given_back == 0 {
            return false;
        }
        // In order, what is done may have to wait for what is not.
        let is_published = ring.publish();
        laps.count(0, given_back);
        if self.is_quiet && self.moderator.is_none() {
            self.unasked = is_published;
            self.cx.fence_before_next_poll();
            laps.lap(Stage::Complete);
            return true;
        }
        let mut wanted = false;
        if is_published {
            fence(Ordering::SeqCst);
            wanted = ring.wants_interrupt();
            self.is_quiet = !wanted;
        }
        laps.lap(Stage::Complete);
        let raise = match &mut self.moderator {
            None => wanted,
            Some(moderator) => moderator.published(given_back, wanted, now),
        };
        if raise {
            self.raise();
            laps.lap(Stage::Interrupt);
        }
        true
    }

    /// Asks the driver about what was published in the last pass. A fence lies between: the reactor's, for all queues.
    #[inline]
    fn ask(&mut self, laps: &mut impl Laps) {
        self.unasked = false;
        let Some(ring) = &mut self.ring else { return };
        self.is_quiet = !ring.wants_interrupt();
        if !self.is_quiet {
            self.raise();
            laps.lap(Stage::Interrupt);
        }
    }

    #[cold]
    fn complete_without_ring(&mut self, mut given_back: u32) -> bool {
        match &self.remote {
            Some(remote) => self.handler.reap(remote.bounce(), &mut Untimed, |_, len| {
                remote.finish(len);
                given_back += 1;
            }),
            // Finished behind a ring that is gone: nobody can be told.
            None => self.handler.reap(&self.view, &mut Untimed, |_, _| given_back += 1),
        }
        given_back > 0
    }

    #[inline]
    fn raise(&self) {
        self.control.counters().interrupts.fetch_add(1, Ordering::Relaxed);
        self.signal.raise();
    }

    /// Takes the chains that wait. An error ends it: what was taken before stands.
    #[inline]
    fn take(&mut self, laps: &mut impl Laps) -> (Taken, Result<(), RingError>) {
        let Some(ring) = &mut self.ring else { return (Taken::default(), Ok(())) };
        self.handler.prefetch(&self.view);
        let (mut most, mut left) = (CHAINS_PER_PASS, CHAINS_PER_PASS);
        let (mut extra_segments, mut done) = (0, 0);
        let outcome = loop {
            let (head, verdict) = match offer_triple((ring, &mut self.handler), &self.view, laps) {
                // Nearly always.
                Some((head, Verdict::InFlight)) => {
                    ring.advance(head);
                    laps.lap(Stage::Submit);
                    left -= 1;
                    if left > 0 && ring.has_next() {
                        continue;
                    }
                    break Ok(());
                }
                Some(offered) => offered,
                None => {
                    let parts = (&mut *ring, &mut self.handler);
                    let offered = offer_chain(parts, &self.view, &mut self.chain, laps);
                    extra_segments += self.chain.len().saturating_sub(USUAL_SEGMENTS);
                    if extra_segments >= EXTRA_SEGMENTS_PER_PASS {
                        // This one is the last.
                        most -= left - 1;
                        left = 1;
                    }
                    match offered {
                        Ok(verdict) => (self.chain.head(), verdict),
                        Err(error) => break Err(error),
                    }
                }
            };
            match Self::settle(ring, head, verdict, &mut done) {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            }
            laps.lap(Stage::Submit);
            left -= 1;
            if left == 0 || !ring.has_next() {
                break Ok(());
            }
        };
        (Taken { chains: most - left, done }, outcome)
    }

    /// Takes a chain off the ring, whatever became of it. False if it was not taken.
    #[inline(never)]
    fn settle(ring: &mut R, head: Head, verdict: Verdict, done: &mut u32) -> Result<bool, RingError> {
        match verdict {
            Verdict::InFlight => {
                ring.advance(head);
                Ok(true)
            }
            Verdict::Done(len) => {
                ring.advance(head);
                ring.push_used(head.id, len);
                *done += 1;
                Ok(true)
            }
            Verdict::Full => Ok(false),
            Verdict::Broken => Err(RingError::Order),
            Verdict::Reused => Err(RingError::Reused(head.id)),
        }
    }

    /// Follows a change. Nothing new is taken until what is in flight has finished, so that whoever waits for the
    /// acknowledgement knows that nothing uses what was there before.
    #[cold]
    fn follow(&mut self, epoch: u64, now: Tick) -> Work {
        // The ring may not be there any more in the next pass.
        self.is_quiet = false;
        let finished = self.complete(0, now, &mut Untimed);
        if self.moderator.as_mut().is_some_and(Moderator::flush) {
            self.raise();
        }
        if self.handler.in_flight() > 0 {
            if (self.ring.is_some() || self.remote.is_some())
                && !self.is_broken
                && !self.control.must_drain(self.epoch)
                && self.adopt(epoch)
            {
                return Work::Busy;
            }
            self.handler.drain(self.is_broken || self.control.is_stopping());
            return if finished { Work::Busy } else { Work::Idle };
        }
        if self.is_broken
            && let Some(remote) = self.remote.take()
        {
            self.position = remote.position();
        }
        if self.remote.is_some() && !self.control.must_drain(self.epoch) && self.adopt(epoch) {
            return self.serve_remote();
        }
        if self.outlasts_unmap() {
            self.view.refresh(&self.bus.windows);
            self.follow_signal(epoch);
            self.owes_refresh = true;
            return self.serve_remote();
        }
        if let Some(remote) = &mut self.remote {
            self.remote_epoch = epoch;
            remote.stop();
            // A client that waits for this change may answer nothing before (QEMU's processor waits with the lock that its
            // DMA needs). So what was read is dropped, to be read again; only what is on its way back is waited for.
            let ended = if remote.is_giving_back() { remote.go_on() } else { Some(Ended::Stopped) };
            match ended {
                None => return self.serve_remote(),
                Some(ended) => self.end_remote(ended),
            }
        }
        if let Some(ring) = self.ring.take() {
            self.position = ring.position();
        }
        if self.is_broken {
            return self.end(QueueState::Failed);
        }
        if self.control.is_stopping() {
            return self.end(QueueState::Stopped);
        }
        self.handler.refresh();
        self.owes_refresh = false;
        self.view.refresh(&self.bus.windows);
        self.signal = self.bus.irqs.signal(self.control.vector());
        if self.bus.bus_master() {
            match R::activate(&self.layout, self.position, &self.view) {
                Ok(mut ring) => {
                    ring.disable_kicks();
                    self.ring = Some(ring);
                }
                Err(_) if self.is_remote() => self.start_remote(),
                // Memory comes and goes in steps; the last one brings the ring back.
                Err(error @ ActivateError::Fault(_)) => {
                    tracing::debug!(queue = self.name, %error, "queue suspended");
                }
                // Nothing brings this one back but a reset.
                Err(error) => {
                    tracing::warn!(queue = self.name, %error, "the driver set up no ring; the device needs a reset");
                    return self.end(QueueState::Failed);
                }
            }
        }
        self.epoch = epoch;
        self.control.acknowledge(epoch);
        Work::Busy
    }

    /// Follows a change that took nothing away: the new snapshot holds all windows of the old one, so what is in flight
    /// goes on.
    fn adopt(&mut self, epoch: u64) -> bool {
        if !self.view.grow(&self.bus.windows) {
            return false;
        }
        self.follow_signal(epoch);
        true
    }

    /// Takes the interrupt as it is now, and says that the change is followed.
    fn follow_signal(&mut self, epoch: u64) {
        self.signal = self.bus.irqs.signal(self.control.vector());
        self.epoch = epoch;
        self.control.acknowledge(epoch);
    }

    /// Whether a chain on its way back by messages may go on over a change, as all that it writes, and the ring, are still
    /// there. To wait for it would be to wait for a client that takes other memory away and waits for us.
    fn outlasts_unmap(&self) -> bool {
        let Some(remote) = self.remote.as_ref().filter(|remote| remote.is_giving_back()) else {
            return false;
        };
        let view = View::new(&self.bus.windows);
        !self.control.is_stopping()
            && self.bus.bus_master()
            && self.areas().iter().all(|&(at, len, is_written)| view.covers(at, len, is_written))
            && remote.writes_inside(&view)
    }

    /// Where the ring is: address, length, whether the device writes it.
    fn areas(&self) -> [(u64, u64, bool); 3] {
        let QueueConfig { size, desc, driver, device, .. } = self.layout.config();
        let entries = u64::from(size);
        let [driver_len, device_len] = match self.layout.format() {
            Format::Split => [6 + 2 * entries, 6 + 8 * entries],
            Format::Packed => [4, 4],
        };
        let is_packed = self.layout.format() == Format::Packed;
        [(desc, 16 * entries, is_packed), (driver, driver_len, false), (device, device_len, true)]
    }

    /// Whether only messages reach the ring.
    fn is_remote(&self) -> bool {
        self.areas().iter().all(|&(at, len, _)| self.view.is_remote(at, len))
    }

    fn start_remote(&mut self) {
        let room = self.chain.room();
        let made = RemoteQueue::new(&self.name, &self.bus, self.layout, self.position, self.cx.waker(), room);
        match made {
            Ok(remote) => self.remote = Some(remote),
            Err(error) => {
                tracing::error!(queue = self.name, %error, "no bounce buffer; the queue is suspended");
            }
        }
    }

    fn end_remote(&mut self, ended: Ended) {
        if let Some(remote) = self.remote.take() {
            self.position = remote.position();
            if remote.owes_interrupt() {
                self.raise();
            }
        }
        // A client that is gone, or that took its memory back, refuses too; then the queue is about to stop anyway.
        self.is_broken |= ended == Ended::Broken && !self.control.is_stopping();
    }

    /// One pass over a queue that works through messages.
    fn serve_remote(&mut self) -> Work {
        let Some(mut remote) = self.remote.take() else { return Work::Idle };
        self.remote_settled = self.bus.remote.settled();
        let ended = remote.go_on();
        // Before it is offered another: the guest may take a handler that was told for one that has nothing under way.
        if self.owes_refresh && !remote.is_giving_back() {
            self.owes_refresh = false;
            self.handler.refresh();
        }
        let mut done = None;
        if let Some(chain) = remote.offer() {
            match self.handler.submit(&chain, remote.bounce(), &mut Untimed) {
                Verdict::Done(len) => done = Some(len),
                Verdict::InFlight => self.handler.kick(),
                Verdict::Full => remote.put_back(chain),
                Verdict::Broken | Verdict::Reused => self.is_broken = true,
            }
        }
        self.handler.reap(remote.bounce(), &mut Untimed, |_, len| done = Some(len));
        if let Some(len) = done {
            remote.finish(len);
        }
        let interrupt = remote.take_interrupt();
        let requests = remote.take_requests();
        self.remote = Some(remote);
        let counters = self.control.counters();
        counters.requests.fetch_add(requests, Ordering::Relaxed);
        if interrupt {
            counters.interrupts.fetch_add(1, Ordering::Relaxed);
            self.signal.raise();
        }
        if let Some(ended) = ended {
            self.end_remote(ended);
        }
        if ended.is_some() || done.is_some() || self.is_broken { Work::Busy } else { Work::Idle }
    }

    fn end(&mut self, state: QueueState) -> Work {
        VIRTIO.record_text(QUEUE_STOP, self.control.vector().into(), &self.name);
        let (control, position) = (Arc::clone(&self.control), self.position);
        self.last_words.set(move || control.ended(state, position));
        Work::Done
    }

    /// The driver broke the ring: nothing more is taken. What was taken is given back as ever, `done` of it now, and
    /// the queue ends when nothing is in flight.
    #[cold]
    fn broken(&mut self, error: RingError, done: u32, now: Tick) -> Work {
        tracing::warn!(queue = self.name, %error, "the driver broke its ring; the device needs a reset");
        self.is_broken = true;
        self.complete(done, now, &mut Untimed);
        Work::Busy
    }

    /// One pass over the ring.
    #[inline]
    fn pass(&mut self, now: Tick, laps: &mut impl Laps) -> Work {
        let view = self.remote.as_ref().map_or(&self.view, RemoteQueue::bounce);
        // Windows that were torn since are not used from here on.
        let _ = view.torn();
        self.handler.begin(now.raw(), view);
        if self.unasked {
            self.ask(laps);
        }
        let accepting = self.handler.is_accepting() && !self.is_broken;
        let pending = match &mut self.ring {
            Some(ring) if accepting => match ring.pending() {
                Ok(pending) => pending,
                Err(error) => return self.broken(error, 0, now),
            },
            _ => false,
        };
        // After the ring was looked at: see `QueueControl::epoch`.
        let epoch = self.control.epoch();
        if epoch != self.epoch || self.is_broken {
            return self.follow(epoch, now);
        }
        if let Some(remote) = &self.remote {
            let kicks = self.control.counters().kicks.load(Ordering::Relaxed);
            if std::mem::replace(&mut self.remote_kicks, kicks) != kicks {
                remote.look();
            }
            return self.serve_remote();
        }
        let mut taken = Taken::default();
        if pending {
            let outcome;
            (taken, outcome) = self.take(laps);
            if taken.chains > 0 {
                self.lookout.found();
                let requests = &self.control.counters().requests;
                requests.store(requests.load(Ordering::Relaxed) + u64::from(taken.chains), Ordering::Relaxed);
                laps.count(taken.chains, 0);
                self.handler.kick();
                laps.lap(Stage::Backend);
            }
            if let Err(error) = outcome {
                return self.broken(error, taken.done, now);
            }
        }
        if self.moderator.as_mut().is_some_and(|moderator| moderator.is_due(now)) {
            self.raise();
        }
        if !pending && self.handler.in_flight() == 0 {
            return Work::Idle;
        }
        if self.complete(taken.done, now, laps) || pending { Work::Busy } else { Work::Idle }
    }

    /// A pass whose stages are timed.
    #[cold]
    fn timed_pass(&mut self, now: Tick) -> Work {
        let mut watch = self.sampler.start();
        let work = self.pass(now, &mut watch);
        self.control.counters().stages.add(&watch);
        work
    }
}

impl<R: Ring, H: Handler> Poller for Owner<R, H> {
    fn poll(&mut self, now: Tick) -> Work {
        if self.sampler.is_due() {
            return self.timed_pass(now);
        }
        self.pass(now, &mut Untimed)
    }

    fn prefetch(&self) {
        if let Some(ring) = &self.ring {
            ring.prefetch();
        }
    }

    fn park(&mut self, now: Tick) -> Park {
        // It would have been busy, and not be here; no driver is to wait for an answer if ever it is.
        if self.unasked {
            return Park::Ready;
        }
        // A change that came since the last poll woke nobody: wakes count only from now on.
        let epoch = self.control.epoch();
        let awaits_answers = self.remote.is_some() && epoch == self.remote_epoch;
        if epoch != self.epoch && !awaits_answers {
            return Park::Ready;
        }
        if self.handler.in_flight() > 0 && (self._completions.is_none() || !self.handler.arm()) {
            return Park::Ready;
        }
        if self.remote.is_some() {
            let kicked = self.control.counters().kicks.load(Ordering::SeqCst) != self.remote_kicks;
            if kicked || self.bus.remote.settled() != self.remote_settled {
                return Park::Ready;
            }
        } else if self.ring.is_none() {
            return Park::Wait;
        }
        let mut until = self.moderator.as_ref().and_then(Moderator::deadline);
        if let Some(ring) = self.ring.as_mut().filter(|_| self.handler.is_accepting() && !self.is_broken)
            && ring.enable_kicks()
        {
            ring.disable_kicks();
            return Park::Ready;
        }
        if self.handler.is_accepting() && self.control.needs_fallback() {
            let look = now.after(self.lookout.next());
            until = Some(until.map_or(look, |until| until.min(look)));
        }
        until.map_or(Park::Wait, Park::Until)
    }

    fn unpark(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.disable_kicks();
        }
        if let Some(remote) = self.remote.as_ref().filter(|_| self.control.needs_fallback()) {
            remote.look();
        }
    }
}

#[cfg(test)]
mod tests;
