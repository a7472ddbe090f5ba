//! The thread that tears down removed bdevs.
//!
//! The last one to close a removed bdev is often a reactor, and releasing a backend can take long (unmapping
//! gigabytes, closing files that flush). So the last reference travels here. Started with the registry, ends
//! with it.

use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Weak};
use std::thread;

use super::directory::Directory;
use super::registered::{OnGone, Registered};

/// A bdev that is removed and closed.
pub(super) struct Retired {
    pub(super) registered: Arc<Registered>,
    pub(super) on_gone: OnGone,
}

/// Starts the thread. It inherits the affinity of the caller: start it before reactors are pinned, and from
/// no reactor.
pub(super) fn start(directory: Weak<Directory>) -> Sender<Retired> {
    let (sender, receiver) = mpsc::channel::<Retired>();
    thread::Builder::new()
        .name("bdev-reaper".to_owned())
        .spawn(move || {
            for retired in receiver {
                retire(directory.upgrade().as_deref(), retired);
            }
        })
        .expect("a thread at start of the program");
    sender
}

/// Takes a bdev out of the registry, releases it and tells whoever waits for that.
pub(super) fn retire(directory: Option<&Directory>, retired: Retired) {
    let Retired { registered, on_gone } = retired;
    if let Some(directory) = directory {
        directory.unlink(&registered);
    }
    drop(registered);
    on_gone();
}
