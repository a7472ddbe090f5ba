//! Random rings against a live queue: whatever a driver writes, the device answers it, or asks for a reset; nothing
//! panics, nobody else notices, and a reset mends it.

use std::cell::RefCell;

use proptest::prelude::*;
use vfu::{
    mock::{blk::BlkOptions, memory::DEFAULT_BASE, ring::Buffer, server::DiskOptions, split::Poke},
    virtio::spec::{
        Desc,
        blk::{Header, status},
        status as device_status,
    },
};
use zerocopy::IntoBytes;

use crate::rig::{Guest, RAM, Rig, eventually, pattern};

/// An address: mostly inside the RAM, sometimes at its edges or nowhere.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => (0..RAM).prop_map(|at| DEFAULT_BASE + at),
        1 => (0_u64..0x2000).prop_map(|at| DEFAULT_BASE + RAM - 0x1000 + at),
        1 => any::<u64>(),
    ]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![3 => Just(16_u32), 2 => Just(1_u32), 3 => (0_u32..5).prop_map(|n| n * 512), 1 => any::<u32>()]
}

/// A descriptor that passes some of the checks.
fn descriptor() -> impl Strategy<Value = Desc> {
    let next = prop_oneof![8 => 0_u16..16, 1 => any::<u16>()];
    let flags = prop_oneof![8 => 0_u16..4, 1 => Just(4_u16), 1 => any::<u16>()];
    (address(), length(), flags, next).prop_map(|(addr, len, flags, next)| Desc { addr, len, flags, next })
}

#[derive(Clone, Debug)]
enum Step {
    Descriptor(u16, Desc),
    Head(u16),
    Advance(u16),
    Header(u64, u32, u64),
    Kick,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_u16..16, descriptor()).prop_map(|(at, desc)| Step::Descriptor(at, desc)),
        3 => prop_oneof![9 => 0_u16..16, 1 => any::<u16>()].prop_map(Step::Head),
        3 => prop_oneof![9 => 0_u16..3, 1 => any::<u16>()].prop_map(Step::Advance),
        2 => (address(), 0_u32..16, any::<u64>()).prop_map(|(at, kind, sector)| Step::Header(at, kind, sector % 40000)),
        1 => Just(Step::Kick),
    ]
}

fn apply(guest: &mut Guest, step: &Step) {
    match step {
        Step::Descriptor(at, desc) => guest.queues[0].ring().poke(Poke::Descriptor(*at, *desc)),
        Step::Head(head) => guest.queues[0].ring().poke(Poke::Head(*head)),
        Step::Advance(by) => guest.queues[0].ring().poke(Poke::Advance(*by)),
        Step::Header(at, kind, sector) => {
            let header = Header { kind: *kind, reserved: 0, sector: *sector };
            // Outside the RAM there is nothing to write to.
            let _ = guest.memory.write(*at, header.as_bytes());
        }
        Step::Kick => guest.transport.kick(0).unwrap(),
    }
}

/// The disk, the neighbour on the same reactor, and what the neighbour must read.
struct World {
    guest: Guest,
    neighbour: Guest,
    _rig: Rig,
}

impl World {
    fn new() -> Self {
        let mut rig = Rig::new();
        rig.null("Null0");
        rig.malloc("Malloc0", 512, 1);
        rig.serve("disk", &DiskOptions::new("Null0"));
        rig.serve("neighbour", &DiskOptions::new("Malloc0"));
        let options = BlkOptions { ring_size: 16, max_io: 16384, ..BlkOptions::default() };
        let guest = rig.guest("disk", options);
        let mut neighbour = rig.guest("neighbour", options);
        neighbour.write(0, 0, &pattern(4096, 1)).unwrap();
        Self { guest, neighbour, _rig: rig }
    }

    /// A new guest in new memory: the old one's is full of nonsense.
    fn reboot(&mut self) {
        self.guest.transport.client.dma_unmap_all().unwrap();
        self.guest.memory = vfu::mock::memory::Memory::new(RAM).unwrap();
        self.guest.transport.client.map_memory(&self.guest.memory).unwrap();
        self.guest.start().unwrap();
    }
}

proptest! {
    // Each case is a guest's life of some milliseconds.
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_rings_end_in_an_answer_or_in_a_reset(lives in prop::collection::vec(prop::collection::vec(step(), 1..60), 1..4)) {
        thread_local! {
            static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
        }
        WORLD.with_borrow_mut(|world| {
            let world = world.get_or_insert_with(World::new);
            for life in &lives {
                life.iter().for_each(|step| apply(&mut world.guest, step));
                world.guest.transport.kick(0).unwrap();
                let ring_end = world.guest.queues[0].ring().avail_index();
                // It either takes everything there is, or says that it cannot go on.
                eventually("the device ends neither way", || {
                    world.guest.queues[0].ring().used_index() == ring_end
                        || world.guest.transport.status().unwrap() & device_status::NEEDS_RESET != 0
                });
                assert!(world.neighbour.read(0, 0, 4096).unwrap() == pattern(4096, 1));
                world.reboot();
                assert_eq!(world.guest.get_id(0).unwrap(), b"Null0");
            }
        });
    }

    #[test]
    fn valid_requests_cut_at_random_are_all_right(
        cuts in prop::collection::vec((prop::collection::vec(1_u32..700, 1..12), 0_u64..64, any::<bool>()), 1..10),
    ) {
        thread_local! {
            static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
        }
        WORLD.with_borrow_mut(|world| {
            let world = world.get_or_insert_with(World::new);
            let guest = &mut world.neighbour;
            for (cuts, sector, write) in &cuts {
                // Up to 1 MiB of disk; the first sectors are the other test's.
                let (sector, total) = (16 + sector, cuts.iter().sum::<u32>().next_multiple_of(512));
                let kind = u32::from(*write);
                let parts = crate::chains::Parts::new(guest, kind, sector);
                let data = pattern(total as usize, sector);
                guest.memory.write(parts.data, &data).unwrap();
                let mut chain = vec![Buffer::readable(parts.header, 16)];
                let mut at = 0;
                for len in cuts.iter().copied().chain([u32::MAX]) {
                    let len = len.min(total - at);
                    chain.push(Buffer { addr: parts.data + u64::from(at), len, device_writes: !write });
                    at += len;
                }
                chain.push(Buffer::writable(parts.status, 1));
                crate::chains::send(guest, &chain);
                assert_eq!(crate::chains::byte_at(&guest.memory, parts.status), status::OK);
                let mut there = vec![0; total as usize];
                guest.memory.read(parts.data, &mut there).unwrap();
                assert!(guest.read(0, sector, total).unwrap() == there);
            }
            // New memory for the next case: what was handed out does not come back.
            std::mem::swap(&mut world.guest, &mut world.neighbour);
            world.reboot();
            std::mem::swap(&mut world.guest, &mut world.neighbour);
        });
    }
}
