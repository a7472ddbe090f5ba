//! Both rings against the guest's side and a model of what a queue is, step by step, with every feature that changes
//! a ring; and what a hostile driver may write.

use std::{
    collections::VecDeque,
    sync::atomic::{Ordering, fence},
};

use proptest::prelude::*;

use super::*;
use crate::{
    dma::{Protection, Windows},
    mock::{
        memory::Memory,
        packed::PackedDriver,
        ring::{Buffer, DriverRing, RingSetup},
        split::{Poke, SplitDriver},
        transport::Areas,
    },
    virtio::spec::{Desc, PackedDesc, desc},
};

const RAM: u64 = 2 << 20;
const PAGE: u64 = 4096;

/// Makes what was given back visible, and asks the driver about it at once.
pub(super) fn publish_and_ask(ring: &mut impl Ring) -> bool {
    ring.publish() && {
        fence(Ordering::SeqCst);
        ring.wants_interrupt()
    }
}

/// The device's windows: all RAM in one, or a window for each page, as behind a vIOMMU.
pub(super) fn windows(memory: &Memory, by_page: bool) -> Windows {
    let windows = Windows::default();
    let protection = Protection { read: true, write: true };
    for region in memory.regions() {
        let step = if by_page { PAGE } else { region.len };
        for at in (0..region.len).step_by(usize::try_from(step).unwrap()) {
            let file = memory.file().try_clone_to_owned().unwrap();
            windows.map(region.address + at, step, protection, Some((file, region.offset + at))).unwrap();
        }
    }
    windows
}

fn config(size: u16, areas: Areas, features: u64) -> QueueConfig {
    let Areas { desc, driver, device } = areas;
    QueueConfig { size, desc, driver, device, features }
}

/// One thing that one of both sides does.
#[derive(Clone, Debug)]
enum Step {
    /// The driver adds a chain of so many readable and writable buffers.
    Add(u8, u8),
    /// It publishes what it added.
    Publish,
    /// It takes back up to so many chains.
    Pop(u8),
    Interrupts(bool),
    /// The device takes up to so many chains.
    Take(u8),
    /// The device finishes one of those that it has: which, and how many bytes it wrote.
    Finish(prop::sample::Index, u32),
    /// The device publishes what it finished.
    Return,
    Kicks(bool),
    /// The device loses its ring and goes on where it stood, once it has nothing.
    Resume,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u8..4, 0_u8..4).prop_map(|(readable, writable)| Step::Add(readable, writable.max(u8::from(readable == 0)))),
        3 => Just(Step::Publish),
        3 => (1_u8..9).prop_map(Step::Pop),
        1 => any::<bool>().prop_map(Step::Interrupts),
        4 => (1_u8..9).prop_map(Step::Take),
        6 => (any::<prop::sample::Index>(), 0_u32..9999).prop_map(|(which, len)| Step::Finish(which, len)),
        3 => Just(Step::Return),
        1 => any::<bool>().prop_map(Step::Kicks),
        1 => Just(Step::Resume),
    ]
}

/// A ring of both sides, and what must be true of it.
struct Pair<R, D> {
    driver: D,
    device: R,
    layout: RingLayout,
    view: View,
    in_order: bool,
    next_addr: u64,
    /// Added and not published; published and not taken: slot and buffers.
    added: VecDeque<(u16, Vec<Buffer>)>,
    available: VecDeque<(u16, Vec<Buffer>)>,
    /// Taken and not finished, oldest first; all that are not returned, oldest first.
    taken: Vec<u16>,
    unreturned: VecDeque<(u16, Option<u32>)>,
    /// Given to the ring and not published; published and not popped.
    finished: VecDeque<(u16, u32)>,
    returned: VecDeque<(u16, u32)>,
    interrupts: Wish,
    kicks: Wish,
    event_idx: bool,
    /// Entries that went past since the last wish of the device, and of the driver.
    passed_kicks: usize,
    passed_interrupts: usize,
}

/// What one side asked the other for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Off,
    Always,
    /// The next one.
    Once,
}

impl Wish {
    fn on(event_idx: bool) -> Self {
        if event_idx { Self::Once } else { Self::Always }
    }
}

impl<R: Ring, D: DriverRing> Pair<R, D> {
    fn new(size: u16, features: u64, indirect: bool, by_page: bool) -> Self {
        let features = features | if D::PACKED { feature::RING_PACKED } else { 0 };
        let mut memory = Memory::new(RAM).unwrap();
        let setup = RingSetup { size, features, indirect: indirect.then_some(8) };
        let mut driver = D::new(&mut memory, &setup).unwrap();
        let view = View::new(&windows(&memory, by_page));
        let layout = config(size, driver.areas(), features).check().unwrap();
        let mut device = R::activate(&layout, R::START, &view).unwrap();
        device.disable_kicks();
        driver.disable_interrupts();
        Self {
            driver,
            device,
            layout,
            view,
            in_order: features & feature::IN_ORDER != 0,
            next_addr: 0x10_0000,
            added: VecDeque::new(),
            available: VecDeque::new(),
            taken: Vec::new(),
            unreturned: VecDeque::new(),
            finished: VecDeque::new(),
            returned: VecDeque::new(),
            interrupts: Wish::Off,
            // A new split ring names entry 0; the device cannot take that back.
            kicks: if features & feature::EVENT_IDX != 0 && !D::PACKED { Wish::Once } else { Wish::Off },
            event_idx: features & feature::EVENT_IDX != 0,
            passed_kicks: 0,
            passed_interrupts: 0,
        }
    }

    fn add(&mut self, readable: u8, writable: u8) {
        let mut buffer = |device_writes| {
            self.next_addr += 0x1000;
            Buffer { addr: self.next_addr, len: u32::from(readable) * 100 + 1, device_writes }
        };
        let mut buffers: Vec<_> = (0..readable).map(|_| buffer(false)).collect();
        buffers.extend((0..writable).map(|_| buffer(true)));
        if let Some(slot) = self.driver.add(&buffers) {
            self.added.push_back((slot, buffers));
        }
    }

    /// A wish is met, and nothing is told that nobody wants; but an event that was named long ago may come round
    /// again (virtio 1.2, 2.8.14), and one too many is legal.
    fn judge(&self, told: bool, wanted: bool, passed: usize) {
        let stale = self.event_idx && !wanted && passed > usize::from(self.layout.config.size);
        assert!(told == wanted || stale, "told: {told}, wanted: {wanted}");
    }

    fn publish(&mut self) {
        let kick = self.driver.publish();
        let wanted = !self.added.is_empty() && self.kicks != Wish::Off;
        self.passed_kicks += self.added.iter().map(|(_, buffers)| buffers.len()).sum::<usize>();
        self.judge(kick, wanted, self.passed_kicks);
        if wanted && self.kicks == Wish::Once {
            self.kicks = Wish::Off;
        }
        self.available.append(&mut self.added);
    }

    fn pop(&mut self, most: u8) {
        for _ in 0..most {
            let used = self.driver.pop().unwrap().map(|used| (used.slot, used.len));
            assert_eq!(used, self.returned.pop_front());
        }
    }

    fn interrupts(&mut self, on: bool) {
        self.passed_interrupts = 0;
        if on {
            let waiting = self.driver.enable_interrupts();
            assert_eq!(waiting, !self.returned.is_empty());
            self.interrupts = if self.event_idx && waiting { Wish::Off } else { Wish::on(self.event_idx) };
        } else {
            self.driver.disable_interrupts();
            self.interrupts = Wish::Off;
        }
    }

    fn take(&mut self, most: u8) {
        let mut waits = self.device.pending().unwrap();
        let mut chain = Chain::new();
        for _ in 0..most {
            assert_eq!(!waits, self.available.is_empty());
            let Some((slot, buffers)) = self.available.pop_front() else { return };
            self.device.pop(&self.view, &mut chain).unwrap();
            self.device.advance(chain.head());
            waits = self.device.has_next();
            let segments = |writes| {
                let segment = |it: &Buffer| Segment { addr: it.addr, len: it.len };
                buffers.iter().filter(|it| it.device_writes == writes).map(segment).collect::<Vec<_>>()
            };
            assert_eq!(chain.id(), slot);
            assert_eq!(chain.readable(), segments(false));
            assert_eq!(chain.writable(), segments(true));
            self.taken.push(slot);
            self.unreturned.push_back((slot, None));
        }
    }

    fn finish(&mut self, which: usize, len: u32) {
        let slot = self.taken.remove(which);
        self.device.push_used(slot, len);
        for entry in self.unreturned.iter_mut().filter(|entry| entry.0 == slot) {
            entry.1 = Some(len);
        }
        if self.in_order {
            while let Some(&(slot, Some(len))) = self.unreturned.front() {
                self.unreturned.pop_front();
                self.finished.push_back((slot, len));
            }
        } else {
            self.unreturned.retain(|entry| entry.0 != slot);
            self.finished.push_back((slot, len));
        }
    }

    fn give_back(&mut self) {
        let raise = publish_and_ask(&mut self.device);
        let wanted = !self.finished.is_empty() && self.interrupts != Wish::Off;
        // Buffers of a chain are not known here any more; six is the most.
        self.passed_interrupts += 6 * self.finished.len();
        self.judge(raise, wanted, self.passed_interrupts);
        if wanted && self.interrupts == Wish::Once {
            self.interrupts = Wish::Off;
        }
        self.returned.append(&mut self.finished);
    }

    fn kicks(&mut self, on: bool) {
        self.passed_kicks = if on { 0 } else { self.passed_kicks };
        if on {
            let waiting = self.device.enable_kicks();
            assert_eq!(waiting, !self.available.is_empty());
            self.kicks = if self.event_idx && waiting { Wish::Off } else { Wish::on(self.event_idx) };
        } else if self.event_idx && !D::PACKED && self.kicks == Wish::Once {
            // Nothing is written: the event stays where it was, and one more kick comes.
            self.device.disable_kicks();
        } else {
            self.device.disable_kicks();
            self.kicks = Wish::Off;
        }
    }

    fn resume(&mut self) {
        if self.unreturned.is_empty() && self.finished.is_empty() {
            self.device = R::activate(&self.layout, self.device.position(), &self.view).unwrap();
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Add(readable, writable) => self.add(*readable, *writable),
            Step::Publish => self.publish(),
            Step::Pop(most) => self.pop(*most),
            Step::Interrupts(on) => self.interrupts(*on),
            Step::Take(most) => self.take(*most),
            Step::Finish(_, _) if self.taken.is_empty() => {}
            Step::Finish(which, len) => self.finish(which.index(self.taken.len()), *len),
            Step::Return => self.give_back(),
            Step::Kicks(on) => self.kicks(*on),
            Step::Resume => self.resume(),
        }
    }
}

/// Every set of features that changes what a ring does.
fn features() -> impl Strategy<Value = u64> {
    prop::sample::subsequence(vec![feature::EVENT_IDX, feature::INDIRECT_DESC, feature::IN_ORDER], 0..=3)
        .prop_map(|bits| bits.iter().sum())
}

proptest! {
    #[test]
    fn split_ring_does_what_the_model_does(
        exponent in 1_u32..8, features in features(), indirect: bool, by_page: bool,
        steps in prop::collection::vec(step(), 1..400),
    ) {
        let mut pair = Pair::<SplitRing, SplitDriver>::new(1 << exponent, features, indirect, by_page);
        steps.iter().for_each(|step| pair.step(step));
    }

    #[test]
    fn packed_ring_does_what_the_model_does(
        size in 2_u16..100, features in features(), indirect: bool, by_page: bool,
        steps in prop::collection::vec(step(), 1..400),
    ) {
        let mut pair = Pair::<PackedRing, PackedDriver>::new(size, features, indirect, by_page);
        steps.iter().for_each(|step| pair.step(step));
    }

    #[test]
    fn hostile_split_ring_is_an_error_or_a_chain_and_never_more(
        exponent in 1_u32..6, indirect: bool,
        table in prop::collection::vec((any::<u64>(), any::<u32>(), 0_u16..8, 0_u16..40), 64),
        heads in prop::collection::vec(0_u16..40, 1..64), ahead in any::<u16>(),
    ) {
        let features = if indirect { feature::INDIRECT_DESC } else { 0 };
        let mut pair = Pair::<SplitRing, SplitDriver>::new(1 << exponent, features, false, false);
        for (at, &(addr, len, flags, next)) in (0_u16..1 << exponent).zip(&table) {
            // Half of the addresses lie in RAM, so that tables are read.
            let addr = if addr % 2 == 0 { 0x1_0000_0000 + addr % RAM } else { addr };
            pair.driver.poke(Poke::Descriptor(at, Desc { addr, len: len % 2000 * 8, flags, next }));
        }
        for &head in &heads {
            pair.driver.poke(Poke::Head(head));
            pair.driver.poke(Poke::Advance(1));
        }
        pair.driver.poke(Poke::Advance(ahead));
        drain(&mut pair.device, &pair.view);
    }

    #[test]
    fn hostile_packed_ring_is_an_error_or_a_chain_and_never_more(
        size in 2_u16..33, indirect: bool,
        table in prop::collection::vec((any::<u64>(), any::<u32>(), any::<u16>(), 0_u16..40), 33),
    ) {
        let features = if indirect { feature::INDIRECT_DESC } else { 0 };
        let mut pair = Pair::<PackedRing, PackedDriver>::new(size, features, false, false);
        for (at, &(addr, len, flags, id)) in (0..size).zip(&table) {
            let addr = if addr % 2 == 0 { 0x1_0000_0000 + addr % RAM } else { addr };
            let flags = flags & !desc::USED | desc::AVAIL;
            pair.driver.poke(at, PackedDesc { addr, len: len % 2000 * 8, id, flags });
        }
        drain(&mut pair.device, &pair.view);
    }
}

/// Takes all there is, and gives back what can be, as an owner would. Ends, whatever there is.
fn drain<R: Ring>(ring: &mut R, view: &View) {
    let mut chain = Chain::new();
    let Ok(mut waits) = ring.pending() else { return };
    let mut taken = Vec::new();
    while waits {
        if ring.pop(view, &mut chain).is_err() || taken.contains(&chain.id()) {
            break;
        }
        ring.advance(chain.head());
        taken.push(chain.id());
        waits = ring.has_next();
    }
    taken.into_iter().for_each(|id| ring.push_used(id, 1));
    ring.publish();
}

#[test]
fn ring_over_many_windows_of_a_page_works_at_every_size() {
    for size in [2, 256, 1024, 32768] {
        let mut split = Pair::<SplitRing, SplitDriver>::new(size, 0, false, true);
        let mut packed = Pair::<PackedRing, PackedDriver>::new(size, 0, false, true);
        for _ in 0..u32::from(size) * 2 {
            split.add(1, 1);
            packed.add(1, 1);
            for step in [Step::Publish, Step::Take(1)] {
                split.step(&step);
                packed.step(&step);
            }
            split.finish(0, 1);
            packed.finish(0, 1);
            for step in [Step::Return, Step::Pop(1)] {
                split.step(&step);
                packed.step(&step);
            }
        }
    }
}

#[test]
fn configuration_that_no_ring_can_have_is_refused_before_there_is_one() {
    let areas = Areas { desc: 0x1000, driver: 0x2000, device: 0x3000 };
    let split = |size, areas| config(size, areas, 0).check().map(|layout| layout.format());
    let packed =
        |size, areas| config(size, areas, feature::RING_PACKED).check().map(|layout| layout.format());

    assert_eq!(split(256, areas), Ok(Format::Split));
    assert_eq!(packed(300, areas), Ok(Format::Packed));
    assert_eq!(split(300, areas), Err(LayoutError::Size(300)));
    assert_eq!(split(0, areas), Err(LayoutError::Size(0)));
    assert_eq!(packed(0, areas), Err(LayoutError::Size(0)));
    assert_eq!(packed(32769, areas), Err(LayoutError::Size(32769)));
    assert_eq!(split(8, Areas { desc: 0x1008, ..areas }), Err(LayoutError::Alignment(0x1008)));
    assert_eq!(split(8, Areas { driver: 0x2002, ..areas }), Ok(Format::Split));
    assert_eq!(packed(8, Areas { driver: 0x2002, ..areas }), Err(LayoutError::Alignment(0x2002)));
    assert_eq!(split(8, Areas { device: 0x3002, ..areas }), Err(LayoutError::Alignment(0x3002)));
}

#[test]
fn ring_outside_of_memory_cannot_start_and_can_once_it_is_mapped() {
    let mut memory = Memory::new(RAM).unwrap();
    let setup = RingSetup { size: 64, features: feature::RING_PACKED, indirect: None };
    let driver = PackedDriver::new(&mut memory, &setup).unwrap();
    let layout = config(64, driver.areas(), feature::RING_PACKED).check().unwrap();
    let nothing = View::new(&Windows::default());

    let refused = PackedRing::activate(&layout, PackedRing::START, &nothing);
    assert!(matches!(refused, Err(ActivateError::Fault(_))), "{refused:?}");
    let view = View::new(&windows(&memory, false));
    assert!(PackedRing::activate(&layout, PackedRing::START, &view).is_ok());
}

#[test]
fn descriptor_that_changes_after_it_was_copied_changes_nothing() {
    let mut pair = Pair::<PackedRing, PackedDriver>::new(8, 0, false, false);
    pair.add(1, 1);
    pair.publish();
    let mut chain = Chain::new();
    pair.device.pending().unwrap();
    pair.device.pop(&pair.view, &mut chain).unwrap();
    let before = (chain.readable().to_vec(), chain.writable().to_vec());

    pair.driver.poke(0, PackedDesc { addr: 0xdead, len: 1, id: 3, flags: desc::WRITE });

    assert_eq!((chain.readable().to_vec(), chain.writable().to_vec()), before);
}

/// Three chains, each given back and published by itself, over the end of the ring and of its wrap counter; the driver waits for one
/// of them, and is asked once. Whether it is raised for.
fn asked_once_after_three<R: Ring, D: DriverRing>(wait_for: usize) -> bool {
    let mut pair = Pair::<R, D>::new(4, feature::EVENT_IDX, false, false);
    let mut raised = false;
    for round in 0..3 {
        for nth in 0..3 {
            if (round, nth) == (2, wait_for) {
                pair.driver.enable_interrupts();
            } else if round < 2 {
                pair.driver.disable_interrupts();
            }
            let slot = pair.driver.add(&[Buffer::readable(pair.next_addr, 8)]).unwrap();
            pair.driver.publish();
            let mut chain = Chain::new();
            assert!(pair.device.pending().unwrap());
            pair.device.pop(&pair.view, &mut chain).unwrap();
            pair.device.advance(chain.head());
            pair.device.push_used(slot, 0);
            assert!(pair.device.publish());
            assert!(pair.driver.pop().unwrap().is_some());
        }
        raised = pair.device.wants_interrupt();
    }
    raised
}

#[test]
fn driver_asked_after_several_publications_is_heard_for_each() {
    for wait_for in 0..3 {
        assert!(asked_once_after_three::<SplitRing, SplitDriver>(wait_for), "split, {wait_for}");
        assert!(asked_once_after_three::<PackedRing, PackedDriver>(wait_for), "packed, {wait_for}");
    }
    assert!(!asked_once_after_three::<SplitRing, SplitDriver>(3), "it waits for none");
    assert!(!asked_once_after_three::<PackedRing, PackedDriver>(3), "it waits for none");
}
