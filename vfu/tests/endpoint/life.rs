//! Endpoints and their clients over time: resets, reboots, clients that vanish, endpoints that are deleted.

use std::sync::mpsc;

use rustix::io::Errno;
use vfu::{
    endpoint::State,
    mock::{
        blk::{BlkOptions, Io},
        client::{Client, ClientError},
        memory::{Memory, REGION_ALIGN},
        ring::DriverRing,
        ring::RingSetup,
        server::DiskOptions,
        split::SplitDriver,
        transport::QueueSetup,
    },
    virtio::spec::{blk::kind, feature, status},
    wire::spec::{Command, RegionWriteEntry, region},
};

use crate::{
    held::Held,
    rig::{Guest, PATIENCE, Rig, SHORT, eventually, pattern},
};

/// Short rings in little memory: a guest that starts again and again.
fn small() -> BlkOptions {
    BlkOptions { ring_size: 16, max_io: 4096, ..BlkOptions::default() }
}

#[test]
fn driver_resets_and_starts_again_many_times() {
    let rig = Rig::with_disk();
    let mut guest = rig.guest("disk", small());
    for round in 0..100 {
        guest.write(0, round, &pattern(512, round)).unwrap();
        guest.start().unwrap();
        assert!(guest.read(0, round, 512).unwrap() == pattern(512, round));
    }
}

#[test]
fn device_reset_message_brings_power_on_values_back() {
    let rig = Rig::with_disk();
    let mut guest = rig.guest("disk", small());
    guest.write(0, 0, &pattern(512, 1)).unwrap();
    guest.transport.client.reset().unwrap();
    let mut command = [0xff; 2];
    guest.transport.client.region_read(region::CONFIG, 4, &mut command).unwrap();
    assert_eq!(command, [0, 0]);
    let function = guest.transport.function;
    function.enable(&mut guest.transport.client).unwrap();
    assert_eq!(guest.transport.status().unwrap(), 0);
    // Memory and eventfds are the client's and stay.
    guest.start().unwrap();
    assert!(guest.read(0, 0, 512).unwrap() == pattern(512, 1));
}

#[test]
fn function_level_reset_does_the_same() {
    let rig = Rig::with_disk();
    let mut guest = rig.guest("disk", small());
    let mut space = [0; 256];
    guest.transport.client.region_read(region::CONFIG, 0, &mut space).unwrap();
    let mut at = usize::from(space[0x34]);
    while space[at] != 0x10 {
        at = usize::from(space[at + 1]);
    }
    // Device control of the PCI Express capability, bit 15.
    guest.transport.client.region_write(region::CONFIG, at as u64 + 8, &0x8000_u16.to_le_bytes()).unwrap();
    let function = guest.transport.function;
    function.enable(&mut guest.transport.client).unwrap();
    assert_eq!(guest.transport.status().unwrap(), 0);
    guest.start().unwrap();
    guest.get_id(0).unwrap();
}

#[test]
fn single_queue_is_reset_and_enabled_again() {
    let rig = Rig::with_disk();
    let options = BlkOptions { features: feature::RING_RESET | feature::EVENT_IDX, queues: 2, ..small() };
    let mut guest = rig.guest("disk", options);
    assert_ne!(guest.features() & feature::RING_RESET, 0);
    guest.write(0, 0, &pattern(512, 1)).unwrap();
    for _ in 0..20 {
        guest.transport.reset_queue(0).unwrap();
        assert!(!guest.transport.queue_enabled(0).unwrap());
        // The other one works meanwhile.
        assert!(guest.read(1, 0, 512).unwrap() == pattern(512, 1));
        let setup = RingSetup { size: 16, features: guest.features(), indirect: None };
        let ring = SplitDriver::new(&mut guest.memory, &setup).unwrap();
        guest.transport.set_queue(0, &QueueSetup { size: 16, vector: 0xffff, areas: ring.areas() }).unwrap();
        *guest.queues[0].ring() = ring;
        assert!(guest.read(0, 0, 512).unwrap() == pattern(512, 1));
    }
}

#[test]
fn clients_come_and_go_and_the_data_stays() {
    let rig = Rig::with_disk();
    for round in 0..100 {
        let memory = Memory::new(REGION_ALIGN).unwrap();
        let mut guest = Guest::new(rig.client("disk"), memory, small()).unwrap();
        assert!(guest.read(0, 0, 512).unwrap() == pattern(512, round) || round == 0);
        guest.write(0, 0, &pattern(512, round + 1)).unwrap();
    }
}

#[test]
fn client_that_vanishes_anywhere_leaves_the_endpoint_ready() {
    let mut rig = Rig::with_disk();
    let endpoint = rig.serve("again", &DiskOptions::new("Malloc0"));
    let leave: [fn(Client); 6] = [
        |client| drop(client),
        |mut client| client.send_raw(&[1, 2, 3]).unwrap(),
        |mut client| client.send_raw(&[0, 0, 9, 0, 200, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]).unwrap(),
        |mut client| {
            client.send(Command::DEVICE_GET_INFO, 0, &[&[0; 16]], Vec::new()).unwrap();
        },
        |mut client| client.map_memory(&Memory::new(REGION_ALIGN).unwrap()).unwrap(),
        |client| {
            let mut guest = Guest::new(client, Memory::new(REGION_ALIGN).unwrap(), small()).unwrap();
            for sector in 0..5 {
                guest.queues[0].submit(Io { kind: kind::IN, sector, len: 4096 }).unwrap();
            }
            guest.publish(0).unwrap();
        },
    ];
    for leave in leave {
        leave(rig.client("again"));
        eventually("the endpoint listens again", || endpoint.state() == State::Listening);
        rig.guest("again", small()).get_id(0).unwrap();
        eventually("the endpoint listens again", || endpoint.state() == State::Listening);
    }
}

#[test]
fn next_client_waits_until_the_first_is_gone() {
    let rig = Rig::with_disk();
    let first = rig.guest("disk", small());
    let mut second = Client::connect_raw(&rig.path("disk")).unwrap();
    second.set_timeout(SHORT);
    assert!(matches!(second.negotiate(), Err(ClientError::Timeout(_))));

    drop(first);

    second.set_timeout(PATIENCE);
    // The VERSION message waits in the socket.
    let answer = second.answer(0, Command::VERSION).unwrap();
    assert!(!answer.payload.is_empty());
    second.device_info().unwrap();
}

#[test]
fn client_that_vanishes_with_requests_in_flight_is_followed_only_when_they_are_done() {
    let (rig, hold) = Rig::with_held();
    let mut guest = rig.guest("disk", small());
    guest.queues[0].submit(Io { kind: kind::OUT, sector: 0, len: 512 }).unwrap();
    guest.publish(0).unwrap();
    eventually("the write arrives", || hold.held() == 1);
    drop(guest);

    let mut next = Client::connect_raw(&rig.path("disk")).unwrap();
    next.set_timeout(SHORT);
    assert!(matches!(next.negotiate(), Err(ClientError::Timeout(_))));
    assert_eq!(hold.held(), 1);
    hold.release();

    next.set_timeout(PATIENCE);
    next.answer(0, Command::VERSION).unwrap();
    // The vanished guest's memory was there until the write had read it: zeroes, none of which is 0xa5.
    assert_eq!((hold.held(), hold.wrong()), (0, 512));
}

#[test]
fn deleted_endpoint_closes_its_client_and_its_socket() {
    let mut rig = Rig::with_disk();
    let endpoint = rig.serve("doomed", &DiskOptions::new("Malloc0"));
    let mut guest = rig.guest("doomed", small());
    let (gone, wait) = mpsc::channel();

    endpoint.delete(move || gone.send(()).unwrap());

    wait.recv_timeout(PATIENCE).unwrap();
    assert_eq!(endpoint.state(), State::Gone);
    assert!(!rig.path("doomed").exists());
    assert!(matches!(guest.transport.client.receive(), Err(ClientError::Closed)));
    // Once more: it is gone already, and says so at once.
    let (gone, wait) = mpsc::channel();
    endpoint.delete(move || gone.send(()).unwrap());
    wait.recv_timeout(PATIENCE).unwrap();
    rig.serve("doomed", &DiskOptions::new("Malloc0"));
    rig.guest("doomed", small()).get_id(0).unwrap();
}

#[test]
fn endpoint_is_deleted_only_when_nothing_is_in_flight() {
    let mut rig = Rig::new();
    let (held, hold) = Held::make("Held0");
    rig.register(held);
    let endpoint = rig.serve("disk", &DiskOptions::new("Held0"));
    let mut guest = rig.guest("disk", small());
    guest.queues[0].submit(Io { kind: kind::IN, sector: 0, len: 512 }).unwrap();
    guest.publish(0).unwrap();
    eventually("the read arrives", || hold.held() == 1);
    let (gone, wait) = mpsc::channel();
    endpoint.delete(move || gone.send(()).unwrap());
    assert!(wait.recv_timeout(SHORT).is_err());
    hold.release();
    wait.recv_timeout(PATIENCE).unwrap();
}

/// QEMU packs writes together, and takes a device for dead that answers nothing for five seconds.
#[test]
fn resets_among_packed_writes_are_answered_though_the_disk_hangs() {
    let (rig, hold) = Rig::with_held();
    let mut guest = rig.guest("disk", small());
    guest.queues[0].submit(Io { kind: kind::IN, sector: 0, len: 512 }).unwrap();
    guest.publish(0).unwrap();
    eventually("the read arrives", || hold.held() == 1);

    // device_status, which resets, as often as it goes into a message; and one more register.
    let reset = RegionWriteEntry { offset: 20, region: 4, count: 1, data: [0; 8] };
    let select = RegionWriteEntry { offset: 8, count: 4, data: [1, 0, 0, 0, 0, 0, 0, 0], ..reset };
    let client = &mut guest.transport.client;
    assert_eq!(client.region_write_multi(&[reset, reset, reset, reset, select]).unwrap(), 5);
    assert_eq!(client.region_write_multi(&[select, reset]).unwrap(), 2);
    assert_ne!(guest.transport.status().unwrap(), 0, "the reset is not over");
    assert_eq!(hold.held(), 1);

    hold.release();
    guest.start().unwrap();
    guest.read(0, 0, 512).unwrap();
}

/// A driver does not wait for its reset, which hangs with the disk, and sets up what it had not before.
#[test]
fn queue_that_is_enabled_during_a_reset_is_not_left_behind_by_it() {
    let (rig, hold) = Rig::with_held();
    let mut guest = rig.guest("disk", small());
    guest.queues[0].submit(Io { kind: kind::IN, sector: 0, len: 512 }).unwrap();
    guest.publish(0).unwrap();
    eventually("the read arrives", || hold.held() == 1);
    guest.transport.set_status(0).unwrap();
    assert_ne!(guest.transport.status().unwrap(), 0, "the reset is not over");

    let areas = guest.queues[0].ring().areas();
    guest.transport.set_queue(1, &QueueSetup { size: 16, vector: 0xffff, areas }).unwrap();
    guest.transport.add_status(status::DRIVER_OK).unwrap();
    hold.release();

    eventually("the reset is over", || guest.transport.status().unwrap() == 0);
    eventually("no queue is left", || hold.channels() == 0);
    guest.start().unwrap();
    guest.read(0, 0, 512).unwrap();
}

#[test]
fn endpoint_without_a_client_is_deleted_too() {
    let mut rig = Rig::with_disk();
    let endpoint = rig.serve("idle", &DiskOptions::new("Malloc0"));
    let (gone, wait) = mpsc::channel();
    endpoint.delete(move || gone.send(()).unwrap());
    wait.recv_timeout(PATIENCE).unwrap();
    assert!(!rig.path("idle").exists());
}

#[test]
fn features_that_were_not_offered_are_not_agreed_to() {
    let rig = Rig::with_disk();
    let mut guest = rig.guest("disk", small());
    let (offered, transport) = (guest.transport.device_features().unwrap(), &mut guest.transport);
    for wrong in [offered | 1 << 40 | 1 << 50, offered & !feature::VERSION_1, 0] {
        transport.reset().unwrap();
        transport.add_status(status::ACKNOWLEDGE | status::DRIVER).unwrap();
        transport.set_driver_features(wrong).unwrap();
        transport.add_status(status::FEATURES_OK).unwrap();
        assert_eq!(transport.status().unwrap() & status::FEATURES_OK, 0, "{wrong:#x}");
        // And a driver that goes on all the same gets nowhere.
        transport.add_status(status::DRIVER_OK).unwrap();
        assert_eq!(transport.status().unwrap() & status::DRIVER_OK, 0);
    }
    guest.start().unwrap();
    guest.get_id(0).unwrap();
}

#[test]
fn refused_messages_do_not_end_the_connection() {
    let rig = Rig::with_disk();
    let mut client = rig.client("disk");
    for _ in 0..100 {
        assert_eq!(client.dma_unmap(0, 4096).unwrap_err().refusal(), Some(Errno::NOENT));
    }
    client.device_info().unwrap();
}
