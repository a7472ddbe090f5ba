//! File descriptors that bring a parked poller back: the reactor's epoll set.
//!
//! Pollers register descriptors through [`crate::PollerCx::watch`]; the reactor looks at the set now and then while it
//! is awake and waits on it while it sleeps. Readiness is level-triggered and means only "poll this poller": it is the
//! poller that reads. On the reactor's thread only.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};

use crate::poller::PollerId;

/// Events taken from the kernel in one call; the rest comes with the next one.
pub(crate) const EVENTS_PER_WAIT: usize = 64;

/// The event data of the bell, which belongs to no watch.
const BELL: u64 = u64::MAX;

/// What readiness of a descriptor is waited for. Errors and hang-ups are always reported.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interest {
    /// Nothing but errors and hang-ups.
    None,
    /// Something to read, or the end of the stream.
    Read,
    /// Room to write.
    Write,
    /// Either.
    ReadWrite,
}

impl Interest {
    fn flags(self) -> epoll::EventFlags {
        match self {
            Interest::None => epoll::EventFlags::empty(),
            // RDHUP: a peer that only shut down its writing side must be noticed as well.
            Interest::Read => epoll::EventFlags::IN | epoll::EventFlags::RDHUP,
            Interest::Write => epoll::EventFlags::OUT,
            Interest::ReadWrite => epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::OUT,
        }
    }
}

struct Entry {
    /// Tells the uses of one index apart; an event of an earlier use is stale.
    generation: u32,
    /// `None`: free.
    watched: Option<Watched>,
}

struct Watched {
    poller: PollerId,
    /// Our own duplicate, so that the registration can be taken back whatever became of the caller's descriptor: a
    /// number that was closed and given out again would take back another's.
    fd: OwnedFd,
    interest: Cell<Interest>,
}

/// The epoll set of one reactor.
pub(crate) struct WatchSet {
    epoll: OwnedFd,
    entries: RefCell<Vec<Entry>>,
    free: RefCell<Vec<u32>>,
    live: Cell<usize>,
}

impl WatchSet {
    /// `bell`: the eventfd that ends a wait. It is registered edge-triggered, so each ring is reported once and nobody
    /// needs to read it.
    pub(crate) fn new(bell: BorrowedFd<'_>) -> io::Result<WatchSet> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, bell, epoll::EventData::new_u64(BELL), flags)?;
        Ok(WatchSet { epoll, entries: RefCell::default(), free: RefCell::default(), live: Cell::new(0) })
    }

    /// Watches `fd` for `poller` until the [`Watch`] is dropped or the poller removed.
    pub(crate) fn watch(
        self: &Rc<Self>,
        poller: PollerId,
        fd: BorrowedFd<'_>,
        interest: Interest,
    ) -> io::Result<Watch> {
        let fd = rustix::io::fcntl_dupfd_cloexec(fd, 0)?;
        let mut entries = self.entries.borrow_mut();
        let reused = self.free.borrow().last().copied();
        // An entry holds a descriptor, and those are numbered in 31 bits.
        let index = reused.unwrap_or(entries.len() as u32);
        let generation = reused.map_or(0, |index| entries[index as usize].generation);
        let key = Key { index, generation };
        epoll::add(&self.epoll, &fd, epoll::EventData::new_u64(key.pack()), interest.flags())?;
        // From here on nothing fails, so a refused registration leaves no trace.
        let entry =
            Entry { generation, watched: Some(Watched { poller, fd, interest: Cell::new(interest) }) };
        if reused.is_some() {
            self.free.borrow_mut().pop();
            entries[index as usize] = entry;
        } else {
            entries.push(entry);
        }
        self.live.set(self.live.get() + 1);
        Ok(Watch { set: Rc::clone(self), key })
    }

    /// Is anything watched at all? If not, looking would be a system call for nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.live.get() == 0
    }

    /// Takes back whatever watches `poller` still has: one that outlives it would report to nobody for ever.
    pub(crate) fn remove_of(&self, poller: PollerId) {
        let keys: Vec<Key> = self.keys_of(poller);
        keys.into_iter().for_each(|key| self.remove(key));
    }

    fn keys_of(&self, poller: PollerId) -> Vec<Key> {
        let entries = self.entries.borrow();
        let used = (0u32..).zip(entries.iter());
        used.filter(|(_, entry)| entry.watched.as_ref().is_some_and(|watched| watched.poller == poller))
            .map(|(index, entry)| Key { index, generation: entry.generation })
            .collect()
    }

    fn remove(&self, key: Key) {
        let mut entries = self.entries.borrow_mut();
        let entry = &mut entries[key.index as usize];
        if entry.generation != key.generation {
            return;
        }
        let Some(watched) = entry.watched.take() else { return };
        // The duplicate is open and registered, so this cannot fail; if it did, closing the duplicate below would end
        // the registration in all but the strangest cases, and its events would be stale.
        let _ = epoll::delete(&self.epoll, &watched.fd);
        entry.generation = entry.generation.wrapping_add(1);
        self.free.borrow_mut().push(key.index);
        self.live.set(self.live.get() - 1);
    }

    fn set_interest(&self, key: Key, interest: Interest) -> io::Result<()> {
        let entries = self.entries.borrow();
        let entry = &entries[key.index as usize];
        match &entry.watched {
            // As it is mostly: sessions say what they wait for after every pass.
            Some(watched) if entry.generation == key.generation && watched.interest.get() == interest => {
                Ok(())
            }
            Some(watched) if entry.generation == key.generation => {
                let data = epoll::EventData::new_u64(key.pack());
                epoll::modify(&self.epoll, &watched.fd, data, interest.flags())?;
                watched.interest.set(interest);
                Ok(())
            }
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Appends the pollers whose descriptors are ready; waits for one, or for the bell, up to `timeout` (`None`: for
    /// ever). A signal ends the wait early.
    pub(crate) fn wait(&self, timeout: Option<Duration>, ready: &mut Vec<PollerId>) {
        let blank = epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(BELL) };
        let mut events = [blank; EVENTS_PER_WAIT];
        let count = wait(&self.epoll, &mut events, timeout);
        let entries = self.entries.borrow();
        let pollers = events[..count].iter().filter_map(|event| {
            // A copy: the kernel's event is packed.
            let data = event.data;
            let key = Key::unpack(data.u64());
            let entry = entries.get(key.index as usize).filter(|entry| entry.generation == key.generation)?;
            entry.watched.as_ref().map(|watched| watched.poller)
        });
        ready.extend(pollers);
    }
}

/// The number of events.
fn wait(epoll: &OwnedFd, events: &mut [epoll::Event], timeout: Option<Duration>) -> usize {
    // epoll's own timeout is one of whole milliseconds, rounded up (in `rustix` too, without Linux 5.11), and pollers name
    // deadlines of microseconds. ppoll waits as long as it is told.
    let now = Timespec::default();
    let how_long = match timespec(timeout) {
        Some(how_long) if how_long != now => {
            let mut only = [PollFd::new(epoll, PollFlags::IN)];
            if matches!(poll(&mut only, Some(&how_long)), Ok(0)) {
                return 0;
            }
            Some(now)
        }
        how_long => how_long,
    };
    // EINTR: the caller looks around and comes back. Anything else would mean that our own descriptor or buffer is bad,
    // which cannot be; an empty answer keeps the reactor polling.
    epoll::wait(epoll, events, how_long.as_ref()).unwrap_or(0)
}

/// Longer than a timespec holds is for ever.
fn timespec(timeout: Option<Duration>) -> Option<Timespec> {
    timeout.and_then(|timeout| Timespec::try_from(timeout).ok())
}

/// A watch's index and the use of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Key {
    index: u32,
    generation: u32,
}

impl Key {
    /// Never [`BELL`]: an index of `u32::MAX` would need that many descriptors.
    fn pack(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    fn unpack(data: u64) -> Key {
        Key { index: (data & u64::from(u32::MAX)) as u32, generation: (data >> 32) as u32 }
    }
}

/// A registered descriptor; dropping it ends the registration. It holds a duplicate, so what the descriptor refers to
/// is closed only when the watch is gone too: keep it beside the socket it watches.
pub struct Watch {
    set: Rc<WatchSet>,
    key: Key,
}

impl Watch {
    /// Waits for something else from now on.
    pub fn set_interest(&self, interest: Interest) -> io::Result<()> {
        self.set.set_interest(self.key, interest)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.set.remove(self.key);
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("key", &self.key).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use rustix::event::{EventfdFlags, eventfd};

    const A: PollerId = PollerId { slot: 1, generation: 1 };
    const B: PollerId = PollerId { slot: 2, generation: 1 };

    fn set() -> (Rc<WatchSet>, OwnedFd) {
        let bell = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        (Rc::new(WatchSet::new(bell.as_fd()).unwrap()), bell)
    }

    fn ready(set: &WatchSet) -> Vec<PollerId> {
        let mut ready = Vec::new();
        set.wait(Some(Duration::ZERO), &mut ready);
        ready
    }

    #[test]
    fn readable_descriptor_names_its_poller_until_it_was_read() {
        let (set, _bell) = set();
        let (mut near, far) = UnixStream::pair().unwrap();
        let _watch = set.watch(A, far.as_fd(), Interest::Read).unwrap();
        assert!(ready(&set).is_empty());
        near.write_all(b"x").unwrap();
        assert_eq!(ready(&set), [A]);
        assert_eq!(ready(&set), [A]);
    }

    #[test]
    fn dropped_watch_reports_no_more() {
        let (set, _bell) = set();
        let (mut near, far) = UnixStream::pair().unwrap();
        let watch = set.watch(A, far.as_fd(), Interest::Read).unwrap();
        near.write_all(b"x").unwrap();
        drop(watch);
        assert!(ready(&set).is_empty());
        assert!(set.is_empty());
    }

    /// The caller closes its descriptor first and the number is given out again: the old watch must not take the new
    /// registration with it.
    #[test]
    fn late_drop_of_a_watch_leaves_a_reused_descriptor_number_alone() {
        let (set, _bell) = set();
        let (_near, far) = UnixStream::pair().unwrap();
        let old = set.watch(A, far.as_fd(), Interest::Read).unwrap();
        drop(far);
        let (mut near, far) = UnixStream::pair().unwrap();
        let _new = set.watch(B, far.as_fd(), Interest::Read).unwrap();
        drop(old);
        near.write_all(b"x").unwrap();
        assert_eq!(ready(&set), [B]);
    }

    #[test]
    fn watches_of_a_removed_poller_go_and_their_late_drop_harms_nobody() {
        let (set, _bell) = set();
        let (mut near, far) = UnixStream::pair().unwrap();
        let leaked = set.watch(A, far.as_fd(), Interest::Read).unwrap();
        set.remove_of(A);
        assert!(set.is_empty());
        let _other = set.watch(B, far.as_fd(), Interest::Read).unwrap();
        drop(leaked);
        near.write_all(b"x").unwrap();
        assert_eq!(ready(&set), [B]);
    }

    #[test]
    fn interest_decides_what_is_reported() {
        let (set, _bell) = set();
        let (mut near, far) = UnixStream::pair().unwrap();
        let watch = set.watch(A, far.as_fd(), Interest::None).unwrap();
        near.write_all(b"x").unwrap();
        assert!(ready(&set).is_empty());
        watch.set_interest(Interest::Read).unwrap();
        assert_eq!(ready(&set), [A]);
        watch.set_interest(Interest::Write).unwrap();
        assert_eq!(ready(&set), [A]);
    }

    #[test]
    fn hang_up_is_reported_without_interest() {
        let (set, _bell) = set();
        let (near, far) = UnixStream::pair().unwrap();
        let _watch = set.watch(A, far.as_fd(), Interest::None).unwrap();
        drop(near);
        assert_eq!(ready(&set), [A]);
    }

    #[test]
    fn each_ring_of_the_bell_ends_one_wait_and_names_nobody() {
        let (set, bell) = set();
        for _ in 0..2 {
            rustix::io::write(&bell, &1u64.to_ne_bytes()).unwrap();
            let mut ready = Vec::new();
            // Without the ring this would hang.
            set.wait(None, &mut ready);
            assert!(ready.is_empty());
        }
    }

    #[test]
    fn wait_of_microseconds_takes_no_millisecond() {
        const WAIT: Duration = Duration::from_micros(50);
        let (set, _bell) = set();
        let waited = (0..200).map(|_| {
            let start = std::time::Instant::now();
            set.wait(Some(WAIT), &mut Vec::new());
            start.elapsed()
        });
        // However busy the machine is: of whole milliseconds, no wait would be shorter.
        let shortest = waited.min().unwrap();
        assert!(shortest >= WAIT && shortest < Duration::from_millis(1), "{shortest:?}");
    }

    #[test]
    fn descriptor_that_cannot_be_watched_is_an_error_and_leaves_no_trace() {
        let (set, _bell) = set();
        let file = tempfile::tempfile().unwrap();
        assert!(set.watch(A, file.as_fd(), Interest::Read).is_err());
        assert!(set.is_empty());
    }
}
