//! The bounded mailbox through which other threads reach a reactor.
//!
//! Many senders ([`crate::Handle::send`]), one reader (the reactor). What it promises: a message that was accepted is
//! either run by the reactor or dropped, never kept, also when the reactor stops at the same moment. It does not wake
//! a sleeping reactor; that is `sleep`.

use crossbeam::utils::CachePadded;

use crate::sync::{ArrayQueue, AtomicBool, AtomicUsize, Ordering, fence};

/// Why a message was refused; it comes back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused<T> {
    Full(T),
    Closed(T),
}

/// A queue of `T` behind a count.
pub(crate) struct Mailbox<T> {
    queue: ArrayQueue<T>,
    /// Messages pushed and not yet noted as taken. The reactor looks here in each pass and leaves the queue alone while
    /// it reads zero: asking an empty queue costs several times as much, and takes the line of its tail away from the
    /// next sender.
    waiting: CachePadded<AtomicUsize>,
    closed: AtomicBool,
}

impl<T> Mailbox<T> {
    pub(crate) fn new(capacity: usize) -> Mailbox<T> {
        Mailbox {
            queue: ArrayQueue::new(capacity),
            waiting: CachePadded::new(AtomicUsize::new(0)),
            closed: AtomicBool::new(false),
        }
    }

    /// Any thread.
    pub(crate) fn push(&self, message: T) -> Result<(), Refused<T>> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Refused::Closed(message));
        }
        self.queue.push(message).map_err(Refused::Full)?;
        // After the push: whoever reads this count finds as many messages.
        self.waiting.fetch_add(1, Ordering::Release);
        // Pairs with the fence in `close`: either the closing reactor's last drain finds the message, or we find the
        // box closed and empty it ourselves. Otherwise the message, and whoever waits for its answer, would be held
        // for as long as a handle lives.
        fence(Ordering::SeqCst);
        if self.closed.load(Ordering::Relaxed) {
            self.drop_all();
        }
        Ok(())
    }

    /// The reactor: this many messages are there to be popped, and perhaps more.
    #[inline]
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    /// The reactor.
    pub(crate) fn pop(&self) -> Option<T> {
        self.queue.pop()
    }

    /// The reactor has popped that many, no more than [`Mailbox::waiting`] said.
    pub(crate) fn note_taken(&self, messages: usize) {
        // Relaxed, and still a link in the chain of additions that `waiting` acquires.
        self.waiting.fetch_sub(messages, Ordering::Relaxed);
    }

    /// The reactor is going: refuses what comes from now on, drops what is in.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        self.drop_all();
    }

    fn drop_all(&self) {
        while let Some(message) = self.queue.pop() {
            drop(message);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn full_mailbox_hands_the_message_back() {
        let mailbox = Mailbox::new(2);
        mailbox.push(1).unwrap();
        mailbox.push(2).unwrap();
        assert_eq!(mailbox.push(3), Err(Refused::Full(3)));
        assert_eq!(mailbox.pop(), Some(1));
        assert_eq!(mailbox.push(3), Ok(()));
    }

    #[test]
    fn count_says_what_waits_until_it_is_noted_as_taken() {
        let mailbox = Mailbox::new(2);
        assert_eq!(mailbox.waiting(), 0);
        mailbox.push(1).unwrap();
        mailbox.push(2).unwrap();
        assert_eq!((mailbox.waiting(), mailbox.pop()), (2, Some(1)));
        mailbox.note_taken(1);
        assert_eq!((mailbox.waiting(), mailbox.pop()), (1, Some(2)));
        mailbox.note_taken(1);
        assert_eq!((mailbox.waiting(), mailbox.pop()), (0, None));
    }

    #[test]
    fn close_drops_what_is_in_and_refuses_what_comes() {
        let mailbox = Mailbox::new(2);
        let message = Arc::new(());
        mailbox.push(Arc::clone(&message)).unwrap();
        mailbox.close();
        assert_eq!(Arc::strong_count(&message), 1);
        assert!(matches!(mailbox.push(message), Err(Refused::Closed(_))));
    }

    /// Senders race with the close: whatever was accepted must be gone at the end, popped or dropped.
    #[test]
    fn nothing_is_kept_when_senders_race_with_close() {
        for _ in 0..200 {
            let mailbox = Arc::new(Mailbox::new(64));
            let message = Arc::new(());
            let senders: Vec<_> = (0..2)
                .map(|_| {
                    let (mailbox, message) = (Arc::clone(&mailbox), Arc::clone(&message));
                    std::thread::spawn(move || while mailbox.push(Arc::clone(&message)).is_ok() {})
                })
                .collect();
            mailbox.close();
            senders.into_iter().for_each(|sender| sender.join().unwrap());
            assert_eq!(Arc::strong_count(&message), 1);
        }
    }
}
