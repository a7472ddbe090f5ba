//! The reactors' clock: the time stamp counter where it is constant, monotonic nanoseconds elsewhere, and one that
//! tests move by hand.
#![expect(unsafe_code, reason = "reading the time stamp counter")]

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

const NANOS_PER_SECOND: u64 = 1_000_000_000;
/// How long the counter is compared with the system's clock.
const CALIBRATION: Duration = Duration::from_millis(2);

/// A reading of a reactor's clock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Tick(u64);

impl Tick {
    /// Before everything.
    pub const ZERO: Tick = Tick(0);
    /// After everything.
    pub const MAX: Tick = Tick(u64::MAX);

    /// From a number of ticks.
    #[must_use]
    pub const fn from_raw(raw: u64) -> Tick {
        Tick(raw)
    }

    /// The number of ticks.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// `ticks` later; saturates.
    #[must_use]
    pub const fn after(self, ticks: u64) -> Tick {
        Tick(self.0.saturating_add(ticks))
    }

    /// Ticks since `earlier`; 0 if that is later.
    #[must_use]
    pub const fn since(self, earlier: Tick) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

#[derive(Clone, Debug)]
enum Source {
    /// The time stamp counter.
    Tsc,
    /// Nanoseconds since this instant.
    Monotonic(Instant),
    /// Nanoseconds that a test counts.
    Fake(Arc<AtomicU64>),
}

/// A clock. Clones show the same time.
#[derive(Clone, Debug)]
pub struct Clock {
    source: Source,
    ticks_per_second: u64,
}

/// Moves a fake [`Clock`] in tests.
#[derive(Clone, Debug)]
pub struct FakeClock(Arc<AtomicU64>);

impl FakeClock {
    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        let nanos = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.0.fetch_add(nanos, Ordering::AcqRel);
    }
}

impl Clock {
    /// The machine's clock, calibrated once per process.
    #[must_use]
    pub fn system() -> Clock {
        static SYSTEM: OnceLock<Clock> = OnceLock::new();
        SYSTEM.get_or_init(Self::calibrate).clone()
    }

    /// A clock that stands still until it is advanced; one tick is one nanosecond.
    #[must_use]
    pub fn fake() -> (Clock, FakeClock) {
        let now = Arc::new(AtomicU64::new(0));
        let clock = Clock { source: Source::Fake(Arc::clone(&now)), ticks_per_second: NANOS_PER_SECOND };
        (clock, FakeClock(now))
    }

    fn calibrate() -> Clock {
        if !tsc_is_constant() {
            return Clock { source: Source::Monotonic(Instant::now()), ticks_per_second: NANOS_PER_SECOND };
        }
        let (start, first) = (Instant::now(), tsc());
        while start.elapsed() < CALIBRATION {
            std::hint::spin_loop();
        }
        let (elapsed, ticks) = (start.elapsed().as_nanos(), tsc().saturating_sub(first));
        let per_second = u128::from(ticks) * u128::from(NANOS_PER_SECOND) / elapsed;
        // The counter's rate is a whole number of 100 kHz; the rest is the comparison's own error.
        let ticks_per_second =
            u64::try_from((per_second + 50_000) / 100_000 * 100_000).unwrap_or(NANOS_PER_SECOND);
        Clock { source: Source::Tsc, ticks_per_second: ticks_per_second.max(1) }
    }

    /// The time.
    #[inline]
    #[must_use]
    pub fn now(&self) -> Tick {
        Tick(match &self.source {
            Source::Tsc => tsc(),
            Source::Monotonic(start) => u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX),
            Source::Fake(now) => now.load(Ordering::Acquire),
        })
    }

    /// Ticks in a second.
    #[must_use]
    pub fn ticks_per_second(&self) -> u64 {
        self.ticks_per_second
    }

    /// Ticks in a span of time.
    #[must_use]
    pub fn ticks(&self, span: Duration) -> u64 {
        let ticks =
            span.as_nanos().saturating_mul(u128::from(self.ticks_per_second)) / u128::from(NANOS_PER_SECOND);
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }

    /// The span of so many ticks.
    #[must_use]
    pub fn duration(&self, ticks: u64) -> Duration {
        let nanos = u128::from(ticks) * u128::from(NANOS_PER_SECOND) / u128::from(self.ticks_per_second);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn tsc() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and it touches no memory.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn tsc() -> u64 {
    0
}

/// Whether the counter runs at one rate in all power states and is the same on all cores, as the kernel found.
fn tsc_is_constant() -> bool {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    cfg!(target_arch = "x86_64") && flags.contains("constant_tsc") && flags.contains("nonstop_tsc")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_clock_goes_forward_at_its_own_rate() {
        let clock = Clock::system();
        let (start, first) = (Instant::now(), clock.now());
        std::thread::sleep(Duration::from_millis(20));
        let (measured, real) = (clock.duration(clock.now().since(first)), start.elapsed());
        let ratio = measured.as_secs_f64() / real.as_secs_f64();
        assert!((0.5..2.0).contains(&ratio), "{measured:?} of {real:?}");
    }

    #[test]
    fn fake_clock_stands_still_until_it_is_advanced() {
        let (clock, hand) = Clock::fake();
        let before = clock.now();
        hand.advance(Duration::from_micros(3));
        assert_eq!(clock.now().since(before), 3000);
    }

    #[test]
    fn conversions_saturate() {
        let (clock, _) = Clock::fake();
        assert_eq!(clock.ticks(Duration::MAX), u64::MAX);
        assert_eq!(Tick::MAX.after(1), Tick::MAX);
        assert_eq!(Tick::ZERO.since(Tick::MAX), 0);
    }
}
