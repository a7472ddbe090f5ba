//! The bdev behind `uring` and `aio`: a file or block device on the thread's ring, with the params of either.

use std::sync::Arc;

use serde_json::Value;
use uuid::Uuid;

use super::BdevType;
use crate::file::{Backing, FileChannel, Options};
use crate::{Bdev, BdevInfo, Channel, Error, OpKind, OpenError, Registered, Registry};

/// What tells a type from the other: the params it was made with.
pub(super) trait FileParams: Send + Sync + 'static {
    const TYPE: BdevType;

    fn name(&self) -> &str;

    fn uuid(&self) -> Option<Uuid>;

    /// How the file is opened.
    fn options(&self) -> Options;

    /// See [`Bdev::driver_specific`].
    fn driver_specific(&self) -> Value;

    /// See [`Bdev::config`].
    fn config(&self, info: &BdevInfo) -> (&'static str, Value);
}

struct FileBdev<P> {
    info: Arc<BdevInfo>,
    backing: Backing,
    params: P,
}

impl<P: FileParams> Bdev for FileBdev<P> {
    fn info(&self) -> &Arc<BdevInfo> {
        &self.info
    }

    fn supports(&self, kind: OpKind) -> bool {
        match kind {
            OpKind::Read | OpKind::Write | OpKind::Flush => true,
            OpKind::Unmap => self.backing.punches,
            OpKind::WriteZeroes => self.backing.punches && self.backing.zero_mode.is_some(),
        }
    }

    fn open_channel(&self, depth: u16) -> Result<Box<dyn Channel>, OpenError> {
        Ok(Box::new(FileChannel::open(&self.backing, depth)?))
    }

    fn driver_specific(&self) -> Value {
        self.params.driver_specific()
    }

    fn config(&self) -> Option<(&'static str, Value)> {
        Some(self.params.config(&self.info))
    }

    fn measure(&self) -> Result<u64, Error> {
        self.backing.measure()
    }
}

/// Opens the file, and registers the bdev.
pub(super) fn create<P: FileParams>(registry: &Registry, params: P) -> Result<Arc<Registered>, Error> {
    let name = params.name().to_owned();
    if registry.get(&name).is_ok() {
        return Err(Error::Exists { name });
    }
    let options = params.options();
    let backing = Backing::open(&options)?;
    let BdevType { name: type_name, product_name } = P::TYPE;
    let mut info = BdevInfo::new(type_name, product_name, name, backing.block_size, backing.num_blocks);
    info.uuid = params.uuid().filter(|u| !u.is_nil()).unwrap_or(info.uuid);
    backing.describe(&mut info, options.read_only);
    registry.register(Arc::new(FileBdev { info: Arc::new(info), backing, params }))
}

/// Looks at the size of a file again.
pub(super) fn rescan(registry: &Registry, type_name: &str, name: &str) -> Result<(), Error> {
    let bdev = registry.get(name)?;
    if bdev.info().type_name != type_name {
        return Err(Error::NoSuchDevice { name: name.to_owned() });
    }
    registry.notify_resized(name, bdev.bdev().measure()?)
}
