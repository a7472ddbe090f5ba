//! virtio-scsi: what the units say of themselves, what their commands do, and targets that come and go.

use std::{os::fd::AsFd, sync::Arc};

use bdev::{Access, Op};
use reactor::{CoreMask, Group, Handle};
use vfu::{
    dma::Protection,
    endpoint::{self, Listener, Spec},
    mock::{
        client::Client,
        memory::Memory,
        packed::PackedDriver,
        ring::{Buffer, DriverRing},
        scsi::{Answer, ScsiDriver, lun},
        split::SplitDriver,
    },
    virtio::{
        scsi::{
            ReservationTable, Scsi, TargetError, Targets,
            spec::{control::tmf, event, response, status},
        },
        transport::{TransportOptions, VirtioPci},
    },
};

use crate::{
    recorder::Recorder,
    rig::{Rig, eventually, pattern},
};

/// A SCSI endpoint named "scsi" with two request queues.
struct Host {
    rig: Rig,
    targets: Targets,
    table: ReservationTable,
}

impl Host {
    fn new() -> Self {
        let mut rig = Rig::with_malloc(2);
        let targets = Targets::default();
        serve(&mut rig, "scsi", &targets);
        Self { rig, targets, table: ReservationTable::default() }
    }

    fn add(&self, target: u8, bdev: &str) {
        add(&self.rig, &self.targets, &self.table, target, bdev);
    }

    fn driver<R: DriverRing>(&self) -> ScsiDriver<R> {
        driver(&self.rig, "scsi")
    }
}

fn serve(rig: &mut Rig, name: &str, targets: &Targets) {
    let scsi = Scsi::new(targets, 2, 64, 1);
    let transport = TransportOptions { packed_ring: true, ..TransportOptions::default() };
    let reactors = rig.server.reactors().to_vec();
    let mask: CoreMask = reactors.iter().map(Handle::core).collect();
    let spec = Spec {
        name: name.to_owned(),
        listener: Listener::bind(&rig.path(name), 0o600).unwrap(),
        reactors,
        group: Group::new(name, mask),
        vectors: transport.vectors(4),
        model: Box::new(move |home, bus| {
            Box::new(VirtioPci::new(scsi, transport, home.clone(), Arc::clone(bus)))
        }),
    };
    let handle = endpoint::start(spec).map_err(|error| error.to_string()).unwrap();
    rig.server.adopt(handle);
}

fn add(rig: &Rig, targets: &Targets, table: &ReservationTable, target: u8, bdev: &str) {
    let slot = targets.slot(target).unwrap();
    let descriptor = rig.server.registry().open(bdev, Access::ReadWrite, slot.callback()).unwrap();
    slot.add(Arc::new(descriptor), table).unwrap();
}

/// Connected, and past the unit attention that tells of the reset.
fn driver<R: DriverRing>(rig: &Rig, name: &str) -> ScsiDriver<R> {
    ScsiDriver::new(Client::connect(&rig.path(name)).unwrap(), Memory::new(8 << 20).unwrap(), 0).unwrap()
}

fn good<R: DriverRing>(driver: &mut ScsiDriver<R>, cdb: &[u8], out: &[u8], room: u32) -> Vec<u8> {
    let answer = driver.run(lun(0, 0), cdb, out, room).unwrap();
    assert_eq!((answer.response, answer.status), (response::OK, status::GOOD), "{cdb:02x?}: {answer:02x?}");
    answer.data
}

fn sense(answer: &Answer) -> [u8; 3] {
    assert_eq!((answer.response, answer.status), (response::OK, status::CHECK_CONDITION), "{answer:02x?}");
    answer.sense
}

fn clear_attention<R: DriverRing>(driver: &mut ScsiDriver<R>) {
    let answer = driver.run(lun(0, 0), &[0; 6], &[], 0).unwrap();
    assert_eq!(sense(&answer), [6, 0x29, 3], "the device was reset");
    good(driver, &[0; 6], &[], 0);
}

fn works<R: DriverRing>() {
    let host = Host::new();
    host.add(0, "Malloc0");
    let mut driver = host.driver::<R>();
    clear_attention(&mut driver);
    let data = pattern(4096, 1);
    let writes: [&[u8]; 4] = [
        &[0x0a, 0, 0, 0, 8, 0],
        &[0x2a, 0, 0, 0, 0, 8, 0, 0, 8, 0],
        &[0xaa, 0, 0, 0, 0, 16, 0, 0, 0, 8, 0, 0],
        &[0x8a, 0, 0, 0, 0, 0, 0, 0, 0, 24, 0, 0, 0, 8, 0, 0],
    ];
    for write in writes {
        good(&mut driver, write, &data, 0);
    }
    let reads: [&[u8]; 4] = [
        &[0x08, 0, 0, 24, 8, 0],
        &[0x28, 0, 0, 0, 0, 16, 0, 0, 8, 0],
        &[0xa8, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0],
        &[0x88, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0],
    ];
    for read in reads {
        assert_eq!(good(&mut driver, read, &[], 4096), data);
    }
    let same = [0x93, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0];
    good(&mut driver, &same, &data[..512], 0);
    assert_eq!(
        good(&mut driver, reads[1], &[], 4096),
        data[..512].repeat(8),
        "768 blocks, in several requests"
    );
    let mut unmap = [0; 24];
    (unmap[1], unmap[3], unmap[15], unmap[19]) = (22, 16, 16, 8);
    good(&mut driver, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &unmap, 0);
    assert_eq!(good(&mut driver, reads[1], &[], 4096), [0; 4096]);
    good(&mut driver, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 0);
    good(&mut driver, &[0x2f, 0, 0, 0, 0, 0, 0, 0, 8, 0], &[], 0);
}

#[test]
fn commands_of_every_length_work_on_a_split_ring() {
    works::<SplitDriver>();
}

#[test]
fn commands_of_every_length_work_on_a_packed_ring() {
    works::<PackedDriver>();
}

#[test]
fn verify_compares_with_the_drivers_data_where_it_is_told_to() {
    let host = Host::new();
    host.add(0, "Malloc0");
    let mut driver = host.driver::<SplitDriver>();
    clear_attention(&mut driver);
    // More than is compared at a time; its blocks differ.
    let data = pattern(160 << 10, 3);
    let range = |code: u8, flags: u8| [code, flags, 0, 0, 0, 8, 0, 1, 0x40, 0];
    good(&mut driver, &range(0x2e, 0), &data, 0);

    good(&mut driver, &range(0x2f, 2), &data, 0);
    let mut other = data.clone();
    other[(150 << 10) + 7] ^= 1;
    let differs = driver.run(lun(0, 0), &range(0x2f, 2), &other, 0).unwrap();
    let one_for_all = driver.run(lun(0, 0), &range(0x2f, 6), &data[..512], 0).unwrap();
    let too_little = driver.run(lun(0, 0), &range(0x2f, 2), &data[..512], 0).unwrap();
    good(&mut driver, &[0x41, 0, 0, 0, 0, 8, 0, 1, 0x40, 0], &data[..512], 0);
    good(&mut driver, &range(0x2f, 6), &data[..512], 0);
    let long = [0x8f, 6, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 1, 0x40, 0, 0];
    good(&mut driver, &long, &data[..512], 0);

    assert_eq!((sense(&differs), sense(&one_for_all)), ([0xe, 0x1d, 0], [0xe, 0x1d, 0]));
    assert_eq!(too_little.response, response::OVERRUN);
}

#[test]
fn verify_compares_blocks_longer_than_a_step() {
    let host = Host::new();
    host.rig.malloc("Malloc1", 128 << 10, 16);
    host.add(0, "Malloc1");
    let mut driver = host.driver::<SplitDriver>();
    clear_attention(&mut driver);
    let data = pattern(256 << 10, 3);
    good(&mut driver, &[0x2a, 0, 0, 0, 0, 8, 0, 0, 2, 0], &data, 0);
    good(&mut driver, &[0x2f, 2, 0, 0, 0, 8, 0, 0, 2, 0], &data, 0);
    let mut other = data;
    other[(256 << 10) - 1] ^= 1;
    let differs = driver.run(lun(0, 0), &[0x2f, 2, 0, 0, 0, 8, 0, 0, 2, 0], &other, 0).unwrap();
    assert_eq!(sense(&differs), [0xe, 0x1d, 0]);
}

#[test]
fn unit_tells_which_commands_there_are() {
    let host = Host::new();
    host.add(0, "Malloc0");
    let mut driver = host.driver::<SplitDriver>();
    clear_attention(&mut driver);
    let all = good(&mut driver, &[0xa3, 0x0c, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0], &[], 1024);
    assert_eq!(u32::from_be_bytes([all[0], all[1], all[2], all[3]]) as usize, all.len() - 4);
    assert!(all[4..].chunks(8).any(|told| told == [0x93, 0, 0, 0, 0, 0, 0, 16]));
    let one = good(&mut driver, &[0xa3, 0x0c, 1, 0x93, 0, 0, 0, 0, 0, 64, 0, 0], &[], 64);
    assert_eq!((&one[..5], one[5]), (&[0, 3, 0, 16, 0x93][..], 9));
}

#[test]
fn unit_says_what_it_is() {
    let host = Host::new();
    host.add(0, "Malloc0");
    let mut driver = host.driver::<SplitDriver>();
    let inquiry = good(&mut driver, &[0x12, 0, 0, 0, 96, 0], &[], 96);
    assert_eq!((inquiry[0], &inquiry[8..16]), (0, &b"RINGSIDE"[..]));
    let pages = good(&mut driver, &[0x12, 1, 0, 0, 255, 0], &[], 255);
    assert_eq!(pages[4..], [0, 0x80, 0x83, 0xb0, 0xb1, 0xb2]);
    assert_eq!(good(&mut driver, &[0x12, 1, 0x80, 0, 255, 0], &[], 255)[4..], b"Malloc0"[..]);
    assert_eq!(good(&mut driver, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0], &[], 16)[3], 8);
    clear_attention(&mut driver);
    assert_eq!(good(&mut driver, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 8), [0, 0, 0x7f, 0xff, 0, 0, 2, 0]);
    let capacity = [0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0];
    assert_eq!(good(&mut driver, &capacity, &[], 32)[..8], 0x7fff_u64.to_be_bytes());
    assert_eq!(good(&mut driver, &[0x1a, 8, 0x3f, 0, 255, 0], &[], 255)[4], 8);
    assert_eq!(good(&mut driver, &[0x03, 0, 0, 0, 18, 0], &[], 18)[2], 0, "no sense");
}

#[test]
fn what_cannot_be_is_refused_with_its_reason_and_the_next_command_works() {
    let host = Host::new();
    host.add(0, "Malloc0");
    let mut driver = host.driver::<SplitDriver>();
    clear_attention(&mut driver);
    let mut run = |lun, cdb: &[u8], out: &[u8], room| driver.run(lun, cdb, out, room).unwrap();
    let read = |lba: u8, blocks: u8| [0x28, 0, 0, lba, 0, 0, 0, 0, blocks, 0];
    assert_eq!(sense(&run(lun(0, 0), &[0xff; 6], &[], 0)), [5, 0x20, 0]);
    assert_eq!(sense(&run(lun(0, 0), &read(1, 1), &[], 512)), [5, 0x21, 0]);
    assert_eq!(sense(&run(lun(0, 3), &read(0, 1), &[], 512)), [5, 0x25, 0]);
    assert_eq!(sense(&run(lun(0, 0), &[0x12, 1, 0x77, 0, 255, 0], &[], 255)), [5, 0x24, 0]);
    assert_eq!(run(lun(0, 0), &read(0, 2), &[], 512).response, response::OVERRUN);
    assert_eq!(run(lun(5, 0), &read(0, 1), &[], 512).response, response::BAD_TARGET);
    assert_eq!(run([9; 8], &read(0, 1), &[], 512).response, response::BAD_TARGET);
    let short = run(lun(0, 0), &read(0, 1), &[], 1024);
    assert_eq!((short.status, short.residual, short.data.len()), (status::GOOD, 512, 512));
}

#[test]
fn target_that_comes_and_goes_is_told_and_its_name_is_free_again() {
    let host = Host::new();
    let mut driver = host.driver::<SplitDriver>();
    assert_eq!(driver.run(lun(0, 0), &[0; 6], &[], 0).unwrap().response, response::BAD_TARGET);

    host.add(0, "Malloc0");
    let came = driver.next_event().unwrap();
    assert_eq!(
        (came.event, came.reason, came.lun),
        (event::TRANSPORT_RESET, event::RESCAN, [1, 0, 0, 0, 0, 0, 0, 0])
    );
    assert_eq!(good(&mut driver, &[0x12, 0, 0, 0, 96, 0], &[], 96)[0], 0);
    assert_eq!(host.targets.slot(0).err(), Some(TargetError::InUse(0)));
    assert_eq!(host.targets.slot(8).err(), Some(TargetError::Number(8)));

    host.targets.remove(0).unwrap();
    let went = driver.next_event().unwrap();
    assert_eq!((went.event, went.reason), (event::TRANSPORT_RESET, event::REMOVED));
    assert_eq!(driver.run(lun(0, 0), &[0; 6], &[], 0).unwrap().response, response::BAD_TARGET);
    assert_eq!(host.targets.remove(0), Err(TargetError::Missing(0)));
}

#[test]
fn resized_and_removed_bdevs_are_told() {
    let host = Host::new();
    host.rig.server.registry().register(Arc::new(Recorder::new(|_| ()))).unwrap();
    host.add(0, "Recorder0");
    let mut driver = host.driver::<SplitDriver>();
    clear_attention(&mut driver);

    host.rig.server.registry().resize("Recorder0", 4096).unwrap();
    let resized = driver.next_event().unwrap();
    assert_eq!((resized.event, resized.reason), (event::PARAM_CHANGE, event::CAPACITY_CHANGED));
    assert_eq!(sense(&driver.run(lun(0, 0), &[0; 6], &[], 0).unwrap()), [6, 0x2a, 9]);

    let (gone, wait) = std::sync::mpsc::channel();
    host.rig.server.registry().delete("Recorder0", move || gone.send(()).unwrap()).unwrap();
    assert_eq!(driver.next_event().unwrap().reason, event::REMOVED);
    wait.recv_timeout(crate::rig::PATIENCE).unwrap();
}

#[test]
fn bdev_that_goes_after_its_target_takes_no_other_along() {
    let host = Host::new();
    let mut recorder = Recorder::new(|_| ());
    let (seen, hold) = (recorder.seen(), recorder.hold());
    host.rig.server.registry().register(Arc::new(recorder)).unwrap();
    host.add(0, "Recorder0");
    let mut driver = host.driver::<SplitDriver>();
    clear_attention(&mut driver);
    driver.start(lun(0, 0), &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[], 512).unwrap();
    eventually("the read reaches the bdev", || seen.lock().unwrap().len() == 1);

    // The queue has it open until the read is back.
    host.targets.remove(0).unwrap();
    host.add(0, "Malloc0");
    let (gone, wait) = std::sync::mpsc::channel();
    host.rig.server.registry().resize("Recorder0", 4096).unwrap();
    host.rig.server.registry().delete("Recorder0", move || gone.send(()).unwrap()).unwrap();

    assert_eq!(host.targets.list(), [(0, "Malloc0".to_owned())]);
    hold.let_go();
    driver.finish(512).unwrap();
    wait.recv_timeout(crate::rig::PATIENCE).unwrap();
    assert_eq!(good(&mut driver, &[0x12, 0, 0, 0, 96, 0], &[], 96)[0], 0);
    let mut told = || driver.next_event().map(|it| (it.event, it.reason)).unwrap();
    assert_eq!([told(), told()], [event::REMOVED, event::RESCAN].map(|it| (event::TRANSPORT_RESET, it)));
    host.targets.remove(0).unwrap();
    assert_eq!(told(), (event::TRANSPORT_RESET, event::REMOVED), "nothing was told of the one before");
}

#[test]
fn task_management_answers_after_what_was_in_flight() {
    let host = Host::new();
    host.add(0, "Malloc0");
    let mut driver = host.driver::<PackedDriver>();
    clear_attention(&mut driver);
    for function in [tmf::ABORT_TASK, tmf::LOGICAL_UNIT_RESET, tmf::I_T_NEXUS_RESET, tmf::CLEAR_ACA] {
        assert_eq!(driver.manage(function, lun(0, 0)).unwrap(), response::FUNCTION_COMPLETE);
        good(&mut driver, &[0; 6], &[], 0);
    }
    assert_eq!(driver.manage(tmf::ABORT_TASK, lun(6, 0)).unwrap(), response::BAD_TARGET);
    assert_eq!(driver.manage(tmf::LOGICAL_UNIT_RESET, lun(0, 1)).unwrap(), response::INCORRECT_LUN);
    assert_eq!(driver.manage(99, lun(0, 0)).unwrap(), response::FUNCTION_REJECTED);
}

/// The data of an UNMAP of these ranges (SBC-3, 5.28).
fn unmap_data(ranges: &[(u64, u32)]) -> Vec<u8> {
    let descriptors = 16 * u16::try_from(ranges.len()).unwrap();
    let mut data = [(6 + descriptors).to_be_bytes(), descriptors.to_be_bytes(), [0; 2], [0; 2]].concat();
    for (lba, blocks) in ranges {
        data.extend(lba.to_be_bytes());
        data.extend(blocks.to_be_bytes());
        data.extend([0; 4]);
    }
    data
}

fn unmap(data: &[u8]) -> [u8; 10] {
    let [high, low] = u16::try_from(data.len()).unwrap().to_be_bytes();
    [0x42, 0, 0, 0, 0, 0, 0, high, low, 0]
}

#[test]
fn unmap_of_many_ranges_is_done_whole_and_one_that_leaves_the_unit_not_at_all() {
    let host = Host::new();
    let recorder = Recorder::new(|_| ());
    let seen = recorder.seen();
    host.rig.server.registry().register(Arc::new(recorder)).unwrap();
    host.add(0, "Recorder0");
    let mut driver = host.driver::<SplitDriver>();
    clear_attention(&mut driver);

    let outside = unmap_data(&[(0, 1), (2047, 2)]);
    assert_eq!(sense(&driver.run(lun(0, 0), &unmap(&outside), &outside, 0).unwrap()), [5, 0x21, 0]);
    let too_many = unmap_data(&[(0, 1); 257]);
    assert_eq!(sense(&driver.run(lun(0, 0), &unmap(&too_many), &too_many, 0).unwrap()), [5, 0x26, 0]);
    let ranges: Vec<_> = (0..256).map(|nth| (u64::from(nth) * 8, nth % 3)).collect();
    let data = unmap_data(&ranges);
    good(&mut driver, &unmap(&data), &data, 0);
    good(&mut driver, &unmap(&unmap_data(&[])), &unmap_data(&[]), 0);

    let expected: Vec<_> =
        ranges.iter().filter(|it| it.1 > 0).map(|&(lba, blocks)| (Op::Unmap, lba, blocks.into())).collect();
    assert_eq!(*seen.lock().unwrap(), expected);
}

/// WRITE SAME of a block that is not all zeroes, so many times.
fn write_same<R: DriverRing>(driver: &mut ScsiDriver<R>, blocks: u32) {
    let mut cdb = [0; 16];
    cdb[0] = 0x93;
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    driver.start(lun(0, 0), &cdb, &[1; 512], 0).unwrap();
}

/// A host with a disk of 8 TiB that is quick, so that writing all of it takes minutes, and Malloc0 as target 1.
fn host_with_large_disk(recorder: Recorder) -> Host {
    let host = Host::new();
    host.rig.server.registry().register(Arc::new(recorder)).unwrap();
    host.rig.server.registry().resize("Recorder0", 1 << 34).unwrap();
    host.add(0, "Recorder0");
    host.add(1, "Malloc0");
    host
}

#[test]
fn command_of_many_requests_ends_when_it_is_aborted_or_a_change_waits_for_it() {
    let recorder = Recorder::new(|_| ());
    let seen = recorder.seen();
    let host = host_with_large_disk(recorder);
    let mut driver = host.driver::<SplitDriver>();
    clear_attention(&mut driver);
    let under_way = |driver: &mut ScsiDriver<SplitDriver>| {
        seen.lock().unwrap().clear();
        write_same(driver, u32::MAX);
        eventually("requests reach the bdev", || seen.lock().unwrap().len() > 2);
    };

    for function in [tmf::ABORT_TASK, tmf::LOGICAL_UNIT_RESET] {
        under_way(&mut driver);
        assert_eq!(driver.manage(function, lun(0, 0)).unwrap(), response::FUNCTION_COMPLETE);
        assert_eq!(sense(&driver.finish(0).unwrap()), [0xb, 0, 0]);
    }
    under_way(&mut driver);
    host.targets.remove(1).unwrap();
    assert_eq!(sense(&driver.finish(0).unwrap()), [0xb, 0, 0]);

    good(&mut driver, &[0; 6], &[], 0);
    under_way(&mut driver);
    drop(driver);
    let mut driver = host.driver::<SplitDriver>();
    clear_attention(&mut driver);
}

#[test]
fn command_of_a_few_requests_is_finished_before_a_change() {
    let mut recorder = Recorder::new(|_| ());
    let (seen, hold) = (recorder.seen(), recorder.hold());
    let host = host_with_large_disk(recorder);
    let mut driver = host.driver::<SplitDriver>();
    clear_attention(&mut driver);
    // 128 requests.
    write_same(&mut driver, 1 << 15);
    eventually("the first request reaches the bdev", || seen.lock().unwrap().len() == 1);

    host.targets.remove(1).unwrap();
    hold.let_go();

    assert_eq!(driver.finish(0).unwrap().status, status::GOOD);
    assert_eq!(seen.lock().unwrap().len(), 128);
}

#[test]
fn queue_sleeps_while_its_unit_works_is_woken_by_the_end_and_the_task_is_seen_meanwhile() {
    let host = Host::new();
    let mut recorder = Recorder::new(|_| ());
    let (seen, hold) = (recorder.seen(), recorder.hold());
    host.rig.server.registry().register(Arc::new(recorder)).unwrap();
    host.add(0, "Recorder0");
    host.add(1, "Malloc0");
    let mut driver = host.driver::<SplitDriver>();
    clear_attention(&mut driver);

    driver.start(lun(0, 0), &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[], 512).unwrap();
    eventually("the read reaches the bdev", || seen.lock().unwrap().len() == 1);
    eventually("the queue sleeps", || {
        let before = hold.reaps();
        std::thread::sleep(std::time::Duration::from_millis(20));
        hold.reaps() == before
    });
    let mut ask = |function, target| driver.manage(function, lun(target, 0)).unwrap();
    assert_eq!(ask(tmf::QUERY_TASK, 0), response::FUNCTION_SUCCEEDED);
    assert_eq!(ask(tmf::QUERY_TASK_SET, 0), response::FUNCTION_SUCCEEDED);
    assert_eq!(ask(tmf::QUERY_TASK, 1), response::FUNCTION_COMPLETE);
    hold.let_go();

    assert_eq!(driver.finish(512).unwrap().status, status::GOOD);
    assert_eq!(driver.manage(tmf::QUERY_TASK_SET, lun(0, 0)).unwrap(), response::FUNCTION_COMPLETE);
}

#[test]
fn reservation_of_one_endpoint_shuts_the_other_out_of_the_same_bdev() {
    let mut host = Host::new();
    let others = Targets::default();
    serve(&mut host.rig, "other", &others);
    let recorder = Recorder::new(|_| ());
    let seen = recorder.seen();
    host.rig.server.registry().register(Arc::new(recorder)).unwrap();
    host.add(0, "Recorder0");
    add(&host.rig, &others, &host.table, 0, "Recorder0");
    let (mut one, mut two) = (host.driver::<SplitDriver>(), driver::<SplitDriver>(&host.rig, "other"));
    clear_attention(&mut one);
    clear_attention(&mut two);
    let out = |action: u8, kind: u8| [0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0];
    let keys = |key: u8, new: u8| {
        let mut keys = [0; 24];
        (keys[7], keys[15]) = (key, new);
        keys
    };
    good(&mut one, &out(0, 0), &keys(0, 1), 0);
    good(&mut one, &out(1, 1), &keys(1, 0), 0);

    let write = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    let refused = two.run(lun(0, 0), &write, &[0; 512], 0).unwrap();
    assert_eq!(refused.status, status::RESERVATION_CONFLICT);
    good(&mut one, &write, &[0; 512], 0);
    assert_eq!(good(&mut two, &[0x5e, 0, 0, 0, 0, 0, 0, 0, 255, 0], &[], 255)[15], 1, "the key can be read");
    assert_eq!(*seen.lock().unwrap(), [(Op::Write { fua: false }, 0, 1)]);
}

#[test]
fn command_whose_memory_is_taken_away_fails_and_the_next_works() {
    const ELSEWHERE: u64 = 0x40_0000_0000;
    let host = Host::new();
    host.add(0, "Malloc0");
    let file = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, 0x10000).unwrap();
    let mut client = Client::connect(&host.rig.path("scsi")).unwrap();
    let both = Protection { read: true, write: true };
    client.dma_map(ELSEWHERE, 0x10000, both, Some((file.as_fd(), 0))).unwrap();
    let mut driver: ScsiDriver<SplitDriver> =
        ScsiDriver::new(client, Memory::new(8 << 20).unwrap(), 0).unwrap();
    let write = [0x2a, 0, 0, 0, 0, 0, 0, 0, 8, 0];
    let read = [0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0];
    let from = Buffer::readable(ELSEWHERE, 4096);
    driver.run(lun(0, 0), &[0; 6], &[], 0).unwrap();
    assert_eq!(driver.run_over(lun(0, 0), &write, from).unwrap().status, status::GOOD);

    rustix::fs::ftruncate(&file, 0).unwrap();
    let torn = driver.run_over(lun(0, 0), &write, from).unwrap();
    let later = driver.run_over(lun(0, 0), &read, Buffer::writable(ELSEWHERE, 4096)).unwrap();

    assert_eq!((torn.response, torn.status), (response::OK, status::CHECK_CONDITION));
    assert_eq!(later.response, response::FAILURE, "nothing goes through a torn window");
    good(&mut driver, &write, &pattern(4096, 1), 0);
    assert!(good(&mut driver, &read, &[], 4096) == pattern(4096, 1));
}

fn works_in_private_memory<R: DriverRing>() {
    let host = Host::new();
    host.add(0, "Malloc0");
    let memory = Memory::new(8 << 20).unwrap();
    let client = Client::connect_private(&host.rig.path("scsi"), &memory).unwrap();
    let mut driver: ScsiDriver<R> = ScsiDriver::new(client, memory, 0).unwrap();
    driver.run(lun(0, 0), &[0; 6], &[], 0).unwrap();

    good(&mut driver, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 8, 0], &pattern(4096, 5), 0);

    // The reset often finds the end of the read on its way to the driver.
    for _ in 0..30 {
        assert!(good(&mut driver, &[0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0], &[], 4096) == pattern(4096, 5));
        assert_eq!(driver.manage(tmf::LOGICAL_UNIT_RESET, lun(0, 0)).unwrap(), response::OK);
    }
}

#[test]
fn every_queue_works_in_memory_that_is_not_shared() {
    works_in_private_memory::<SplitDriver>();
    works_in_private_memory::<PackedDriver>();
}
