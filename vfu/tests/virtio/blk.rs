//! virtio-blk: what is offered for which bdev, what each request becomes, and what happens behind a disk.

use std::sync::Arc;

use bdev::{Lifetime, Op};
use vfu::{
    mock::{
        blk::{BlkDriver, BlkError, BlkOptions, Io},
        packed::PackedDriver,
        split::SplitDriver,
    },
    virtio::{
        spec::blk::{Range, WRITEBACK_AT, feature, kind, status},
        transport::TransportOptions,
    },
};

use crate::{
    recorder::Recorder,
    rig::{PATIENCE, Rig, eventually, pattern},
};

type Guest = BlkDriver<SplitDriver>;

fn write_config(guest: &mut Guest, at: u64, value: u8) {
    let device = guest.transport.function.device;
    guest.transport.client.region_write(device.bar, device.offset + at, &[value]).unwrap();
}

#[test]
fn write_through_bdev_offers_no_cache() {
    let mut rig = Rig::with_malloc(1);
    rig.serve_bdev(Arc::new(Recorder::new(|_| ())));
    let mut guest: Guest = rig.driver(BlkOptions::default());
    let offered = guest.transport.device_features().unwrap();
    assert_eq!(offered & (feature::FLUSH | feature::CONFIG_WCE), 0);
    assert_eq!(guest.read_config().unwrap().writeback, 0);
}

#[test]
fn write_to_a_cached_bdev_is_durable_unless_the_driver_flushes() {
    let mut rig = Rig::with_malloc(1);
    let recorder = Recorder::new(|info| info.write_cache = true);
    let seen = recorder.seen();
    rig.serve_bdev(Arc::new(recorder));
    let data = pattern(512, 1);

    let flushes = BlkOptions { features: feature::CONFIG_WCE, ..BlkOptions::default() };
    let mut guest: Guest = rig.driver(flushes);
    assert_eq!(guest.read_config().unwrap().writeback, 1);
    guest.write(0, 0, &data).unwrap();
    guest.flush(0).unwrap();
    write_config(&mut guest, WRITEBACK_AT, 0);
    assert_eq!(guest.read_config().unwrap().writeback, 0);
    guest.write(0, 1, &data).unwrap();
    guest.write_zeroes(0, Range { sector: 2, num_sectors: 1, flags: 1 }).unwrap();
    guest.start().unwrap();
    assert_eq!(guest.read_config().unwrap().writeback, 1, "a reset switches the cache on again");
    drop(guest);
    let does_not = BlkOptions { without: feature::FLUSH | feature::CONFIG_WCE, ..BlkOptions::default() };
    rig.driver::<SplitDriver>(does_not).write(0, 3, &data).unwrap();

    let expected = [
        (Op::Write { fua: false }, 0, 1),
        (Op::Flush, 0, 0),
        (Op::Write { fua: true }, 1, 1),
        (Op::WriteZeroes { unmap: true, fua: true }, 2, 1),
        (Op::Write { fua: true }, 3, 1),
    ];
    assert_eq!(*seen.lock().unwrap(), expected);
}

#[test]
fn each_range_request_becomes_its_operation() {
    let mut rig = Rig::with_malloc(1);
    let recorder = Recorder::new(|info| info.zeroes_overwrite = true);
    let seen = recorder.seen();
    rig.serve_bdev(Arc::new(recorder));
    let options = BlkOptions { features: feature::SECURE_ERASE, ..BlkOptions::default() };
    let mut guest: Guest = rig.driver(options);
    let range = |sector, flags| [Range { sector, num_sectors: 8, flags }];

    guest.ranges(0, kind::DISCARD, &range(8, 0)).unwrap();
    guest.ranges(0, kind::WRITE_ZEROES, &range(16, 0)).unwrap();
    guest.ranges(0, kind::WRITE_ZEROES, &range(24, 1)).unwrap();
    guest.ranges(0, kind::SECURE_ERASE, &range(32, 0)).unwrap();
    let refused = |result: Result<(), BlkError>| result.unwrap_err().status();
    assert_eq!(refused(guest.ranges(0, kind::DISCARD, &range(8, 1))), Some(status::UNSUPP));
    assert_eq!(refused(guest.ranges(0, kind::WRITE_ZEROES, &range(8, 2))), Some(status::UNSUPP));
    assert_eq!(refused(guest.ranges(0, kind::SECURE_ERASE, &range(8, 1))), Some(status::UNSUPP));
    assert_eq!(refused(guest.ranges(0, kind::DISCARD, &range(2044, 0))), Some(status::IOERR));
    assert_eq!(
        refused(guest.ranges(0, kind::DISCARD, &[range(0, 0), range(8, 0)].concat())),
        Some(status::IOERR)
    );

    let expected = [
        (Op::Unmap, 8, 8),
        (Op::WriteZeroes { unmap: false, fua: false }, 16, 8),
        (Op::WriteZeroes { unmap: true, fua: false }, 24, 8),
        (Op::WriteZeroes { unmap: false, fua: true }, 32, 8),
    ];
    assert_eq!(*seen.lock().unwrap(), expected);
}

#[test]
fn erased_sectors_of_a_malloc_disk_are_zero_and_secure_erase_is_offered_only_where_it_is_one() {
    let mut rig = Rig::with_malloc(1);
    rig.serve_rings(1, 128, TransportOptions::default());
    let options = BlkOptions { features: feature::SECURE_ERASE, ..BlkOptions::default() };
    let mut guest: Guest = rig.driver(options);
    guest.write(0, 0, &pattern(4096, 1)).unwrap();
    guest.ranges(0, kind::SECURE_ERASE, &[Range { sector: 0, num_sectors: 8, flags: 0 }]).unwrap();
    assert_eq!(guest.read(0, 0, 4096).unwrap(), [0; 4096]);

    let mut other = Rig::with_malloc(1);
    other.serve_bdev(Arc::new(Recorder::new(|_| ())));
    let mut guest: Guest = other.driver(options);
    assert_eq!(guest.transport.device_features().unwrap() & feature::SECURE_ERASE, 0);
    let erase = guest.ranges(0, kind::SECURE_ERASE, &[Range { sector: 0, num_sectors: 8, flags: 0 }]);
    assert_eq!(erase.unwrap_err().status(), Some(status::UNSUPP));
}

#[test]
fn lifetime_is_that_of_the_bdev() {
    let mut rig = Rig::with_malloc(1);
    let mut recorder = Recorder::new(|_| ());
    recorder.lifetime = Lifetime { pre_eol: 2, type_a: 5, type_b: 11 };
    rig.serve_bdev(Arc::new(recorder));
    let mut guest: Guest = rig.driver(BlkOptions { features: feature::LIFETIME, ..BlkOptions::default() });

    let done = guest.run(0, Io { kind: kind::GET_LIFETIME, sector: 0, len: 6 }, &[]).unwrap();

    let mut answer = [0; 6];
    guest.queues[0].read_data(done.slot, &mut answer);
    assert_eq!((answer, done.len), ([2, 0, 5, 0, 11, 0], 7));
}

#[test]
fn request_of_an_unknown_kind_is_unsupported_and_the_next_one_works() {
    let mut rig = Rig::with_malloc(1);
    rig.serve_rings(1, 128, TransportOptions::default());
    let mut guest: Guest = rig.driver(BlkOptions::default());
    for kind in [2, 3, 5, 9, 12, 15, 99, u32::MAX] {
        let refused = guest.run(0, Io { kind, sector: 0, len: 512 }, &[0; 512]);
        assert_eq!(refused.unwrap_err().status(), Some(status::UNSUPP), "kind {kind}");
    }
    assert_eq!(guest.read(0, 0, 512).unwrap().len(), 512);
}

#[test]
fn read_only_bdev_is_a_read_only_disk() {
    let mut rig = Rig::with_malloc(1);
    rig.serve_bdev(Arc::new(Recorder::new(|info| info.read_only = true)));
    for refuses in [0, feature::RO] {
        let mut guest: Guest = rig.driver(BlkOptions { without: refuses, ..BlkOptions::default() });
        let offered = guest.transport.device_features().unwrap();
        assert_eq!(offered & (feature::RO | feature::DISCARD | feature::WRITE_ZEROES), feature::RO);
        let refused = guest.write(0, 0, &pattern(512, 1));
        assert_eq!(refused.unwrap_err().status(), Some(status::IOERR));
        guest.read(0, 0, 512).unwrap();
    }
}

#[test]
fn resize_reaches_the_driver_with_an_interrupt_and_a_new_generation() {
    let mut rig = Rig::with_malloc(1);
    rig.serve_bdev(Arc::new(Recorder::new(|_| ())));
    let mut guest: Guest = rig.driver(BlkOptions { interrupts: true, ..BlkOptions::default() });
    let generation = guest.transport.config_generation().unwrap();

    rig.server.registry().resize("Recorder0", 4096).unwrap();

    assert!(guest.wait_interrupt(0, PATIENCE));
    assert_ne!(guest.transport.config_generation().unwrap(), generation);
    assert_eq!(guest.read_config().unwrap().capacity, 4096);
    guest.read(0, 4095, 512).unwrap();
}

#[test]
fn bdev_removed_under_load_fails_its_requests_and_the_driver_lives_on() {
    let mut rig = Rig::with_malloc(2);
    rig.serve_rings(2, 128, TransportOptions { packed_ring: true, ..TransportOptions::default() });
    let mut guest: BlkDriver<PackedDriver> = rig.driver(BlkOptions { queues: 2, ..BlkOptions::default() });
    let (gone, wait) = std::sync::mpsc::channel();
    rig.server.registry().delete("Malloc0", move || gone.send(()).unwrap()).unwrap();
    eventually("an error", || {
        (0..2)
            .any(|queue| guest.read(queue, 0, 4096).is_err_and(|error| error.status() == Some(status::IOERR)))
    });
    eventually("errors on both queues", || (0..2).all(|queue| guest.write(queue, 0, &[0; 512]).is_err()));
    wait.recv_timeout(PATIENCE).unwrap();
    assert_eq!(guest.transport.status().unwrap() & vfu::virtio::spec::status::NEEDS_RESET, 0);
}
