//! The driver's ring against a device made of plain reads and writes.

use super::*;
use crate::mock::memory::REGION_ALIGN;

/// A ring, and the device's end of it.
struct Pair {
    ring: SplitDriver,
    memory: Memory,
    taken: u16,
    given: u16,
}

impl Pair {
    fn new(features: u64, indirect: Option<u16>) -> Self {
        let mut memory = Memory::new(REGION_ALIGN).unwrap();
        let ring = SplitDriver::new(&mut memory, &RingSetup { size: 8, features, indirect }).unwrap();
        Self { ring, memory, taken: 0, given: 0 }
    }

    fn u16_at(&self, at: u64) -> u16 {
        let mut bytes = [0; 2];
        self.memory.read(at, &mut bytes).unwrap();
        u16::from_le_bytes(bytes)
    }

    fn desc(&self, table: u64, index: u16) -> Desc {
        let mut bytes = [0; DESC_LEN];
        self.memory.read(table + u64::from(index) * 16, &mut bytes).unwrap();
        zerocopy::transmute!(bytes)
    }

    /// The next head that the driver has published.
    fn take(&mut self) -> Option<u16> {
        let driver = self.ring.areas().driver;
        let head = self.u16_at(driver + 4 + 2 * u64::from(self.taken % 8));
        let available = self.u16_at(driver + 2) != self.taken;
        self.taken += u16::from(available);
        available.then_some(head)
    }

    fn give(&mut self, id: u32, len: u32) {
        let device = self.ring.areas().device;
        self.memory
            .write(
                device + 4 + 8 * u64::from(self.given % 8),
                &[id.to_le_bytes(), len.to_le_bytes()].concat(),
            )
            .unwrap();
        self.given += 1;
        self.memory.write(device + 2, &self.given.to_le_bytes()).unwrap();
    }
}

const CHAIN: [Buffer; 3] = [
    Buffer { addr: 0x1000, len: 16, device_writes: false },
    Buffer { addr: 0x2000, len: 512, device_writes: true },
    Buffer { addr: 0x3000, len: 1, device_writes: true },
];

#[test]
fn chain_is_linked_and_seen_only_once_published() {
    let mut pair = Pair::new(0, None);
    let slot = pair.ring.add(&CHAIN).unwrap();
    assert_eq!(pair.take(), None);

    assert!(pair.ring.publish(), "the device did not say that it wants no kicks");

    assert_eq!(pair.take(), Some(slot));
    let table = pair.ring.areas().desc;
    let first = pair.desc(table, slot);
    let second = pair.desc(table, first.next);
    let third = pair.desc(table, second.next);
    assert_eq!((first.addr, first.len, first.flags), (0x1000, 16, desc::NEXT));
    assert_eq!((second.addr, second.len, second.flags), (0x2000, 512, desc::NEXT | desc::WRITE));
    assert_eq!((third.addr, third.len, third.flags), (0x3000, 1, desc::WRITE));
}

#[test]
fn indirect_chain_takes_one_descriptor_and_lies_in_its_own_table() {
    let mut pair = Pair::new(feature::INDIRECT_DESC, Some(4));
    let slots: Vec<u16> = (0..8).map(|_| pair.ring.add(&CHAIN).unwrap()).collect();
    assert_eq!(pair.ring.add(&CHAIN), None);

    let head = pair.desc(pair.ring.areas().desc, slots[5]);

    assert_eq!((head.len, head.flags), (48, desc::INDIRECT));
    assert_eq!(
        pair.desc(head.addr, 1),
        Desc { addr: 0x2000, len: 512, flags: desc::NEXT | desc::WRITE, next: 2 }
    );
    assert_eq!(pair.desc(head.addr, 2).flags, desc::WRITE);
}

#[test]
fn ring_that_is_full_takes_no_more_until_something_comes_back() {
    let mut pair = Pair::new(0, None);
    let first = pair.ring.add(&CHAIN).unwrap();
    pair.ring.add(&CHAIN).unwrap();
    assert_eq!(pair.ring.add(&CHAIN), None, "two descriptors are left");
    assert!(pair.ring.add(&CHAIN[..2]).is_some());
    pair.ring.publish();

    pair.give(u32::from(first), 513);

    assert_eq!(pair.ring.pop(), Ok(Some(Used { slot: first, len: 513 })));
    assert_eq!(pair.ring.pop(), Ok(None));
    assert!(pair.ring.add(&CHAIN).is_some());
}

#[test]
fn chains_of_any_order_and_shape_come_back_over_many_rounds() {
    let mut pair = Pair::new(0, None);
    for round in 0..1000_usize {
        let first = pair.ring.add(&CHAIN[..1 + round % 3]).unwrap();
        let second = pair.ring.add(&CHAIN[..1 + round / 3 % 3]).unwrap();
        pair.ring.publish();
        assert_eq!((pair.take(), pair.take()), (Some(first), Some(second)));
        pair.give(u32::from(second), 0);
        pair.give(u32::from(first), 0);
        assert_eq!(pair.ring.pop().unwrap().unwrap().slot, second);
        assert_eq!(pair.ring.pop().unwrap().unwrap().slot, first);
        assert_eq!(pair.ring.in_flight(), 0);
    }
}

#[test]
fn device_that_gives_back_what_it_does_not_have_is_found_out() {
    let mut pair = Pair::new(0, None);
    let slot = pair.ring.add(&CHAIN).unwrap();
    pair.ring.add(&CHAIN).unwrap();
    pair.ring.publish();

    pair.give(u32::from(slot), 0);
    pair.give(u32::from(slot), 0);

    assert!(pair.ring.pop().is_ok());
    assert_eq!(pair.ring.pop(), Err(RingFault::NotInFlight(u32::from(slot))));
}

#[test]
fn used_index_that_runs_ahead_is_found_out() {
    let mut pair = Pair::new(0, None);
    pair.ring.add(&CHAIN).unwrap();
    pair.ring.publish();
    pair.give(9, 0);
    pair.give(9, 0);
    assert_eq!(pair.ring.pop(), Err(RingFault::UsedIndex(2)));
}

#[test]
fn kick_is_wanted_by_flag_without_event_idx_and_by_index_with_it() {
    let mut by_flag = Pair::new(0, None);
    by_flag.memory.write(by_flag.ring.areas().device, &USED_NO_NOTIFY.to_le_bytes()).unwrap();
    by_flag.ring.add(&CHAIN).unwrap();
    assert!(!by_flag.ring.publish());

    let mut by_index = Pair::new(feature::EVENT_IDX, None);
    // avail_event lies behind the eight used elements: kick when chain 1 comes.
    by_index.memory.write(by_index.ring.areas().device + 4 + 64, &1_u16.to_le_bytes()).unwrap();
    by_index.ring.add(&CHAIN[..1]).unwrap();
    assert!(!by_index.ring.publish(), "chain 0");
    by_index.ring.add(&CHAIN[..1]).unwrap();
    assert!(by_index.ring.publish(), "chain 1");
    by_index.ring.add(&CHAIN[..1]).unwrap();
    assert!(!by_index.ring.publish(), "chain 2");
}

#[test]
fn interrupts_are_asked_for_the_way_that_was_agreed() {
    let mut by_flag = Pair::new(0, None);
    by_flag.ring.disable_interrupts();
    assert_eq!(by_flag.u16_at(by_flag.ring.areas().driver), AVAIL_NO_INTERRUPT);
    assert!(!by_flag.ring.enable_interrupts());
    assert_eq!(by_flag.u16_at(by_flag.ring.areas().driver), 0);

    let mut by_index = Pair::new(feature::EVENT_IDX, None);
    by_index.ring.add(&CHAIN).unwrap();
    by_index.ring.publish();
    by_index.give(0, 0);
    assert!(by_index.ring.enable_interrupts(), "one has come back already");
}

#[test]
fn descriptors_that_did_not_change_are_not_written_again() {
    let mut pair = Pair::new(0, None);
    let slot = pair.ring.add(&CHAIN).unwrap();
    pair.ring.publish();
    pair.give(u32::from(slot), 0);
    pair.ring.pop().unwrap();
    // Whoever looks at memory sees a trace that a write would wipe out.
    let at = pair.ring.areas().desc + u64::from(slot) * 16;
    pair.memory.write(at, &[0xaa; 16]).unwrap();

    assert_eq!(pair.ring.add(&CHAIN), Some(slot));

    assert_eq!(pair.desc(pair.ring.areas().desc, slot).addr, 0xaaaa_aaaa_aaaa_aaaa);
}
