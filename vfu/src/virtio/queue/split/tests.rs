//! The device's ring against the guest's side of this crate, in one memory: what one offers the other finds, and what
//! one gives back the other takes.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
    dma::{Protection, Windows},
    mock::{
        memory::{DEFAULT_BASE, Memory, REGION_ALIGN},
        ring::{Buffer, DriverRing, RingSetup, Used},
        split::{Poke, SplitDriver},
    },
    virtio::queue::tests::publish_and_ask,
};

const SIZE: u16 = 16;
const BOTH: Protection = Protection { read: true, write: true };
const INDIRECT: u64 = feature::INDIRECT_DESC;

struct Pair {
    driver: SplitDriver,
    device: SplitRing,
    config: QueueConfig,
    view: View,
    chain: Chain,
}

impl Pair {
    fn new(features: u64) -> Self {
        let mut memory = Memory::new(REGION_ALIGN).unwrap();
        let setup = RingSetup { size: SIZE, features, indirect: (features & INDIRECT != 0).then_some(8) };
        let driver = SplitDriver::new(&mut memory, &setup).unwrap();
        let windows = Windows::default();
        let file = memory.file().try_clone_to_owned().unwrap();
        windows.map(DEFAULT_BASE, REGION_ALIGN, BOTH, Some((file, 0))).unwrap();
        let view = View::new(&windows);
        let areas = driver.areas();
        let config = QueueConfig {
            size: SIZE,
            desc: areas.desc,
            driver: areas.driver,
            device: areas.device,
            features,
        };
        let device = SplitRing::activate(&config.check().unwrap(), Position::default(), &view).unwrap();
        Self { driver, device, config, view, chain: Chain::new() }
    }

    /// Takes the next chain: its id, and its buffers as the driver said them.
    fn take(&mut self) -> Result<Option<(u16, Vec<Buffer>)>, RingError> {
        if !self.device.pending()? {
            return Ok(None);
        }
        self.device.pop(&self.view, &mut self.chain)?;
        self.device.advance(self.chain.head());
        let readable =
            self.chain.readable().iter().map(|segment| Buffer::readable(segment.addr, segment.len));
        let writable =
            self.chain.writable().iter().map(|segment| Buffer::writable(segment.addr, segment.len));
        Ok(Some((self.chain.id(), readable.chain(writable).collect())))
    }

    /// The error of a ring in which these descriptors stand, the first of them offered.
    fn error_of(&mut self, table: &[Desc]) -> RingError {
        for (at, entry) in (0..).zip(table) {
            self.driver.poke(Poke::Descriptor(at, *entry));
        }
        self.driver.poke(Poke::Head(0));
        self.driver.poke(Poke::Advance(1));
        self.take().unwrap_err()
    }
}

fn desc(len: u32, flags: u16, next: u16) -> Desc {
    Desc { addr: DEFAULT_BASE, len, flags, next }
}

const CHAIN: [Buffer; 3] = [
    Buffer { addr: 0x1000, len: 16, device_writes: false },
    Buffer { addr: 0x2000, len: 512, device_writes: true },
    Buffer { addr: 0x3000, len: 1, device_writes: true },
];

#[test]
fn chain_arrives_as_it_was_offered() {
    for features in [0, INDIRECT] {
        let mut pair = Pair::new(features);
        let slot = pair.driver.add(&CHAIN).unwrap();
        assert_eq!(pair.take(), Ok(None), "not published yet");
        pair.driver.publish();
        assert_eq!(pair.take(), Ok(Some((slot, CHAIN.to_vec()))));
        assert_eq!(pair.take(), Ok(None));
    }
}

#[test]
fn chain_that_is_not_advanced_over_is_offered_again() {
    let mut pair = Pair::new(0);
    pair.driver.add(&CHAIN).unwrap();
    pair.driver.publish();
    pair.device.pop(&pair.view, &mut pair.chain).unwrap();
    assert_eq!(pair.device.pending(), Ok(true));
    pair.device.pop(&pair.view, &mut pair.chain).unwrap();
    assert_eq!(pair.chain.writable().len(), 2);
}

#[test]
fn what_is_given_back_shows_only_once_published() {
    let mut pair = Pair::new(0);
    let slots = [(); 3].map(|()| pair.driver.add(&CHAIN).unwrap());
    pair.driver.publish();
    (0..3).for_each(|_| drop(pair.take().unwrap()));
    pair.device.push_used(slots[2], 7);
    pair.device.push_used(slots[0], 9);
    assert_eq!(pair.driver.pop(), Ok(None));

    publish_and_ask(&mut pair.device);

    assert_eq!(pair.driver.pop(), Ok(Some(Used { slot: slots[2], len: 7 })));
    assert_eq!(pair.driver.pop(), Ok(Some(Used { slot: slots[0], len: 9 })));
    assert_eq!(pair.driver.pop(), Ok(None));
}

#[test]
fn interrupt_is_raised_unless_the_driver_says_no() {
    let mut pair = Pair::new(0);
    for wanted in [true, false, true] {
        if wanted {
            pair.driver.enable_interrupts();
        } else {
            pair.driver.disable_interrupts();
        }
        let slot = pair.driver.add(&CHAIN).unwrap();
        pair.driver.publish();
        pair.take().unwrap();
        pair.device.push_used(slot, 0);
        assert_eq!(publish_and_ask(&mut pair.device), wanted);
        pair.driver.pop().unwrap();
    }
    assert!(!publish_and_ask(&mut pair.device), "nothing was given back");
}

#[test]
fn interrupt_is_raised_when_the_event_index_is_passed_and_not_before_or_after() {
    let mut pair = Pair::new(feature::EVENT_IDX);
    // Asked for at index 0, then never again.
    pair.driver.enable_interrupts();
    let raised: Vec<bool> = (0..40)
        .map(|_| {
            let slot = pair.driver.add(&CHAIN).unwrap();
            pair.driver.publish();
            pair.take().unwrap();
            pair.device.push_used(slot, 0);
            let raised = publish_and_ask(&mut pair.device);
            pair.driver.pop().unwrap();
            raised
        })
        .collect();
    assert_eq!(raised.iter().filter(|raised| **raised).count(), 1);
    assert!(raised[0]);
}

#[test]
fn driver_kicks_when_asked_to_and_not_else() {
    for features in [0, feature::EVENT_IDX] {
        let mut pair = Pair::new(features);
        assert!(!pair.device.enable_kicks(), "nothing waits");
        pair.driver.add(&CHAIN).unwrap();
        assert!(pair.driver.publish());
        pair.device.disable_kicks();
        pair.driver.add(&CHAIN).unwrap();
        assert!(!pair.driver.publish());
        assert!(pair.device.enable_kicks(), "two wait");
    }
}

#[test]
fn position_is_enough_to_go_on() {
    let mut pair = Pair::new(0);
    for round in 0..100_u16 {
        let slot = pair.driver.add(&CHAIN).unwrap();
        pair.driver.publish();
        pair.take().unwrap();
        pair.device.push_used(slot, u32::from(round));
        publish_and_ask(&mut pair.device);
        pair.device =
            SplitRing::activate(&pair.config.check().unwrap(), pair.device.position(), &pair.view).unwrap();
        assert_eq!(pair.driver.pop(), Ok(Some(Used { slot, len: u32::from(round) })));
    }
    assert_eq!(pair.device.position(), Position { avail: 100, used: 100 });
}

#[test]
fn indices_wrap_without_a_trace() {
    let mut pair = Pair::new(feature::EVENT_IDX);
    for round in 0..70_000_u32 {
        let slot = pair.driver.add(&CHAIN).unwrap();
        pair.driver.publish();
        assert_eq!(pair.take().unwrap().map(|(id, _)| id), Some(slot));
        pair.device.push_used(slot, round);
        publish_and_ask(&mut pair.device);
        assert_eq!(pair.driver.pop(), Ok(Some(Used { slot, len: round })));
    }
}

#[test]
fn ring_outside_of_memory_is_not_activated() {
    let Pair { config, view, .. } = Pair::new(0);
    let activate = |config: QueueConfig| {
        SplitRing::activate(&config.check().unwrap(), SplitRing::START, &view).map(drop).unwrap_err()
    };
    for desc in [0, DEFAULT_BASE + REGION_ALIGN - 16, u64::MAX - 15] {
        assert!(matches!(activate(QueueConfig { desc, ..config }), ActivateError::Fault(_)), "{desc:#x}");
    }
}

#[test]
fn ring_whose_index_runs_ahead_is_broken() {
    for ahead in [SIZE + 1, 0x8000, 0xffff] {
        let mut pair = Pair::new(0);
        pair.driver.poke(Poke::Advance(ahead));
        assert_eq!(pair.device.pending(), Err(RingError::AvailIndex(ahead)));
    }
}

#[test]
fn full_ring_is_not_ahead() {
    let mut pair = Pair::new(0);
    pair.driver.poke(Poke::Advance(SIZE));
    assert_eq!(pair.device.pending(), Ok(true));
}

#[test]
fn broken_chains_are_told_by_name() {
    let error_of = |table: &[Desc]| Pair::new(INDIRECT).error_of(table);
    assert_eq!(error_of(&[desc(1, desc::NEXT, 0)]), RingError::Loop);
    assert_eq!(error_of(&[desc(1, desc::NEXT, 1), desc(1, desc::NEXT, 0)]), RingError::Loop);
    assert_eq!(error_of(&[desc(1, desc::NEXT, SIZE)]), RingError::Index(SIZE));
    assert_eq!(error_of(&[desc(1, desc::NEXT | desc::WRITE, 1), desc(1, 0, 0)]), RingError::Order);
    assert_eq!(error_of(&[desc(1, desc::NEXT, 1), desc(16, desc::INDIRECT, 0)]), RingError::Indirect);
    for len in [0, 8, 17, u32::MAX] {
        assert_eq!(error_of(&[desc(len, desc::INDIRECT, 0)]), RingError::Indirect, "{len}");
    }
    assert_eq!(error_of(&[desc(16, desc::INDIRECT | desc::NEXT, 1)]), RingError::Indirect);
    let nowhere = Desc { addr: 7, ..desc(16, desc::INDIRECT, 0) };
    assert_eq!(error_of(&[nowhere]), RingError::Fault(Fault(7)));
    assert_eq!(Pair::new(0).error_of(&[desc(16, desc::INDIRECT, 0)]), RingError::Indirect, "not agreed to");
}

#[test]
fn head_outside_the_table_is_told() {
    let mut pair = Pair::new(0);
    pair.driver.poke(Poke::Head(SIZE));
    pair.driver.poke(Poke::Advance(1));
    assert_eq!(pair.take(), Err(RingError::Index(SIZE)));
}

/// What the two sides do next.
#[derive(Clone, Debug)]
enum Step {
    /// The driver offers a chain of so many readable and writable buffers.
    Offer(usize, usize),
    /// The driver publishes.
    Publish,
    /// The device takes what is there.
    Take,
    /// The device gives one of those it has back.
    Give(prop::sample::Index, u32),
    /// The device publishes, and the driver takes everything.
    Finish,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0_usize..5, 0_usize..4).prop_map(|(readable, writable)| Step::Offer(readable, writable)),
        2 => Just(Step::Publish),
        2 => Just(Step::Take),
        3 => (any::<prop::sample::Index>(), any::<u32>()).prop_map(|(which, len)| Step::Give(which, len)),
        1 => Just(Step::Finish),
    ]
}

/// A chain that no other looks like.
fn numbered(nth: u64, readable: usize, writable: usize) -> Vec<Buffer> {
    let total = readable + writable;
    (0..total.max(1) as u64)
        .map(|at| Buffer {
            addr: nth << 16 | at << 8,
            len: u32::try_from(nth % 1000 + at).unwrap(),
            device_writes: total == 0 || at >= readable as u64,
        })
        .collect()
}

proptest! {
    #[test]
    fn both_sides_agree_whatever_the_order(
        steps in prop::collection::vec(step(), 1..200),
        features in prop::sample::select(vec![0, INDIRECT, feature::EVENT_IDX, INDIRECT | feature::EVENT_IDX]),
    ) {
        let mut pair = Pair::new(features);
        // Offered and not taken, in order; taken and not given back; given back and not seen, in order.
        let (mut offered, mut taken, mut given) = (Vec::new(), BTreeMap::new(), Vec::new());
        let mut published = 0;
        for (nth, step) in (0..).zip(steps) {
            match step {
                Step::Offer(readable, writable) => {
                    let chain = numbered(nth, readable, writable);
                    if let Some(slot) = pair.driver.add(&chain) {
                        prop_assert!(!taken.contains_key(&slot), "a slot in flight was handed out");
                        offered.push((slot, chain));
                    }
                }
                Step::Publish => {
                    pair.driver.publish();
                    published = offered.len();
                }
                Step::Take => {
                    for expected in offered.drain(..published) {
                        prop_assert_eq!(pair.take().unwrap(), Some(expected.clone()));
                        taken.insert(expected.0, expected.1);
                    }
                    published = 0;
                    prop_assert_eq!(pair.take().unwrap(), None);
                }
                Step::Give(which, len) => {
                    let ids: Vec<u16> = taken.keys().copied().collect();
                    if !ids.is_empty() {
                        let id = ids[which.index(ids.len())];
                        taken.remove(&id);
                        pair.device.push_used(id, len);
                        given.push(Used { slot: id, len });
                    }
                }
                Step::Finish => {
                    publish_and_ask(&mut pair.device);
                    let seen: Vec<Used> = std::iter::from_fn(|| pair.driver.pop().unwrap()).collect();
                    prop_assert_eq!(&seen, &given);
                    given.clear();
                }
            }
        }
    }

    #[test]
    fn random_tables_end_and_stay_inside(
        table in prop::collection::vec((any::<u64>(), any::<u32>(), 0_u16..8, 0_u16..20), 16),
        heads in prop::collection::vec(0_u16..17, 1..16),
    ) {
        let mut pair = Pair::new(INDIRECT);
        for (at, (addr, len, flags, next)) in (0..).zip(table) {
            // A table that is found is one of the ring's own neighbours: bytes of all kinds.
            let addr = DEFAULT_BASE + addr % (2 * REGION_ALIGN);
            let len = if flags & desc::INDIRECT != 0 { len % 40 * 16 } else { len };
            pair.driver.poke(Poke::Descriptor(at, Desc { addr, len, flags, next }));
        }
        for head in heads {
            pair.driver.poke(Poke::Head(head));
            pair.driver.poke(Poke::Advance(1));
        }
        while let Ok(Some((id, buffers))) = pair.take() {
            prop_assert!(id < SIZE && !buffers.is_empty() && buffers.len() <= Chain::MAX_SEGMENTS);
        }
    }
}
