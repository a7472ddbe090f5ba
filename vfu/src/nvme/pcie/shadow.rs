//! Shadow doorbells with event indexes (Base, 5.8): who must look again, and when a driver must ring.
//!
//! The driver stores its new tail in the shadow, fences, and rings only if it passes the event index. A device that polls
//! keeps the index behind the tail; one that goes to sleep stores the tail it has seen, fences, and looks again. With a
//! full fence on both sides one of them sees the other. Checked by loom below.

use std::sync::atomic::Ordering;

/// A doorbell's word that both sides reach.
pub trait Word {
    /// Loads it.
    fn load(&self, order: Ordering) -> u32;
    /// Stores it.
    fn store(&self, value: u32, order: Ordering);
    /// A full fence.
    fn fence();
}

/// Asks for a doorbell at the next change: the device has seen `seen`, and is about to sleep. True if it must not, as the
/// shadow has changed meanwhile.
pub fn arm(shadow: &impl Word, event: &impl Word, seen: u32) -> bool {
    event.store(seen, Ordering::Relaxed);
    fence(shadow);
    shadow.load(Ordering::Acquire) != seen
}

fn fence<W: Word>(_of: &W) {
    W::fence();
}

/// Asks for no doorbell while the shadow is polled: the index lies just behind what was seen, where the driver gets last.
pub fn disarm(event: &impl Word, seen: u32) {
    event.store(u32::from((seen as u16).wrapping_sub(1)), Ordering::Relaxed);
}

/// Whether a driver that moves the shadow from `old` to `new` must ring. Indexes wrap at 16 bits, as in virtio 1.2,
/// 2.7.7.2; for the mock driver and the tests.
#[must_use]
pub fn must_ring(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use loom::sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, fence},
    };

    use super::*;

    struct Cell(AtomicU32);

    impl Word for Cell {
        fn load(&self, order: Ordering) -> u32 {
            self.0.load(order)
        }
        fn store(&self, value: u32, order: Ordering) {
            self.0.store(value, order);
        }
        fn fence() {
            fence(Ordering::SeqCst);
        }
    }

    struct Doorbell {
        shadow: Cell,
        event: Cell,
        rung: AtomicBool,
    }

    fn push(doorbell: &Doorbell, old: u32) {
        doorbell.shadow.0.store(old + 1, Ordering::Release);
        fence(Ordering::SeqCst);
        let event = doorbell.event.0.load(Ordering::Acquire);
        if must_ring(event as u16, (old + 1) as u16, old as u16) {
            doorbell.rung.store(true, Ordering::Release);
        }
    }

    /// A device that polls once, then goes to sleep. True if it sleeps; what it has seen.
    fn poll_and_sleep(doorbell: &Doorbell) -> (bool, u32) {
        let mut seen = doorbell.shadow.load(Ordering::Acquire);
        disarm(&doorbell.event, seen);
        for _ in 0..3 {
            if !arm(&doorbell.shadow, &doorbell.event, seen) {
                return (true, seen);
            }
            seen = doorbell.shadow.load(Ordering::Acquire);
        }
        (false, seen)
    }

    #[test]
    fn device_that_sleeps_has_seen_everything_or_is_rung() {
        loom::model(|| {
            let doorbell = Arc::new(Doorbell {
                shadow: Cell(AtomicU32::new(0)),
                event: Cell(AtomicU32::new(0xffff)),
                rung: AtomicBool::new(false),
            });
            let driver = Arc::clone(&doorbell);
            let thread = loom::thread::spawn(move || {
                push(&driver, 0);
                push(&driver, 1);
            });
            let (asleep, seen) = poll_and_sleep(&doorbell);
            thread.join().unwrap();
            let last = doorbell.shadow.load(Ordering::Acquire);
            assert!(
                !asleep || seen == last || doorbell.rung.load(Ordering::Acquire),
                "slept at {seen} of {last}"
            );
        });
    }

    #[test]
    fn polled_queue_is_not_rung_within_a_lap() {
        let event = (5_u16).wrapping_sub(1);
        assert!((5..12).all(|old| !must_ring(event, old + 1, old)));
        assert!(must_ring(5, 6, 5), "an armed one is");
        assert!(must_ring(0, 1, 0) && must_ring(0, 3, 0));
        assert!(must_ring(0xffff, 0, 0xffff), "also over the end of the numbers");
    }
}
