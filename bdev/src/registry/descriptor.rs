//! An open of a bdev: the right to I/O, the claim, and the events.
//!
//! Made by [`Registry::open`](crate::Registry::open) on the control path and sent to the reactors that do the
//! I/O. Does no I/O itself.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;

use super::reaper::Retired;
use super::registered::Registered;
use crate::{Bdev, BdevInfo, ClaimKind, Error, IoChannel, OpenError};

/// What an open may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read and flush.
    Read,
    /// Everything.
    ReadWrite,
}

/// What happens to a bdev while somebody has it open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// It is being removed. New requests are refused with [`Status::Removed`](crate::Status::Removed); drain
    /// the channels, drop them and the descriptor: the removal waits for that.
    Removed,
    /// Its size has changed.
    Resized {
        /// New size in blocks.
        num_blocks: u64,
    },
}

/// The callback of an open. Called on the thread that makes the change (mostly the RPC thread), with no lock
/// held, so it may call back into the registry; it should do little more than post a message. May still run
/// once while the descriptor is being dropped.
pub(super) type OnEvent = Box<dyn Fn(Event) + Send + Sync>;

/// What a descriptor and its channels share; the bdev counts as open until the last of them is dropped.
pub(crate) struct Open {
    /// Taken in `drop` only, and handed to the reaper so that the bdev is not torn down on a reactor.
    registered: Option<Arc<Registered>>,
    id: u64,
    write: AtomicBool,
    on_event: OnEvent,
    reaper: Sender<Retired>,
}

impl Open {
    pub(super) fn new(
        registered: Arc<Registered>,
        id: u64,
        access: Access,
        on_event: OnEvent,
        reaper: Sender<Retired>,
    ) -> Open {
        let write = AtomicBool::new(access == Access::ReadWrite);
        Open { registered: Some(registered), id, write, on_event, reaper }
    }

    pub(crate) fn registered(&self) -> &Arc<Registered> {
        self.registered.as_ref().expect("only drop takes it")
    }

    pub(crate) fn writable(&self) -> bool {
        // Relaxed: read once when a channel is opened, by whoever was told that the claim succeeded.
        self.write.load(Ordering::Relaxed)
    }

    pub(super) fn tell(&self, event: Event) {
        (self.on_event)(event);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let Some(registered) = self.registered.take() else { return };
        if let Some(on_gone) = registered.dismiss(self.id) {
            // The last one out. Tearing down may take long (gigabytes to unmap), and this may be a reactor.
            // A reaper that is gone means that the registry is gone and nobody waits any more.
            if let Err(unsent) = self.reaper.send(Retired { registered, on_gone }) {
                drop(unsent);
            }
        }
    }
}

/// An open bdev.
///
/// `Send` and `Sync`: opened on the control path, used on any number of reactors, each with channels of its
/// own. Dropping it gives back the claim once its channels are dropped too.
pub struct Descriptor {
    open: Arc<Open>,
}

impl Descriptor {
    pub(super) fn new(open: Arc<Open>) -> Descriptor {
        Descriptor { open }
    }

    /// The bdev as the registry knows it.
    pub fn registered(&self) -> &Arc<Registered> {
        self.open.registered()
    }

    /// The bdev.
    pub fn bdev(&self) -> &Arc<dyn Bdev> {
        self.registered().bdev()
    }

    /// Its description.
    pub fn info(&self) -> &Arc<BdevInfo> {
        self.registered().info()
    }

    /// Whether writes are allowed: the open asked for it or a claim granted it, and the bdev is not
    /// read-only.
    pub fn is_writable(&self) -> bool {
        self.open.writable() && !self.info().read_only
    }

    /// Claims the bdev for `holder` (the name of a type or module, told to whoever is refused later). A claim
    /// that writes makes this open writable; channels opened before do not learn of it.
    pub fn claim(&self, kind: ClaimKind, holder: &str) -> Result<(), Error> {
        let write = self.registered().claim(self.open.id, kind, holder)?;
        self.open.write.store(write, Ordering::Relaxed);
        Ok(())
    }

    /// Gives the claim back, if there is one. The open stays writable if it became so.
    pub fn release_claim(&self) {
        self.registered().release(self.open.id);
    }

    /// A channel for up to `depth` requests in flight. Call it on the thread that will use the channel.
    pub fn open_channel(&self, depth: u16) -> Result<IoChannel, OpenError> {
        if depth == 0 {
            return Err(Error::Invalid("a channel needs a depth of at least 1".to_owned()));
        }
        let registered = self.registered();
        if registered.is_removed() {
            return Err(Error::NoSuchDevice { name: registered.name().to_owned() });
        }
        let counters = registered.open_counters();
        let closed = counters.clone();
        IoChannel::new(self.open.clone(), depth, counters)
            .inspect_err(|_unopened| registered.close_counters(&closed))
    }
}

impl fmt::Debug for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Descriptor")
            .field("bdev", &self.registered().name())
            .field("writable", &self.is_writable())
            .finish()
    }
}
