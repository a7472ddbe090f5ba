//! Sets of cores, as SPDK's flags and RPCs write them.

use std::{fmt, str::FromStr};

/// One more than the highest core there can be. core_affinity aborts at 1024.
pub const MAX_CORES: u32 = 1024;
const WORD: u32 = u64::BITS;

/// A set of cores.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CoreMask([u64; (MAX_CORES / WORD) as usize]);

/// Why a text is no set of cores.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CoreMaskError {
    /// No core at all.
    #[error("the core mask is empty")]
    Empty,
    /// Neither a hexadecimal mask nor a list in brackets.
    #[error("a core mask is hexadecimal (0x3) or a list ([0,2-4])")]
    Syntax,
    /// A core that no machine has.
    #[error("cores go up to {}", MAX_CORES - 1)]
    CoreTooHigh,
    /// A range that ends before it starts.
    #[error("a range of cores ends before it starts")]
    RangeReversed,
}

impl Default for CoreMask {
    fn default() -> Self {
        Self::new()
    }
}

impl CoreMask {
    /// No cores.
    #[must_use]
    pub const fn new() -> CoreMask {
        CoreMask([0; (MAX_CORES / WORD) as usize])
    }

    /// One core.
    #[must_use]
    pub fn of(core: u32) -> CoreMask {
        std::iter::once(core).collect()
    }

    /// Adds a core. One that cannot exist is ignored.
    pub fn insert(&mut self, core: u32) {
        if core < MAX_CORES {
            self.0[(core / WORD) as usize] |= 1 << (core % WORD);
        }
    }

    /// Takes a core out.
    pub fn remove(&mut self, core: u32) {
        if core < MAX_CORES {
            self.0[(core / WORD) as usize] &= !(1 << (core % WORD));
        }
    }

    /// Whether a core is in it.
    #[must_use]
    pub fn contains(&self, core: u32) -> bool {
        core < MAX_CORES && self.0[(core / WORD) as usize] & 1 << (core % WORD) != 0
    }

    /// Whether there is no core in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|&word| word == 0)
    }

    /// Number of cores.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The cores, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..MAX_CORES).filter(|&core| self.contains(core))
    }

    /// Whether all of its cores are in `of`.
    #[must_use]
    pub fn is_subset(&self, of: &CoreMask) -> bool {
        self.and(of) == *self
    }

    /// The cores in both.
    #[must_use]
    pub fn and(&self, other: &CoreMask) -> CoreMask {
        CoreMask(std::array::from_fn(|at| self.0[at] & other.0[at]))
    }

    /// The lowest core.
    #[must_use]
    pub fn first(&self) -> Option<u32> {
        self.iter().next()
    }
}

impl FromIterator<u32> for CoreMask {
    fn from_iter<I: IntoIterator<Item = u32>>(cores: I) -> Self {
        let mut mask = CoreMask::new();
        cores.into_iter().for_each(|core| mask.insert(core));
        mask
    }
}

impl FromStr for CoreMask {
    type Err = CoreMaskError;

    fn from_str(text: &str) -> Result<Self, CoreMaskError> {
        let text = text.trim();
        let mask = match text.strip_prefix('[') {
            Some(list) => parse_list(list.strip_suffix(']').ok_or(CoreMaskError::Syntax)?)?,
            None => parse_hex(text)?,
        };
        if mask.is_empty() { Err(CoreMaskError::Empty) } else { Ok(mask) }
    }
}

/// Hexadecimal, with or without 0x; commas are skipped, as the kernel writes long masks with them.
fn parse_hex(text: &str) -> Result<CoreMask, CoreMaskError> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    let mut mask = CoreMask::new();
    let mut core = 0;
    let mut any = false;
    for digit in digits.chars().rev().filter(|&digit| digit != ',') {
        let bits = digit.to_digit(16).ok_or(CoreMaskError::Syntax)?;
        for bit in (0..4).filter(|bit| bits & 1 << bit != 0) {
            if core + bit >= MAX_CORES {
                return Err(CoreMaskError::CoreTooHigh);
            }
            mask.insert(core + bit);
        }
        core = core.saturating_add(4);
        any = true;
    }
    if any { Ok(mask) } else { Err(CoreMaskError::Empty) }
}

fn parse_list(list: &str) -> Result<CoreMask, CoreMaskError> {
    let number = |text: &str| -> Result<u32, CoreMaskError> {
        let core: u64 = text.trim().parse().map_err(|_not_a_number| CoreMaskError::Syntax)?;
        u32::try_from(core).ok().filter(|&core| core < MAX_CORES).ok_or(CoreMaskError::CoreTooHigh)
    };
    let mut mask = CoreMask::new();
    for item in list.split(',').filter(|item| !item.trim().is_empty()) {
        let (from, to) = match item.split_once('-') {
            Some((from, to)) => (number(from)?, number(to)?),
            None => (number(item)?, number(item)?),
        };
        if to < from {
            return Err(CoreMaskError::RangeReversed);
        }
        (from..=to).for_each(|core| mask.insert(core));
    }
    Ok(mask)
}

impl fmt::Display for CoreMask {
    /// Hexadecimal without 0x, as SPDK prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = self.0.iter().rev().skip_while(|&&word| word == 0);
        match words.next() {
            None => f.write_str("0"),
            Some(word) => {
                write!(f, "{word:x}")?;
                words.try_for_each(|word| write!(f, "{word:016x}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cores(text: &str) -> Result<Vec<u32>, CoreMaskError> {
        text.parse::<CoreMask>().map(|mask| mask.iter().collect())
    }

    #[test]
    fn masks_and_lists_name_the_same_cores() {
        assert_eq!(cores("0x5"), Ok(vec![0, 2]));
        assert_eq!(cores("5"), Ok(vec![0, 2]));
        assert_eq!(cores("1,00000000"), Ok(vec![32]));
        assert_eq!(cores("[0,2-4]"), Ok(vec![0, 2, 3, 4]));
        assert_eq!(cores("[ 1 , 3 ]"), Ok(vec![1, 3]));
    }

    #[test]
    fn nonsense_is_told_apart() {
        assert_eq!(cores("0"), Err(CoreMaskError::Empty));
        assert_eq!(cores(""), Err(CoreMaskError::Empty));
        assert_eq!(cores("[]"), Err(CoreMaskError::Empty));
        assert_eq!(cores("0xg"), Err(CoreMaskError::Syntax));
        assert_eq!(cores("[1"), Err(CoreMaskError::Syntax));
        assert_eq!(cores("[1-x]"), Err(CoreMaskError::Syntax));
        assert_eq!(cores("[3-1]"), Err(CoreMaskError::RangeReversed));
        assert_eq!(cores("[1024]"), Err(CoreMaskError::CoreTooHigh));
        assert_eq!(cores(&format!("1{}", "0".repeat(256))), Err(CoreMaskError::CoreTooHigh));
    }

    #[test]
    fn printed_mask_reads_back() {
        for text in ["1", "3", "10000000000000000", "f0000000000000001"] {
            let mask: CoreMask = text.parse().unwrap();
            assert_eq!(mask.to_string(), text);
        }
    }

    #[test]
    fn subset_is_by_core() {
        let all: CoreMask = "7".parse().unwrap();
        assert!("5".parse::<CoreMask>().unwrap().is_subset(&all));
        assert!(!"9".parse::<CoreMask>().unwrap().is_subset(&all));
    }
}
