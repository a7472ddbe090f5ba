//! What other threads leave for a reactor: messages, and the pollers they woke. Bounded, and never lost.

use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::queue::ArrayQueue;

/// A bounded queue with a flag in front: looking whether it is empty is one load of a line that is rarely written. (An
/// idle `ArrayQueue::pop` costs 15 times that.)
#[derive(Debug)]
pub(crate) struct Mailbox<T> {
    filled: AtomicBool,
    queue: ArrayQueue<T>,
}

impl<T> Mailbox<T> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { filled: AtomicBool::new(false), queue: ArrayQueue::new(capacity) }
    }

    /// Puts something in, or gives it back.
    pub(crate) fn push(&self, item: T) -> Result<(), T> {
        self.queue.push(item)?;
        // Release: who sees the flag sees the item.
        self.filled.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether something may be in it.
    #[inline]
    pub(crate) fn is_filled(&self) -> bool {
        self.filled.load(Ordering::Acquire)
    }

    /// Takes the next. The owner's alone.
    pub(crate) fn pop(&self) -> Option<T> {
        if let Some(item) = self.queue.pop() {
            return Some(item);
        }
        self.filled.store(false, Ordering::SeqCst);
        // Something may have come between the two lines above, and its flag have been wiped.
        let late = self.queue.pop();
        if late.is_some() {
            self.filled.store(true, Ordering::Release);
        }
        late
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_mailbox_gives_the_item_back() {
        let mailbox = Mailbox::new(2);
        assert_eq!(mailbox.push(1), Ok(()));
        assert_eq!(mailbox.push(2), Ok(()));
        assert_eq!(mailbox.push(3), Err(3));
        assert_eq!((mailbox.pop(), mailbox.pop(), mailbox.pop()), (Some(1), Some(2), None));
        assert!(!mailbox.is_filled());
    }

    #[test]
    fn nothing_is_lost_between_threads() {
        const EACH: u64 = 20_000;
        let mailbox = Mailbox::new(64);
        let sum = std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for number in 1..=EACH {
                        while mailbox.push(number).is_err() {
                            std::thread::yield_now();
                        }
                    }
                });
            }
            let (mut sum, mut count) = (0, 0);
            while count < 2 * EACH {
                if mailbox.is_filled() {
                    while let Some(number) = mailbox.pop() {
                        sum += number;
                        count += 1;
                    }
                } else {
                    std::thread::yield_now();
                }
            }
            sum
        });
        assert_eq!(sum, EACH * (EACH + 1));
    }
}
