//! Where the blocks of an array are: pure arithmetic, one function per level.
//!
//! The wrapper cuts reads and writes where a base ends, so one of them lies in one base; discards and zeroes are cut
//! here, into one range per base.

/// How an array's blocks lie on its bases.
#[derive(Debug, Clone)]
pub(super) enum Layout {
    /// Strips of `1 << shift` blocks, dealt round.
    Striped {
        /// Strip length as a power of two.
        shift: u32,
        /// Bases.
        bases: u64,
    },
    /// One base behind the other: where each ends.
    Joined {
        /// First block behind each base, ascending.
        ends: Box<[u64]>,
    },
}

impl Layout {
    /// The base that a block is on, and its place there.
    #[inline]
    pub(super) fn locate(&self, lba: u64) -> (usize, u64) {
        match self {
            Layout::Striped { shift, bases } => {
                let strip = lba >> shift;
                let row = strip / bases;
                ((strip - row * bases) as usize, row << shift | lba & ((1 << shift) - 1))
            }
            Layout::Joined { ends } => {
                let base = ends.partition_point(|end| *end <= lba).min(ends.len().saturating_sub(1));
                let start = base.checked_sub(1).map_or(0, |before| ends[before]);
                (base, lba - start)
            }
        }
    }

    /// The part of a range that is on one base: first block and number of blocks there; none if there is no part.
    pub(super) fn share(&self, base: usize, lba: u64, blocks: u64) -> Option<(u64, u64)> {
        let end = lba.checked_add(blocks).filter(|end| *end > lba)?;
        match self {
            Layout::Striped { shift, bases } => {
                let (base, mask) = (base as u64, (1u64 << shift) - 1);
                let (first, last) = (lba >> shift, (end - 1) >> shift);
                // The first strip from `first` on, and the last up to `last`, that is on this base.
                let from = first + (base + bases - first % bases) % bases;
                let to = last.checked_sub((last % bases + bases - base) % bases)?;
                if from > to {
                    return None;
                }
                let start = ((from / bases) << shift) + if from == first { lba & mask } else { 0 };
                let stop = ((to / bases) << shift) + if to == last { (end - 1) & mask } else { mask };
                Some((start, stop - start + 1))
            }
            Layout::Joined { ends } => {
                let start = base.checked_sub(1).map_or(0, |before| ends[before]);
                let (from, to) = (lba.max(start), end.min(*ends.get(base)?));
                (from < to).then(|| (from - start, to - from))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every block of the range, found one by one.
    fn shares_by_blocks(layout: &Layout, base: usize, lba: u64, blocks: u64) -> Option<(u64, u64)> {
        let places: Vec<u64> = (lba..lba + blocks)
            .map(|b| layout.locate(b))
            .filter(|(at, _)| *at == base)
            .map(|(_, b)| b)
            .collect();
        let first = *places.iter().min()?;
        assert_eq!(places.len() as u64, places.iter().max().unwrap() - first + 1, "one range per base");
        Some((first, places.len() as u64))
    }

    #[test]
    fn the_share_of_a_base_is_all_of_its_blocks_in_one_range() {
        let layouts = [
            (3, Layout::Striped { shift: 2, bases: 3 }),
            (2, Layout::Striped { shift: 0, bases: 2 }),
            (1, Layout::Striped { shift: 3, bases: 1 }),
            (3, Layout::Joined { ends: Box::new([5, 6, 48]) }),
        ];
        for (bases, layout) in &layouts {
            for lba in 0..48 {
                for blocks in 0..=48 - lba {
                    for base in 0..*bases {
                        let expected = shares_by_blocks(layout, base, lba, blocks);
                        let share = layout.share(base, lba, blocks);
                        assert_eq!(
                            share.filter(|(_, n)| *n > 0),
                            expected,
                            "{layout:?} {lba}+{blocks} on {base}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn strips_go_round() {
        let layout = Layout::Striped { shift: 4, bases: 3 };

        let places: Vec<_> = [0, 15, 16, 47, 48, 50].map(|lba| layout.locate(lba)).into();

        assert_eq!(places, [(0, 0), (0, 15), (1, 0), (2, 15), (0, 16), (0, 18)]);
    }
}
