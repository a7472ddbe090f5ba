//! What a verified block contains: every sector says where it belongs and from which write it is.
//!
//! The ledger keeps which write that has to be. A stamp covers the whole sector, so that data that is stale
//! (an older write), misplaced (another address), torn (parts of two writes) or foreign (nobody's) is told apart.

use vfu::virtio::spec::blk::SECTOR;

/// Bytes of a sector.
pub(crate) const SECTOR_LEN: usize = SECTOR as usize;
const WORDS: usize = SECTOR_LEN / 8;
/// Marks the sectors of this program; mixed with the seed of the run.
const MAGIC: u64 = 0x7269_6e67_7369_6465;

/// What is wrong with a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Mismatch {
    /// No stamp of this run.
    #[error("sector {sector} holds no data of this run")]
    Foreign {
        /// Where.
        sector: u64,
    },
    /// The stamp of another sector.
    #[error("sector {sector} holds the data of sector {of}")]
    Misplaced {
        /// Where.
        sector: u64,
        /// Where it belongs.
        of: u64,
    },
    /// The stamp of another write to the same sector.
    #[error("sector {sector} holds write {found} where write {expected} was the last")]
    Stale {
        /// Where.
        sector: u64,
        /// The write it is of.
        found: u32,
        /// The write it should be of.
        expected: u32,
    },
    /// The right stamp, and something else behind it.
    #[error("sector {sector} is torn: its byte {at} is not of the write that its start is of")]
    Torn {
        /// Where.
        sector: u64,
        /// First wrong byte.
        at: usize,
    },
}

/// A step of the SplitMix64 sequence: every bit of the input reaches every bit of the output.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// The words of a sector.
fn words(seed: u64, sector: u64, generation: u32) -> [u64; WORDS] {
    let magic = MAGIC ^ mix(seed);
    let own = mix(magic ^ mix(sector) ^ mix(u64::from(generation)).rotate_left(17));
    let mut words = [0; WORDS];
    // Odd steps from a start of its own: no two sectors share words, and none of them is predictable from a neighbour.
    let mut x = own;
    for word in &mut words {
        x = x.wrapping_mul(0x2545_f491_4f6c_dd1d).wrapping_add(own | 1);
        *word = x ^ x >> 29;
    }
    words[0] = magic;
    words[1] = sector;
    words[2] = u64::from(generation);
    words
}

/// Stamps `data`, which starts at `sector`.
pub(crate) fn fill(data: &mut [u8], seed: u64, sector: u64, generation: u32) {
    for (sector, bytes) in (sector..).zip(data.chunks_exact_mut(SECTOR_LEN)) {
        for (word, at) in words(seed, sector, generation).iter().zip(bytes.chunks_exact_mut(8)) {
            at.copy_from_slice(&word.to_le_bytes());
        }
    }
}

/// Checks `data`, which was read from `sector` on.
///
/// # Errors
/// The first sector that is not what was written there last.
pub(crate) fn check(data: &[u8], seed: u64, sector: u64, generation: u32) -> Result<(), Mismatch> {
    for (sector, bytes) in (sector..).zip(data.chunks_exact(SECTOR_LEN)) {
        let words = words(seed, sector, generation);
        let is_right = |(word, bytes): (&u64, &[u8])| word.to_le_bytes() == bytes;
        if let Some(wrong) = words.iter().zip(bytes.chunks_exact(8)).position(|pair| !is_right(pair)) {
            return Err(explain(bytes, seed, sector, generation, wrong));
        }
    }
    Ok(())
}

#[cold]
fn explain(bytes: &[u8], seed: u64, sector: u64, generation: u32, wrong: usize) -> Mismatch {
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at * 8..at * 8 + 8]);
        u64::from_le_bytes(word)
    };
    if wrong > 2 {
        let at = (wrong * 8..SECTOR_LEN)
            .find(|&at| bytes[at] != words(seed, sector, generation)[at / 8].to_le_bytes()[at % 8]);
        return Mismatch::Torn { sector, at: at.unwrap_or(wrong * 8) };
    }
    match (word(0) == MAGIC ^ mix(seed), word(1), u32::try_from(word(2))) {
        (true, of, _) if of != sector => Mismatch::Misplaced { sector, of },
        (true, _, Ok(found)) => Mismatch::Stale { sector, found, expected: generation },
        _ => Mismatch::Foreign { sector },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: u64 = 7;

    fn block(sector: u64, generation: u32) -> Vec<u8> {
        let mut data = vec![0; 8 * SECTOR_LEN];
        fill(&mut data, SEED, sector, generation);
        data
    }

    #[test]
    fn what_was_written_is_right() {
        assert_eq!(check(&block(80, 3), SEED, 80, 3), Ok(()));
    }

    #[test]
    fn older_write_is_stale() {
        assert_eq!(
            check(&block(80, 2), SEED, 80, 3),
            Err(Mismatch::Stale { sector: 80, found: 2, expected: 3 })
        );
    }

    #[test]
    fn data_of_another_address_is_misplaced() {
        assert_eq!(check(&block(88, 3), SEED, 80, 3), Err(Mismatch::Misplaced { sector: 80, of: 88 }));
    }

    #[test]
    fn data_of_another_run_and_zeroes_are_foreign() {
        assert_eq!(check(&block(80, 3), SEED + 1, 80, 3), Err(Mismatch::Foreign { sector: 80 }));
        assert_eq!(check(&[0; SECTOR_LEN], SEED, 80, 3), Err(Mismatch::Foreign { sector: 80 }));
    }

    #[test]
    fn sector_of_two_writes_is_torn_at_the_byte_where_they_meet() {
        let (new, old) = (block(80, 3), block(80, 2));
        let mut data = new.clone();
        data[1000..1024].copy_from_slice(&old[1000..1024]);
        let error = check(&data, SEED, 80, 3).unwrap_err();
        // Two different writes may agree in a byte by chance, but hardly in the first four.
        assert!(matches!(error, Mismatch::Torn { sector: 81, at: 488..=492 }), "{error}");
    }

    #[test]
    fn block_of_two_writes_is_stale_where_the_older_begins() {
        let (mut data, old) = (block(80, 3), block(80, 2));
        data[2048..].copy_from_slice(&old[2048..]);
        assert_eq!(check(&data, SEED, 80, 3), Err(Mismatch::Stale { sector: 84, found: 2, expected: 3 }));
    }

    #[test]
    fn every_single_flipped_bit_is_seen() {
        let data = block(80, 3);
        for bit in 0..SECTOR_LEN * 8 {
            let mut flipped = data.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(check(&flipped, SEED, 80, 3).is_err(), "bit {bit}");
        }
    }
}
