//! Deadlines of pollers: a binary heap that knows where each poller's entry stands.
//!
//! A poller has at most one entry, so the heap is as small as the number of pollers, changing or cancelling a deadline
//! leaves nothing behind, and after [`Timers::make_room`] nothing allocates. Used by the reactor, once for timed
//! pollers and once for parked ones; it reads no clock.

use crate::clock::Tick;

/// Not in the heap.
const ABSENT: u32 = u32::MAX;

/// Slot numbers ordered by deadline.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: Vec<(Tick, u32)>,
    /// By slot: the index of its entry in `heap`, or `ABSENT`.
    places: Vec<u32>,
}

impl Timers {
    pub(crate) fn new() -> Timers {
        Timers::default()
    }

    /// Lets slots below `slots` be set without allocation.
    pub(crate) fn make_room(&mut self, slots: usize) {
        if self.places.len() < slots {
            self.places.resize(slots, ABSENT);
        }
        self.heap.reserve(slots - self.heap.len().min(slots));
    }

    /// The earliest deadline; [`Tick::MAX`] if there is none.
    #[inline]
    pub(crate) fn next(&self) -> Tick {
        self.heap.first().map_or(Tick::MAX, |entry| entry.0)
    }

    /// Gives the slot this deadline, in place of the one it may have.
    pub(crate) fn set(&mut self, slot: u32, deadline: Tick) {
        let place = self.places[slot as usize];
        if place == ABSENT {
            self.heap.push((deadline, slot));
            self.places[slot as usize] = index_u32(self.heap.len() - 1);
            self.rise(self.heap.len() - 1);
        } else {
            let place = place as usize;
            self.heap[place].0 = deadline;
            self.settle(place);
        }
    }

    /// Takes the slot's deadline away, if it has one.
    pub(crate) fn cancel(&mut self, slot: u32) {
        let place = self.places[slot as usize];
        if place != ABSENT {
            self.take(place as usize);
        }
    }

    /// Moves every slot whose deadline is not after `now` to `due`, with the deadline, earliest first.
    pub(crate) fn take_due(&mut self, now: Tick, due: &mut Vec<(Tick, u32)>) {
        while let Some(&entry) = self.heap.first().filter(|entry| entry.0 <= now) {
            self.take(0);
            due.push(entry);
        }
    }

    fn take(&mut self, place: usize) {
        let (_, slot) = self.heap.swap_remove(place);
        self.places[slot as usize] = ABSENT;
        if let Some(moved) = self.heap.get(place) {
            self.places[moved.1 as usize] = index_u32(place);
            self.settle(place);
        }
    }

    /// Restores the order around an entry that may be too early or too late for its place.
    fn settle(&mut self, place: usize) {
        let place = self.rise(place);
        self.sink(place);
    }

    fn rise(&mut self, mut place: usize) -> usize {
        while place > 0 {
            let parent = (place - 1) / 2;
            if self.heap[parent].0 <= self.heap[place].0 {
                break;
            }
            self.swap(place, parent);
            place = parent;
        }
        place
    }

    fn sink(&mut self, mut place: usize) {
        loop {
            let (left, right) = (2 * place + 1, 2 * place + 2);
            let mut least = place;
            for child in [left, right] {
                if child < self.heap.len() && self.heap[child].0 < self.heap[least].0 {
                    least = child;
                }
            }
            if least == place {
                break;
            }
            self.swap(place, least);
            place = least;
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.places[self.heap[a].1 as usize] = index_u32(a);
        self.places[self.heap[b].1 as usize] = index_u32(b);
    }
}

fn index_u32(index: usize) -> u32 {
    u32::try_from(index).expect("no more entries than slots, and those are counted in u32")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const SLOTS: u32 = 12;

    fn due(timers: &mut Timers, now: u64) -> Vec<(Tick, u32)> {
        let mut due = Vec::new();
        timers.take_due(Tick::from_raw(now), &mut due);
        due
    }

    #[test]
    fn deadline_is_due_at_its_tick_and_not_before() {
        let mut timers = Timers::new();
        timers.make_room(1);
        timers.set(0, Tick::from_raw(10));
        assert!(due(&mut timers, 9).is_empty());
        assert_eq!(due(&mut timers, 10), [(Tick::from_raw(10), 0)]);
        assert_eq!(timers.next(), Tick::MAX);
    }

    #[test]
    fn setting_again_moves_the_one_deadline() {
        let mut timers = Timers::new();
        timers.make_room(1);
        timers.set(0, Tick::from_raw(10));
        timers.set(0, Tick::from_raw(5));
        timers.set(0, Tick::from_raw(20));
        assert!(due(&mut timers, 19).is_empty());
        assert_eq!(due(&mut timers, 20).len(), 1);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set(u32, u64),
        Cancel(u32),
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..SLOTS, 0..100u64).prop_map(|(slot, tick)| Step::Set(slot, tick)),
            (0..SLOTS).prop_map(Step::Cancel),
            (0..100u64).prop_map(Step::Pass),
        ]
    }

    proptest! {
        /// Against a plain map from slot to deadline.
        #[test]
        fn behaves_as_a_map_from_slot_to_deadline(steps in proptest::collection::vec(step(), 0..200)) {
            let mut timers = Timers::new();
            timers.make_room(SLOTS as usize);
            let mut model = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Set(slot, tick) => {
                        timers.set(slot, Tick::from_raw(tick));
                        model.insert(slot, tick);
                    }
                    Step::Cancel(slot) => {
                        timers.cancel(slot);
                        model.remove(&slot);
                    }
                    Step::Pass(now) => {
                        let ran = due(&mut timers, now);
                        prop_assert!(ran.is_sorted_by_key(|entry| entry.0));
                        let mut slots: Vec<_> = ran.iter().map(|(tick, slot)| (*slot, tick.raw())).collect();
                        slots.sort_unstable();
                        let expected: Vec<_> = model.extract_if(.., |_, tick| *tick <= now).collect();
                        prop_assert_eq!(slots, expected);
                    }
                }
                let next = model.values().min().map_or(Tick::MAX, |tick| Tick::from_raw(*tick));
                prop_assert_eq!(timers.next(), next);
            }
        }
    }
}
