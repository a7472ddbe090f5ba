//! All reactors of a target: one pinned thread per core.

use std::{io, sync::mpsc, thread::JoinHandle, time::Duration};

use core_affinity::CoreId;

use crate::{
    Clock, CoreMask, DEFAULT_MODE, DEFAULT_STALL_LIMIT, Handle, Mode, Reactor, ReactorConfig, ReactorStats,
};

/// How reactors are started.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cores to run on.
    pub cores: CoreMask,
    /// The one that hosts what belongs to no other; the first if none is named.
    pub main_core: Option<u32>,
    /// When they poll and when they sleep.
    pub mode: Mode,
    /// How long a poll may take before it is called a stall.
    pub stall_limit: Duration,
}

impl Config {
    /// Adaptive reactors on these cores.
    #[must_use]
    pub fn new(cores: CoreMask) -> Config {
        Config { cores, main_core: None, mode: DEFAULT_MODE, stall_limit: DEFAULT_STALL_LIMIT }
    }
}

/// Why reactors do not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No core was named.
    #[error("the core mask is empty")]
    NoCores,
    /// The system does not tell which cores there are.
    #[error("the system does not tell which cores this process may use")]
    Unknown,
    /// A core that does not exist, or that this process may not use.
    #[error("core {core} does not exist or is not ours to use (cores we may use: {allowed})")]
    NotOurs {
        /// The core.
        core: u32,
        /// Those we may use, as a mask.
        allowed: Box<CoreMask>,
    },
    /// The main core is not one of the cores.
    #[error("main core {0} is not in the core mask")]
    MainCore(u32),
    /// A thread cannot be started or pinned.
    #[error("the reactor of core {core} cannot start: {source}")]
    Thread {
        /// The core.
        core: u32,
        /// Why.
        source: io::Error,
    },
}

/// The reactors of a target. Dropped, they stop.
pub struct Reactors {
    handles: Vec<Handle>,
    threads: Vec<JoinHandle<()>>,
    main: usize,
    cores: CoreMask,
    clock: Clock,
}

/// The cores that this thread, and with it the threads it starts, may use.
fn allowed_cores() -> Result<CoreMask, StartError> {
    let ids = core_affinity::get_core_ids().ok_or(StartError::Unknown)?;
    Ok(ids.into_iter().filter_map(|core| u32::try_from(core.id).ok()).collect())
}

impl Reactors {
    /// Starts one thread `reactor_N` per core. Called from a thread that is not pinned itself.
    ///
    /// # Errors
    /// See [`StartError`]; those that had started are stopped again.
    pub fn start(config: Config) -> Result<Reactors, StartError> {
        let first = config.cores.first().ok_or(StartError::NoCores)?;
        let allowed = allowed_cores()?;
        if let Some(core) = config.cores.iter().find(|&core| !allowed.contains(core)) {
            return Err(StartError::NotOurs { core, allowed: Box::new(allowed) });
        }
        let main_core = config.main_core.unwrap_or(first);
        let main = config.cores.iter().position(|core| core == main_core);
        let main = main.ok_or(StartError::MainCore(main_core))?;
        let clock = Clock::system();
        let mut reactors =
            Reactors { handles: Vec::new(), threads: Vec::new(), main, cores: config.cores, clock };
        for core in config.cores.iter() {
            let (handle, thread) =
                reactors.spawn(core, &config).map_err(|source| StartError::Thread { core, source })?;
            reactors.handles.push(handle);
            reactors.threads.push(thread);
        }
        Ok(reactors)
    }

    fn spawn(&self, core: u32, config: &Config) -> io::Result<(Handle, JoinHandle<()>)> {
        let config = ReactorConfig {
            core,
            mode: config.mode,
            clock: self.clock.clone(),
            stall_limit: config.stall_limit,
        };
        let (started, wait) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name(format!("reactor_{core}")).spawn(move || {
            // core_affinity aborts on ids of 1024 and more, which no CoreMask holds.
            let pinned = core_affinity::set_for_current(CoreId { id: core as usize });
            let reactor =
                if pinned { Reactor::new(config) } else { Err(io::Error::other("it cannot be pinned")) };
            match reactor {
                Ok(mut reactor) => {
                    // The starter waits for it.
                    let _ = started.send(Ok(reactor.handle()));
                    reactor.run();
                }
                Err(error) => drop(started.send(Err(error))),
            }
        })?;
        let handle = wait.recv().map_err(|_died| io::Error::other("its thread panicked"))??;
        Ok((handle, thread))
    }

    /// All of them, by core.
    #[must_use]
    pub fn handles(&self) -> &[Handle] {
        &self.handles
    }

    /// That of a core.
    #[must_use]
    pub fn handle(&self, core: u32) -> Option<&Handle> {
        self.handles.iter().find(|handle| handle.core() == core)
    }

    /// The one that hosts what belongs to no other.
    #[must_use]
    pub fn main(&self) -> &Handle {
        &self.handles[self.main]
    }

    /// Their cores.
    #[must_use]
    pub fn cores(&self) -> CoreMask {
        self.cores
    }

    /// Their clock.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Their counters.
    #[must_use]
    pub fn snapshot(&self) -> Vec<ReactorStats> {
        self.handles.iter().map(Handle::stats).collect()
    }

    /// Stops them: each drops its pollers on its own thread.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Reactors {
    fn drop(&mut self) {
        self.handles.iter().for_each(Handle::stop);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a reactor's thread panicked");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn core_that_does_not_exist_is_named() {
        let error = Reactors::start(Config::new(CoreMask::of(1023))).err().unwrap();
        assert!(matches!(error, StartError::NotOurs { core: 1023, .. }), "{error}");
    }

    #[test]
    fn main_core_outside_the_mask_is_refused() {
        let config = Config { main_core: Some(7), ..Config::new(CoreMask::of(0)) };
        assert!(matches!(Reactors::start(config).err(), Some(StartError::MainCore(7))));
    }

    #[test]
    fn message_is_run_on_the_pinned_thread() {
        let reactors = Reactors::start(Config::new(CoreMask::of(0))).unwrap();
        let name = reactors.main().call(|_| std::thread::current().name().map(str::to_owned)).unwrap();
        assert_eq!(name.as_deref(), Some("reactor_0"));
        let cores = reactors.main().call(|_| core_affinity::get_core_ids()).unwrap().unwrap();
        assert_eq!(cores, [CoreId { id: 0 }]);
        let handle = reactors.main().clone();
        reactors.stop();
        assert_eq!(handle.call(|_| ()), Err(crate::CallError::Stopped));
    }
}
