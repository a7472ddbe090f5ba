//! All reactors of the process: one pinned thread for each core of the mask.
//!
//! The program starts them once, early, from its main thread, reaches them through handles, and stops them at the end.

use std::io;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::affinity::{allowed_cores, online_cores, pin_current_thread};
use crate::clock::Clock;
use crate::control::Mode;
use crate::cpumask::CoreMask;
use crate::handle::Handle;
use crate::reactor::{DEFAULT_STALL_LIMIT, Reactor, ReactorConfig};
use crate::stats::ReactorStats;

/// Which reactors to start, and how.
#[derive(Clone, Debug)]
pub struct Config {
    /// One reactor for each of these cores.
    pub cores: CoreMask,
    /// The core of the main reactor; the lowest if not said.
    pub main_core: Option<u32>,
    /// Their first mode.
    pub mode: Mode,
    /// How long one poll may take before it counts as a stall.
    pub stall_limit: Duration,
}

impl Config {
    /// Adaptive reactors on these cores, the main one on the lowest.
    pub fn new(cores: CoreMask) -> Config {
        Config { cores, main_core: None, mode: Mode::default(), stall_limit: DEFAULT_STALL_LIMIT }
    }
}

/// Why the reactors did not start. None of them runs then.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The mask has no core.
    #[error("the cpumask names no core")]
    NoCores,
    /// The machine has no such core, or it is switched off.
    #[error("core {core} does not exist or is offline; this machine has cores 0x{online}")]
    CoreAbsent {
        /// The core.
        core: u32,
        /// What there is.
        online: Box<CoreMask>,
    },
    /// Affinity or cgroup keeps this process off the core.
    #[error("core {core} is not ours: this process may run on cores 0x{allowed}")]
    CoreNotAllowed {
        /// The core.
        core: u32,
        /// What we may use.
        allowed: Box<CoreMask>,
    },
    /// The main core has no reactor.
    #[error("main core {core} is not among the cores 0x{cores}")]
    MainCoreOutside {
        /// The main core asked for.
        core: u32,
        /// The mask.
        cores: Box<CoreMask>,
    },
    /// The kernel refused to pin the thread.
    #[error("cannot pin a thread to core {core}")]
    Pin {
        /// The core.
        core: u32,
    },
    /// No thread, or no descriptors for it.
    #[error("cannot start the reactor of core {core}")]
    Create {
        /// The core.
        core: u32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// The running reactors. Dropping it stops them.
#[derive(Debug)]
pub struct Reactors {
    handles: Vec<Handle>,
    threads: Vec<JoinHandle<()>>,
    main: usize,
    clock: Clock,
}

impl Reactors {
    /// Starts them all, or none. Call it from a thread that is not pinned: the allowed cores are read once, then.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(config: Config) -> Result<Reactors, StartError> {
        let main = check(&config)?;
        let mut reactors = Reactors {
            handles: Vec::with_capacity(config.cores.len()),
            threads: Vec::with_capacity(config.cores.len()),
            main,
            clock: Clock::system(),
        };
        for core in config.cores.iter() {
            // Those that run already are stopped by the drop of `reactors`.
            reactors.start_one(core, &config)?;
        }
        Ok(reactors)
    }

    fn start_one(&mut self, core: u32, config: &Config) -> Result<(), StartError> {
        let (mode, stall_limit, clock) = (config.mode, config.stall_limit, self.clock.clone());
        let (report, started) = mpsc::sync_channel(1);
        let body = move || {
            let config = ReactorConfig { core, mode, clock, stall_limit };
            match start_here(config) {
                Ok(mut reactor) => {
                    // The starter waits below.
                    let _ = report.send(Ok(reactor.handle()));
                    reactor.run();
                }
                Err(error) => {
                    let _ = report.send(Err(error));
                }
            }
        };
        let thread = thread::Builder::new()
            .name(format!("reactor_{core}"))
            .spawn(body)
            .map_err(|source| StartError::Create { core, source })?;
        self.threads.push(thread);
        let handle = started.recv().expect("the thread reports before it does anything else")?;
        self.handles.push(handle);
        Ok(())
    }

    /// All of them, by core.
    pub fn handles(&self) -> &[Handle] {
        &self.handles
    }

    /// The reactor of a core.
    pub fn handle(&self, core: u32) -> Option<&Handle> {
        self.handles.iter().find(|handle| handle.core() == core)
    }

    /// The main reactor: where what has no core of its own lives.
    pub fn main(&self) -> &Handle {
        &self.handles[self.main]
    }

    /// Their cores.
    pub fn cores(&self) -> CoreMask {
        self.handles.iter().map(Handle::core).collect()
    }

    /// The clock of them all.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The counters of all reactors, by core.
    pub fn snapshot(&self) -> Vec<ReactorStats> {
        self.handles.iter().map(Handle::stats).collect()
    }

    /// Stops them: each runs the messages that wait, drops its pollers on its own thread and ends. Waits for that.
    pub fn stop(mut self) {
        self.stop_and_join();
    }

    fn stop_and_join(&mut self) {
        self.handles.iter().for_each(Handle::stop);
        for thread in self.threads.drain(..) {
            let name = thread.thread().name().unwrap_or_default().to_owned();
            if thread.join().is_err() {
                tracing::error!(thread = name, "reactor thread panicked");
            }
        }
    }
}

impl Drop for Reactors {
    fn drop(&mut self) {
        self.stop_and_join();
    }
}

/// The index of the main core in the mask, if everything that was asked for can be had.
fn check(config: &Config) -> Result<usize, StartError> {
    let (cores, online, allowed) = (config.cores, online_cores(), allowed_cores());
    let first = cores.first().ok_or(StartError::NoCores)?;
    for core in cores.iter() {
        if !online.contains(core) {
            return Err(StartError::CoreAbsent { core, online: Box::new(online) });
        }
        if !allowed.contains(core) {
            return Err(StartError::CoreNotAllowed { core, allowed: Box::new(allowed) });
        }
    }
    let main = config.main_core.unwrap_or(first);
    cores
        .iter()
        .position(|core| core == main)
        .ok_or(StartError::MainCoreOutside { core: main, cores: Box::new(cores) })
}

/// On the reactor's own thread: pinned first, so that what it allocates is touched there.
fn start_here(config: ReactorConfig) -> Result<Reactor, StartError> {
    let core = config.core;
    if !pin_current_thread(core) {
        return Err(StartError::Pin { core });
    }
    Reactor::new(config).map_err(|source| StartError::Create { core, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpumask::CORES_MAX;

    fn an_allowed_core() -> u32 {
        allowed_cores().first().unwrap()
    }

    #[test]
    fn reactor_runs_messages_on_its_named_and_pinned_thread() {
        let core = an_allowed_core();
        let reactors = Reactors::start(Config::new(CoreMask::of(core))).unwrap();
        let look = || {
            let pinned_to = core_affinity::get_core_ids().unwrap();
            (
                thread::current().name().unwrap().to_owned(),
                pinned_to.into_iter().map(|it| it.id as u32).collect(),
            )
        };
        let (name, pinned_to): (String, CoreMask) = reactors.main().call(move |_| look()).unwrap();
        assert_eq!(name, format!("reactor_{core}"));
        assert_eq!(pinned_to, CoreMask::of(core));
        assert!(reactors.snapshot()[0].tid > 0);
        reactors.stop();
    }

    #[test]
    fn one_reactor_for_each_core_of_the_mask() {
        let cores = allowed_cores();
        let last = cores.iter().last();
        let reactors = Reactors::start(Config { main_core: last, ..Config::new(cores) }).unwrap();
        assert_eq!(reactors.cores(), cores);
        assert_eq!(Some(reactors.main().core()), last);
        assert!(reactors.handle(CORES_MAX - 1).is_none());
    }

    #[test]
    fn handle_of_a_stopped_reactor_refuses() {
        let reactors = Reactors::start(Config::new(CoreMask::of(an_allowed_core()))).unwrap();
        let handle = reactors.main().clone();
        reactors.stop();
        assert_eq!(handle.call(|_| ()), Err(crate::CallError::Stopped));
    }

    #[test]
    fn reactor_thread_may_not_wait_for_a_reactor() {
        let reactors = Reactors::start(Config::new(CoreMask::of(an_allowed_core()))).unwrap();
        let handle = reactors.main().clone();
        let answer = reactors.main().call(move |_| handle.call(|_| ())).unwrap();
        assert_eq!(answer, Err(crate::CallError::OnReactor));
    }

    #[test]
    fn call_that_panics_is_lost_and_the_reactor_goes_on() {
        let reactors = Reactors::start(Config::new(CoreMask::of(an_allowed_core()))).unwrap();
        assert_eq!(reactors.main().call(|_| panic!("in a call")), Err::<(), _>(crate::CallError::Lost));
        assert_eq!(reactors.main().call(|_| 7), Ok(7));
        assert_eq!(reactors.main().stats().faults, 1);
    }

    #[test]
    fn empty_mask_is_refused() {
        assert!(matches!(Reactors::start(Config::new(CoreMask::new())), Err(StartError::NoCores)));
    }

    #[test]
    fn core_that_does_not_exist_is_refused_by_name() {
        // No machine that runs this test has the last core a mask can name.
        let error = Reactors::start(Config::new(CoreMask::of(CORES_MAX - 1))).unwrap_err();
        assert!(matches!(error, StartError::CoreAbsent { core: 1023, .. }), "{error}");
    }

    #[test]
    fn main_core_outside_the_mask_is_refused() {
        let config =
            Config { main_core: Some(CORES_MAX - 1), ..Config::new(CoreMask::of(an_allowed_core())) };
        assert!(matches!(Reactors::start(config), Err(StartError::MainCoreOutside { core: 1023, .. })));
    }
}
