//! Sets of processor cores as the command line and the RPCs write them: SPDK's cpumask strings.
//!
//! Used for the target's `-m`, for the `cpumask` params of the RPCs and for groups. A mask says nothing about which
//! cores exist: that is checked when reactors start.

use std::fmt;
use std::str::FromStr;

/// Cores a mask can name. `sched_setaffinity` through a `cpu_set_t` goes no further, and SPDK's cpusets are as wide.
pub const CORES_MAX: u32 = 1024;

const WORDS: usize = (CORES_MAX / u64::BITS) as usize;

/// A set of cores, 0 to [`CORES_MAX`] - 1.
///
/// Parses `"0x3"` and `"3"` (hexadecimal, commas between digits skipped) and `"[0,1,4-7]"`; prints as SPDK does,
/// hexadecimal without prefix.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct CoreMask([u64; WORDS]);

/// Why a cpumask string was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CoreMaskError {
    /// Nothing between the quotes.
    #[error("cpumask is empty")]
    Empty,
    /// A character that is neither a hexadecimal digit nor a comma, or a list that is not `[N,N-M,...]`.
    #[error("cpumask '{text}' is neither a hexadecimal mask nor a list like [0,1,4-7]")]
    Syntax {
        /// The string as given.
        text: String,
    },
    /// A core beyond what a mask can hold.
    #[error("cpumask '{text}' names a core beyond {}", CORES_MAX - 1)]
    CoreTooHigh {
        /// The string as given.
        text: String,
    },
    /// A range whose end lies before its begin.
    #[error("cpumask range {first}-{last} runs backwards")]
    RangeReversed {
        /// The range's first number.
        first: u32,
        /// The range's second number.
        last: u32,
    },
}

impl CoreMask {
    /// The empty set.
    pub const fn new() -> CoreMask {
        CoreMask([0; WORDS])
    }

    /// The set of one core.
    ///
    /// # Panics
    /// Where `core` is not below [`CORES_MAX`].
    pub fn of(core: u32) -> CoreMask {
        CoreMask::from_iter([core])
    }

    /// Adds a core.
    ///
    /// # Panics
    /// Where `core` is not below [`CORES_MAX`].
    pub fn insert(&mut self, core: u32) {
        assert!(core < CORES_MAX, "core {core} is beyond the widest mask");
        self.0[(core / u64::BITS) as usize] |= 1 << (core % u64::BITS);
    }

    /// Takes a core out, if it is in.
    pub fn remove(&mut self, core: u32) {
        if let Some(word) = self.0.get_mut((core / u64::BITS) as usize) {
            *word &= !(1 << (core % u64::BITS));
        }
    }

    /// Is the core in?
    pub fn contains(&self, core: u32) -> bool {
        self.0.get((core / u64::BITS) as usize).is_some_and(|word| word >> (core % u64::BITS) & 1 == 1)
    }

    /// Has it no core?
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// The number of cores.
    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The lowest core.
    pub fn first(&self) -> Option<u32> {
        self.iter().next()
    }

    /// The cores in rising order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..CORES_MAX).filter(|core| self.contains(*core))
    }

    /// Is each of its cores in `other`?
    pub fn is_subset(&self, other: &CoreMask) -> bool {
        self.and(other) == *self
    }

    /// The cores in both.
    #[must_use]
    pub fn and(&self, other: &CoreMask) -> CoreMask {
        CoreMask(std::array::from_fn(|i| self.0[i] & other.0[i]))
    }
}

impl FromIterator<u32> for CoreMask {
    fn from_iter<I: IntoIterator<Item = u32>>(cores: I) -> CoreMask {
        let mut mask = CoreMask::new();
        cores.into_iter().for_each(|core| mask.insert(core));
        mask
    }
}

impl FromStr for CoreMask {
    type Err = CoreMaskError;

    fn from_str(text: &str) -> Result<CoreMask, CoreMaskError> {
        let trimmed = text.trim();
        if trimmed.is_empty() {
            return Err(CoreMaskError::Empty);
        }
        match trimmed.strip_prefix('[') {
            Some(list) => parse_list(text, list),
            None => parse_hex(text, trimmed),
        }
    }
}

fn syntax(text: &str) -> CoreMaskError {
    CoreMaskError::Syntax { text: text.to_owned() }
}

fn too_high(text: &str) -> CoreMaskError {
    CoreMaskError::CoreTooHigh { text: text.to_owned() }
}

/// Digits from the right, four cores each.
fn parse_hex(text: &str, trimmed: &str) -> Result<CoreMask, CoreMaskError> {
    let digits = trimmed.strip_prefix("0x").or_else(|| trimmed.strip_prefix("0X")).unwrap_or(trimmed);
    let mut mask = CoreMask::new();
    let mut seen = 0u32;
    for digit in digits.chars().rev().filter(|c| *c != ',') {
        let value = digit.to_digit(16).ok_or_else(|| syntax(text))?;
        for core in
            (0..4).filter(|bit| value >> bit & 1 == 1).map(|bit| seen.saturating_mul(4).saturating_add(bit))
        {
            // Leading zeros may go on for ever; a core may not.
            if core >= CORES_MAX {
                return Err(too_high(text));
            }
            mask.insert(core);
        }
        seen = seen.saturating_add(1);
    }
    if seen == 0 { Err(syntax(text)) } else { Ok(mask) }
}

/// What follows the opening bracket.
fn parse_list(text: &str, list: &str) -> Result<CoreMask, CoreMaskError> {
    let items = list.strip_suffix(']').ok_or_else(|| syntax(text))?;
    let mut mask = CoreMask::new();
    for item in items.split(',') {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let (first, last) = (parse_core(text, first)?, parse_core(text, last)?);
        if first > last {
            return Err(CoreMaskError::RangeReversed { first, last });
        }
        (first..=last).for_each(|core| mask.insert(core));
    }
    Ok(mask)
}

fn parse_core(text: &str, number: &str) -> Result<u32, CoreMaskError> {
    let number = number.trim();
    // `u32::from_str` would take a sign.
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
        return Err(syntax(text));
    }
    match number.parse() {
        Ok(core) if core < CORES_MAX => Ok(core),
        _ => Err(too_high(text)),
    }
}

impl fmt::Display for CoreMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = self.0.iter().rev().skip_while(|word| **word == 0);
        match words.next() {
            None => return f.write_str("0"),
            Some(word) => write!(f, "{word:x}")?,
        }
        words.try_for_each(|word| write!(f, "{word:016x}"))
    }
}

impl fmt::Debug for CoreMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CoreMask({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cores(text: &str) -> Vec<u32> {
        text.parse::<CoreMask>().unwrap().iter().collect()
    }

    #[test]
    fn hex_parses_with_and_without_prefix() {
        assert_eq!(cores("0x3"), [0, 1]);
        assert_eq!(cores("0XF0"), [4, 5, 6, 7]);
        assert_eq!(cores("3"), [0, 1]);
        assert_eq!(cores(" 0x1 "), [0]);
    }

    #[test]
    fn hex_skips_commas_between_digits() {
        assert_eq!(cores("1,00000000,00000000"), [64]);
    }

    #[test]
    fn list_parses_numbers_and_ranges() {
        assert_eq!(cores("[0,1,4-7]"), [0, 1, 4, 5, 6, 7]);
        assert_eq!(cores("[ 2 , 9 - 10 ]"), [2, 9, 10]);
    }

    #[test]
    fn zero_mask_parses_to_the_empty_set() {
        assert!("0x0".parse::<CoreMask>().unwrap().is_empty());
    }

    #[test]
    fn highest_core_is_held_and_the_next_refused() {
        assert_eq!(cores("[1023]"), [1023]);
        assert_eq!(cores(&format!("8{}", "0".repeat(255))), [1023]);
        assert!(matches!("[1024]".parse::<CoreMask>(), Err(CoreMaskError::CoreTooHigh { .. })));
        let digit_too_many = format!("1{}", "0".repeat(256));
        assert!(matches!(digit_too_many.parse::<CoreMask>(), Err(CoreMaskError::CoreTooHigh { .. })));
        assert!(matches!("[99999999999999]".parse::<CoreMask>(), Err(CoreMaskError::CoreTooHigh { .. })));
    }

    #[test]
    fn nonsense_is_refused_as_syntax() {
        for text in
            ["0x", "0xg", "-1", "[", "[]", "[0", "0]", "[0,]", "[a]", "[1-]", "[+1]", "[1--2]", ",", "ü"]
        {
            let error = text.parse::<CoreMask>().unwrap_err();
            assert!(matches!(error, CoreMaskError::Syntax { .. }), "{text}: {error}");
        }
    }

    #[test]
    fn blank_and_backward_range_have_their_own_errors() {
        assert_eq!("  ".parse::<CoreMask>(), Err(CoreMaskError::Empty));
        assert_eq!("[7-4]".parse::<CoreMask>(), Err(CoreMaskError::RangeReversed { first: 7, last: 4 }));
    }

    #[test]
    fn display_is_hex_without_prefix() {
        assert_eq!(CoreMask::of(0).to_string(), "1");
        assert_eq!(CoreMask::new().to_string(), "0");
        assert_eq!(CoreMask::from_iter([0, 64]).to_string(), "10000000000000001");
    }

    #[test]
    fn subset_and_intersection() {
        let (small, big) = (CoreMask::from_iter([1, 70]), CoreMask::from_iter([0, 1, 70]));
        assert!(small.is_subset(&big));
        assert!(!big.is_subset(&small));
        assert_eq!(big.and(&CoreMask::from_iter([0, 5])), CoreMask::of(0));
    }

    #[test]
    fn remove_takes_out_one_core_only() {
        let mut mask = CoreMask::from_iter([3, 4]);
        mask.remove(3);
        mask.remove(5000);
        assert_eq!(mask, CoreMask::of(4));
        assert_eq!((mask.first(), mask.len()), (Some(4), 1));
    }

    proptest! {
        #[test]
        fn display_parses_back(set in proptest::collection::btree_set(0..CORES_MAX, 0..40)) {
            let mask = CoreMask::from_iter(set);
            prop_assert_eq!(mask.to_string().parse::<CoreMask>().unwrap(), mask);
        }

        #[test]
        fn any_text_is_answered_without_panic(text in "[\\[\\]0-9a-fx,-]{0,12}") {
            let _ = text.parse::<CoreMask>();
        }
    }
}
