//! `--state-dir`: the running configuration, kept by the target itself.
//!
//! After each call that may change something, what `save_config` would write is compared with what the journal holds,
//! and the difference is written before the client has its answer. No method has to take part.

mod journal;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rpc::{MethodSpec, RpcError};
use serde_json::Value;

pub(crate) use journal::{Journal, JournalError, State};

use crate::{
    config::{Document, Entry},
    subsystems,
    target::Target,
};

/// Keeps the configuration of a target in a journal.
pub(crate) struct Keeper {
    target: Weak<Target>,
    journal: Mutex<Journal>,
}

impl Keeper {
    /// Of this target, from now on. What is there now is recorded.
    ///
    /// # Errors
    /// It cannot be.
    pub(crate) fn start(target: &Arc<Target>, mut journal: Journal) -> Result<Keeper, JournalError> {
        journal.begin(state_of(target))?;
        Ok(Keeper { target: Arc::downgrade(target), journal: Mutex::new(journal) })
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
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
        let reserved = self.journal().reserve();
        reserved.map_err(|error| refused(&error, "a call is refused, as what it changes could not be kept"))
    }

    fn has_done(&self, _method: &MethodSpec) -> Result<(), RpcError> {
        let Some(target) = self.target.upgrade() else { return Ok(()) };
        let recorded = self.journal().record(state_of(&target));
        recorded.map_err(|error| refused(&error, "what a call has done could not be kept"))
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
