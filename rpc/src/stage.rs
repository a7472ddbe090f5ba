//! Where the target is on its way up, shared by the server, the dispatcher and the methods that move it.
//!
//! STARTUP lasts until the framework is initialised, RUNTIME from then on. Apart from that the servers can be paused:
//! clients connect and send, nothing is read or answered. The target does so while it initialises and while it loads
//! the run time part of its configuration, so that no client sees a half-made state.

use std::sync::Arc;

use tokio::sync::watch;

/// The states in which a method may or may not be called. SPDK: `SPDK_RPC_STARTUP`, `SPDK_RPC_RUNTIME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The framework is not initialised.
    Startup,
    /// It is.
    Runtime,
}

#[derive(Clone, Copy, Debug)]
struct Position {
    state: State,
    paused: bool,
}

/// A shared, clonable handle on the state.
#[derive(Clone, Debug)]
pub struct Stage {
    position: Arc<watch::Sender<Position>>,
}

impl Stage {
    /// Starts in `state`, not paused.
    pub fn new(state: State) -> Stage {
        Stage { position: Arc::new(watch::Sender::new(Position { state, paused: false })) }
    }

    /// The state now.
    pub fn state(&self) -> State {
        self.position.borrow().state
    }

    /// STARTUP is over. Wakes all that wait in [`Stage::runtime`].
    pub fn enter_runtime(&self) {
        self.position.send_modify(|position| position.state = State::Runtime);
    }

    /// Stops the servers from taking requests; calls already taken go on. False if they were stopped before: the
    /// caller is not the one who may resume.
    pub fn pause(&self) -> bool {
        self.position.send_if_modified(|position| !std::mem::replace(&mut position.paused, true))
    }

    /// Lets the servers take requests again.
    pub fn resume(&self) {
        self.position.send_modify(|position| position.paused = false);
    }

    /// Whether the servers are stopped.
    pub fn is_paused(&self) -> bool {
        self.position.borrow().paused
    }

    /// Waits for RUNTIME (`framework_wait_init`).
    pub async fn runtime(&self) {
        self.wait(|position| position.state == State::Runtime).await;
    }

    /// Waits until the servers are not paused.
    pub async fn open(&self) {
        self.wait(|position| !position.paused).await;
    }

    async fn wait(&self, condition: impl FnMut(&Position) -> bool) {
        let mut position = self.position.subscribe();
        // The sender lives in self, so the channel cannot close while this waits.
        let _ = position.wait_for(condition).await;
    }
}
