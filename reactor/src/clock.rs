//! The clock of a reactor: the TSC where it is constant, monotonic nanoseconds elsewhere, a hand-driven one in tests.
//!
//! Reactors read it a few times a pass at most; everything that counts time (pollers, timers, statistics) counts in its
//! ticks, as SPDK's clients expect (`tick_rate`). It tells no wall-clock time.
#![expect(unsafe_code, reason = "reading the time-stamp counter is an intrinsic marked unsafe")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// How long the TSC is compared with the monotonic clock. The two readings at either end are good to some tens of
/// nanoseconds, so this span gives the rate to some ten parts per million. The program starts no sooner than it ends.
const CALIBRATION: Duration = Duration::from_millis(3);

/// Tries at either end of the calibration; the tightest one counts, so a preemption between two readings does no harm.
const CALIBRATION_TRIES: usize = 8;

/// One reading of a [`Clock`]. Readings of different clocks have nothing to do with each other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Tick(u64);

impl Tick {
    /// The beginning of time.
    pub const ZERO: Tick = Tick(0);
    /// Later than any reading.
    pub const MAX: Tick = Tick(u64::MAX);

    /// The reading `raw`, in ticks.
    pub const fn from_raw(raw: u64) -> Tick {
        Tick(raw)
    }

    /// The reading in ticks.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The reading `ticks` later; stops at [`Tick::MAX`].
    #[must_use]
    pub const fn after(self, ticks: u64) -> Tick {
        Tick(self.0.saturating_add(ticks))
    }

    /// Ticks gone by since `earlier`; 0 where `earlier` is the later one (two cores' counters may differ by a little).
    pub const fn since(self, earlier: Tick) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

#[derive(Clone, Debug)]
enum Source {
    #[cfg(target_arch = "x86_64")]
    Tsc,
    Monotonic {
        origin: Instant,
    },
    Fake(Arc<AtomicU64>),
}

/// A source of [`Tick`]s with its rate. Cheap to clone; clones tell the same time.
#[derive(Clone, Debug)]
pub struct Clock {
    source: Source,
    ticks_per_second: u64,
}

/// The hand that moves a fake [`Clock`].
#[derive(Clone, Debug)]
pub struct FakeClock {
    now: Arc<AtomicU64>,
}

impl FakeClock {
    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        let nanos = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.now.fetch_add(nanos, Ordering::Relaxed);
    }
}

impl Clock {
    /// The process's clock. The first call calibrates it, which takes some 3 ms.
    pub fn system() -> Clock {
        static SYSTEM: OnceLock<Clock> = OnceLock::new();
        SYSTEM.get_or_init(|| tsc_clock().unwrap_or_else(Clock::monotonic)).clone()
    }

    /// Nanoseconds of the monotonic clock, for machines whose TSC cannot be trusted.
    fn monotonic() -> Clock {
        Clock { source: Source::Monotonic { origin: Instant::now() }, ticks_per_second: NANOS_PER_SECOND }
    }

    /// A clock that stands still until its hand moves it. It starts at 1 s (so that times before now exist), one tick
    /// is one nanosecond.
    pub fn fake() -> (Clock, FakeClock) {
        let now = Arc::new(AtomicU64::new(NANOS_PER_SECOND));
        let clock = Clock { source: Source::Fake(Arc::clone(&now)), ticks_per_second: NANOS_PER_SECOND };
        (clock, FakeClock { now })
    }

    /// The reading of this moment.
    #[inline]
    pub fn now(&self) -> Tick {
        match &self.source {
            #[cfg(target_arch = "x86_64")]
            Source::Tsc => Tick(read_tsc()),
            Source::Monotonic { origin } => Tick(whole_nanos(origin.elapsed())),
            Source::Fake(now) => Tick(now.load(Ordering::Relaxed)),
        }
    }

    /// The rate: SPDK's `tick_rate`.
    pub fn ticks_per_second(&self) -> u64 {
        self.ticks_per_second
    }

    /// The ticks of a span of time, rounded up so that a wait of that many ticks is not shorter than the span.
    pub fn ticks(&self, span: Duration) -> u64 {
        let scaled = span.as_nanos().saturating_mul(u128::from(self.ticks_per_second));
        u64::try_from(scaled.div_ceil(u128::from(NANOS_PER_SECOND))).unwrap_or(u64::MAX)
    }

    /// The span of time that `ticks` take.
    pub fn duration(&self, ticks: u64) -> Duration {
        let nanos = u128::from(ticks) * u128::from(NANOS_PER_SECOND) / u128::from(self.ticks_per_second);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

fn whole_nanos(span: Duration) -> u64 {
    // 584 years of uptime fit.
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn read_tsc() -> u64 {
    // SAFETY: RDTSC exists on every x86_64 processor and touches no memory; `tsc_clock` has run it before any other
    // use, so an operating system that traps it (CR4.TSD) would have shown at start.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn tsc_clock() -> Option<Clock> {
    None
}

/// The TSC as a clock, if it ticks at one rate in every power state and the kernel trusts it.
#[cfg(target_arch = "x86_64")]
fn tsc_clock() -> Option<Clock> {
    if !tsc_is_invariant() || !kernel_trusts_tsc() {
        return None;
    }
    let (ticks_begin, time_begin) = paired_reading();
    std::thread::sleep(CALIBRATION);
    let (ticks_end, time_end) = paired_reading();
    let ticks = u128::from(ticks_end.checked_sub(ticks_begin)?);
    let nanos = time_end.duration_since(time_begin).as_nanos();
    let rate = u64::try_from(ticks * u128::from(NANOS_PER_SECOND) / nanos.max(1)).ok()?;
    // A counter that slow would not do as a clock: something is wrong with it.
    (rate >= 1_000_000).then_some(Clock { source: Source::Tsc, ticks_per_second: rate })
}

/// The invariant-TSC bit: CPUID leaf 8000_0007h, EDX bit 8 (Intel SDM 17.17.1, AMD APM 13.2.4).
#[cfg(target_arch = "x86_64")]
fn tsc_is_invariant() -> bool {
    const POWER_LEAF: u32 = 0x8000_0007;
    let leaf_max = std::arch::x86_64::__cpuid(0x8000_0000).eax;
    leaf_max >= POWER_LEAF && std::arch::x86_64::__cpuid(POWER_LEAF).edx & (1 << 8) != 0
}

/// Linux takes "tsc" off this list when its watchdog finds the counters drifting or differing between sockets.
#[cfg(target_arch = "x86_64")]
fn kernel_trusts_tsc() -> bool {
    let list = "/sys/devices/system/clocksource/clocksource0/available_clocksource";
    std::fs::read_to_string(list).is_ok_and(|names| names.split_whitespace().any(|name| name == "tsc"))
}

/// The TSC and the monotonic clock at one moment: the middle of the shortest of several brackets.
#[cfg(target_arch = "x86_64")]
fn paired_reading() -> (u64, Instant) {
    let mut best: Option<(u64, u64, Instant)> = None;
    for _ in 0..CALIBRATION_TRIES {
        let before = read_tsc();
        let time = Instant::now();
        let width = read_tsc().saturating_sub(before);
        if best.is_none_or(|(narrowest, ..)| width < narrowest) {
            best = Some((width, before + width / 2, time));
        }
    }
    let (_, ticks, time) = best.expect("CALIBRATION_TRIES is not zero");
    (ticks, time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fake_clock_stands_still_until_advanced() {
        let (clock, hand) = Clock::fake();
        let before = clock.now();
        assert_eq!(clock.now(), before);
        hand.advance(Duration::from_micros(3));
        assert_eq!(clock.now().since(before), 3_000);
    }

    #[test]
    fn system_clock_never_runs_backwards_on_one_thread() {
        let clock = Clock::system();
        let readings: Vec<Tick> = (0..1000).map(|_| clock.now()).collect();
        assert!(readings.is_sorted());
    }

    /// The bound is loose on purpose: a loaded machine stretches the sleep, and both clocks see the same stretch.
    #[test]
    fn system_clock_agrees_with_the_monotonic_clock() {
        let clock = Clock::system();
        let (ticks, time) = (clock.now(), Instant::now());
        std::thread::sleep(Duration::from_millis(50));
        let measured = clock.duration(clock.now().since(ticks)).as_secs_f64();
        let ratio = measured / time.elapsed().as_secs_f64();
        assert!((0.5..1.5).contains(&ratio), "ratio {ratio}");
    }

    #[test]
    fn monotonic_fallback_counts_nanoseconds() {
        let clock = Clock::monotonic();
        let before = clock.now();
        std::thread::sleep(Duration::from_millis(1));
        assert!(clock.duration(clock.now().since(before)) >= Duration::from_millis(1));
        assert_eq!(clock.ticks_per_second(), NANOS_PER_SECOND);
    }

    #[test]
    fn conversion_rounds_a_wait_up() {
        let (mut clock, _hand) = Clock::fake();
        clock.ticks_per_second = 2_400_000_123;
        let ticks = clock.ticks(Duration::from_nanos(1));
        assert_eq!(ticks, 3);
        assert!(clock.duration(clock.ticks(Duration::from_secs(3600))) >= Duration::from_secs(3600));
    }

    #[test]
    fn conversion_of_absurd_spans_saturates() {
        let (clock, _hand) = Clock::fake();
        assert_eq!(clock.ticks(Duration::MAX), u64::MAX);
        assert_eq!(clock.now().after(u64::MAX), Tick::MAX);
        assert_eq!(Tick::ZERO.since(clock.now()), 0);
    }
}
