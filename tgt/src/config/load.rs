//! Runs a configuration, in the two passes of SPDK: what may be called in STARTUP before the target is initialised, the
//! rest after it. Every call meets the checks that a client's would.

use rpc::{Dispatcher, RpcError, State};
use serde_json::value::{RawValue, to_raw_value};

use super::{Document, Entry, Section};
use crate::subsystems;

/// Why a configuration was not loaded to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// There is no such method, or it is not allowed.
    #[error("Method '{0}' of the configuration was not found")]
    Unknown(String),
    /// A call was refused.
    #[error("{method} of the configuration failed: {error}; its params: {params}")]
    Failed {
        /// The method.
        method: String,
        /// Its params.
        params: String,
        /// The answer.
        error: RpcError,
    },
}

impl LoadError {
    /// The exit status of a program that ends with this: the low byte of the error's code, as spdk_tgt has it.
    pub(crate) fn exit_code(&self) -> u8 {
        const ENOENT: i32 = 2;
        let code = match self {
            LoadError::Unknown(_) => -ENOENT,
            LoadError::Failed { error, .. } => error.code,
        };
        code.to_le_bytes()[0].max(1)
    }
}

/// A configuration to be loaded.
#[derive(Debug)]
pub(crate) struct Loader {
    dispatcher: Dispatcher,
    document: Document,
    ignore_errors: bool,
}

impl Loader {
    /// Of this document, by these methods.
    pub(crate) fn new(dispatcher: Dispatcher, document: Document, ignore_errors: bool) -> Loader {
        Loader { dispatcher, document, ignore_errors }
    }

    /// Makes the calls of the pass for this state: subsystem by subsystem, those that others depend on first, and the
    /// calls of each in their order.
    ///
    /// # Errors
    /// The first failure; with `ignore_errors` it is logged instead.
    pub(crate) async fn pass(&self, state: State) -> Result<(), LoadError> {
        let mut sections: Vec<&Section> = self.document.0.iter().collect();
        // The sort keeps the order of those that are equal; what is not here is only told.
        sections.sort_by_key(|section| subsystems::position(&section.subsystem));
        for section in sections {
            self.run_section(section, state).await?;
        }
        Ok(())
    }

    /// A call that finds its device missing is made again after the others: a base may stand below what is built on
    /// it.
    async fn run_section(&self, section: &Section, state: State) -> Result<(), LoadError> {
        let mut waiting: Vec<&Entry> = Vec::new();
        for entry in &section.entries {
            match self.is_due(&section.subsystem, entry, state) {
                Ok(true) if self.needs_later(entry).await? => waiting.push(entry),
                Ok(_) => {}
                Err(error) => self.refuse(error)?,
            }
        }
        loop {
            let before = waiting.len();
            let mut left = Vec::new();
            for entry in waiting {
                if self.needs_later(entry).await? {
                    left.push(entry);
                }
            }
            waiting = left;
            if waiting.len() == before || waiting.is_empty() {
                break;
            }
        }
        for entry in waiting {
            let error = self.call(entry).await.err();
            error.map_or(Ok(()), |error| self.refuse(failed(entry, error)))?;
        }
        Ok(())
    }

    fn refuse(&self, error: LoadError) -> Result<(), LoadError> {
        if self.ignore_errors {
            tracing::error!("{error}");
            return Ok(());
        }
        Err(error)
    }

    /// Whether the entry belongs to the pass of this state: methods of both states run once, in the first.
    fn is_due(&self, subsystem: &str, entry: &Entry, state: State) -> Result<bool, LoadError> {
        let spec = self.dispatcher.spec(&entry.method);
        match spec {
            Some(spec) => Ok(match state {
                State::Startup => spec.states.contains(State::Startup),
                State::Runtime => !spec.states.contains(State::Startup),
            }),
            // Both passes see it; the first tells.
            None if state == State::Runtime => Ok(false),
            None if subsystems::position(subsystem).is_none() => {
                tracing::info!(
                    subsystem,
                    method = entry.method,
                    "skipping a call of a subsystem that is not here"
                );
                Ok(false)
            }
            None if OPTIONS_ELSEWHERE.contains(&entry.method.as_str()) => {
                tracing::info!(method = entry.method, "skipping the options of something that is not here");
                Ok(false)
            }
            None => Err(LoadError::Unknown(entry.method.clone())),
        }
    }

    /// Makes the call. True if it is to be made again when others have been.
    async fn needs_later(&self, entry: &Entry) -> Result<bool, LoadError> {
        match self.call(entry).await {
            Ok(()) => Ok(false),
            Err(error) if error.message == rpc::error::strerror(ENODEV) => Ok(true),
            Err(error) => self.refuse(failed(entry, error)).map(|()| false),
        }
    }

    async fn call(&self, entry: &Entry) -> Result<(), RpcError> {
        let params: Option<Box<RawValue>> =
            entry.params.as_ref().and_then(|params| to_raw_value(params).ok());
        self.dispatcher.call(&entry.method, params.as_deref()).await.map(|_result| ())
    }
}

const ENODEV: i32 = 19;

/// Methods that SPDK saves whatever it was used for, in sections that are here: options of modules that are not, and the retry
/// delays of NVMe (CRDT), which no command here asks a host to wait for.
const OPTIONS_ELSEWHERE: &[&str] = &[
    "bdev_iscsi_set_options",
    "bdev_nvme_set_hotplug",
    "bdev_nvme_set_options",
    "bdev_virtio_blk_set_hotplug",
    "nvmf_set_crdt",
];

fn failed(entry: &Entry, error: RpcError) -> LoadError {
    let params = entry.params.as_ref().map(ToString::to_string).unwrap_or_default();
    LoadError::Failed { method: entry.method.clone(), params, error }
}
