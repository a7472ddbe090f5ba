//! Descriptors of this process stay as many as they were, whatever clients do. Alone in its binary: other tests open
//! and close some at the same time.
#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::{
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use bdev::types::{Malloc, MallocParams};
use vfu::{
    endpoint::State,
    irq::eventfd,
    mock::{
        blk::{BlkDriver, BlkOptions, Io},
        client::Client,
        memory::{Memory, REGION_ALIGN},
        server::{DiskOptions, Server},
        split::SplitDriver,
    },
    virtio::spec::blk::kind,
    wire::spec::{Command, DeviceInfo},
};
use zerocopy::IntoBytes;

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Waits until something is so; twenty seconds are for the slowest of machines.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn clients_leave_no_descriptors_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let mut server = Server::start(2);
    let malloc = Malloc::new("Malloc0".to_owned(), &MallocParams::new(512, 2048)).unwrap();
    server.registry().register(Arc::new(malloc)).unwrap();
    let endpoint = server.serve(&path, &DiskOptions::new("Malloc0"));
    // A reactor that answers has added the endpoint, and has dropped the queues that say that they stopped.
    let settles = || {
        eventually("the endpoint listens again", || endpoint.state() == State::Listening);
        server.reactors().iter().for_each(|reactor| reactor.call(|_| ()).unwrap());
    };
    settles();
    let before = open_descriptors();

    for round in 0..50 {
        let options =
            BlkOptions { interrupts: true, queues: 4, ring_size: 16, max_io: 4096, ..BlkOptions::default() };
        let memory = Memory::new(2 * REGION_ALIGN).unwrap();
        let mut guest =
            BlkDriver::<SplitDriver>::new(Client::connect(&path).unwrap(), memory, options).unwrap();
        guest.write(round % 4, 0, &[round as u8; 512]).unwrap();
        // Descriptors with a command that takes none, with one that is refused, and with one that nobody knows.
        let client = &mut guest.transport.client;
        let fds = || (0..5).map(|_| eventfd().unwrap()).collect::<Vec<OwnedFd>>();
        let info = DeviceInfo { argsz: 16, ..DeviceInfo::default() };
        client.request(Command::DEVICE_GET_INFO, &[info.as_bytes()], fds()).unwrap();
        client.request(Command::DMA_MAP, &[&[0; 32]], fds()).unwrap_err();
        client.request(Command(77), &[&[0; 32]], fds()).unwrap_err();
        client.request(Command::DEVICE_SET_IRQS, &[&[0; 20]], fds()).unwrap_err();
        // It leaves with requests in flight, and with a message half sent.
        for sector in 0..4 {
            guest.queues[0].submit(Io { kind: kind::IN, sector, len: 512 }).unwrap();
        }
        guest.publish(0).unwrap();
        guest.transport.client.send_raw(&[0; 7]).unwrap();
        drop(guest);
        settles();
        assert_eq!(open_descriptors(), before, "after client {round}");
    }

    assert!(server.delete_endpoints(Duration::from_secs(20)));
    assert_eq!(server.faults(), 0);
}
