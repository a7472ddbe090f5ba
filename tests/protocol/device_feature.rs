//! DEVICE_FEATURE and MIG_DATA_*: a device without migration.

use anyhow::Result;

use super::{
    Case, Kit, any, ours,
    wire::{bytes, cmd, errno},
};

pub(super) const CASES: &[Case] = &[
    any("feature_is_refused_or_answered", "an answer, and the stream stays in step", in_step),
    any("short", "8 bytes", short),
    any("get_and_set", "exclusive unless probed", get_and_set),
    any("migration_data_outside_migration", "only in states of a migration", data),
    ours("no_feature_exists", "ENOTTY, as the kernel's vfio says it", none),
];

const GET: u32 = 1 << 16;
const SET: u32 = 1 << 17;
const PROBE: u32 = 1 << 18;

fn in_step(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    for operation in [GET, SET, PROBE | GET] {
        wire.ask(cmd::DEVICE_FEATURE, &bytes!(16_u32, operation | 1, 0_u64))?;
    }
    wire.is_in_step()
}

fn short(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    wire.ask(cmd::DEVICE_FEATURE, &bytes!(8_u32))?.is_refused()?;
    wire.ask(cmd::DEVICE_FEATURE, &bytes!(7_u32, GET | 1))?.is_refused()?;
    wire.ask(cmd::MIG_DATA_READ, &bytes!(8_u32))?.is_refused()?;
    wire.is_in_step()
}

fn get_and_set(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    wire.ask(cmd::DEVICE_FEATURE, &bytes!(16_u32, GET | SET | 1, 0_u64))?.is_refused()?;
    wire.is_in_step()
}

fn data(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    wire.ask(cmd::MIG_DATA_READ, &bytes!(8_u32, 4096_u32))?.is_refused()?;
    wire.ask(cmd::MIG_DATA_WRITE, &bytes!(12_u32, 4_u32, 0_u32))?.is_refused()?;
    wire.is_in_step()
}

fn none(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    for index in [1, 2, 6, 7, 8] {
        for operation in [GET, SET, PROBE | GET, PROBE | SET] {
            wire.ask(cmd::DEVICE_FEATURE, &bytes!(16_u32, operation | index, 0_u64))?
                .refused(errno::ENOTTY)?;
        }
    }
    wire.ask(cmd::DEVICE_FEATURE, &bytes!(16_u32, GET | SET | 1, 0_u64))?.refused(errno::EINVAL)?;
    wire.ask(cmd::DEVICE_FEATURE, &bytes!(16_u32, 1_u32, 0_u64))?.refused(errno::EINVAL)?;
    wire.ask(cmd::MIG_DATA_READ, &bytes!(8_u32, 4096_u32))?.refused(errno::EINVAL)
}
