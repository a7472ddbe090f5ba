//! Rings and requests that no correct driver makes. Each ends in an error status or in a device that asks for a reset,
//! and says so by an interrupt; a neighbour on the same reactor never notices; a reset mends everything.

use vfu::{
    mock::{
        blk::{BlkOptions, Io, NO_STATUS},
        ring::{Buffer, DriverRing},
        server::DiskOptions,
        split::Poke,
        transport::QueueSetup,
    },
    virtio::spec::{
        Desc,
        blk::{kind, status},
        feature, status as device_status,
    },
};
use zerocopy::IntoBytes;

use crate::{
    chains::{Parts, byte_at, send},
    held::Held,
    rig::{Guest, PATIENCE, Rig, eventually, pattern},
};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Outside every window.
const NOWHERE: u64 = 0x7777_0000_0000;

pub(crate) fn desc(addr: u64, len: u32, flags: u16, next: u16) -> Desc {
    Desc { addr, len, flags, next }
}

/// Writes descriptors from number 0 on, offers the first as a head, and kicks.
pub(crate) fn offer(guest: &mut Guest, table: &[Desc]) {
    for (at, entry) in (0..).zip(table) {
        guest.queues[0].ring().poke(Poke::Descriptor(at, *entry));
    }
    guest.queues[0].ring().poke(Poke::Head(0));
    guest.queues[0].ring().poke(Poke::Advance(1));
    guest.transport.kick(0).unwrap();
}

/// A disk and its neighbour on one reactor.
struct Street {
    rig: Rig,
    neighbour: Guest,
}

impl Street {
    fn new() -> Self {
        let mut rig = Rig::with_disk();
        rig.malloc("Malloc1", 512, 1);
        rig.serve("neighbour", &DiskOptions::new("Malloc1"));
        let mut neighbour = rig.guest("neighbour", BlkOptions::default());
        neighbour.write(0, 0, &pattern(4096, 1)).unwrap();
        Self { rig, neighbour }
    }

    fn guest(&self) -> Guest {
        self.rig.guest("disk", BlkOptions { interrupts: true, ..BlkOptions::default() })
    }

    fn is_quiet(&mut self) {
        assert!(self.neighbour.read(0, 0, 4096).unwrap() == pattern(4096, 1));
    }
}

/// The device asks for a reset and tells the driver; the neighbour lives; after a reset all is well.
fn needs_reset_after(break_it: impl FnOnce(&mut Guest)) {
    let mut street = Street::new();
    let mut guest = street.guest();
    guest.write(0, 0, &pattern(512, 2)).unwrap();

    break_it(&mut guest);

    assert!(guest.wait_interrupt(0, PATIENCE), "no configuration interrupt");
    assert_ne!(guest.transport.status().unwrap() & device_status::NEEDS_RESET, 0);
    street.is_quiet();
    guest.start().unwrap();
    assert_eq!(guest.transport.status().unwrap() & device_status::NEEDS_RESET, 0);
    assert!(guest.read(0, 0, 512).unwrap() == pattern(512, 2));
}

/// The request fails, and the queue goes on.
fn request_fails(make: impl FnOnce(&Parts) -> Vec<Buffer>) {
    let mut street = Street::new();
    let mut guest = street.guest();
    guest.write(0, 0, &pattern(512, 2)).unwrap();
    let parts = Parts::new(&mut guest, kind::IN, 0);
    let chain = make(&parts);

    send(&mut guest, &chain);

    assert_eq!(byte_at(&guest.memory, parts.status), status::IOERR);
    assert_eq!(guest.transport.status().unwrap() & device_status::NEEDS_RESET, 0);
    assert!(guest.read(0, 0, 512).unwrap() == pattern(512, 2));
    street.is_quiet();
}

#[test]
fn descriptor_that_links_to_itself() {
    needs_reset_after(|guest| offer(guest, &[desc(0x1_0000_0000, 16, NEXT, 0)]));
}

#[test]
fn descriptors_that_link_to_each_other() {
    needs_reset_after(|guest| {
        let at = 0x1_0000_0000;
        offer(guest, &[desc(at, 16, NEXT, 1), desc(at, 16, NEXT, 2), desc(at, 16, NEXT, 1)]);
    });
}

#[test]
fn link_outside_the_table() {
    needs_reset_after(|guest| offer(guest, &[desc(0x1_0000_0000, 16, NEXT, 128)]));
    needs_reset_after(|guest| offer(guest, &[desc(0x1_0000_0000, 16, NEXT, 0xffff)]));
}

#[test]
fn head_outside_the_table() {
    for head in [128, 0x8000, 0xffff] {
        needs_reset_after(|guest| {
            guest.queues[0].ring().poke(Poke::Head(head));
            guest.queues[0].ring().poke(Poke::Advance(1));
            guest.transport.kick(0).unwrap();
        });
    }
}

#[test]
fn available_index_that_runs_ahead() {
    for ahead in [129, 0x8000, 0xffff] {
        needs_reset_after(|guest| {
            guest.queues[0].ring().poke(Poke::Advance(ahead));
            guest.transport.kick(0).unwrap();
        });
    }
}

#[test]
fn head_that_is_in_flight_already() {
    let mut street = Street::new();
    let (held, hold) = Held::make("Held0");
    street.rig.register(held);
    street.rig.serve("held", &DiskOptions::new("Held0"));
    let mut guest = street.rig.guest("held", BlkOptions { interrupts: true, ..BlkOptions::default() });
    guest.queues[0].submit(Io { kind: kind::IN, sector: 0, len: 512 }).unwrap();
    guest.publish(0).unwrap();
    eventually("the request arrives", || hold.held() == 1);

    // Head 0 again, as it is.
    guest.queues[0].ring().poke(Poke::Head(0));
    guest.queues[0].ring().poke(Poke::Advance(1));
    guest.transport.kick(0).unwrap();
    street.is_quiet();
    hold.release();

    assert!(guest.wait_interrupt(0, PATIENCE));
    assert_ne!(guest.transport.status().unwrap() & device_status::NEEDS_RESET, 0);
    let done = guest.queues[0].poll().unwrap().expect("what was in flight is given back");
    assert_eq!((done.status, done.len), (status::OK, 513));
    guest.start().unwrap();
    assert!(guest.read(0, 0, 512).unwrap() == [0xa5; 512]);
}

#[test]
fn chains_before_the_one_that_breaks_the_ring_are_given_back() {
    needs_reset_after(|guest| {
        // The first is answered on the spot, the second by the bdev; all three are there in one pass.
        guest.queues[0].submit(Io { kind: kind::GET_ID, sector: 0, len: 20 }).unwrap();
        guest.queues[0].submit(Io { kind: kind::IN, sector: 0, len: 512 }).unwrap();
        guest.queues[0].publish_quietly();
        guest.queues[0].ring().poke(Poke::Head(0x8000));
        guest.queues[0].ring().poke(Poke::Advance(1));
        guest.transport.kick(0).unwrap();
        eventually("both come back", || guest.queues[0].ring().used_index() == 3);
        for len in [21, 513] {
            let done = guest.queues[0].poll().unwrap().unwrap();
            assert_eq!((done.status, done.len), (status::OK, len));
        }
    });
}

#[test]
fn readable_buffer_behind_a_writable_one() {
    needs_reset_after(|guest| {
        let parts = Parts::new(guest, kind::IN, 0);
        offer(guest, &[desc(parts.status, 1, WRITE | NEXT, 1), desc(parts.header, 16, 0, 0)]);
    });
}

#[test]
fn chain_with_no_room_for_a_status() {
    needs_reset_after(|guest| {
        let parts = Parts::new(guest, kind::OUT, 0);
        offer(guest, &[desc(parts.header, 16, NEXT, 1), desc(parts.data, 512, 0, 0)]);
    });
    needs_reset_after(|guest| {
        let parts = Parts::new(guest, kind::IN, 0);
        offer(guest, &[desc(parts.header, 16, NEXT, 1), desc(parts.data, 0, WRITE, 0)]);
    });
}

/// A table at `parts.data`, offered by a head of these flags and length.
fn offer_table(guest: &mut Guest, table: &[Desc], len: u32, flags: u16) {
    let parts = Parts::new(guest, kind::IN, 0);
    guest.memory.write(parts.data, table.as_bytes()).unwrap();
    offer(guest, &[desc(parts.data, len, flags, 1), desc(parts.status, 1, WRITE, 0)]);
}

#[test]
fn indirect_table_inside_an_indirect_table() {
    needs_reset_after(|guest| offer_table(guest, &[desc(0x1_0000_0000, 16, INDIRECT, 0)], 16, INDIRECT));
}

#[test]
fn indirect_table_with_a_link_behind_it() {
    needs_reset_after(|guest| offer_table(guest, &[desc(0x1_0000_0000, 16, 0, 0)], 16, INDIRECT | NEXT));
}

#[test]
fn indirect_tables_of_lengths_that_no_table_has() {
    for len in [0, 1, 15, 17, 0xffff_fff0, 0xffff_ffff, 16 * 32769] {
        needs_reset_after(|guest| offer_table(guest, &[desc(0x1_0000_0000, 16, 0, 0)], len, INDIRECT));
    }
}

#[test]
fn indirect_table_that_loops_or_links_outside_itself() {
    let at = 0x1_0000_0000;
    needs_reset_after(|guest| {
        offer_table(guest, &[desc(at, 16, NEXT, 1), desc(at, 16, NEXT, 0)], 32, INDIRECT);
    });
    needs_reset_after(|guest| offer_table(guest, &[desc(at, 16, NEXT, 2), desc(at, 16, 0, 0)], 32, INDIRECT));
}

#[test]
fn indirect_table_outside_the_windows() {
    needs_reset_after(|guest| offer(guest, &[desc(NOWHERE, 48, INDIRECT, 0)]));
    needs_reset_after(|guest| offer(guest, &[desc(u64::MAX - 15, 48, INDIRECT, 0)]));
}

#[test]
fn indirect_table_that_was_not_agreed() {
    let street = Street::new();
    let options = BlkOptions { interrupts: true, features: feature::EVENT_IDX, ..BlkOptions::default() };
    let mut guest = street.rig.guest("disk", options);
    offer_table(&mut guest, &[desc(0x1_0000_0000, 16, 0, 0)], 16, INDIRECT);
    assert!(guest.wait_interrupt(0, PATIENCE));
    assert_ne!(guest.transport.status().unwrap() & device_status::NEEDS_RESET, 0);
}

#[test]
fn chain_longer_than_any_request() {
    needs_reset_after(|guest| {
        let at = guest.memory.allocate(32768 * 16, 4096).unwrap();
        let table: Vec<Desc> = (1..=32768_u32).map(|next| desc(at, 0, NEXT, (next % 32768) as u16)).collect();
        guest.memory.write(at, table.as_bytes()).unwrap();
        offer(guest, &[desc(at, 32768 * 16, INDIRECT, 0)]);
    });
}

#[test]
fn data_outside_the_windows() {
    for address in [NOWHERE, 0, u64::MAX - 511, u64::MAX] {
        request_fails(|parts| {
            vec![
                Buffer::readable(parts.header, 16),
                Buffer::writable(address, 512),
                Buffer::writable(parts.status, 1),
            ]
        });
    }
}

#[test]
fn data_that_runs_out_of_its_window() {
    request_fails(|parts| {
        let last = 0x1_0000_0000 + crate::rig::RAM - 512;
        vec![
            Buffer::readable(parts.header, 16),
            Buffer::writable(last, 1024),
            Buffer::writable(parts.status, 1),
        ]
    });
}

#[test]
fn impossible_lengths() {
    for len in [0xffff_fe00, 0xffff_ffff, 0x8000_0000] {
        request_fails(|parts| {
            vec![
                Buffer::readable(parts.header, 16),
                Buffer::writable(parts.data, len),
                Buffer::writable(parts.status, 1),
            ]
        });
    }
    // Sums that wrap 32 and come near 64 bits.
    request_fails(|parts| {
        let mut chain = vec![Buffer::readable(parts.header, 16)];
        chain.extend((0..60).map(|_| Buffer::writable(parts.data, 0xffff_fe00)));
        chain.push(Buffer::writable(parts.status, 1));
        chain
    });
}

#[test]
fn header_that_is_short_or_out_of_reach() {
    request_fails(|parts| vec![Buffer::readable(parts.header, 15), Buffer::writable(parts.status, 1)]);
    request_fails(|parts| vec![Buffer::writable(parts.status, 1)]);
    request_fails(|parts| vec![Buffer::readable(NOWHERE, 16), Buffer::writable(parts.status, 1)]);
}

#[test]
fn status_out_of_reach_is_the_drivers_own_loss() {
    let mut street = Street::new();
    let mut guest = street.guest();
    let parts = Parts::new(&mut guest, kind::GET_ID, 0);
    let chain =
        [Buffer::readable(parts.header, 16), Buffer::writable(parts.data, 20), Buffer::writable(NOWHERE, 1)];
    assert_eq!(send(&mut guest, &chain).len, 0);
    assert_eq!(byte_at(&guest.memory, parts.status), NO_STATUS);
    guest.get_id(0).unwrap();
    street.is_quiet();
}

#[test]
fn status_out_of_reach_of_a_request_that_reached_the_bdev() {
    let mut street = Street::new();
    let mut guest = street.guest();
    let parts = Parts::new(&mut guest, kind::IN, 0);
    let chain =
        [Buffer::readable(parts.header, 16), Buffer::writable(parts.data, 512), Buffer::writable(NOWHERE, 1)];
    send(&mut guest, &chain);
    guest.get_id(0).unwrap();
    street.is_quiet();
}

/// Brings a disk up whose queue 0 is set up as `setup` says.
fn started_with(guest: &mut Guest, setup: impl FnOnce(QueueSetup) -> QueueSetup) {
    let (areas, features) = (guest.queues[0].ring().areas(), guest.features());
    let transport = &mut guest.transport;
    transport.reset().unwrap();
    transport.add_status(device_status::ACKNOWLEDGE | device_status::DRIVER).unwrap();
    transport.set_driver_features(features).unwrap();
    transport.add_status(device_status::FEATURES_OK).unwrap();
    assert!(transport.set_config_vector(0).unwrap());
    transport.set_queue(0, &setup(QueueSetup { size: 128, vector: 1, areas })).unwrap();
    transport.add_status(device_status::DRIVER_OK).unwrap();
}

#[test]
fn ring_size_that_is_no_power_of_two_and_areas_that_are_not_aligned() {
    let odd: [fn(&mut QueueSetup); 4] = [
        |setup| setup.size = 100,
        |setup| setup.areas.desc += 8,
        |setup| setup.areas.driver += 1,
        |setup| setup.areas.device += 2,
    ];
    for change in odd {
        needs_reset_after(|guest| {
            started_with(guest, |mut setup| {
                change(&mut setup);
                setup
            });
        });
    }
}

#[test]
fn ring_outside_the_windows_does_nothing_and_harms_nobody() {
    let mut street = Street::new();
    for address in [NOWHERE, 0, 0xffff_ffff_ffff_f000, 0x1_0000_0000 + crate::rig::RAM - 16] {
        let mut guest = street.guest();
        started_with(&mut guest, |mut setup| {
            setup.areas.desc = address;
            setup
        });
        guest.transport.kick(0).unwrap();
        street.is_quiet();
        guest.start().unwrap();
        guest.get_id(0).unwrap();
    }
}

#[test]
fn ring_that_another_thread_scribbles_on_harms_nobody() {
    let mut street = Street::new();
    for round in 0..8_u64 {
        let mut guest = street.guest();
        let areas = guest.queues[0].ring().areas();
        let (desc, avail) =
            (guest.memory.span(areas.desc, 2048).unwrap(), guest.memory.span(areas.driver, 262).unwrap());
        let scribbler = std::thread::spawn(move || {
            for bytes in pattern(200_000, round + 1).chunks_exact(4) {
                let value = u16::from_le_bytes([bytes[0], bytes[1]]);
                // Mostly small numbers: they pass the first checks.
                let small = value & 0x7f;
                desc.slice().write(usize::from(bytes[2]) * 8 + usize::from(bytes[3] & 7), small as u8);
                avail.slice().write(usize::from(small) * 2, value & 0xff);
            }
        });
        for _ in 0..50 {
            guest.transport.kick(0).unwrap();
            std::thread::yield_now();
        }
        scribbler.join().unwrap();
        street.is_quiet();
        guest.start().unwrap();
        guest.get_id(0).unwrap();
    }
}
