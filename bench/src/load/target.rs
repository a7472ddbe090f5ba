//! Which block the next request is for, and what its data has to be.
//!
//! One [`Target`] for each disk, shared by its queues. In verify mode it keeps a ledger of the last write to each block,
//! and has at most one request in flight for a block: what two overlapping requests leave is nobody's promise.

use super::stamp::{self, Mismatch, mix};

/// How the next block is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// One after the other, and from the start again.
    Sequential,
    /// Random.
    Random,
    /// Each block that was written, once; then no more.
    ReadBack,
}

/// The part of a disk that is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// First sector.
    pub(crate) sector: u64,
    /// Blocks.
    pub(crate) blocks: u64,
    /// Sectors of a block.
    pub(crate) block_sectors: u64,
}

/// A request to be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pick {
    /// Which block of the extent.
    pub(crate) block: u64,
    /// First sector.
    pub(crate) sector: u64,
    /// It is written.
    pub(crate) write: bool,
}

/// The last write to each block, and which blocks have a request in flight.
#[derive(Debug)]
struct Ledger {
    seed: u64,
    /// Zero where nothing was written yet: what is there is not known.
    generations: Vec<u32>,
    busy: Vec<bool>,
    scratch: Vec<u8>,
}

/// A generator of random numbers that is a few instructions long (xorshift64*).
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(mix(seed) | 1)
    }

    #[inline]
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, each about equally often.
    #[inline]
    fn below(&mut self, bound: u64) -> u64 {
        u64::try_from((u128::from(self.next()) * u128::from(bound)) >> 64).expect("below a u64")
    }
}

/// What one disk is asked for.
#[derive(Debug)]
pub(crate) struct Target {
    extent: Extent,
    order: Order,
    /// Reads among 2^32 requests.
    read_share: u64,
    random: Random,
    cursor: u64,
    ledger: Option<Ledger>,
}

impl Target {
    /// Requests for `extent`, of 100 of which `read_percent` are reads; `verify` keeps a ledger.
    pub(crate) fn new(extent: Extent, order: Order, read_percent: u8, seed: u64, verify: bool) -> Self {
        let blocks = usize::try_from(extent.blocks).unwrap_or(usize::MAX);
        let ledger = verify.then(|| Ledger {
            seed,
            generations: vec![0; blocks],
            busy: vec![false; blocks],
            scratch: vec![0; usize::try_from(extent.block_sectors).unwrap_or(0) * stamp::SECTOR_LEN],
        });
        let read_share = (u64::from(read_percent) << 32) / 100;
        Self { extent, order, read_share, random: Random::new(seed), cursor: 0, ledger }
    }

    /// From now on everything that was written is read back, once.
    pub(crate) fn read_back(&mut self) {
        self.order = Order::ReadBack;
        self.cursor = 0;
    }

    /// Blocks that were written.
    pub(crate) fn written(&self) -> u64 {
        self.ledger
            .as_ref()
            .map_or(0, |ledger| ledger.generations.iter().filter(|&&nth| nth > 0).count() as u64)
    }

    /// The next request; none when all is done.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Option<Pick> {
        let block = match self.order {
            Order::Random => self.random.below(self.extent.blocks),
            Order::Sequential => {
                let block = self.cursor;
                self.cursor = if block + 1 == self.extent.blocks { 0 } else { block + 1 };
                block
            }
            Order::ReadBack => self.next_written()?,
        };
        let write = self.order != Order::ReadBack && self.random.next() >> 32 >= self.read_share;
        let block = if self.ledger.is_some() { self.reserve(block) } else { block };
        Some(Pick { block, sector: self.extent.sector + block * self.extent.block_sectors, write })
    }

    #[cold]
    fn next_written(&mut self) -> Option<u64> {
        let generations = &self.ledger.as_ref()?.generations;
        let from = usize::try_from(self.cursor).ok()?;
        let found = generations.get(from..)?.iter().position(|&nth| nth > 0)?;
        self.cursor += found as u64 + 1;
        Some(self.cursor - 1)
    }

    /// The first block from `block` on that has no request in flight. There is one: the plan has seen to it that there
    /// are more blocks than requests.
    #[cold]
    fn reserve(&mut self, block: u64) -> u64 {
        let Some(ledger) = &mut self.ledger else { return block };
        let from = usize::try_from(block).unwrap_or(0);
        let free = (from..ledger.busy.len()).chain(0..from).find(|&at| !ledger.busy[at]);
        let at = free.expect("more blocks than requests");
        ledger.busy[at] = true;
        at as u64
    }

    /// The data to write, in verify mode.
    pub(crate) fn stamp(&mut self, pick: &Pick) -> Option<&[u8]> {
        let ledger = self.ledger.as_mut()?;
        let generation = ledger.generations[usize::try_from(pick.block).ok()?].wrapping_add(1).max(1);
        stamp::fill(&mut ledger.scratch, ledger.seed, pick.sector, generation);
        Some(&ledger.scratch)
    }

    /// What a read's buffer holds before, in verify mode: a device that writes nothing is not to find old data right.
    pub(crate) fn blank(&mut self) -> Option<&[u8]> {
        let ledger = self.ledger.as_mut()?;
        ledger.scratch.fill(0);
        Some(&ledger.scratch)
    }

    /// A request is done. `read` copies its data out; it is called for reads of blocks that were written.
    ///
    /// # Errors
    /// [`Mismatch`].
    pub(crate) fn done(
        &mut self,
        pick: &Pick,
        ok: bool,
        read: impl FnOnce(&mut [u8]),
    ) -> Result<(), Mismatch> {
        let Some(ledger) = &mut self.ledger else { return Ok(()) };
        let at = usize::try_from(pick.block).unwrap_or(0);
        ledger.busy[at] = false;
        if !ok {
            // A write that failed may have been done in part: nothing is known of the block until it is written again.
            if pick.write {
                ledger.generations[at] = 0;
            }
            return Ok(());
        }
        if pick.write {
            ledger.generations[at] = ledger.generations[at].wrapping_add(1).max(1);
            return Ok(());
        }
        if ledger.generations[at] == 0 {
            return Ok(());
        }
        read(&mut ledger.scratch);
        stamp::check(&ledger.scratch, ledger.seed, pick.sector, ledger.generations[at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXTENT: Extent = Extent { sector: 100, blocks: 10, block_sectors: 8 };

    fn target(order: Order, read_percent: u8, verify: bool) -> Target {
        Target::new(EXTENT, order, read_percent, 1, verify)
    }

    #[test]
    fn sequential_requests_go_round() {
        let mut target = target(Order::Sequential, 100, false);
        let sectors: Vec<u64> = (0..12).map(|_| target.next().unwrap().sector).collect();
        assert_eq!(sectors, [100, 108, 116, 124, 132, 140, 148, 156, 164, 172, 100, 108]);
    }

    #[test]
    fn random_requests_stay_inside_and_reach_every_block() {
        let mut target = target(Order::Random, 100, false);
        let blocks: std::collections::BTreeSet<u64> =
            (0..1000).map(|_| target.next().unwrap().block).collect();
        assert_eq!(blocks, (0..10).collect());
    }

    #[test]
    fn mix_has_the_share_of_reads_that_was_asked_for() {
        let mut mixed = target(Order::Random, 70, false);
        let reads = (0..10_000).filter(|_| !mixed.next().unwrap().write).count();
        // Seeded, so this is one number; far outside it the share would be wrong.
        assert!((6800..7200).contains(&reads), "{reads}");
        assert!((0..1000).all(|_| target(Order::Random, 0, false).next().unwrap().write));
        assert!((0..1000).all(|_| !target(Order::Random, 100, false).next().unwrap().write));
    }

    #[test]
    fn verified_requests_never_overlap() {
        let mut target = target(Order::Random, 50, true);
        let blocks: std::collections::BTreeSet<u64> = (0..10).map(|_| target.next().unwrap().block).collect();
        assert_eq!(blocks.len(), 10);
    }

    #[test]
    fn block_is_checked_against_its_last_write() {
        let mut target = target(Order::Sequential, 0, true);
        let pick = target.next().unwrap();
        let first = target.stamp(&pick).unwrap().to_vec();
        target.done(&pick, true, |_| panic!("a write reads nothing")).unwrap();
        let second = target.stamp(&pick).unwrap().to_vec();
        target.done(&pick, true, |_| panic!("a write reads nothing")).unwrap();
        let read = Pick { write: false, ..pick };

        assert_eq!(target.done(&read, true, |data| data.copy_from_slice(&second)), Ok(()));
        assert_eq!(
            target.done(&read, true, |data| data.copy_from_slice(&first)),
            Err(Mismatch::Stale { sector: 100, found: 1, expected: 2 })
        );
    }

    #[test]
    fn block_whose_write_failed_is_not_checked() {
        let mut target = target(Order::Sequential, 0, true);
        let pick = target.next().unwrap();
        target.done(&pick, true, |_| ()).unwrap();
        target.done(&pick, false, |_| ()).unwrap();
        assert_eq!(target.done(&Pick { write: false, ..pick }, true, |_| panic!("nothing to check")), Ok(()));
    }

    #[test]
    fn everything_written_is_read_back_once() {
        let mut target = target(Order::Sequential, 0, true);
        let picks: Vec<Pick> = (0..3).map(|_| target.next().unwrap()).collect();
        for pick in &picks {
            target.done(pick, true, |_| ()).unwrap();
        }
        target.read_back();
        let back: Vec<(u64, bool)> =
            std::iter::from_fn(|| target.next()).map(|pick| (pick.block, pick.write)).collect();
        assert_eq!(back, [(0, false), (1, false), (2, false)]);
        assert_eq!(target.written(), 3);
    }
}
