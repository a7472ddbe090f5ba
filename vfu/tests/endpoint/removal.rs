//! A bdev that is removed under a disk: its I/O fails, the disk and its guest live.

use std::sync::mpsc;

use vfu::{
    mock::{
        blk::{BlkOptions, Io},
        server::DiskOptions,
    },
    virtio::spec::blk::{kind, status},
};

use crate::rig::{PATIENCE, Rig, eventually, pattern};

#[test]
fn removed_bdev_fails_its_io_and_the_endpoint_lives() {
    let rig = Rig::with_disk();
    let mut guest = rig.guest("disk", BlkOptions { queues: 2, ..BlkOptions::default() });
    guest.write(0, 0, &pattern(512, 1)).unwrap();
    let (gone, wait) = mpsc::channel();

    rig.server.registry().delete("Malloc0", move || gone.send(()).unwrap()).unwrap();

    wait.recv_timeout(PATIENCE).expect("the disk lets go of the bdev");
    for queue in 0..2 {
        assert_eq!(guest.read(queue, 0, 512).unwrap_err().status(), Some(status::IOERR));
        assert_eq!(guest.write(queue, 0, &[1; 512]).unwrap_err().status(), Some(status::IOERR));
    }
    assert_eq!(guest.get_id(0).unwrap(), b"Malloc0");
    // A reboot of the guest, and another guest, find the same.
    guest.start().unwrap();
    assert_eq!(guest.read(0, 0, 512).unwrap_err().status(), Some(status::IOERR));
    drop(guest);
    let mut next = rig.guest("disk", BlkOptions::default());
    assert_eq!(next.read(0, 0, 512).unwrap_err().status(), Some(status::IOERR));
}

#[test]
fn removal_waits_for_requests_in_flight_and_they_finish() {
    let (rig, hold) = Rig::with_held();
    let mut guest = rig.guest("disk", BlkOptions::default());
    for _ in 0..5 {
        guest.queues[0].submit(Io { kind: kind::IN, sector: 0, len: 512 }).unwrap();
    }
    guest.publish(0).unwrap();
    eventually("all arrive", || hold.held() == 5);
    let (gone, wait) = mpsc::channel();
    rig.server.registry().delete("Held0", move || gone.send(()).unwrap()).unwrap();
    assert!(wait.recv_timeout(crate::rig::SHORT).is_err(), "the bdev is in use");

    hold.release();

    (0..5).for_each(|_| assert_eq!(guest.wait(0).unwrap().status, status::OK));
    wait.recv_timeout(PATIENCE).unwrap();
    assert_eq!(guest.read(0, 0, 512).unwrap_err().status(), Some(status::IOERR));
}

#[test]
fn bdev_removed_without_a_client_is_let_go() {
    let rig = Rig::with_disk();
    let (gone, wait) = mpsc::channel();
    rig.server.registry().delete("Malloc0", move || gone.send(()).unwrap()).unwrap();
    wait.recv_timeout(PATIENCE).unwrap();
    let mut guest = rig.guest("disk", BlkOptions::default());
    assert_eq!(guest.read(0, 0, 512).unwrap_err().status(), Some(status::IOERR));
}

#[test]
fn removal_under_load_answers_every_request() {
    let mut rig = Rig::with_reactors(2);
    for round in 0..20 {
        let (bdev, disk) = (format!("Malloc{round}"), format!("disk{round}"));
        rig.malloc(&bdev, 512, 1);
        rig.serve(&disk, &DiskOptions::new(&bdev));
        let mut guest = rig.guest(&disk, BlkOptions { queues: 2, max_io: 4096, ..BlkOptions::default() });
        for queue in 0..2 {
            for sector in 0..40 {
                guest.queues[queue].submit(Io { kind: kind::IN, sector: sector * 8, len: 4096 }).unwrap();
            }
            guest.publish(queue).unwrap();
        }
        let (gone, wait) = mpsc::channel();
        rig.server.registry().delete(&bdev, move || gone.send(()).unwrap()).unwrap();
        for queue in 0..2 {
            for _ in 0..40 {
                assert!(matches!(guest.wait(queue).unwrap().status, status::OK | status::IOERR));
            }
        }
        wait.recv_timeout(PATIENCE).unwrap();
    }
}
