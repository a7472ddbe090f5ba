//! What RPC methods work on: the bdevs, the endpoints, the reactors.

use std::sync::Arc;

use bdev::Registry;
use reactor::{Group, Handle};
use rpc::Stage;
use tokio::sync::Notify;

use crate::{endpoints::Endpoints, monitor::Monitor, scheduler::Scheduler};

/// The target.
pub(crate) struct Target {
    /// All bdevs.
    pub(crate) registry: Arc<Registry>,
    /// All endpoints.
    pub(crate) endpoints: Endpoints,
    /// The reactors, by core.
    pub(crate) reactors: Vec<Handle>,
    /// Which reactor a queue runs on, over time.
    pub(crate) scheduler: Scheduler,
    /// Watches for context switches of the reactors.
    pub(crate) monitor: Monitor,
    /// STARTUP or RUNTIME.
    pub(crate) stage: Stage,
    /// Notified when a bdev appears.
    pub(crate) bdev_appeared: Arc<Notify>,
    /// SPDK's clients expect a thread of this name (`app_thread`, id 1).
    _app_thread: Group,
}

impl Target {
    /// A target in STARTUP.
    pub(crate) fn new(reactors: Vec<Handle>, app_thread: Group, endpoints: Endpoints) -> Self {
        let registry = Registry::new();
        let bdev_appeared = Arc::new(Notify::new());
        let appeared = Arc::clone(&bdev_appeared);
        registry.watch(move |_change, _bdev| appeared.notify_waiters());
        Self {
            registry,
            endpoints,
            scheduler: Scheduler::new(reactors.first().map_or(0, Handle::core)),
            monitor: Monitor::default(),
            reactors,
            stage: Stage::new(rpc::State::Startup),
            bdev_appeared,
            _app_thread: app_thread,
        }
    }

    /// Ends STARTUP.
    pub(crate) fn initialise(&self) {
        self.stage.enter_runtime();
        tracing::info!("target is running");
    }
}
