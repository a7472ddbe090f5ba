//! What a bdev is, in the words of virtio-blk: features (virtio 1.2, 5.2.3) and configuration (5.2.4).

use bdev::{BdevInfo, Descriptor, MAX_SEGMENTS, OpKind};

use crate::virtio::spec::blk::{Config, SECTOR, feature};

/// Most sectors of one discard or write-zeroes range: what fits the field.
const MAX_RANGE_SECTORS: u32 = u32::MAX;
/// Header and status take a descriptor each.
const OWN_DESCRIPTORS: u16 = 2;

/// Longest segment where the bdev sets no limit: the kernel takes no longer vector (MAX_RW_COUNT).
const SIZE_MAX: u32 = 0x7fff_f000;
/// Longest segment where the bdev limits a request: short, so that the limit divides into segments.
const SIZE_MAX_LIMITED: u32 = 4096;
/// The geometry that drives have always pretended to (as QEMU does).
const HEADS: u8 = 16;
const SECTORS: u8 = 63;

/// The features that go with a bdev.
pub(super) fn features(descriptor: &Descriptor) -> u64 {
    let (info, bdev) = (descriptor.info(), descriptor.bdev());
    let mut features = feature::SIZE_MAX
        | feature::SEG_MAX
        | feature::GEOMETRY
        | feature::BLK_SIZE
        | feature::TOPOLOGY
        | feature::MQ
        | feature::LIFETIME;
    let mut offer = |when: bool, bit: u64| features |= if when { bit } else { 0 };
    // Without FLUSH a driver knows that writes are durable when they complete (virtio 1.2, 5.2.6.2).
    let cached = info.write_cache && bdev.supports(OpKind::Flush);
    let writable = descriptor.is_writable();
    offer(cached, feature::FLUSH | feature::CONFIG_WCE);
    offer(!writable, feature::RO);
    offer(writable && bdev.supports(OpKind::Unmap), feature::DISCARD);
    offer(writable && bdev.supports(OpKind::WriteZeroes), feature::WRITE_ZEROES);
    offer(writable && can_erase(info, bdev.supports(OpKind::WriteZeroes)), feature::SECURE_ERASE);
    features
}

/// Whether zeroes make the old content unreadable for good.
pub(super) fn can_erase(info: &BdevInfo, writes_zeroes: bool) -> bool {
    info.zeroes_overwrite && writes_zeroes
}

/// The longest segment, and how many of them at most, so that no request is longer than the bdev takes.
fn segments(info: &BdevInfo, queue_size: u16) -> (u32, u32) {
    let ring = u32::from(queue_size.saturating_sub(OWN_DESCRIPTORS).max(1));
    let seg_max = info.max_segments.min(MAX_SEGMENTS).min(ring);
    match info.max_io_blocks.saturating_mul(info.block_size) {
        0 => (SIZE_MAX, seg_max),
        limit => {
            let size = SIZE_MAX_LIMITED.min(limit);
            (size, seg_max.min(limit / size))
        }
    }
}

/// The configuration as it is now.
pub(super) fn config(info: &BdevInfo, num_queues: u16, queue_size: u16, writeback: bool) -> Config {
    let sectors_per_block = u32::try_from(u64::from(info.block_size) / SECTOR).unwrap_or(1);
    let blocks_to_sectors = |blocks: u32| blocks.max(1).saturating_mul(sectors_per_block);
    let small = |blocks: u32| u16::try_from(blocks).unwrap_or(u16::MAX);
    let (size_max, seg_max) = segments(info, queue_size);
    let capacity = info.size_bytes() / SECTOR;
    let cylinders = capacity / (u64::from(HEADS) * u64::from(SECTORS));
    Config {
        capacity,
        size_max,
        seg_max,
        cylinders: u16::try_from(cylinders).unwrap_or(u16::MAX),
        heads: HEADS,
        sectors: SECTORS,
        blk_size: info.block_size,
        physical_block_exp: u8::try_from((info.physical_block_size / info.block_size).max(1).ilog2())
            .unwrap_or(0),
        min_io_size: small(info.preferred_write_granularity),
        opt_io_size: info.optimal_write_size,
        writeback: u8::from(writeback),
        num_queues,
        max_discard_sectors: MAX_RANGE_SECTORS,
        max_discard_seg: 1,
        discard_sector_alignment: blocks_to_sectors(info.preferred_unmap_granularity),
        max_write_zeroes_sectors: MAX_RANGE_SECTORS,
        max_write_zeroes_seg: 1,
        write_zeroes_may_unmap: 1,
        max_secure_erase_sectors: MAX_RANGE_SECTORS,
        max_secure_erase_seg: 1,
        secure_erase_sector_alignment: blocks_to_sectors(0),
        ..Config::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(max_io_blocks: u32, num_blocks: u64) -> BdevInfo {
        let mut info = BdevInfo::new("test", "Test disk", "Test0".to_owned(), 512, num_blocks);
        info.max_io_blocks = max_io_blocks;
        info
    }

    #[test]
    fn largest_request_of_the_driver_is_one_that_the_bdev_takes() {
        for max_io_blocks in [1, 7, 8, 256, 1 << 20] {
            let config = config(&info(max_io_blocks, 1 << 20), 1, 128, false);
            let largest = u64::from(config.size_max) * u64::from(config.seg_max);
            assert!(largest <= u64::from(max_io_blocks) * 512, "{max_io_blocks}: {largest}");
            assert!(config.seg_max >= 1 && config.size_max >= 512);
        }
    }

    #[test]
    fn geometry_of_a_large_disk_stays_at_its_most() {
        assert_eq!(config(&info(0, 16 * 63 * 100), 1, 128, false).cylinders, 100);
        assert_eq!(config(&info(0, 1 << 40), 1, 128, false).cylinders, u16::MAX);
    }
}
