//! How many mappings clients may make: the kernel bounds those of the process, and one client could use them up for all.
//!
//! Behind a vIOMMU a window is a page and there are thousands of them, with `vm.max_map_count` at 65530. Past it nobody's memory is
//! mapped any more, and the SIGBUS handler finds no room to put memory over a window that was torn, which ends the process. So
//! every mapping of a file takes a [`Share`] before it is made ([`super::Windows::map`], [`super::View::span`]), and gives it back when it
//! is unmapped.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicUsize, Ordering},
};

/// A part of the process's mappings. The handler may cut each window in two, so windows take two parts at most; the last is
/// left to everything else: stacks, the heap, bdevs.
const PART: usize = 3;
/// Linux's own value (DEFAULT_MAX_MAP_COUNT), where it does not tell.
const MAX_MAP_COUNT: usize = 65530;

/// Mappings of all clients.
static USED: AtomicUsize = AtomicUsize::new(0);

fn limit() -> usize {
    static LIMIT: OnceLock<usize> = OnceLock::new();
    *LIMIT.get_or_init(|| {
        let told = std::fs::read_to_string("/proc/sys/vm/max_map_count");
        told.ok().and_then(|count| count.trim().parse().ok()).unwrap_or(MAX_MAP_COUNT) / PART
    })
}

/// Whether a client that holds so many mappings gets some more: while it has no more than is left after that. Alone it gets half of all,
/// the next a quarter, and one that comes after some hostile ones still finds the few that a plain guest needs.
fn has_room(limit: usize, used: usize, held: usize, count: usize) -> bool {
    held + count <= limit.saturating_sub(used + count)
}

/// Mappings of one client.
#[derive(Clone, Debug, Default)]
pub(super) struct Client(Arc<AtomicUsize>);

/// Some mappings that a client may have; dropped, they are given back.
#[derive(Debug)]
pub(super) struct Share {
    client: Client,
    count: usize,
}

impl Share {
    /// Nothing where there is no room for so many more.
    pub(super) fn take(client: &Client, count: usize) -> Option<Self> {
        // Relaxed: numbers, nothing else is told by them. A client's queues may each take a ring's at the same time, and pass its
        // part by those; that of all is exact.
        let held = client.0.load(Ordering::Relaxed);
        let more = |used| has_room(limit(), used, held, count).then_some(used + count);
        USED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        client.0.fetch_add(count, Ordering::Relaxed);
        Some(Self { client: client.clone(), count })
    }

    /// Some more for the same client.
    pub(super) fn another(&self, count: usize) -> Option<Self> {
        Self::take(&self.client, count)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.client.0.fetch_sub(self.count, Ordering::Relaxed);
        USED.fetch_sub(self.count, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What clients get that take all they can, one after the other.
    fn shares(limit: usize, clients: usize) -> Vec<usize> {
        let mut used = 0;
        let mut fill = |_| {
            let held = (0..).find(|&held| !has_room(limit, used + held, held, 1)).unwrap();
            used += held;
            held
        };
        (0..clients).map(&mut fill).collect()
    }

    #[test]
    fn each_greedy_client_leaves_as_much_as_it_took() {
        assert_eq!(shares(21843, 5), [10921, 5461, 2730, 1365, 683]);
        assert_eq!(shares(1, 1), [0]);
        assert_eq!(shares(0, 1), [0]);
    }

    #[test]
    fn share_of_many_is_taken_as_a_whole_or_not_at_all() {
        assert!(has_room(100, 0, 0, 50));
        assert!(!has_room(100, 0, 0, 51));
        assert!(!has_room(100, 100, 0, 1));
    }

    #[test]
    fn share_is_given_back() {
        let client = Client::default();
        let share = Share::take(&client, 2).unwrap();
        let another = share.another(3).unwrap();
        assert_eq!(client.0.load(Ordering::Relaxed), 5);
        drop((share, another));
        assert_eq!(client.0.load(Ordering::Relaxed), 0);
        assert!(Share::take(&client, limit()).is_none(), "one client does not get all");
    }
}
