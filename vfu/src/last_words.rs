//! Telling others that a poller is gone only when it is: as the last field of its struct, this speaks after every other
//! field has been dropped, so that who hears it finds no window pinned, no channel open and no reference held.
//!
//! Used by the endpoint and by the owners of queues. A poller that panics says nothing by this: its fault hook speaks, which
//! the reactor calls after it has dropped the poller.

/// The last field of a poller. Fields are dropped in the order in which they are declared.
#[derive(Default)]
pub(crate) struct LastWords(Option<Box<dyn FnOnce() + Send>>);

impl LastWords {
    /// Has `words` said when this is dropped. Nothing is said when this was never called.
    pub(crate) fn set(&mut self, words: impl FnOnce() + Send + 'static) {
        self.0 = Some(Box::new(words));
    }
}

impl Drop for LastWords {
    fn drop(&mut self) {
        if let Some(words) = self.0.take() {
            words();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use super::*;

    struct Poller {
        held: Arc<()>,
        last_words: LastWords,
    }

    #[test]
    fn words_are_said_when_everything_before_them_is_dropped() {
        let held = Arc::new(());
        let was_free = Arc::new(AtomicBool::new(false));
        let mut poller = Poller { held: Arc::clone(&held), last_words: LastWords::default() };
        let (seen, answer) = (Arc::downgrade(&poller.held), Arc::clone(&was_free));
        drop(held);
        poller.last_words.set(move || answer.store(seen.upgrade().is_none(), Ordering::Relaxed));

        drop(poller);

        assert!(was_free.load(Ordering::Relaxed));
    }
}
