//! The log of bdevs that came, went and grew, for `notify_get_notifications`.
//!
//! Fed by the registry, read by the RPC glue. Keeps the newest 1024 entries, as SPDK does; ids go on
//! counting.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use crate::{Change, Registry};

/// Entries kept (SPDK_NOTIFY_MAX_EVENTS).
const CAPACITY: usize = 1024;
/// Longest `ctx` in bytes; SPDK cuts there too, one byte of its 128 being the terminating zero.
const CTX_BYTES: usize = 127;

/// One entry, as `notify_get_notifications` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Notification {
    /// One of [`Notifications::TYPES`].
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Name of the bdev.
    pub ctx: String,
    /// Number of the entry, from 0 on.
    pub id: u64,
}

#[derive(Debug, Default)]
struct Log {
    entries: VecDeque<Notification>,
    next_id: u64,
}

/// The log. One per registry, made before the first bdev.
#[derive(Debug, Default)]
pub struct Notifications {
    log: Mutex<Log>,
}

impl Notifications {
    /// What `notify_get_types` answers.
    pub const TYPES: [&'static str; 3] = ["bdev_register", "bdev_unregister", "bdev_resize"];

    /// A log of what happens in `registry` from now on.
    pub fn watching(registry: &Registry) -> Arc<Notifications> {
        let notifications = Arc::<Notifications>::default();
        let log = notifications.clone();
        registry.watch(move |change, bdev| log.push(change, bdev.name()));
        notifications
    }

    fn push(&self, change: Change, name: &str) {
        let kind = match change {
            Change::Registered => Self::TYPES[0],
            Change::Unregistered => Self::TYPES[1],
            Change::Resized => Self::TYPES[2],
        };
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let id = log.next_id;
        log.next_id += 1;
        if log.entries.len() == CAPACITY {
            log.entries.pop_front();
        }
        let ctx = name[..name.floor_char_boundary(CTX_BYTES)].to_owned();
        log.entries.push_back(Notification { kind, ctx, id });
    }

    /// Entries from number `id` on, at most `max` of them; from the oldest kept where that one is gone.
    pub fn since(&self, id: u64, max: u64) -> Vec<Notification> {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        log.entries.iter().skip_while(|n| n.id < id).take(max).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_entries_are_kept_and_numbers_go_on() {
        let log = Notifications::default();
        for _ in 0..CAPACITY + 3 {
            log.push(Change::Registered, "Malloc0");
        }
        log.push(Change::Unregistered, "Malloc0");

        let all = log.since(0, u64::MAX);
        assert_eq!((all.len(), all[0].id), (CAPACITY, 4));
        let newest = Notification { kind: "bdev_unregister", ctx: "Malloc0".into(), id: 1027 };
        assert_eq!(log.since(1027, 10), [newest]);
        assert_eq!(log.since(5, 2).iter().map(|n| n.id).collect::<Vec<_>>(), [5, 6]);
        assert_eq!(log.since(1028, 1), []);
    }

    #[test]
    fn a_long_name_is_cut_at_a_whole_character() {
        let log = Notifications::default();

        log.push(Change::Resized, &"é".repeat(100));

        assert_eq!(log.since(0, 1)[0].ctx, "é".repeat(63));
    }
}
