//! The rate of the ticks that channels are told. The program sets it once from its reactors' clock; nanoseconds until
//! then. Reads no clock.

use std::sync::atomic::{AtomicU64, Ordering};

const NANOS: u64 = 1_000_000_000;
const MICROS: u128 = 1_000_000;

static TICKS_PER_SECOND: AtomicU64 = AtomicU64::new(NANOS);

/// Tells how many ticks a second has. Before the first channel is opened.
pub fn set_ticks_per_second(ticks: u64) {
    TICKS_PER_SECOND.store(ticks.max(1), Ordering::Relaxed);
}

/// Ticks of a second.
pub fn ticks_per_second() -> u64 {
    TICKS_PER_SECOND.load(Ordering::Relaxed)
}

pub(crate) fn ticks_to_us(ticks: u64) -> u64 {
    u64::try_from(u128::from(ticks) * MICROS / u128::from(ticks_per_second())).unwrap_or(u64::MAX)
}

pub(crate) fn us_to_ticks(us: u64) -> u64 {
    u64::try_from(u128::from(us) * u128::from(ticks_per_second()) / MICROS).unwrap_or(u64::MAX)
}

pub(crate) fn ns_to_ticks(ns: u64) -> u64 {
    u64::try_from(u128::from(ns) * u128::from(ticks_per_second()) / u128::from(NANOS)).unwrap_or(u64::MAX)
}
