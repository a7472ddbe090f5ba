//! Windows that come, go and are not what a device would like: I/O waits, fails or goes on; it never touches what was
//! taken back.

use std::os::fd::AsFd;

use rustix::io::Errno;
use vfu::{
    dma::Protection,
    mock::{
        blk::{BlkOptions, Io, NO_STATUS},
        client::ClientError,
        memory::Memory,
        ring::{Buffer, DriverRing},
        server::DiskOptions,
    },
    virtio::{
        control::DoorbellMode,
        spec::blk::{kind, status},
    },
    wire::spec::{Command, DmaUnmap},
};
use zerocopy::IntoBytes;

use crate::{
    chains::{Parts, byte_at, send},
    rig::{Guest, PATIENCE, RAM, Rig, SHORT, eventually, pattern},
};

const EDGE: u64 = 0x4_0000_0000;
const BOTH: Protection = Protection { read: true, write: true };

/// A guest with a second region of RAM at [`EDGE`].
fn guest_with_two_regions(rig: &Rig, name: &str) -> Guest {
    let memory = Memory::with_regions(&[(0x1_0000_0000, RAM), (EDGE, 2 << 20)]).unwrap();
    Guest::new(rig.client(name), memory, BlkOptions::default()).unwrap()
}

/// A chain that reads one sector into `into`.
fn read_into(guest: &mut Guest, into: u64) -> (Parts, [Buffer; 3]) {
    let parts = Parts::new(guest, kind::IN, 0);
    let chain =
        [Buffer::readable(parts.header, 16), Buffer::writable(into, 512), Buffer::writable(parts.status, 1)];
    (parts, chain)
}

fn send_unmap(guest: &mut Guest, address: u64, size: u64) -> u16 {
    let unmap = DmaUnmap { argsz: 24, flags: 0, address, size };
    guest.transport.client.send(Command::DMA_UNMAP, 0, &[unmap.as_bytes()], Vec::new()).unwrap()
}

#[test]
fn unmap_is_answered_only_when_nothing_is_in_flight() {
    let (rig, hold) = Rig::with_held();
    let mut guest = guest_with_two_regions(&rig, "disk");
    guest.memory.write(EDGE, &[0xa5; 512]).unwrap();
    let (_, mut chain) = read_into(&mut guest, EDGE);
    let parts = Parts::new(&mut guest, kind::OUT, 0);
    chain[0] = Buffer::readable(parts.header, 16);
    chain[1].device_writes = false;
    guest.queues[0].ring().add(&chain).unwrap();
    guest.publish(0).unwrap();
    eventually("the write arrives", || hold.held() == 1);

    let id = send_unmap(&mut guest, EDGE, 2 << 20);
    guest.transport.client.set_timeout(SHORT);
    let early = guest.transport.client.answer(id, Command::DMA_UNMAP);
    assert!(matches!(early, Err(ClientError::Timeout(_))), "{early:?}");
    // What the held write reads from is still there.
    hold.release();
    guest.transport.client.set_timeout(PATIENCE);
    guest.transport.client.answer(id, Command::DMA_UNMAP).unwrap();

    assert_eq!(hold.wrong(), 0);
    assert_eq!(
        guest.queues[0].ring().pop().unwrap().map(|used| used.len),
        Some(1),
        "it was given back first"
    );
    assert_eq!(hold.held(), 0);
}

#[test]
fn requests_in_flight_fail_when_memory_is_torn_and_later_ones_work() {
    let (rig, hold) = Rig::with_held();
    let memory = Memory::new(RAM).unwrap();
    let mut guest = Guest::new(rig.client("disk"), memory, BlkOptions::default()).unwrap();
    let file = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, 2 << 20).unwrap();
    guest.transport.client.dma_map(EDGE, 2 << 20, BOTH, Some((file.as_fd(), 0))).unwrap();
    // One over what will be gone, one that has nothing to do with it.
    let chains = [EDGE, 0].map(|elsewhere| {
        let (parts, mut chain) = read_into(&mut guest, elsewhere);
        chain[1].addr = if elsewhere == 0 { parts.data } else { elsewhere };
        (parts, chain)
    });
    for (_, chain) in &chains {
        guest.queues[0].ring().add(chain).unwrap();
    }
    guest.publish(0).unwrap();
    eventually("both arrive", || hold.held() == 2);

    rustix::fs::ftruncate(&file, 0).unwrap();
    hold.release();

    for (parts, _) in &chains {
        eventually("it ends", || byte_at(&guest.memory, parts.status) != NO_STATUS);
        assert_eq!(byte_at(&guest.memory, parts.status), status::IOERR, "nobody knows which of them it was");
        guest.queues[0].ring().pop().unwrap();
    }
    let (parts, mut chain) = read_into(&mut guest, 0);
    chain[1].addr = parts.data;
    guest.queues[0].ring().add(&chain).unwrap();
    guest.publish(0).unwrap();
    eventually("it ends", || byte_at(&guest.memory, parts.status) == status::OK);
}

#[test]
fn nothing_new_is_taken_while_an_unmap_waits() {
    let (rig, hold) = Rig::with_held();
    let mut guest = guest_with_two_regions(&rig, "disk");
    guest.queues[0].submit(Io { kind: kind::IN, sector: 0, len: 512 }).unwrap();
    guest.publish(0).unwrap();
    eventually("the first arrives", || hold.held() == 1);
    let id = send_unmap(&mut guest, EDGE, 2 << 20);
    guest.transport.client.set_timeout(SHORT);
    assert!(guest.transport.client.answer(id, Command::DMA_UNMAP).is_err());

    guest.queues[0].submit(Io { kind: kind::IN, sector: 1, len: 512 }).unwrap();
    guest.publish(0).unwrap();
    std::thread::sleep(SHORT);
    assert_eq!(hold.held(), 1);

    hold.release();
    guest.transport.client.set_timeout(PATIENCE);
    guest.transport.client.answer(id, Command::DMA_UNMAP).unwrap();
    assert_eq!(guest.wait(0).unwrap().status, status::OK);
    assert_eq!(guest.wait(0).unwrap().status, status::OK);
}

#[test]
fn unmapping_and_mapping_under_load_loses_no_request() {
    let mut rig = Rig::with_reactors(2);
    rig.malloc("Malloc0", 512, 16);
    rig.serve("disk", &DiskOptions::new("Malloc0"));
    let memory = Memory::with_regions(&[(0x1_0000_0000, RAM), (EDGE, 2 << 20)]).unwrap();
    let options = BlkOptions { queues: 2, max_io: 4096, ..BlkOptions::default() };
    let mut guest = Guest::new(rig.client("disk"), memory, options).unwrap();
    guest.write(0, 0, &pattern(4096, 4)).unwrap();
    let region = guest.memory.regions()[1];
    for _ in 0..100 {
        for queue in 0..2 {
            for _ in 0..32 {
                guest.queues[queue].submit(Io { kind: kind::IN, sector: 0, len: 4096 }).unwrap();
            }
            guest.publish(queue).unwrap();
        }
        guest.transport.client.dma_unmap(EDGE, region.len).unwrap();
        guest.transport.client.map_region(&guest.memory, region).unwrap();
        for queue in 0..2 {
            for _ in 0..32 {
                let done = guest.wait(queue).unwrap();
                let mut data = vec![0; 4096];
                guest.queues[queue].read_data(done.slot, &mut data);
                assert!(done.status == status::OK && data == pattern(4096, 4));
            }
        }
    }
}

#[test]
fn every_change_is_followed_by_queues_on_their_way_to_sleep() {
    let mut rig = Rig::with_reactors(2);
    rig.null("Null0");
    // Trapped: no look at the ring now and then hides a wake that was lost.
    let options = DiskOptions { doorbell: DoorbellMode::Trapped, ..DiskOptions::new("Null0") };
    rig.serve("disk", &options);
    let mut guest =
        rig.guest("disk", BlkOptions { queues: 4, ring_size: 8, max_io: 4096, ..BlkOptions::default() });
    // Each is answered only when all queues have followed; they spin for about as long as that takes, and then sleep.
    for round in 0..1500_u64 {
        guest.transport.client.dma_map(EDGE, 0x1000, BOTH, None).unwrap();
        std::thread::sleep(std::time::Duration::from_micros(round % 40));
        guest.transport.client.dma_unmap(EDGE, 0x1000).unwrap();
    }
    guest.get_id(3).unwrap();
}

#[test]
fn request_into_a_window_that_is_gone_fails_alone() {
    let rig = Rig::with_disk();
    let mut guest = guest_with_two_regions(&rig, "disk");
    guest.transport.client.dma_unmap(EDGE, 2 << 20).unwrap();
    let (parts, chain) = read_into(&mut guest, EDGE);

    send(&mut guest, &chain);

    assert_eq!(byte_at(&guest.memory, parts.status), status::IOERR);
    guest.get_id(0).unwrap();
}

#[test]
fn ring_that_is_unmapped_and_mapped_again_goes_on() {
    // SeaBIOS's client does that to a live queue.
    let rig = Rig::with_disk();
    let mut guest = rig.guest("disk", BlkOptions::default());
    let region = guest.memory.regions()[0];
    for round in 0..20 {
        guest.write(0, round, &pattern(512, round)).unwrap();
        guest.transport.client.dma_unmap(region.address, region.len).unwrap();
        // Offered while nobody can see it.
        guest.queues[0].submit(Io { kind: kind::IN, sector: round, len: 512 }).unwrap();
        guest.publish(0).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert_eq!(guest.queues[0].poll().unwrap(), None, "the device has no memory");

        guest.transport.client.map_region(&guest.memory, region).unwrap();

        let done = guest.wait(0).unwrap();
        let mut data = vec![0; 512];
        guest.queues[0].read_data(done.slot, &mut data);
        assert!(done.status == status::OK && data == pattern(512, round));
    }
}

#[test]
fn window_without_memory_fails_only_what_touches_it() {
    let rig = Rig::with_disk();
    let mut guest = rig.guest("disk", BlkOptions::default());
    guest.transport.client.dma_map(EDGE, 0x1000, BOTH, None).unwrap();
    let (parts, chain) = read_into(&mut guest, EDGE);
    send(&mut guest, &chain);
    assert_eq!(byte_at(&guest.memory, parts.status), status::IOERR);
    guest.get_id(0).unwrap();
}

#[test]
fn window_is_used_only_the_way_it_allows() {
    let rig = Rig::with_disk();
    let mut guest = guest_with_two_regions(&rig, "disk");
    guest.transport.client.dma_unmap(EDGE, 2 << 20).unwrap();
    let offset = guest.memory.regions()[1].offset;
    for (protection, allowed) in [
        (Protection { read: true, write: false }, [status::IOERR, status::OK]),
        (Protection { read: false, write: true }, [status::OK, status::IOERR]),
    ] {
        let file = Some((guest.memory.file(), offset));
        guest.transport.client.dma_map(EDGE, 2 << 20, protection, file).unwrap();
        let found = [kind::IN, kind::OUT].map(|kind| {
            let parts = Parts::new(&mut guest, kind, 0);
            let data = Buffer { addr: EDGE, len: 512, device_writes: kind == kind::IN };
            send(&mut guest, &[Buffer::readable(parts.header, 16), data, Buffer::writable(parts.status, 1)]);
            byte_at(&guest.memory, parts.status)
        });
        assert_eq!(found, allowed, "{protection:?}");
        guest.transport.client.dma_unmap(EDGE, 2 << 20).unwrap();
    }
}

#[test]
fn nothing_happens_without_bus_mastering_and_goes_on_with_it() {
    let rig = Rig::with_disk();
    let mut guest = rig.guest("disk", BlkOptions::default());
    let function = guest.transport.function;
    function.disable_bus_master(&mut guest.transport.client).unwrap();
    guest.queues[0].submit(Io { kind: kind::IN, sector: 0, len: 512 }).unwrap();
    guest.publish(0).unwrap();
    std::thread::sleep(SHORT);
    assert_eq!(guest.queues[0].poll().unwrap(), None);

    function.enable(&mut guest.transport.client).unwrap();

    assert_eq!(guest.wait(0).unwrap().status, status::OK);
}

#[test]
fn every_window_can_be_taken_back_at_once() {
    let rig = Rig::with_disk();
    let mut guest = guest_with_two_regions(&rig, "disk");
    guest.transport.client.dma_unmap_all().unwrap();
    let missing = guest.transport.client.dma_unmap(EDGE, 2 << 20).unwrap_err();
    assert_eq!(missing.refusal(), Some(Errno::NOENT));
    guest.transport.client.map_memory(&guest.memory).unwrap();
    guest.get_id(0).unwrap();
}

#[test]
fn reset_waits_for_what_is_in_flight_and_gives_nothing_back() {
    let (rig, hold) = Rig::with_held();
    let mut guest = rig.guest("disk", BlkOptions::default());
    let parts = Parts::new(&mut guest, kind::IN, 0);
    let chain = [
        Buffer::readable(parts.header, 16),
        Buffer::writable(parts.data, 512),
        Buffer::writable(parts.status, 1),
    ];
    guest.queues[0].ring().add(&chain).unwrap();
    guest.publish(0).unwrap();
    eventually("the read arrives", || hold.held() == 1);

    let id = guest.transport.client.send(Command::DEVICE_RESET, 0, &[], Vec::new()).unwrap();
    guest.transport.client.set_timeout(SHORT);
    let early = guest.transport.client.answer(id, Command::DEVICE_RESET);
    assert!(matches!(early, Err(ClientError::Timeout(_))), "{early:?}");
    assert_eq!(byte_at(&guest.memory, parts.status), NO_STATUS);
    hold.release();
    guest.transport.client.set_timeout(PATIENCE);
    guest.transport.client.answer(id, Command::DEVICE_RESET).unwrap();

    // The command register is at power-on too; BARs answer only once it is set.
    let function = guest.transport.function;
    function.enable(&mut guest.transport.client).unwrap();
    assert_eq!(guest.transport.status().unwrap(), 0);
    guest.start().unwrap();
    assert!(guest.read(0, 0, 512).unwrap() == [0xa5; 512]);
}
