//! Tells in the log when a reactor was taken off its core: polling suffers from each such switch.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use reactor::Handle;
use tokio::{sync::Notify, time::sleep};

use crate::target::Target;

/// How often it looks.
const PERIOD: Duration = Duration::from_secs(1);

/// Whether somebody wants to be told.
#[derive(Debug, Default)]
pub(crate) struct Monitor {
    on: AtomicBool,
    changed: Notify,
}

impl Monitor {
    /// Switches it on or off.
    pub(crate) fn set(&self, on: bool) {
        self.on.store(on, Ordering::Relaxed);
        self.changed.notify_one();
    }

    /// Whether it is on.
    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }
}

/// Looks, while it is on, for as long as the target lives.
pub(crate) async fn run(target: Arc<Target>) {
    loop {
        if !target.monitor.is_on() {
            target.monitor.changed.notified().await;
            continue;
        }
        let before: Vec<_> = target.reactors.iter().map(switches).collect();
        sleep(PERIOD).await;
        for (reactor, before) in target.reactors.iter().zip(before) {
            if let (Some(before), Some(after)) = (before, switches(reactor))
                && after > before
            {
                tracing::warn!(
                    core = reactor.core(),
                    switches = after - before,
                    "a reactor was taken off its core"
                );
            }
        }
    }
}

/// How often a reactor's thread has been taken off its core (proc(5), status: nonvoluntary_ctxt_switches).
fn switches(reactor: &Handle) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/self/task/{}/status", reactor.stats().tid)).ok()?;
    let count = status.lines().find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:"))?;
    count.trim().parse().ok()
}
