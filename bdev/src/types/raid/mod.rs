//! `raid`: an array of bdevs. raid0 stripes, concat joins.
//!
//! An array is configured with the names of its bases and goes online when the last of them is there. Levels with
//! redundancy would be further layouts, with a channel of their own; superblocks would be found in `examine`. Neither is
//! there yet.

mod channel;
mod layout;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::BdevType;
use crate::bdev::Boundary;
use crate::stack::{self, Virtual};
use crate::{Bdev, BdevInfo, Channel, Descriptor, Error, Event, OpKind, OpenError, Registered, Registry};
use channel::{RaidChannel, all_support};
use layout::Layout;

const NAME: &str = "raid";
const PRODUCT_NAME: &str = "Raid Volume";
const KIB: u64 = 1 << 10;
/// Most bases (RAID_BDEV_RPC_MAX_BASE_BDEVS).
const BASES_MAX: usize = 255;

pub(super) const TYPE: BdevType = BdevType { name: NAME, product_name: PRODUCT_NAME };

/// How an array is laid out. Words as in `bdev_raid_create`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Level {
    #[serde(rename = "raid0", alias = "0")]
    Raid0,
    #[serde(rename = "raid1", alias = "1")]
    Raid1,
    #[serde(rename = "raid5f", alias = "5f")]
    Raid5f,
    #[serde(rename = "concat")]
    Concat,
}

impl Level {
    const fn name(self) -> &'static str {
        match self {
            Level::Raid0 => "raid0",
            Level::Raid1 => "raid1",
            Level::Raid5f => "raid5f",
            Level::Concat => "concat",
        }
    }
}

/// The params of `bdev_raid_create`.
#[derive(Debug, Clone, Deserialize)]
pub struct RaidParams {
    /// Name of the new bdev.
    pub name: String,
    /// Length of a strip.
    #[serde(default)]
    pub strip_size_kb: u32,
    /// The layout.
    pub raid_level: Level,
    /// Names of the bases.
    pub base_bdevs: Vec<String>,
    /// UUID; random if absent or nil.
    #[serde(default)]
    pub uuid: Option<Uuid>,
    /// Keep the configuration on the bases; not supported.
    #[serde(default)]
    pub superblock: bool,
}

/// A place for a base. One whose base was taken out has no name until it is given another.
#[derive(Default)]
struct Slot {
    name: Option<String>,
    base: Option<Arc<Descriptor>>,
}

/// What stands for a base that was taken out where the configuration is written. SPDK's word, too.
fn removed_name(index: usize) -> String {
    format!("removed_base_{index}")
}

/// Where an array stands, in SPDK's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Configuring,
    Online,
    Offline,
}

impl State {
    const fn name(self) -> &'static str {
        match self {
            State::Configuring => "configuring",
            State::Online => "online",
            State::Offline => "offline",
        }
    }
}

struct Members {
    slots: Vec<Slot>,
    state: State,
}

/// An array as configured, online or not.
struct Array {
    params: RaidParams,
    uuid: Uuid,
    members: Mutex<Members>,
}

impl Array {
    fn members(&self) -> MutexGuard<'_, Members> {
        // Every change under this lock is complete before anything can panic.
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `bdev_raid_get_bdevs` says of it, but for its name.
    fn describe(&self) -> Value {
        let members = self.members();
        let discovered = members.slots.iter().filter(|slot| slot.base.is_some()).count();
        let list: Vec<Value> = members
            .slots
            .iter()
            .map(|slot| {
                let info = slot.base.as_ref().map(|base| base.info().clone());
                json!({
                    "name": slot.name,
                    "uuid": info.as_ref().map_or(Uuid::nil(), |info| info.uuid),
                    "is_configured": info.is_some(),
                    "data_offset": 0,
                    "data_size": info.map_or(0, |info| self.usable_blocks(&info)),
                })
            })
            .collect();
        json!({
            "uuid": self.uuid,
            "strip_size_kb": self.params.strip_size_kb,
            "state": members.state.name(),
            "raid_level": self.params.raid_level.name(),
            "superblock": false,
            "num_base_bdevs": members.slots.len(),
            "num_base_bdevs_discovered": discovered,
            "num_base_bdevs_operational": members.slots.len(),
            "base_bdevs_list": list,
        })
    }

    fn strip_blocks(&self, block_size: u32) -> u64 {
        u64::from(self.params.strip_size_kb) * KIB / u64::from(block_size)
    }

    /// Whole strips only.
    fn usable_blocks(&self, info: &BdevInfo) -> u64 {
        let strip = self.strip_blocks(info.block_size).max(1);
        info.num_blocks() / strip * strip
    }

    /// Opens a base, for the first place that waits for it. True if there was one.
    fn take(&self, registry: &Arc<Registry>, bdev: &Arc<Registered>) -> Result<bool, Error> {
        let waits = |slot: &Slot| {
            slot.base.is_none() && slot.name.as_ref().is_some_and(|name| stack::is_called(bdev, name))
        };
        let Some(at) = self.members().slots.iter().position(waits) else { return Ok(false) };
        let (array, base_name) = (self.params.name.clone(), bdev.name().to_owned());
        let base = stack::take_base(registry, bdev.name(), NAME, move |registry, event| {
            if event == Event::Removed {
                // Without redundancy the array goes with its base; it comes back when the base does.
                let _ = lose_base(registry, &array, &base_name);
            }
        })?;
        let info = base.info();
        let strip = self.strip_blocks(info.block_size);
        if strip == 0 || !strip.is_power_of_two() || self.usable_blocks(info) == 0 {
            return Err(Error::Invalid(format!(
                "strips of {} KiB do not fit bdev \"{}\"",
                self.params.strip_size_kb, info.name
            )));
        }
        let mut members = self.members();
        let other = members.slots.iter().find_map(|slot| slot.base.as_ref().map(|b| b.info().block_size));
        if other.is_some_and(|size| size != info.block_size) {
            return Err(Error::Invalid(format!(
                "bdev \"{}\" has blocks of another size than its array",
                info.name
            )));
        }
        members.slots[at].base = Some(base);
        Ok(true)
    }

    /// Goes online if every base is there.
    fn start(self: &Arc<Self>, registry: &Arc<Registry>) -> Result<(), Error> {
        let bases: Vec<_> = {
            let mut members = self.members();
            if members.state == State::Online {
                return Ok(());
            }
            let bases: Option<Vec<_>> = members.slots.iter().map(|slot| slot.base.clone()).collect();
            let Some(bases) = bases else { return Ok(()) };
            // Under the lock that saw the bases: of two that bring the last ones, one starts the array.
            members.state = State::Online;
            bases
        };
        let raid = Raid::new(self.clone(), bases);
        stack::register(registry, raid).map(drop).inspect_err(|_| {
            let mut members = self.members();
            if members.state == State::Online {
                members.state = State::Configuring;
            }
        })?;
        if self.members().state != State::Online {
            // A base went, or the array was deleted, before there was a bdev to take along.
            let _ = registry.delete_of_type(NAME, &self.params.name, || ());
        }
        Ok(())
    }
}

/// An array that is online.
struct Raid {
    info: Arc<BdevInfo>,
    array: Arc<Array>,
    bases: Vec<Arc<Descriptor>>,
    layout: Layout,
}

impl Raid {
    fn new(array: Arc<Array>, bases: Vec<Arc<Descriptor>>) -> Raid {
        let first = bases[0].info();
        let strip = array.strip_blocks(first.block_size);
        let usable = || bases.iter().map(|base| array.usable_blocks(base.info()));
        let (layout, blocks, boundary) = match array.params.raid_level {
            Level::Concat => {
                let ends: Box<[u64]> = usable()
                    .scan(0, |end, blocks| {
                        *end += blocks;
                        Some(*end)
                    })
                    .collect();
                (Layout::Joined { ends: ends.clone() }, ends.last().copied().unwrap_or(0), Boundary::At(ends))
            }
            _ => {
                let (shift, count) = (strip.ilog2(), bases.len() as u64);
                let blocks = usable().min().unwrap_or(0) * count;
                // One base has no other to cut at.
                let boundary = if count > 1 { Boundary::Every { shift } } else { Boundary::None };
                (Layout::Striped { shift, bases: count }, blocks, boundary)
            }
        };
        let mut info = BdevInfo::new(NAME, PRODUCT_NAME, array.params.name.clone(), first.block_size, blocks);
        info.uuid = array.uuid;
        info.physical_block_size =
            bases.iter().map(|b| b.info().physical_block_size).max().unwrap_or(first.block_size);
        info.write_cache = bases.iter().any(|base| base.info().write_cache);
        info.read_only = bases.iter().any(|base| base.info().read_only);
        info.unmap_reads_zero = bases.iter().all(|base| base.info().unmap_reads_zero);
        info.optimal_io_boundary = u32::try_from(strip).unwrap_or(0);
        info.boundary = boundary;
        Raid { info: Arc::new(info), array, bases, layout }
    }
}

impl Bdev for Raid {
    fn info(&self) -> &Arc<BdevInfo> {
        &self.info
    }

    fn supports(&self, kind: OpKind) -> bool {
        all_support(&self.bases, kind)
    }

    fn open_channel(&self, depth: u16) -> Result<Box<dyn Channel>, OpenError> {
        let bases: Result<Box<[_]>, _> = self.bases.iter().map(|base| base.open_channel(depth)).collect();
        Ok(Box::new(RaidChannel::new(bases?, self.layout.clone(), depth)))
    }

    fn driver_specific(&self) -> Value {
        json!({ NAME: self.array.describe() })
    }
}

/// What the registry keeps of an array.
struct Configured(Arc<Array>);

impl Virtual for Configured {
    fn key(&self) -> (&'static str, &str) {
        (NAME, &self.0.params.name)
    }

    fn examine(&self, registry: &Arc<Registry>, bdev: &Arc<Registered>) -> Result<(), Error> {
        if self.0.take(registry, bdev)? {
            self.0.start(registry)?;
        }
        Ok(())
    }

    fn config(&self) -> Option<(&'static str, Value)> {
        let RaidParams { name, strip_size_kb, raid_level, .. } = &self.0.params;
        // Every place is written: with one left out, what is made again would be a smaller array of another layout.
        let name_of = |(at, slot): (usize, &Slot)| slot.name.clone().unwrap_or_else(|| removed_name(at));
        let bases: Vec<String> = self.0.members().slots.iter().enumerate().map(name_of).collect();
        let params = json!({
            "name": name,
            "uuid": self.0.uuid,
            "strip_size_kb": strip_size_kb,
            "raid_level": raid_level.name(),
            "superblock": false,
            "base_bdevs": bases,
        });
        Some(("bdev_raid_create", params))
    }
}

fn array(registry: &Registry, name: &str) -> Result<Arc<Array>, Error> {
    let name = registry.get(name).map_or_else(|_| name.to_owned(), |bdev| bdev.name().to_owned());
    let found = registry.find_virtual(NAME, &name).and_then(stack::as_type::<Configured>);
    found.map(|configured| configured.0.clone()).ok_or(Error::NoSuchDevice { name })
}

fn arrays(registry: &Registry) -> Vec<Arc<Array>> {
    let all = registry.virtuals().into_iter().filter(|v| v.key().0 == NAME);
    all.filter_map(stack::as_type::<Configured>).map(|configured| configured.0.clone()).collect()
}

/// A base goes: so does the bdev of the array. Its name stays, so that it can come back.
fn lose_base(registry: &Arc<Registry>, array_name: &str, base_name: &str) -> Result<(), Error> {
    let array = array(registry, array_name)?;
    let mut dropped = Vec::new();
    let was_online = {
        let mut members = array.members();
        let was_online = members.state == State::Online;
        // The bdev holds its bases itself while it is open.
        for slot in &mut members.slots {
            if slot.base.as_ref().is_some_and(|base| base.info().name == base_name) {
                dropped.extend(slot.base.take());
            }
        }
        members.state = State::Configuring;
        was_online
    };
    if was_online {
        registry.delete_of_type(NAME, array_name, || ())?;
    }
    drop(dropped);
    Ok(())
}

/// Creates an array, online now or when the last of its bases appears.
pub fn create(registry: &Arc<Registry>, params: RaidParams) -> Result<(), Error> {
    let invalid = |text: String| Err(Error::Invalid(text));
    if matches!(params.raid_level, Level::Raid1 | Level::Raid5f) {
        return Err(Error::Unsupported(format!("{} is not there yet", params.raid_level.name())));
    }
    if params.superblock {
        return Err(Error::Unsupported("superblocks are not there yet".to_owned()));
    }
    if params.strip_size_kb == 0 || !params.strip_size_kb.is_power_of_two() {
        return invalid(format!("Invalid strip size {}", params.strip_size_kb));
    }
    if params.base_bdevs.is_empty() || params.base_bdevs.len() > BASES_MAX {
        return invalid("an array needs 1 to 255 bases".to_owned());
    }
    let mut names: Vec<&String> = params.base_bdevs.iter().collect();
    names.sort_unstable();
    names.dedup();
    if names.len() != params.base_bdevs.len() {
        return invalid("an array cannot have a base twice".to_owned());
    }
    if registry.get(&params.name).is_ok() {
        return Err(Error::Exists { name: params.name });
    }
    let bases = params.base_bdevs.clone();
    let slot = |(at, name): (usize, &String)| {
        let name = (*name != removed_name(at)).then(|| name.clone());
        Slot { name, base: None }
    };
    let slots = bases.iter().enumerate().map(slot).collect();
    let uuid = params.uuid.filter(|u| !u.is_nil()).unwrap_or_else(Uuid::new_v4);
    let members = Mutex::new(Members { slots, state: State::Configuring });
    let array = Arc::new(Array { params, uuid, members });
    stack::configure(registry, Arc::new(Configured(array.clone())), &bases)
        // A refused array lets go of the bases it had.
        .inspect_err(|_| array.members().slots.iter_mut().for_each(|slot| slot.base = None))
}

/// Deletes an array; `on_gone` is called when it is gone.
pub fn delete(
    registry: &Arc<Registry>,
    name: &str,
    on_gone: impl FnOnce() + Send + 'static,
) -> Result<(), Error> {
    let array = array(registry, name)?;
    let was_online = array.members().state == State::Online;
    registry.remove_virtual(NAME, &array.params.name);
    array.members().state = State::Offline;
    let bases: Vec<_> = array.members().slots.iter_mut().filter_map(|slot| slot.base.take()).collect();
    drop(bases);
    if was_online {
        return registry.delete_of_type(NAME, &array.params.name, on_gone);
    }
    on_gone();
    Ok(())
}

/// The names and descriptions of arrays in a state: online, configuring, offline or all.
pub fn list(registry: &Registry, category: &str) -> Vec<(String, Value)> {
    let all = arrays(registry).into_iter().map(|array| (array.params.name.clone(), array.describe()));
    all.filter(|(_, described)| category == "all" || described["state"] == category).collect()
}

/// Gives a configuring array a base, in the first place that has none.
pub fn add_base(registry: &Arc<Registry>, raid: &str, base: &str) -> Result<(), Error> {
    let array = array(registry, raid)?;
    {
        let mut members = array.members();
        let free = members.slots.iter_mut().find(|slot| slot.name.is_none());
        let slot = free.ok_or_else(|| Error::Invalid(format!("array \"{raid}\" has no place for a base")))?;
        slot.name = Some(base.to_owned());
    }
    let Ok(bdev) = registry.get(base) else { return Ok(()) };
    let taken = array.take(registry, &bdev).and_then(|_| array.start(registry));
    taken.inspect_err(|_| {
        let mut members = array.members();
        let wrong =
            members.slots.iter_mut().find(|slot| slot.base.is_none() && slot.name.as_deref() == Some(base));
        if let Some(slot) = wrong {
            slot.name = None;
        }
    })
}

/// Takes a base out of its array, which goes offline with it: these levels have no redundancy.
pub fn remove_base(registry: &Arc<Registry>, base: &str) -> Result<(), Error> {
    let missing = || Error::NoSuchDevice { name: base.to_owned() };
    let bdev = registry.get(base)?;
    let holds = |array: &Arc<Array>| {
        array
            .members()
            .slots
            .iter()
            .any(|slot| slot.base.as_ref().is_some_and(|b| b.info().name == bdev.name()))
    };
    let array = arrays(registry).into_iter().find(holds).ok_or_else(missing)?;
    lose_base(registry, &array.params.name, bdev.name())?;
    for slot in &mut array.members().slots {
        if slot.name.as_ref().is_some_and(|name| stack::is_called(&bdev, name)) {
            slot.name = None;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
