//! The set of pollers that want to be polled again: one bit per poller slot, under two levels of summary.
//!
//! Wakers on any thread put slots in, the reactor takes them all out. A slot is in at most once by construction, so
//! nothing can overflow and nothing is allocated; an empty set costs one load. It neither knows what a slot is nor
//! wakes the reactor.

use crossbeam::utils::CachePadded;

use crate::sync::{AtomicU64, Ordering};

const BITS: usize = u64::BITS as usize;

/// Slots that three levels of 64 can name.
pub(crate) const SLOTS_MAX: usize = BITS * BITS * BITS;

/// A set of slot numbers with many writers and one reader.
#[derive(Debug)]
pub(crate) struct WakeSet {
    /// Bit i: some word of `middle[i]` is not zero. Alone on its line: the reactor looks at it in every pass.
    top: CachePadded<AtomicU64>,
    middle: Box<[AtomicU64]>,
    leaves: Box<[AtomicU64]>,
}

impl WakeSet {
    /// For slots below `slots`.
    pub(crate) fn new(slots: usize) -> WakeSet {
        assert!(slots <= SLOTS_MAX, "three levels name {SLOTS_MAX} slots");
        let zeros = |words: usize| (0..words).map(|_| AtomicU64::new(0)).collect();
        WakeSet {
            top: CachePadded::new(AtomicU64::new(0)),
            middle: zeros(slots.div_ceil(BITS * BITS)),
            leaves: zeros(slots.div_ceil(BITS)),
        }
    }

    /// Any thread. From the leaf up: whoever sees a summary bit sees what lies under it (release here, acquire in
    /// [`WakeSet::take_all`]).
    pub(crate) fn insert(&self, slot: u32) {
        let (word, group) = (slot as usize / BITS, slot as usize / (BITS * BITS));
        self.leaves[word].fetch_or(1 << (slot as usize % BITS), Ordering::Release);
        self.middle[group].fetch_or(1 << (word % BITS), Ordering::Release);
        self.top.fetch_or(1 << group, Ordering::Release);
    }

    /// Is anything in?
    #[inline]
    pub(crate) fn has_news(&self) -> bool {
        self.top.load(Ordering::Relaxed) != 0
    }

    /// The reactor: appends every slot to `taken` and empties the set. From the top down: a bit set behind our back
    /// in a word already taken has its summary bits set after it, so the next call finds it.
    pub(crate) fn take_all(&self, taken: &mut Vec<u32>) {
        for group in bits(self.top.swap(0, Ordering::Acquire)) {
            for word in bits(self.middle[group].swap(0, Ordering::Acquire)) {
                let word = group * BITS + word;
                for bit in bits(self.leaves[word].swap(0, Ordering::Acquire)) {
                    // Below SLOTS_MAX, which is far below u32::MAX.
                    taken.push((word * BITS + bit) as u32);
                }
            }
        }
    }
}

/// The numbers of the set bits.
fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = word.trailing_zeros() as usize;
        word &= word.wrapping_sub(1);
        (bit < BITS).then_some(bit)
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn taken(set: &WakeSet) -> Vec<u32> {
        let mut slots = Vec::new();
        set.take_all(&mut slots);
        slots
    }

    #[test]
    fn slots_come_out_once_however_often_they_went_in() {
        let set = WakeSet::new(SLOTS_MAX);
        for slot in [0, 63, 64, 4095, 4096, 262_143, 63] {
            set.insert(slot);
        }
        assert!(set.has_news());
        assert_eq!(taken(&set), [0, 63, 64, 4095, 4096, 262_143]);
        assert!(!set.has_news());
        assert!(taken(&set).is_empty());
    }

    #[test]
    fn full_set_comes_out_whole() {
        let set = WakeSet::new(10_000);
        (0..10_000).for_each(|slot| set.insert(slot));
        assert_eq!(taken(&set), (0..10_000).collect::<Vec<u32>>());
    }
}
