//! Exact integers from JSON numbers. `8192.0` and `1e3` are integers to SPDK's decoder, `1.5` is not; nothing passes
//! through a floating point type.

/// More decimal digits than any accepted integer has.
const DIGITS_MAX: usize = 20;

/// The integer that a JSON number (well-formed text) stands for, if it is one of at most 20 digits.
pub(crate) fn integer(text: &str) -> Option<i128> {
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (mantissa, exponent) = match unsigned.find(['e', 'E']) {
        Some(at) => (&unsigned[..at], exponent(&unsigned[at + 1..])),
        None => (unsigned, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let fraction = fraction.trim_end_matches('0');

    let digits = whole.bytes().chain(fraction.bytes()).skip_while(|digit| *digit == b'0');
    let digits: Vec<u8> = digits.collect();
    let zeros = digits.iter().rev().take_while(|digit| **digit == b'0').count();
    let significant = &digits[..digits.len() - zeros];
    if significant.is_empty() {
        return Some(0);
    }
    // What the last significant digit is to be multiplied with: ten to this power.
    let power = exponent.saturating_add(zeros as i64).saturating_sub(fraction.len() as i64);
    let power = u32::try_from(power).ok()?;
    if significant.len() + usize::try_from(power).ok()? > DIGITS_MAX {
        return None;
    }
    let value = significant.iter().fold(0i128, |value, digit| value * 10 + i128::from(digit - b'0'));
    let value = value * 10i128.pow(power);
    Some(if negative { -value } else { value })
}

/// An exponent; one that is too large for its type is too large or too small for every number that has one.
fn exponent(text: &str) -> i64 {
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let value = digits.parse::<i64>().unwrap_or(i64::MAX / 2);
    if negative { -value } else { value }
}

#[cfg(test)]
mod tests {
    use super::integer;

    #[test]
    fn plain_integers_are_themselves() {
        assert_eq!(integer("0"), Some(0));
        assert_eq!(integer("-17"), Some(-17));
        assert_eq!(integer("18446744073709551615"), Some(u64::MAX.into()));
    }

    #[test]
    fn integral_floats_and_exponents_are_integers() {
        assert_eq!(integer("8192.0"), Some(8192));
        assert_eq!(integer("1e3"), Some(1000));
        assert_eq!(integer("1.50e1"), Some(15));
        assert_eq!(integer("12000E-3"), Some(12));
        assert_eq!(integer("0.25e+2"), Some(25));
        assert_eq!(integer("-0.0"), Some(0));
        assert_eq!(integer("0e999999999999999999999"), Some(0));
    }

    #[test]
    fn fractions_are_not() {
        assert_eq!(integer("1.5"), None);
        assert_eq!(integer("1e-1"), None);
        assert_eq!(integer("1e-99999999999999999999999"), None);
    }

    #[test]
    fn numbers_beyond_twenty_digits_are_out_of_range() {
        assert_eq!(integer("1e20"), None);
        assert_eq!(integer("123456789012345678901"), None);
        assert_eq!(integer("1e99999999999999999999999"), None);
    }

    #[test]
    fn a_long_text_of_a_small_number_is_that_number() {
        let text = format!("7{}e-300", "0".repeat(300));
        assert_eq!(integer(&text), Some(7));
    }
}
