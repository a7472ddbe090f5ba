//! What a bdev is, in the words of virtio-blk: features (virtio 1.2, 5.2.3) and configuration (5.2.4).

use bdev::{BdevInfo, Descriptor, MAX_SEGMENTS, OpKind};

use crate::virtio::spec::blk::{Config, SECTOR, feature};

/// Most sectors of one discard or write-zeroes range: what fits the field.
const MAX_RANGE_SECTORS: u32 = u32::MAX;
/// Header and status take a descriptor each.
const OWN_DESCRIPTORS: u16 = 2;

/// The features that go with a bdev.
pub(super) fn features(descriptor: &Descriptor) -> u64 {
    let (info, bdev) = (descriptor.info(), descriptor.bdev());
    let mut features = feature::SEG_MAX | feature::BLK_SIZE | feature::TOPOLOGY | feature::MQ;
    let mut offer = |when: bool, bit: u64| features |= if when { bit } else { 0 };
    // Without FLUSH a driver knows that writes are durable when they complete (virtio 1.2, 5.2.6.2).
    offer(info.write_cache && bdev.supports(OpKind::Flush), feature::FLUSH);
    offer(!descriptor.is_writable(), feature::RO);
    offer(descriptor.is_writable() && bdev.supports(OpKind::Unmap), feature::DISCARD);
    offer(descriptor.is_writable() && bdev.supports(OpKind::WriteZeroes), feature::WRITE_ZEROES);
    features
}

/// The configuration as it is now.
pub(super) fn config(info: &BdevInfo, num_queues: u16, queue_size: u16) -> Config {
    let sectors_per_block = u32::try_from(u64::from(info.block_size) / SECTOR).unwrap_or(1);
    let blocks_to_sectors = |blocks: u32| blocks.max(1).saturating_mul(sectors_per_block);
    let small = |blocks: u32| u16::try_from(blocks).unwrap_or(u16::MAX);
    Config {
        capacity: info.size_bytes() / SECTOR,
        seg_max: info
            .max_segments
            .min(MAX_SEGMENTS)
            .min(u32::from(queue_size.saturating_sub(OWN_DESCRIPTORS).max(1))),
        blk_size: info.block_size,
        physical_block_exp: u8::try_from((info.physical_block_size / info.block_size).max(1).ilog2())
            .unwrap_or(0),
        min_io_size: small(info.preferred_write_granularity),
        opt_io_size: info.optimal_write_size,
        num_queues,
        max_discard_sectors: MAX_RANGE_SECTORS,
        max_discard_seg: 1,
        discard_sector_alignment: blocks_to_sectors(info.preferred_unmap_granularity),
        max_write_zeroes_sectors: MAX_RANGE_SECTORS,
        max_write_zeroes_seg: 1,
        write_zeroes_may_unmap: 1,
        ..Config::default()
    }
}
