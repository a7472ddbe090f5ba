//! The split ring against rust-vmm's `virtio-queue`, an implementation that is not ours: over the same guest memory both
//! see the same chains, and leave the same used ring and the same decision about the interrupt.

use proptest::prelude::*;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{
    tests::{publish_and_ask, windows},
    *,
};
use crate::mock::{
    memory::{DEFAULT_BASE, Memory},
    ring::{Buffer, DriverRing, RingSetup},
    split::SplitDriver,
};

/// All that rings of this size take of the RAM.
const USED_RAM: usize = 64 << 10;
const SIZE: u16 = 32;

/// A chain, as a round adds it: buffers that are read, buffers that are written, their length.
type Shape = (u8, u8, u32);
/// Chains added; how many of them are taken; whether the driver asks for an interrupt.
type Round = (Vec<Shape>, u8, bool);

fn rounds() -> impl Strategy<Value = Vec<Round>> {
    let shape = (0_u8..4, 1_u8..4, 1_u32..100_000);
    prop::collection::vec((prop::collection::vec(shape, 0..8), 0_u8..8, any::<bool>()), 1..30)
}

fn peer(driver: &SplitDriver, features: u64) -> (Queue, GuestMemoryMmap) {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(DEFAULT_BASE), USED_RAM)]).unwrap();
    let mut queue = Queue::new(SIZE).unwrap();
    let areas = driver.areas();
    let halves = |addr: u64| (Some(addr as u32), Some((addr >> 32) as u32));
    queue.set_size(SIZE);
    let (low, high) = halves(areas.desc);
    queue.set_desc_table_address(low, high);
    let (low, high) = halves(areas.driver);
    queue.set_avail_ring_address(low, high);
    let (low, high) = halves(areas.device);
    queue.set_used_ring_address(low, high);
    queue.set_event_idx(features & feature::EVENT_IDX != 0);
    queue.set_ready(true);
    assert!(queue.is_valid(&memory));
    (queue, memory)
}

fn bytes(memory: &Memory) -> Vec<u8> {
    let mut bytes = vec![0; USED_RAM];
    memory.read(DEFAULT_BASE, &mut bytes).unwrap();
    bytes
}

proptest! {
    #[test]
    fn split_ring_and_virtio_queue_see_and_leave_the_same(
        rounds in rounds(), event_idx: bool, indirect: bool,
    ) {
        let mut features = if event_idx { feature::EVENT_IDX } else { 0 };
        features |= if indirect { feature::INDIRECT_DESC } else { 0 };
        let mut memory = Memory::new(2 << 20).unwrap();
        let setup = RingSetup { size: SIZE, features, indirect: indirect.then_some(8) };
        let mut driver = SplitDriver::new(&mut memory, &setup).unwrap();
        let (mut theirs, their_memory) = peer(&driver, features);
        let view = View::new(&windows(&memory, false));
        let areas = driver.areas();
        let config =
            QueueConfig { size: SIZE, desc: areas.desc, driver: areas.driver, device: areas.device, features };
        let mut ours = SplitRing::activate(&config.check().unwrap(), SplitRing::START, &view).unwrap();
        let mut chain = Chain::new();

        for (shapes, take, interrupts) in rounds {
            for (readable, writable, len) in shapes {
                let buffer = |nth: u8, device_writes| Buffer {
                    addr: DEFAULT_BASE + u64::from(len) * 16 + u64::from(nth), len, device_writes,
                };
                let mut buffers: Vec<_> = (0..readable).map(|nth| buffer(nth, false)).collect();
                buffers.extend((0..writable).map(|nth| buffer(nth, true)));
                driver.add(&buffers);
            }
            driver.publish();
            if interrupts { driver.enable_interrupts(); } else { driver.disable_interrupts(); }
            their_memory.write_slice(&bytes(&memory), GuestAddress(DEFAULT_BASE)).unwrap();

            let mut finished = Vec::new();
            let mut waits = ours.pending().unwrap();
            for _ in 0..take {
                if !waits { break; }
                let triple = ours.peek_triple(&view);
                ours.pop(&view, &mut chain).unwrap();
                let is_triple = (chain.readable().len(), chain.writable().len()) == (1, 2)
                    || (chain.readable().len(), chain.writable().len()) == (2, 1);
                let buffers = triple.map(|it| (it.head, it.buffers.to_vec(), it.is_read));
                let both = [chain.readable(), chain.writable()].concat();
                prop_assert_eq!(buffers, is_triple.then(|| (chain.head(), both, chain.readable().len() == 1)));
                ours.advance(chain.head());
                let there = theirs.pop_descriptor_chain(&their_memory).unwrap();
                let segments = |it: virtio_queue::desc::split::Descriptor| Segment { addr: it.addr().0, len: it.len() };
                prop_assert_eq!(there.head_index(), chain.id());
                prop_assert_eq!(there.clone().readable().map(segments).collect::<Vec<_>>(), chain.readable());
                prop_assert_eq!(there.writable().map(segments).collect::<Vec<_>>(), chain.writable());
                finished.push((chain.id(), chain.head().entries.into()));
                waits = ours.has_next();
            }
            prop_assert_eq!(!ours.pending().unwrap(), theirs.pop_descriptor_chain(&their_memory).is_none_or(|_| {
                theirs.go_to_previous_position();
                false
            }));
            // The last one taken is given back first.
            for &(id, len) in finished.iter().rev() {
                ours.push_used(id, len);
                theirs.add_used(&their_memory, id, len).unwrap();
            }
            let raise = publish_and_ask(&mut ours);
            // Theirs does not look at the flag that stands for interrupts without EVENT_IDX.
            let flag = event_idx || interrupts;
            let wanted = theirs.needs_notification(&their_memory).unwrap() && flag && !finished.is_empty();
            prop_assert_eq!(raise, wanted);
            let mut left = vec![0; USED_RAM];
            their_memory.read_slice(&mut left, GuestAddress(DEFAULT_BASE)).unwrap();
            prop_assert!(bytes(&memory) == left, "the used rings differ");
            while driver.pop().unwrap().is_some() {}
        }
    }
}
