//! How a reactor is told to change: its mode, and that it should stop.
//!
//! One word, written by handles on any thread and compared by the reactor once a pass, so that a change needs no room
//! in a full mailbox.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How a reactor spends its time when there is nothing to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Poll without work for `spin`, then sleep until something comes.
    Adaptive {
        /// How long a poller, and the reactor itself, goes without work before it stops polling.
        spin: Duration,
    },
    /// Never sleep and never park a poller, but for pollers that ask for no spin at all ([`crate::Spin::None`]):
    /// those wait on file descriptors, and asking each of them in every pass would be a system call each.
    PollOnly,
    /// Never spin: SPDK's `--interrupt-mode`.
    Interrupt,
}

/// The spin of the adaptive mode where nobody says otherwise: a guest that comes back sooner pays no wake-up, one that
/// does not costs this much of a core once.
pub const DEFAULT_SPIN: Duration = Duration::from_micros(50);

impl Default for Mode {
    fn default() -> Mode {
        Mode::Adaptive { spin: DEFAULT_SPIN }
    }
}

const STOP: u64 = 1;
const KIND: u64 = 0b110;
const ADAPTIVE: u64 = 0b000;
const POLL_ONLY: u64 = 0b010;
const INTERRUPT: u64 = 0b100;
const SPIN_SHIFT: u32 = 3;
/// 73 years.
const SPIN_NANOS_MAX: u64 = u64::MAX >> SPIN_SHIFT;

/// One reading of a [`Control`] word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Orders(u64);

impl Orders {
    pub(crate) fn stop(self) -> bool {
        self.0 & STOP != 0
    }

    pub(crate) fn mode(self) -> Mode {
        match self.0 & KIND {
            ADAPTIVE => Mode::Adaptive { spin: Duration::from_nanos(self.0 >> SPIN_SHIFT) },
            POLL_ONLY => Mode::PollOnly,
            _ => Mode::Interrupt,
        }
    }
}

fn encode(mode: Mode) -> u64 {
    match mode {
        Mode::Adaptive { spin } => {
            let nanos = u64::try_from(spin.as_nanos()).unwrap_or(u64::MAX).min(SPIN_NANOS_MAX);
            ADAPTIVE | nanos << SPIN_SHIFT
        }
        Mode::PollOnly => POLL_ONLY,
        Mode::Interrupt => INTERRUPT,
    }
}

/// The word.
#[derive(Debug)]
pub(crate) struct Control(AtomicU64);

impl Control {
    pub(crate) fn new(mode: Mode) -> Control {
        Control(AtomicU64::new(encode(mode)))
    }

    #[inline]
    pub(crate) fn read(&self) -> Orders {
        Orders(self.0.load(Ordering::Acquire))
    }

    pub(crate) fn set_mode(&self, mode: Mode) {
        self.0.update(Ordering::AcqRel, Ordering::Acquire, |word| word & STOP | encode(mode));
    }

    pub(crate) fn stop(&self) {
        self.0.fetch_or(STOP, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mode_comes_back_as_it_was_set() {
        let control = Control::new(Mode::PollOnly);
        for mode in [Mode::Interrupt, Mode::Adaptive { spin: Duration::from_micros(70) }, Mode::PollOnly] {
            control.set_mode(mode);
            assert_eq!(control.read().mode(), mode);
        }
    }

    #[test]
    fn stop_survives_a_change_of_mode() {
        let control = Control::new(Mode::default());
        control.stop();
        control.set_mode(Mode::Interrupt);
        assert!(control.read().stop());
        assert_eq!(control.read().mode(), Mode::Interrupt);
    }

    #[test]
    fn absurd_spin_is_cut_to_what_fits() {
        let control = Control::new(Mode::Adaptive { spin: Duration::MAX });
        let longest = Duration::from_nanos(SPIN_NANOS_MAX);
        assert_eq!(control.read().mode(), Mode::Adaptive { spin: longest });
        assert!(!control.read().stop());
    }
}
