//! Which reactor a queue runs on, over time.
//!
//! `static` leaves queues where they were dealt. `dynamic` looks every period at how busy reactors and queues were, and
//! moves at most one queue a period off a reactor that is full. Reactors without work need no scheduler to sleep: their
//! queues park one by one. Runs on the RPC thread; a decision is a function of two readings ([`decide`]).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use reactor::{CoreMask, Handle, PollerStats};
use tokio::{sync::Notify, time::sleep};

use crate::target::Target;

/// Period of the first scheduler that is set without one.
const DEFAULT_PERIOD_US: u64 = 1_000_000;
/// Shortest period that makes sense: readings closer together are noise.
pub(crate) const MIN_PERIOD_US: u64 = 1_000;
/// Longest period, a day: a longer one is a mistake in units.
pub(crate) const MAX_PERIOD_US: u64 = 86_400_000_000;

/// How queues are placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    /// As they were dealt.
    Static,
    /// By how busy they are.
    Dynamic,
}

impl Policy {
    /// By SPDK's name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "static" => Some(Self::Static),
            "dynamic" => Some(Self::Dynamic),
            _ => None,
        }
    }

    /// SPDK's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Dynamic => "dynamic",
        }
    }
}

/// What is set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// How queues are placed.
    pub(crate) policy: Policy,
    /// Time between two decisions; 0 while none is made.
    pub(crate) period_us: u64,
    /// A queue busier than this, in percent of a core, may be moved.
    pub(crate) load_limit: u8,
    /// A reactor may be filled up to this, in percent.
    pub(crate) core_limit: u8,
    /// A reactor busier than this, in percent, gives a queue away.
    pub(crate) core_busy: u8,
    /// Cores that are left alone.
    pub(crate) isolated: CoreMask,
    /// The core that SPDK's clients are told does the scheduling.
    pub(crate) core: u32,
}

/// The scheduler of a target.
pub(crate) struct Scheduler {
    settings: Mutex<Settings>,
    changed: Notify,
}

impl Scheduler {
    /// Static, as at start.
    pub(crate) fn new(core: u32) -> Self {
        let settings = Settings {
            policy: Policy::Static,
            period_us: 0,
            load_limit: 20,
            core_limit: 80,
            core_busy: 95,
            isolated: CoreMask::new(),
            core,
        };
        Self { settings: Mutex::new(settings), changed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is set.
    pub(crate) fn settings(&self) -> Settings {
        *self.lock()
    }

    /// Changes what is set; takes effect at once.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Settings)) {
        let mut settings = self.lock();
        change(&mut settings);
        if settings.policy == Policy::Dynamic && settings.period_us == 0 {
            settings.period_us = DEFAULT_PERIOD_US;
        }
        drop(settings);
        self.changed.notify_one();
    }
}

/// Decides, period by period, for as long as the target lives.
pub(crate) async fn run(target: Arc<Target>) {
    let mut before = Reading::take(&target.reactors);
    loop {
        let settings = target.scheduler.settings();
        if settings.policy == Policy::Static {
            target.scheduler.changed.notified().await;
            before = Reading::take(&target.reactors);
            continue;
        }
        tokio::select! {
            () = sleep(Duration::from_micros(settings.period_us)) => {}
            () = target.scheduler.changed.notified() => continue,
        }
        let after = Reading::take(&target.reactors);
        if let Some(Move { thread, queue, to }) = decide(&settings, &before, &after)
            && let Some(reactor) = target.reactors.iter().find(|reactor| reactor.core() == to)
        {
            // One that is gone meanwhile moves nowhere.
            if target.endpoints.move_queue(thread, queue, reactor)
                || target.nvmf.move_queue(thread, queue, reactor)
            {
                tracing::info!(thread, queue, to, "queue moved to another reactor");
            }
        }
        before = after;
    }
}

/// One queue, at one time.
#[derive(Clone, Debug)]
struct Queue {
    thread: u64,
    number: u16,
    core: u32,
    /// Where it may run.
    allowed: CoreMask,
    busy_ticks: u64,
}

/// How busy everything has been, at one time.
#[derive(Clone, Debug)]
struct Reading {
    /// Busy and all ticks, by core.
    cores: HashMap<u32, (u64, u64)>,
    queues: Vec<Queue>,
}

impl Reading {
    fn take(reactors: &[Handle]) -> Self {
        let mut reading = Self { cores: HashMap::new(), queues: Vec::new() };
        for reactor in reactors {
            let stats = reactor.stats();
            reading.cores.insert(stats.core, (stats.busy_ticks, stats.busy_ticks + stats.idle_ticks));
            reading.queues.extend(reactor.pollers().iter().filter_map(queue));
        }
        reading
    }
}

/// A poller that is a queue: its owner names it after its endpoint and its number.
fn queue(poller: &PollerStats) -> Option<Queue> {
    let number = poller.name.strip_prefix(poller.group.name())?.strip_prefix("_q")?.parse().ok()?;
    Some(Queue {
        thread: poller.group.id(),
        number,
        core: poller.core,
        allowed: poller.group.cpumask(),
        busy_ticks: poller.busy_ticks,
    })
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
struct Move {
    thread: u64,
    queue: u16,
    to: u32,
}

/// Between two readings: whether a reactor was too busy, and which of its queues should go where.
///
/// The busiest queue goes that makes the fuller of the two reactors less full than the first was before, and that leaves
/// the other below `core_limit`, or, where nothing fits below that, at least evens the two out.
fn decide(settings: &Settings, before: &Reading, after: &Reading) -> Option<Move> {
    let load = |core: u32| -> Option<f64> {
        let ((busy, all), (busy0, all0)) = (after.cores.get(&core)?, before.cores.get(&core)?);
        let all = all.saturating_sub(*all0);
        (all > 0).then(|| percent(busy.saturating_sub(*busy0), all))
    };
    let cores: Vec<(u32, f64)> = after
        .cores
        .keys()
        .filter(|&&core| !settings.isolated.contains(core))
        .filter_map(|&core| Some((core, load(core)?)))
        .collect();
    let &(hot, hot_load) = cores.iter().max_by(|a, b| a.1.total_cmp(&b.1))?;
    if hot_load < f64::from(settings.core_busy) {
        return None;
    }
    let period = after.cores.get(&hot)?.1.saturating_sub(before.cores.get(&hot)?.1);
    let mut candidates: Vec<(f64, &Queue)> = after
        .queues
        .iter()
        .filter(|queue| queue.core == hot)
        .filter_map(|queue| {
            let same = |other: &&Queue| other.thread == queue.thread && other.number == queue.number;
            // A queue that came within the period has no history, and stays.
            let was = before.queues.iter().find(same).filter(|was| was.core == hot)?;
            Some((percent(queue.busy_ticks.saturating_sub(was.busy_ticks), period), queue))
        })
        .filter(|(load, _)| *load > f64::from(settings.load_limit))
        .collect();
    candidates.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (queue_load, queue) in candidates {
        let others = cores.iter().filter(|(core, _)| *core != hot && queue.allowed.contains(*core));
        let Some(&(cold, cold_load)) = others.min_by(|a, b| a.1.total_cmp(&b.1)) else { continue };
        let filled = cold_load + queue_load;
        // A queue that fills a core alone gains nothing by moving to one that is as full.
        let evens_out = filled < hot_load - 1.0;
        if filled <= f64::from(settings.core_limit) || evens_out {
            let alone = after.queues.iter().filter(|other| other.core == hot).count() == 1;
            return (!alone).then_some(Move { thread: queue.thread, queue: queue.number, to: cold });
        }
    }
    None
}

#[expect(clippy::cast_precision_loss, reason = "a percentage needs no 53 bits")]
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOVE: &str = "0x3";

    fn settings() -> Settings {
        Scheduler::new(0).settings()
    }

    fn queue(thread: u64, number: u16, core: u32, busy_ticks: u64, allowed: &str) -> Queue {
        Queue { thread, number, core, allowed: allowed.parse().unwrap(), busy_ticks }
    }

    /// Readings a period of 1000 ticks apart, in which cores and queues were busy for so long.
    fn readings(cores: &[(u32, u64)], queues: &[Queue]) -> (Reading, Reading) {
        let mut before = Reading { cores: HashMap::new(), queues: queues.to_vec() };
        before.queues.iter_mut().for_each(|queue| queue.busy_ticks = 0);
        before.cores = cores.iter().map(|&(core, _)| (core, (0, 0))).collect();
        let after = Reading {
            cores: cores.iter().map(|&(core, busy)| (core, (busy, 1000))).collect(),
            queues: queues.to_vec(),
        };
        (before, after)
    }

    #[test]
    fn full_reactor_gives_its_busiest_queue_that_fits_to_the_idle_one() {
        let queues = [queue(2, 0, 0, 600, MOVE), queue(2, 1, 0, 380, MOVE)];
        let (before, after) = readings(&[(0, 980), (1, 10)], &queues);
        assert_eq!(decide(&settings(), &before, &after), Some(Move { thread: 2, queue: 0, to: 1 }));
    }

    #[test]
    fn reactor_that_is_not_full_keeps_its_queues() {
        let queues = [queue(2, 0, 0, 500, MOVE), queue(2, 1, 0, 300, MOVE)];
        let (before, after) = readings(&[(0, 800), (1, 0)], &queues);
        assert_eq!(decide(&settings(), &before, &after), None);
    }

    #[test]
    fn queue_stays_inside_its_cpumask() {
        let queues = [queue(2, 0, 0, 500, "0x1"), queue(2, 1, 0, 480, "0x1")];
        let (before, after) = readings(&[(0, 980), (1, 0)], &queues);
        assert_eq!(decide(&settings(), &before, &after), None);
    }

    #[test]
    fn lone_queue_that_fills_a_reactor_stays() {
        let queues = [queue(2, 0, 0, 990, MOVE)];
        let (before, after) = readings(&[(0, 990), (1, 0)], &queues);
        assert_eq!(decide(&settings(), &before, &after), None);
    }

    #[test]
    fn isolated_core_is_left_alone() {
        let queues = [queue(2, 0, 0, 500, MOVE), queue(2, 1, 0, 480, MOVE)];
        let (before, after) = readings(&[(0, 980), (1, 0)], &queues);
        let settings = Settings { isolated: CoreMask::of(1), ..settings() };
        assert_eq!(decide(&settings, &before, &after), None);
    }

    #[test]
    fn two_full_reactors_do_not_exchange_queues_for_ever() {
        let queues = [queue(2, 0, 0, 490, MOVE), queue(2, 1, 0, 490, MOVE), queue(3, 0, 1, 970, MOVE)];
        let (before, after) = readings(&[(0, 980), (1, 970)], &queues);
        assert_eq!(decide(&settings(), &before, &after), None);
    }
}
