//! `split`: a bdev cut into parts of one size, each a bdev `<base>p<n>`.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use uuid::{Uuid, uuid};

use super::BdevType;
use super::passthru::ShiftedChannel;
use crate::stack::{self, OneBase, Virtual};
use crate::{Bdev, BdevInfo, Channel, Error, Event, OpKind, OpenError, Registered, Registry};

const NAME: &str = "split";
const PRODUCT_NAME: &str = "Split Disk";
const MIB: u64 = 1 << 20;
/// The namespace of the UUIDs of parts, as SPDK has it (BDEV_PART_NAMESPACE_UUID).
const NAMESPACE: Uuid = uuid!("976b899e-3e1e-4d71-ab69-c2b08e9df8b8");
/// More parts of one bdev are a mistake.
const PARTS_MAX: u32 = 65_536;

pub(super) const TYPE: BdevType = BdevType { name: NAME, product_name: PRODUCT_NAME };

/// The params of `bdev_split_create`.
#[derive(Debug, Clone, Deserialize)]
pub struct SplitParams {
    /// The bdev to cut.
    pub base_bdev: String,
    /// Into how many parts.
    pub split_count: u32,
    /// Size of a part in MiB; equal shares of the whole if 0.
    #[serde(default)]
    pub split_size_mb: u64,
}

struct Part {
    one: OneBase,
    first: u64,
}

impl Bdev for Part {
    fn info(&self) -> &Arc<BdevInfo> {
        &self.one.info
    }

    fn supports(&self, kind: OpKind) -> bool {
        self.one.supports(kind)
    }

    fn open_channel(&self, depth: u16) -> Result<Box<dyn Channel>, OpenError> {
        Ok(Box::new(ShiftedChannel::new(self.one.base.open_channel(depth)?, self.first)))
    }

    fn driver_specific(&self) -> Value {
        json!({ NAME: { "base_bdev": self.one.base_name(), "offset_blocks": self.first } })
    }
}

struct Configured(SplitParams);

fn part_name(base: &str, part: u32) -> String {
    format!("{base}p{part}")
}

/// The UUID of a part: the same whenever the base appears, as guests know a disk by it, and the one that SPDK gives it.
/// Its name is the base's UUID, the first block and the number of blocks.
fn part_uuid(base: Uuid, first: u64, blocks: u64) -> Uuid {
    let mut name = [0; 32];
    name[..16].copy_from_slice(base.as_bytes());
    name[16..24].copy_from_slice(&first.to_le_bytes());
    name[24..].copy_from_slice(&blocks.to_le_bytes());
    Uuid::new_v5(&NAMESPACE, &name)
}

impl Configured {
    /// The blocks of a part, and how many parts fit.
    fn shares(&self, base: &BdevInfo) -> Result<(u64, u32), Error> {
        let blocks = match self.0.split_size_mb {
            0 => base.num_blocks() / u64::from(self.0.split_count),
            mib => mib.saturating_mul(MIB) / u64::from(base.block_size),
        };
        if blocks == 0 || blocks > base.num_blocks() {
            return Err(Error::Invalid(format!("bdev \"{}\" has no room for such parts", base.name)));
        }
        let fitting = u32::try_from(base.num_blocks() / blocks).unwrap_or(u32::MAX);
        Ok((blocks, self.0.split_count.min(fitting)))
    }
}

impl Virtual for Configured {
    fn key(&self) -> (&'static str, &str) {
        (NAME, &self.0.base_bdev)
    }

    fn examine(&self, registry: &Arc<Registry>, bdev: &Arc<Registered>) -> Result<(), Error> {
        let SplitParams { base_bdev, .. } = &self.0;
        if !stack::is_called(bdev, base_bdev) || registry.get(&part_name(base_bdev, 0)).is_ok() {
            return Ok(());
        }
        let (blocks, parts) = self.shares(bdev.info())?;
        let names: Vec<_> = (0..parts).map(|part| part_name(base_bdev, part)).collect();
        let parts_of_base = names.clone();
        let base = stack::take_base(registry, bdev.name(), NAME, move |registry, event| {
            if event == Event::Removed {
                for part in &parts_of_base {
                    // One that was deleted by itself is gone already.
                    let _ = registry.delete_of_type(NAME, part, || ());
                }
            }
        })?;
        for (name, part) in names.iter().zip(0u64..) {
            let uuid = part_uuid(base.info().uuid, part * blocks, blocks);
            let info = stack::describe_like(base.info(), NAME, PRODUCT_NAME, name.clone(), Some(uuid));
            info.num_blocks.store(blocks, std::sync::atomic::Ordering::Relaxed);
            let one = OneBase { info: Arc::new(info), base: base.clone() };
            if let Err(error) = stack::register(registry, Part { one, first: part * blocks }) {
                names.iter().for_each(|part| drop(registry.delete_of_type(NAME, part, || ())));
                return Err(error);
            }
        }
        Ok(())
    }

    fn config(&self) -> Option<(&'static str, Value)> {
        let SplitParams { base_bdev, split_count, split_size_mb } = &self.0;
        let params =
            json!({ "base_bdev": base_bdev, "split_count": split_count, "split_size_mb": split_size_mb });
        Some(("bdev_split_create", params))
    }
}

/// Cuts a bdev, now or as soon as it appears. The names of the parts, none yet if it is not there.
pub fn create(registry: &Arc<Registry>, params: SplitParams) -> Result<Vec<String>, Error> {
    if params.split_count == 0 || params.split_count > PARTS_MAX {
        return Err(Error::Invalid(format!("{} parts cannot be made", params.split_count)));
    }
    let (base, count) = (params.base_bdev.clone(), params.split_count);
    stack::configure(registry, Arc::new(Configured(params)), std::slice::from_ref(&base))?;
    Ok((0..count).map(|part| part_name(&base, part)).take_while(|name| registry.get(name).is_ok()).collect())
}

/// Forgets a cut and deletes its parts. `ENOENT` if there is none of this bdev.
pub fn delete(registry: &Arc<Registry>, base_bdev: &str) -> Result<(), Error> {
    let missing = || Error::Io {
        what: format!("bdev \"{base_bdev}\" is not split"),
        source: rustix::io::Errno::NOENT.into(),
    };
    let cut = registry.remove_virtual(NAME, base_bdev).ok_or_else(missing)?;
    let count = stack::as_type::<Configured>(cut).map_or(0, |cut| cut.0.split_count);
    for part in 0..count {
        // A part that is gone, or never came, needs no deleting.
        let _ = registry.delete_of_type(NAME, &part_name(base_bdev, part), || ());
    }
    Ok(())
}
