//! A disk as an operating system uses it: every request, on every kind of ring, with data that comes back.

use std::sync::Arc;

use vfu::{
    mock::{
        blk::{BlkOptions, Chains, Io},
        memory::Memory,
        server::DiskOptions,
        transport::DriverError,
    },
    virtio::{
        control::DoorbellMode,
        spec::{
            blk::{Range, feature as blk_feature, kind, status},
            feature,
        },
    },
};

use crate::rig::{Guest, PATIENCE, RAM, Rig, pattern};

/// Writes blocks of several lengths all over the disk and reads them back in another order.
fn data_comes_back(options: BlkOptions) {
    let rig = Rig::with_disk();
    let mut guest = rig.guest("disk", options);
    let blocks: Vec<(u64, Vec<u8>)> = [512, 4096, 65536, 1024, 512 * 7]
        .into_iter()
        .cycle()
        .take(60)
        .enumerate()
        .map(|(nth, len)| (nth as u64 * 256, pattern(len, nth as u64)))
        .collect();
    for (sector, data) in &blocks {
        guest.write(0, *sector, data).unwrap();
    }
    for (sector, data) in blocks.iter().rev() {
        assert!(guest.read(0, *sector, data.len() as u32).unwrap() == *data, "sector {sector}");
    }
}

#[test]
fn data_comes_back_with_direct_chains() {
    data_comes_back(BlkOptions { chains: Chains::Direct, ..BlkOptions::default() });
}

#[test]
fn data_comes_back_with_indirect_chains() {
    data_comes_back(BlkOptions { chains: Chains::Indirect, ..BlkOptions::default() });
}

#[test]
fn data_comes_back_in_many_buffers() {
    data_comes_back(BlkOptions { max_buffer: 2048, ..BlkOptions::default() });
    data_comes_back(BlkOptions { max_buffer: 2048, chains: Chains::Indirect, ..BlkOptions::default() });
}

#[test]
fn data_comes_back_without_event_idx_and_with_interrupts() {
    data_comes_back(BlkOptions { features: 0, ..BlkOptions::default() });
    data_comes_back(BlkOptions { interrupts: true, ..BlkOptions::default() });
    data_comes_back(BlkOptions {
        features: feature::INDIRECT_DESC,
        interrupts: true,
        ..BlkOptions::default()
    });
}

#[test]
fn smallest_ring_works() {
    // Two entries: nothing but indirect chains fits.
    data_comes_back(BlkOptions { ring_size: 2, chains: Chains::Indirect, ..BlkOptions::default() });
}

#[test]
fn ring_wraps_its_indices_many_times() {
    let mut rig = Rig::new();
    rig.null("Null0");
    rig.serve("disk", &DiskOptions::new("Null0"));
    let mut guest = rig.guest("disk", BlkOptions { ring_size: 8, ..BlkOptions::default() });
    // More than 65,536 requests: the free-running indices wrap.
    for round in 0..70_000_u64 {
        guest.run(0, Io { kind: kind::IN, sector: round, len: 512 }, &[]).unwrap();
    }
}

#[test]
fn queues_on_two_reactors_see_one_disk() {
    let mut rig = Rig::with_reactors(2);
    rig.malloc("Malloc0", 512, 16);
    rig.serve("disk", &DiskOptions::new("Malloc0"));
    let mut guest = rig.guest("disk", BlkOptions { queues: 4, ..BlkOptions::default() });
    for queue in 0..4 {
        guest.write(queue, queue as u64 * 8, &pattern(4096, queue as u64)).unwrap();
    }
    for queue in 0..4 {
        let other = 3 - queue;
        assert!(guest.read(queue, other as u64 * 8, 4096).unwrap() == pattern(4096, other as u64));
    }
}

#[test]
fn full_queues_give_everything_back_once() {
    let mut rig = Rig::with_reactors(2);
    rig.malloc("Malloc0", 512, 16);
    rig.serve("disk", &DiskOptions::new("Malloc0"));
    let options = BlkOptions { queues: 2, chains: Chains::Indirect, max_io: 4096, ..BlkOptions::default() };
    let mut guest = rig.guest("disk", options);
    for round in 0..200_u64 {
        for queue in 0..2 {
            for nth in 0..128_u64 {
                let io = Io { kind: kind::IN, sector: (round * 128 + nth) % 4096 * 8, len: 4096 };
                guest.queues[queue].submit(io).unwrap();
            }
            assert_eq!(guest.queues[queue].next_slot(), None, "the ring is full");
            guest.publish(queue).unwrap();
        }
        for queue in 0..2 {
            // A chain that comes back twice, or that was never sent, is a RingFault.
            let done = (0..128).map(|_| guest.wait(queue).unwrap()).filter(|done| done.status == status::OK);
            assert_eq!(done.count(), 128);
        }
    }
}

#[test]
fn two_disks_on_one_reactor_keep_their_data_apart() {
    let mut rig = Rig::with_disk();
    rig.malloc("Malloc1", 512, 16);
    rig.serve("other", &DiskOptions::new("Malloc1"));
    let mut first = rig.guest("disk", BlkOptions::default());
    let mut second = rig.guest("other", BlkOptions::default());
    first.write(0, 0, &pattern(4096, 1)).unwrap();
    second.write(0, 0, &pattern(4096, 2)).unwrap();
    assert!(first.read(0, 0, 4096).unwrap() == pattern(4096, 1));
    assert!(second.read(0, 0, 4096).unwrap() == pattern(4096, 2));
}

#[test]
fn id_is_the_name_of_the_bdev() {
    let rig = Rig::with_disk();
    assert_eq!(rig.guest("disk", BlkOptions::default()).get_id(0).unwrap(), b"Malloc0");
}

#[test]
fn id_of_twenty_bytes_has_no_end() {
    let mut rig = Rig::new();
    rig.malloc("a-name-of-more-than-twenty-bytes", 512, 1);
    rig.serve("disk", &DiskOptions::new("a-name-of-more-than-twenty-bytes"));
    assert_eq!(rig.guest("disk", BlkOptions::default()).get_id(0).unwrap(), b"a-name-of-more-than-");
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zero() {
    let rig = Rig::with_disk();
    let mut guest = rig.guest("disk", BlkOptions::default());
    guest.write(0, 0, &pattern(8192, 1)).unwrap();
    guest.write_zeroes(0, Range { sector: 2, num_sectors: 4, flags: 0 }).unwrap();
    guest.discard(0, Range { sector: 8, num_sectors: 2, flags: 0 }).unwrap();
    guest.write_zeroes(0, Range { sector: 12, num_sectors: 1, flags: 1 }).unwrap();

    let mut expected = pattern(8192, 1);
    expected[1024..3072].fill(0);
    expected[4096..5120].fill(0);
    expected[6144..6656].fill(0);
    assert!(guest.read(0, 0, 8192).unwrap() == expected);
}

#[test]
fn ranges_that_are_not_allowed_are_refused_and_change_nothing() {
    let rig = Rig::with_disk();
    let mut guest = rig.guest("disk", BlkOptions::default());
    guest.write(0, 0, &pattern(4096, 1)).unwrap();
    let whole = Range { sector: 0, num_sectors: 8, flags: 0 };
    let refused = [
        // Flags that do not exist, and unmap where it is the request (virtio 1.2, 5.2.6.2): UNSUPP.
        (kind::WRITE_ZEROES, vec![Range { flags: 2, ..whole }], status::UNSUPP),
        (kind::DISCARD, vec![Range { flags: 1, ..whole }], status::UNSUPP),
        // More than `max_discard_seg` ranges, none, beyond the end.
        (kind::DISCARD, vec![whole, whole], status::IOERR),
        (kind::WRITE_ZEROES, vec![], status::IOERR),
        (kind::WRITE_ZEROES, vec![Range { sector: 32767, num_sectors: 2, flags: 0 }], status::IOERR),
        (
            kind::WRITE_ZEROES,
            vec![Range { sector: u64::MAX, num_sectors: u32::MAX, flags: 0 }],
            status::IOERR,
        ),
    ];
    for (kind, ranges, expected) in refused {
        assert_eq!(guest.ranges(0, kind, &ranges).unwrap_err().status(), Some(expected), "{ranges:?}");
    }
    assert!(guest.read(0, 0, 4096).unwrap() == pattern(4096, 1));
}

#[test]
fn requests_beyond_the_end_fail_and_the_last_block_does_not() {
    let rig = Rig::with_disk();
    let mut guest = rig.guest("disk", BlkOptions::default());
    let last = guest.config().capacity - 1;
    guest.write(0, last, &pattern(512, 9)).unwrap();
    assert!(guest.read(0, last, 512).unwrap() == pattern(512, 9));
    for sector in [last + 1, u64::MAX, u64::MAX - 7, 1 << 55] {
        assert_eq!(guest.read(0, sector, 512).unwrap_err().status(), Some(status::IOERR), "{sector}");
    }
    assert_eq!(guest.read(0, last, 1024).unwrap_err().status(), Some(status::IOERR));
}

#[test]
fn unknown_requests_are_unsupported() {
    let rig = Rig::with_disk();
    let mut guest = rig.guest("disk", BlkOptions::default());
    for kind in [2, 3, 5, 7, 9, 12, 15, 0x100, u32::MAX] {
        let refused = guest.run(0, Io { kind, sector: 0, len: 512 }, &[]).unwrap_err();
        assert_eq!(refused.status(), Some(status::UNSUPP), "{kind}");
    }
}

#[test]
fn disk_with_blocks_of_4096_serves_whole_blocks_only() {
    let mut rig = Rig::new();
    rig.malloc("Malloc0", 4096, 16);
    rig.serve("disk", &DiskOptions::new("Malloc0"));
    let mut guest = rig.guest("disk", BlkOptions::default());
    assert_eq!((guest.config().blk_size, guest.config().capacity), (4096, 32768));
    guest.write(0, 8, &pattern(8192, 3)).unwrap();
    assert!(guest.read(0, 8, 8192).unwrap() == pattern(8192, 3));
    assert_eq!(guest.read(0, 1, 4096).unwrap_err().status(), Some(status::IOERR));
    assert_eq!(guest.read(0, 8, 512).unwrap_err().status(), Some(status::IOERR));
}

#[test]
fn flush_is_offered_where_the_bdev_has_a_cache_and_unsupported_where_it_knows_none() {
    let mut rig = Rig::with_disk();
    rig.null("Null0");
    rig.serve("null", &DiskOptions::new("Null0"));
    let mut malloc = rig.guest("disk", BlkOptions::default());
    let mut null = rig.guest("null", BlkOptions::default());
    assert_ne!(malloc.features() & blk_feature::FLUSH, 0);
    malloc.flush(0).unwrap();
    assert_eq!(null.features() & blk_feature::FLUSH, 0);
    assert_eq!(null.flush(0).unwrap_err().status(), Some(status::UNSUPP));
}

#[test]
fn read_only_bdev_is_a_read_only_disk() {
    use bdev::types::{Malloc, MallocParams};
    let mut rig = Rig::new();
    let malloc = Malloc::new("Malloc0".to_owned(), &MallocParams::new(512, 2048)).unwrap();
    rig.register(Arc::new(crate::held::ReadOnly::new(malloc)));
    rig.serve("disk", &DiskOptions::new("ReadOnly0"));
    let mut guest = rig.guest("disk", BlkOptions::default());
    assert_ne!(guest.features() & blk_feature::RO, 0);
    assert_eq!(guest.features() & (blk_feature::DISCARD | blk_feature::WRITE_ZEROES), 0);
    assert!(guest.read(0, 0, 512).unwrap() == [0; 512]);
    assert_eq!(guest.write(0, 0, &[1; 512]).unwrap_err().status(), Some(status::IOERR));
    let range = Range { sector: 0, num_sectors: 1, flags: 0 };
    assert_eq!(guest.write_zeroes(0, range).unwrap_err().status(), Some(status::IOERR));
    assert!(guest.read(0, 0, 512).unwrap() == [0; 512]);
}

#[test]
fn more_queues_than_there_are_is_the_drivers_error() {
    let rig = Rig::with_disk();
    let options = BlkOptions { queues: 5, ..BlkOptions::default() };
    let refused = Guest::new(rig.client("disk"), Memory::new(RAM).unwrap(), options).unwrap_err();
    assert!(matches!(refused, DriverError::Queue(_)), "{refused}");
}

#[test]
fn config_space_says_what_the_bdev_is() {
    let rig = Rig::with_disk();
    let mut guest = rig.guest("disk", BlkOptions::default());
    let config = guest.read_config().unwrap();
    assert_eq!(config.capacity, 32768);
    assert_eq!((config.blk_size, config.physical_block_exp), (512, 0));
    assert_eq!(config.num_queues, 4);
    assert_eq!(config.seg_max, 126, "the ring's 128 entries less header and status");
    assert_eq!((config.max_discard_seg, config.max_write_zeroes_seg), (1, 1));
    assert!(config.max_discard_sectors > 0 && config.max_write_zeroes_sectors > 0);
    let offered = guest.transport.device_features().unwrap();
    let wanted = blk_feature::SEG_MAX | blk_feature::BLK_SIZE | blk_feature::MQ | blk_feature::TOPOLOGY;
    assert_eq!(offered & wanted, wanted);
    assert_ne!(offered & feature::ACCESS_PLATFORM, 0);
}

#[test]
fn every_resize_is_told_by_a_config_interrupt() {
    let mut rig = Rig::new();
    rig.null("Null0");
    // Trapped: the endpoint sleeps for good unless it is woken.
    let options = DiskOptions { doorbell: DoorbellMode::Trapped, ..DiskOptions::new("Null0") };
    rig.serve("disk", &options);
    let mut guest = rig.guest("disk", BlkOptions { interrupts: true, ..BlkOptions::default() });
    let before = guest.config().capacity;
    for more in 1..=500 {
        let generation = guest.transport.config_generation().unwrap();

        // The answer to that is on its way while the endpoint falls asleep.
        rig.server.registry().resize("Null0", before + more).unwrap();

        assert!(guest.wait_interrupt(0, PATIENCE), "resize {more}");
        assert_ne!(guest.transport.config_generation().unwrap(), generation);
    }
    assert_eq!(guest.read_config().unwrap().capacity, before + 500);
    guest.read(0, before + 499, 512).unwrap();
}
