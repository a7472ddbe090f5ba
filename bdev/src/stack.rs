//! Bdevs on other bdevs: what is known of one before its base is there, and how it holds its base.
//!
//! The types `passthru`, `delay`, `error`, `split` and `raid` keep a [`Virtual`] with the registry from the RPC that
//! makes them to the one that deletes them. Each bdev that appears is shown to all of them (SPDK calls that examine), so
//! a configuration may name a base that comes later, and a bdev comes back with its base. Control path only.

use std::any::Any;
use std::sync::{Arc, Weak};

use serde_json::Value;
use uuid::Uuid;

use crate::{Access, Bdev, BdevInfo, ClaimKind, Descriptor, Error, Event, OpKind, Registered, Registry};

/// A configured bdev (or several) on bases that may be missing.
pub trait Virtual: Any + Send + Sync {
    /// The type, and the name it is deleted by.
    fn key(&self) -> (&'static str, &str);

    /// A bdev has appeared: takes it if it is a base that is waited for.
    ///
    /// # Errors
    /// The base was there and could not be used.
    fn examine(&self, registry: &Arc<Registry>, bdev: &Arc<Registered>) -> Result<(), Error>;

    /// The entry that makes it again, for `save_config`.
    fn config(&self) -> Option<(&'static str, Value)>;
}

/// Whether `name` is one of the bdev's names.
pub(crate) fn is_called(bdev: &Registered, name: &str) -> bool {
    bdev.name() == name || bdev.aliases().iter().any(|alias| alias == name)
}

/// Opens and claims a base for the holder of type `type_name`. `on_event` is told what happens to it.
pub(crate) fn take_base(
    registry: &Arc<Registry>,
    base: &str,
    type_name: &'static str,
    on_event: impl Fn(&Arc<Registry>, Event) + Send + Sync + 'static,
) -> Result<Arc<Descriptor>, Error> {
    let weak: Weak<Registry> = Arc::downgrade(registry);
    let descriptor = registry.open(base, Access::ReadWrite, move |event| {
        if let Some(registry) = weak.upgrade() {
            on_event(&registry, event);
        }
    })?;
    descriptor.claim(ClaimKind::ExclusiveWrite, type_name)?;
    Ok(Arc::new(descriptor))
}

/// The reaction of a bdev of one base and the same size: it goes and grows with it.
pub(crate) fn follow(type_name: &'static str, name: String) -> impl Fn(&Arc<Registry>, Event) + Send + Sync {
    move |registry, event| {
        let done = match event {
            Event::Removed => registry.delete_of_type(type_name, &name, || ()),
            Event::Resized { num_blocks } => registry.notify_resized(&name, num_blocks),
        };
        if let Err(error) = done {
            tracing::debug!(bdev = name, ?event, %error, "a stacked bdev does not follow its base");
        }
    }
}

/// A description like the base's. Its limits are the base channel's business.
pub(crate) fn describe_like(
    base: &BdevInfo,
    type_name: &'static str,
    product_name: &'static str,
    name: String,
    uuid: Option<Uuid>,
) -> BdevInfo {
    let mut info = BdevInfo::new(type_name, product_name, name, base.block_size, base.num_blocks());
    info.uuid = uuid.filter(|u| !u.is_nil()).unwrap_or(info.uuid);
    info.physical_block_size = base.physical_block_size;
    info.write_cache = base.write_cache;
    info.read_only = base.read_only;
    info.unmap_reads_zero = base.unmap_reads_zero;
    info.optimal_io_boundary = base.optimal_io_boundary;
    info.preferred_write_alignment = base.preferred_write_alignment;
    info.preferred_write_granularity = base.preferred_write_granularity;
    info.optimal_write_size = base.optimal_write_size;
    info.preferred_unmap_alignment = base.preferred_unmap_alignment;
    info.preferred_unmap_granularity = base.preferred_unmap_granularity;
    info.numa_id = base.numa_id;
    info
}

/// Whether the base does this.
pub(crate) fn base_supports(base: &Descriptor, kind: OpKind) -> bool {
    base.bdev().supports(kind)
}

/// Shows a base that is there already to a new configuration, and keeps it in any case where it is not.
pub(crate) fn configure(
    registry: &Arc<Registry>,
    new: Arc<dyn Virtual>,
    bases: &[String],
) -> Result<(), Error> {
    let (type_name, name) = (new.key().0, new.key().1.to_owned());
    registry.add_virtual(new.clone())?;
    for base in bases {
        let Ok(bdev) = registry.get(base) else { continue };
        if !registry.examines(&bdev) {
            continue;
        }
        if let Err(error) = new.examine(registry, &bdev) {
            registry.remove_virtual(type_name, &name);
            return Err(error);
        }
    }
    Ok(())
}

/// Deletes a configuration and the bdev of its name, if there is one.
pub(crate) fn unconfigure(
    registry: &Arc<Registry>,
    type_name: &'static str,
    name: &str,
    on_gone: impl FnOnce() + Send + 'static,
) -> Result<(), Error> {
    // By any of the bdev's names.
    let name = registry.get(name).map_or_else(|_| name.to_owned(), |bdev| bdev.name().to_owned());
    let known = registry.remove_virtual(type_name, &name);
    match registry.delete_of_type(type_name, &name, on_gone) {
        // Its base never came. The closure is gone with the error, and so is nobody's wait.
        Err(Error::NoSuchDevice { .. }) if known.is_some() => Ok(()),
        other => other,
    }
}

/// The concrete type of a configuration.
pub(crate) fn as_type<T: Virtual>(any: Arc<dyn Virtual>) -> Option<Arc<T>> {
    let any: Arc<dyn Any + Send + Sync> = any;
    any.downcast().ok()
}

/// A bdev over one base as the stacked types hold it.
pub(crate) struct OneBase {
    pub(crate) info: Arc<BdevInfo>,
    pub(crate) base: Arc<Descriptor>,
}

impl OneBase {
    /// The name of the base.
    pub(crate) fn base_name(&self) -> &str {
        &self.base.info().name
    }

    /// Size, support and channels are the base's.
    pub(crate) fn supports(&self, kind: OpKind) -> bool {
        base_supports(&self.base, kind)
    }
}

/// Registers a bdev that examining has built; a failure leaves the base as it was.
pub(crate) fn register(
    registry: &Arc<Registry>,
    bdev: impl Bdev + 'static,
) -> Result<Arc<Registered>, Error> {
    registry.register(Arc::new(bdev))
}
