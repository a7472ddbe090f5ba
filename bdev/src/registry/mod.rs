//! The control plane: which bdevs there are, who has them open, and how they come and go.
//!
//! The RPC glue creates, deletes and lists here; device models open here. Thread-safe, and nothing of it is
//! on the I/O path but the word a channel reads to learn that its bdev is gone. Knows no bdev type.
//!
//! Locks, in the order they are taken: the tables (`directory.rs`), then the control state of one bdev
//! (`registered.rs`), then its counters. None is held while a callback runs.

mod claim;
mod config;
mod descriptor;
mod directory;
mod reaper;
mod registered;
mod services;
#[cfg(test)]
mod tests;

use std::sync::mpsc::Sender;
use std::sync::{Arc, Weak};

pub use claim::ClaimKind;
pub use config::BdevOptions;
pub use descriptor::{Access, Descriptor, Event};
pub use directory::Change;
pub use registered::Registered;
pub use services::QueueDepth;

pub(crate) use descriptor::Open;
pub(crate) use registered::Gate;

use crate::{Bdev, Error, OpenError, iobuf};
use config::Configured;
use directory::Directory;
use reaper::Retired;

/// Every bdev of the process.
pub struct Registry {
    directory: Arc<Directory>,
    reaper: Sender<Retired>,
    configured: Configured,
    me: Weak<Registry>,
}

impl Registry {
    /// An empty registry, and the thread that tears its bdevs down. Call it before reactors are started: that
    /// thread inherits the affinity of its maker.
    pub fn new() -> Arc<Registry> {
        let directory = Arc::<Directory>::default();
        let reaper = reaper::start(Arc::downgrade(&directory));
        Arc::new_cyclic(|me| Registry {
            directory,
            reaper,
            configured: Configured::default(),
            me: me.clone(),
        })
    }

    /// Adds a bdev under its name and its UUID.
    pub fn register(&self, bdev: Arc<dyn Bdev>) -> Result<Arc<Registered>, Error> {
        check_geometry(bdev.as_ref())?;
        if bdev.info().buf_align.max(bdev.info().len_align()) > 1 {
            // Here, so that no reactor takes the page faults. A failure is told by the channels that need buffers.
            let _ = iobuf::init();
        }
        let registered = self.directory.link(bdev)?;
        let info = registered.info();
        let (blocks, block_size) = (info.num_blocks(), info.block_size);
        tracing::info!(bdev = %info.name, kind = info.type_name, blocks, block_size, "bdev registered");
        self.show(&registered);
        Ok(registered)
    }

    /// Removes a bdev, found by name, alias or UUID.
    ///
    /// From now on it cannot be opened and refuses requests; who has it open is told to let go. `on_gone` is
    /// called once, when the last of them has and the backend is released: within this call if nobody has it
    /// open, on a thread of the registry otherwise. Until then the name stays taken and the bdev stays
    /// listed.
    pub fn delete(&self, name: &str, on_gone: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        let registered = self.directory.find(name)?;
        self.remove(registered, Box::new(on_gone))
    }

    /// As [`delete`](Self::delete), but a bdev of another type is not found: `bdev_null_delete` of a malloc
    /// bdev answers ENODEV.
    pub fn delete_of_type(
        &self,
        type_name: &str,
        name: &str,
        on_gone: impl FnOnce() + Send + 'static,
    ) -> Result<(), Error> {
        let registered = self.directory.find(name)?;
        if registered.info().type_name != type_name {
            return Err(Error::NoSuchDevice { name: name.to_owned() });
        }
        self.remove(registered, Box::new(on_gone))
    }

    fn remove(&self, registered: Arc<Registered>, on_gone: Box<dyn FnOnce() + Send>) -> Result<(), Error> {
        let (listeners, finished) = registered.remove(on_gone)?;
        tracing::info!(bdev = registered.name(), opens = listeners.len(), "bdev removed");
        if let Some(on_gone) = finished {
            reaper::retire(Some(&self.directory), Retired { registered, on_gone });
            return Ok(());
        }
        // Dropped here, so that it is not this thread that keeps the bdev alive.
        drop(registered);
        for open in listeners {
            open.tell(Event::Removed);
        }
        Ok(())
    }

    /// Looks a bdev up by name, alias or UUID.
    pub fn get(&self, name: &str) -> Result<Arc<Registered>, Error> {
        self.directory.find(name)
    }

    /// All bdevs in the order of their creation.
    pub fn list(&self) -> Vec<Arc<Registered>> {
        self.directory.list()
    }

    /// Opens a bdev, found by name, alias or UUID. See [`Event`] for what `on_event` is told and where it
    /// runs.
    ///
    /// For writing it is refused while somebody's claim forbids that. A read-only bdev can be opened for
    /// writing; its writes are then refused one by one.
    pub fn open(
        &self,
        name: &str,
        access: Access,
        on_event: impl Fn(Event) + Send + Sync + 'static,
    ) -> Result<Descriptor, OpenError> {
        let registered = self.directory.find(name)?;
        let open = registered.admit(access == Access::ReadWrite, |id| {
            Arc::new(Open::new(registered.clone(), id, access, Box::new(on_event), self.reaper.clone()))
        })?;
        Ok(Descriptor::new(open))
    }

    /// The next unused default name of a type: `Malloc0`, `Malloc1`, ... Numbers are not given out twice,
    /// also not when the bdev was deleted or could not be created.
    pub fn auto_name(&self, prefix: &'static str) -> String {
        self.directory.auto_name(prefix)
    }

    /// Gives a bdev another name to be found by.
    pub fn add_alias(&self, name: &str, alias: &str) -> Result<(), Error> {
        self.directory.add_alias(name, alias)
    }

    /// Takes an alias away.
    pub fn remove_alias(&self, name: &str, alias: &str) -> Result<(), Error> {
        self.directory.remove_alias(name, alias)
    }

    /// Gives a bdev a new size, where its type can, and tells who has it open. Nobody may have it open for a
    /// shrink.
    pub fn resize(&self, name: &str, num_blocks: u64) -> Result<(), Error> {
        let registered = self.directory.find(name)?;
        self.publish_size(&registered, num_blocks, || registered.bdev().resize(num_blocks))
    }

    /// Publishes a size that the backend has already taken (a file that grew), and tells who has the bdev
    /// open.
    pub fn notify_resized(&self, name: &str, num_blocks: u64) -> Result<(), Error> {
        let registered = self.directory.find(name)?;
        self.publish_size(&registered, num_blocks, || Ok(()))
    }

    fn publish_size(
        &self,
        registered: &Arc<Registered>,
        num_blocks: u64,
        prepare: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        if registered.info().num_blocks() == num_blocks {
            return Ok(());
        }
        let listeners = registered.set_num_blocks(num_blocks, prepare)?;
        tracing::info!(bdev = registered.name(), blocks = num_blocks, "bdev resized");
        for open in listeners {
            open.tell(Event::Resized { num_blocks });
        }
        self.directory.announce(Change::Resized, registered);
        Ok(())
    }

    /// Calls `on_change` for every bdev that appears, goes or is resized from now on, on the thread that
    /// causes it and with no lock held.
    pub fn watch(&self, on_change: impl Fn(Change, &Arc<Registered>) + Send + Sync + 'static) {
        self.directory.watch(Arc::new(on_change));
    }
}

/// What every type promises about its description, so that the channel wrapper can count on it.
fn check_geometry(bdev: &dyn Bdev) -> Result<(), Error> {
    let info = bdev.info();
    let fault = if info.name.is_empty() {
        "an empty name"
    } else if info.block_size == 0 || !info.block_size.is_multiple_of(512) {
        "a block size that is no multiple of 512"
    } else if info.num_blocks() == 0 {
        "no blocks"
    } else if info.num_blocks().checked_mul(u64::from(info.block_size)).is_none() {
        "more bytes than 64 bits can count"
    } else if !info.buf_align.is_power_of_two()
        || !info.len_align().is_power_of_two()
        || info.max_segments == 0
    {
        "limits that no request could keep"
    } else {
        return Ok(());
    };
    Err(Error::Invalid(format!("bdev \"{}\" has {fault}", info.name)))
}
