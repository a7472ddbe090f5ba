//! The Keep Alive timer (Base, 3.9): a host that has set one and then says nothing for so long is gone, and its queues stop.
//! `device` asks after it; a poller of its own counts the time, from the first timer that was set on.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use reactor::{Poller, PollerSpec, SendError, Tick, Work};

use super::device::Device;
use crate::{
    device::{Home, HomeWaker},
    nvme::{
        controller::limits::KEEP_ALIVE_UNITS,
        spec::{Command, Status, admin, csts, feature},
    },
};

/// The granularity of the timer: KAS of Identify Controller, in units of 100 ms.
const PERIOD: Duration = Duration::from_millis(100 * KEEP_ALIVE_UNITS as u64);

/// What the poller and the device share.
#[derive(Default)]
struct Clock {
    /// Periods that the host may be silent; zero without a timer.
    allowed: AtomicU32,
    /// Periods since it was heard.
    silent: AtomicU32,
}

impl Clock {
    fn is_expired(&self) -> bool {
        let allowed = self.allowed.load(Ordering::Acquire);
        // The first of the periods may have been nearly over when the host was heard.
        allowed != 0 && self.silent.load(Ordering::Acquire) > allowed
    }
}

/// The timer of a controller; the poller ends with it.
#[derive(Default)]
pub(super) struct KeepAlive(Option<Arc<Clock>>);

impl KeepAlive {
    /// Sets the timeout in milliseconds, or none with zero; it is rounded up to the granularity.
    fn set(&mut self, timeout_ms: u32, home: &Home) -> Result<(), SendError> {
        if timeout_ms == 0 && self.0.is_none() {
            return Ok(());
        }
        let clock = match &self.0 {
            Some(clock) => clock,
            None => self.0.insert(start(home)?),
        };
        clock.silent.store(0, Ordering::Release);
        clock.allowed.store(timeout_ms.div_ceil(100 * u32::from(KEEP_ALIVE_UNITS)), Ordering::Release);
        Ok(())
    }

    /// The controller is reset: there is no timeout any more.
    pub(super) fn clear(&self) {
        if let Some(clock) = &self.0 {
            clock.allowed.store(0, Ordering::Release);
        }
    }
}

fn start(home: &Home) -> Result<Arc<Clock>, SendError> {
    let clock = Arc::<Clock>::default();
    let (counted, waker) = (Arc::clone(&clock), home.waker.clone());
    let spec = PollerSpec::new(format!("{}_keep_alive", home.group.name()), &home.group).period(PERIOD);
    home.reactors[0].send(Box::new(move |reactor| {
        reactor.add(spec, move |_cx| Box::new(Counter { clock: counted, waker }));
    }))?;
    Ok(clock)
}

struct Counter {
    clock: Arc<Clock>,
    waker: HomeWaker,
}

impl Poller for Counter {
    fn poll(&mut self, _now: Tick) -> Work {
        if Arc::strong_count(&self.clock) == 1 {
            return Work::Done;
        }
        self.clock.silent.fetch_add(1, Ordering::AcqRel);
        if self.clock.is_expired() {
            self.waker.wake();
        }
        Work::Idle
    }
}

impl Device {
    /// A command succeeded that may concern the timer.
    pub(super) fn hear(&mut self, command: &Command) {
        let sets =
            command.opcode == admin::SET_FEATURES && command.cdw10 & 0xff == u32::from(feature::KEEP_ALIVE);
        if sets && let Err(error) = self.keep_alive.set(command.cdw11, &self.home) {
            tracing::error!(%error, "a Keep Alive timer finds no reactor");
        }
        if let (admin::KEEP_ALIVE, Some(clock)) = (command.opcode, &self.keep_alive.0) {
            clock.silent.store(0, Ordering::Release);
        }
    }

    /// Whether the host was silent for too long: its commands are executed no more, and it has to reset the controller.
    pub(super) fn end_silence(&mut self) {
        if !self.keep_alive.0.as_ref().is_some_and(|clock| clock.is_expired()) {
            return;
        }
        self.silence();
        self.controller.log_error(0, u16::MAX, Status::KEEP_ALIVE_EXPIRED, 0);
        self.registers.csts |= csts::CFS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timer_expires_behind_the_periods_allowed_since_the_host_was_heard() {
        let clock = Clock { allowed: 2.into(), silent: 0.into() };
        let after = |periods: u32| {
            clock.silent.fetch_add(periods, Ordering::AcqRel);
            clock.is_expired()
        };
        assert_eq!([after(2), after(1)], [false, true]);
        clock.silent.store(0, Ordering::Release);
        assert!(!after(2), "heard");
        clock.allowed.store(0, Ordering::Release);
        assert!(!after(100), "no timer");
    }
}
