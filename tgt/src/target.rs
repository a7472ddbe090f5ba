//! What RPC methods work on: the bdevs, the endpoints, the reactors.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bdev::{Notifications, Registry};
use reactor::{Group, Handle, Mode};
use rpc::{Stage, State};
use tokio::sync::{Notify, watch};

use crate::{
    config::load::{LoadError, Loader},
    cores::CoreClaims,
    endpoints::Endpoints,
    methods::bdev_raid::RaidOptions,
    monitor::Monitor,
    nvmf::Nvmf,
    scheduler::Scheduler,
    tracepoints::Tracepoints,
};

/// How the target gets from STARTUP to RUNTIME.
pub(crate) struct Launch {
    /// Its configuration.
    pub(crate) loader: Loader,
    /// What follows once that is loaded, before clients are answered.
    pub(crate) then: Box<dyn FnOnce() -> anyhow::Result<()> + Send>,
}

/// The target cannot go on; it was told why.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failed;

/// The target.
pub(crate) struct Target {
    /// All bdevs.
    pub(crate) registry: Arc<Registry>,
    /// All endpoints.
    pub(crate) endpoints: Endpoints,
    /// NVMe subsystems.
    pub(crate) nvmf: Nvmf,
    /// The reactors, by core.
    pub(crate) reactors: Vec<Handle>,
    /// What their modes were at the start: the flags' choice, which a configuration need not repeat.
    pub(crate) first_mode: Mode,
    /// Which reactor a queue runs on, over time.
    pub(crate) scheduler: Scheduler,
    /// Watches for context switches of the reactors.
    pub(crate) monitor: Monitor,
    /// STARTUP or RUNTIME.
    pub(crate) stage: Stage,
    /// Notified when a bdev appears.
    pub(crate) bdev_appeared: Arc<Notify>,
    /// The trace.
    pub(crate) tracepoints: Tracepoints,
    /// The lock files of the cores.
    pub(crate) core_claims: CoreClaims,
    /// What is still to be done to start.
    launch: Mutex<Option<Launch>>,
    /// Set to the exit status when the target cannot go on.
    failed: watch::Sender<Option<u8>>,
    /// It is being taken apart.
    is_stopping: Mutex<bool>,
    /// What happened to bdevs.
    pub(crate) notifications: Arc<Notifications>,
    /// The options of `bdev_raid_set_options`.
    pub(crate) raid_options: Mutex<RaidOptions>,
    /// SPDK's clients expect a thread of this name (`app_thread`, id 1).
    _app_thread: Group,
}

impl Target {
    /// A target in STARTUP.
    pub(crate) fn new(
        reactors: Vec<Handle>,
        app_thread: Group,
        endpoints: Endpoints,
        core_claims: CoreClaims,
        tracepoints: Tracepoints,
    ) -> Self {
        let registry = Registry::new();
        let notifications = Notifications::watching(&registry);
        if let Some(reactor) = reactors.first() {
            bdev::set_ticks_per_second(reactor.clock().ticks_per_second());
        }
        let bdev_appeared = Arc::new(Notify::new());
        let appeared = Arc::clone(&bdev_appeared);
        registry.watch(move |_change, _bdev| appeared.notify_waiters());
        Self {
            registry,
            endpoints,
            scheduler: Scheduler::new(reactors.first().map_or(0, Handle::core)),
            monitor: Monitor::default(),
            core_claims,
            tracepoints,
            nvmf: Nvmf::new(reactors.clone()),
            first_mode: reactors.first().map_or(Mode::default(), |reactor| reactor.mode()),
            reactors,
            stage: Stage::new(State::Startup),
            bdev_appeared,
            launch: Mutex::new(None),
            failed: watch::Sender::new(None),
            is_stopping: Mutex::new(false),
            notifications,
            raid_options: Mutex::default(),
            _app_thread: app_thread,
        }
    }

    /// Ticks of a second, and the tick it is, by the reactors' clock.
    pub(crate) fn clock(&self) -> (u64, u64) {
        let clock = self.reactors.first().map(Handle::clock);
        clock.map_or((0, 0), |clock| (clock.ticks_per_second(), clock.now().raw()))
    }

    /// Ticks of the clock in a second.
    pub(crate) fn tick_rate(&self) -> u64 {
        self.reactors.first().map_or(0, |reactor| reactor.clock().ticks_per_second())
    }

    /// Runs the part of a configuration that belongs before the initialisation, and keeps the rest for it.
    ///
    /// # Errors
    /// The first call that fails.
    pub(crate) async fn prepare(&self, launch: Launch) -> Result<(), LoadError> {
        launch.loader.pass(State::Startup).await?;
        *self.launch.lock().unwrap_or_else(PoisonError::into_inner) = Some(launch);
        Ok(())
    }

    /// Ends STARTUP: loads what is left of the configuration while clients wait.
    ///
    /// # Errors
    /// A call fails. The target ends with it; no client sees what was loaded.
    pub(crate) async fn initialise(&self) -> Result<(), Failed> {
        self.stage.pause();
        self.stage.enter_runtime();
        let launch = self.launch.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Launch { loader, then }) = launch {
            if let Err(error) = loader.pass(State::Runtime).await {
                tracing::error!("{error}");
                return Err(self.fail(error.exit_code()));
            }
            if let Err(error) = then() {
                tracing::error!("{error:#}");
                return Err(self.fail(1));
            }
        }
        self.stage.resume();
        tracing::info!("target is running");
        Ok(())
    }

    /// The target stops: what it is made of is no configuration any more.
    pub(crate) fn stop(&self) {
        *self.is_stopping.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Keeps the target from stopping; none if it does already.
    pub(crate) fn goes_on(&self) -> Option<MutexGuard<'_, bool>> {
        let is_stopping = self.is_stopping.lock().unwrap_or_else(PoisonError::into_inner);
        (!*is_stopping).then_some(is_stopping)
    }

    fn fail(&self, code: u8) -> Failed {
        self.failed.send_replace(Some(code));
        Failed
    }

    /// Waits until the target cannot go on; the exit status.
    pub(crate) async fn failure(&self) -> u8 {
        let mut failed = self.failed.subscribe();
        match failed.wait_for(Option::is_some).await {
            Ok(code) => code.unwrap_or(1),
            // The sender is ours.
            Err(_closed) => 1,
        }
    }
}
