//! `--state-dir`: the running configuration, kept by the target itself.
//!
//! After each call that may change something, what `save_config` would write is compared with what the journal holds,
//! and the difference is written before the client has its answer. No method has to take part. Disks are waited for by
//! a thread of their own: meanwhile other calls are made, and those that are done by the time the disk is free are
//! written together.

mod journal;

use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use rpc::{Kept, MethodSpec, RpcError};
use rustix::io::Errno;
use serde_json::Value;
use tokio::{
    sync::{Notify, oneshot},
    task::spawn_blocking,
};

pub(crate) use journal::{Journal, JournalError, State};

use crate::{
    config::{Document, Entry},
    subsystems,
    target::Target,
};

/// Who is told that a call is kept.
type Waiter = oneshot::Sender<Result<(), RpcError>>;

/// Keeps the configuration of a target in a journal.
pub(crate) struct Keeper {
    target: Weak<Target>,
    /// Held as long as the disk takes.
    journal: Mutex<Journal>,
    /// Its room when it was let go last.
    room: AtomicU64,
    /// Calls that are being written.
    in_writing: AtomicU64,
    /// Calls that have been made since.
    made: Mutex<Vec<Waiter>>,
    more: Notify,
}

impl Keeper {
    /// Of this target, from now on. What is there now is recorded. To be called on the RPC thread.
    ///
    /// # Errors
    /// It cannot be.
    pub(crate) fn start(target: &Arc<Target>, mut journal: Journal) -> Result<Arc<Keeper>, JournalError> {
        journal.begin(state_of(target))?;
        let keeper = Arc::new(Keeper {
            target: Arc::downgrade(target),
            room: journal.room().into(),
            journal: Mutex::new(journal),
            in_writing: AtomicU64::new(0),
            made: Mutex::default(),
            more: Notify::new(),
        });
        tokio::spawn(Arc::clone(&keeper).write());
        Ok(keeper)
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn made(&self) -> MutexGuard<'_, Vec<Waiter>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what calls have changed, again and again.
    async fn write(self: Arc<Self>) {
        loop {
            self.more.notified().await;
            let Some(target) = self.target.upgrade() else { return };
            let waiters = mem::take(&mut *self.made());
            self.in_writing.store(waiters.len() as u64, Ordering::Relaxed);
            let state = {
                // Once the target stops, its endpoints go, and they are to come back: what calls do from then on is not kept.
                let Some(_goes_on) = target.goes_on() else { return };
                // All of them are in it, and nothing that is not done.
                state_of(&target)
            };
            drop(target);
            let keeper = Arc::clone(&self);
            let written = spawn_blocking(move || keeper.with_journal(|journal| journal.record(state)));
            let outcome = match written.await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(refused(&error, "what a call has done could not be kept")),
                Err(_panicked) => Err(RpcError::errno(Errno::IO.raw_os_error())),
            };
            self.in_writing.store(0, Ordering::Relaxed);
            for waiter in waiters {
                // Nobody waits any more where the client has gone.
                let _ = waiter.send(outcome.clone());
            }
        }
    }

    fn with_journal<T>(&self, work: impl FnOnce(&mut Journal) -> T) -> T {
        let mut journal = self.journal();
        let done = work(&mut journal);
        self.room.store(journal.room(), Ordering::Relaxed);
        done
    }
}

fn state_of(target: &Target) -> State {
    let calls = |entries: Vec<Entry>| entries.iter().map(Entry::to_value).collect();
    subsystems::save(target)
        .0
        .into_iter()
        .map(|section| (section.subsystem, calls(section.entries)))
        .collect()
}

fn refused(error: &JournalError, what: &str) -> RpcError {
    tracing::error!(%error, "{what}");
    RpcError::errno(error.errno())
}

impl rpc::Journal for Keeper {
    fn begins(&self, _method: &MethodSpec) -> Result<(), RpcError> {
        let pending = self.made().len() as u64 + self.in_writing.load(Ordering::Relaxed);
        let reserve = |journal: &mut Journal| journal.reserve(pending);
        let reserved = match self.journal.try_lock() {
            // The room that was left has to do for all that are being written too.
            Err(TryLockError::WouldBlock)
                if self.room.load(Ordering::Relaxed) >= journal::room_for(pending) =>
            {
                Ok(())
            }
            free_or_short => {
                drop(free_or_short);
                self.with_journal(reserve)
            }
        };
        reserved.map_err(|error| refused(&error, "a call is refused, as what it changes could not be kept"))
    }

    fn has_done(&self, _method: &MethodSpec) -> Kept {
        let (kept, wait) = oneshot::channel();
        self.made().push(kept);
        self.more.notify_one();
        Box::pin(async move {
            // The sender is dropped where the target is stopping.
            wait.await.unwrap_or_else(|_dropped| Err(RpcError::errno(Errno::CANCELED.raw_os_error())))
        })
    }
}

/// The calls that lead to a state.
pub(crate) fn document(state: State) -> Result<Document, serde_json::Error> {
    let sections: Vec<Value> = state
        .into_iter()
        .map(|(subsystem, config)| serde_json::json!({ "subsystem": subsystem, "config": config }))
        .collect();
    Document::of(serde_json::json!({ "subsystems": sections }))
}
