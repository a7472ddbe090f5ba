//! SIGBUS: what is left of a mapping whose file its owner made shorter.
//!
//! A client can shrink the file behind a window at any time; the next access behind the new end is SIGBUS, whose default
//! would end the target and every other guest's disk with it. The handler here looks whether the address is in a
//! window. If so, it puts anonymous memory over the window from that page on, so that the access goes on, and marks the
//! window as torn: nothing is translated through it once a queue has asked ([`super::View::torn`]), which each does before it
//! translates, and after it has used what it translated ([`Torn`]). Any other SIGBUS ends the process, as
//! without us.
//!
//! Windows are registered by [`super::Mapping`] alone. The handler runs on whatever thread touched the memory, at any
//! point of it, so it takes no lock and allocates nothing: it walks a list of slots that never move and are never freed.
#![expect(unsafe_code, reason = "a signal handler, and memory put over what is gone")]

use std::{
    ptr,
    sync::{
        Arc, Mutex, Once, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence},
    },
};

/// A window's mark that memory behind it is gone.
#[derive(Debug, Default)]
pub(super) struct Torn(AtomicBool);

impl Torn {
    #[inline]
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts torn windows of the whole process.
static TORN: AtomicU64 = AtomicU64::new(0);

/// How many windows were torn until now. A queue that sees another number than before looks at its windows.
#[inline]
pub(super) fn count() -> u64 {
    TORN.load(Ordering::Acquire)
}

/// What a slot holds: a range, and its mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    start: usize,
    /// Zero: the slot is free.
    len: usize,
    /// Bytes of a page: the range is made of whole ones, and the kernel puts nothing over a part of one.
    page: usize,
    torn: *mut Torn,
}

impl Entry {
    const FREE: Self = Self { start: 0, len: 0, page: 0, torn: ptr::null_mut() };
}

/// A place for an entry. It changes hands while handlers walk over it, and one that took the length of an entry with the start
/// of the next would put memory over what is no window: `turn` tells them.
#[derive(Debug, Default)]
struct Slot {
    /// Odd while the entry is being written.
    turn: AtomicUsize,
    start: AtomicUsize,
    len: AtomicUsize,
    page: AtomicUsize,
    torn: AtomicPtr<Torn>,
}

impl Slot {
    /// Called by the one who has the slot's index, from taking it off the free list until putting it back.
    fn set(&self, entry: Entry) {
        let turn = self.turn.load(Ordering::Relaxed);
        self.turn.store(turn.wrapping_add(1), Ordering::Relaxed);
        // Pairs with the fence of `get`: who read a part of this entry finds the turn odd, or further, when it looks again.
        fence(Ordering::Release);
        self.start.store(entry.start, Ordering::Relaxed);
        self.len.store(entry.len, Ordering::Relaxed);
        self.page.store(entry.page, Ordering::Relaxed);
        self.torn.store(entry.torn, Ordering::Relaxed);
        self.turn.store(turn.wrapping_add(2), Ordering::Release);
    }

    /// The entry, unless it is being changed.
    fn get(&self) -> Option<Entry> {
        let turn = self.turn.load(Ordering::Acquire);
        let entry = Entry {
            start: self.start.load(Ordering::Relaxed),
            len: self.len.load(Ordering::Relaxed),
            page: self.page.load(Ordering::Relaxed),
            torn: self.torn.load(Ordering::Relaxed),
        };
        fence(Ordering::Acquire);
        let is_whole = turn.is_multiple_of(2) && self.turn.load(Ordering::Relaxed) == turn;
        is_whole.then_some(entry)
    }
}

/// Slots of one block, and blocks: enough for [`crate::wire::version::MAX_DMA_MAPS`] windows of some clients.
const SLOTS: usize = 1024;
const BLOCKS: usize = 1024;

static TABLE: [OnceLock<Box<[Slot]>>; BLOCKS] = [const { OnceLock::new() }; BLOCKS];
/// Slots that were used once and are free; and how many were used at all.
static FREE: Mutex<(Vec<usize>, usize)> = Mutex::new((Vec::new(), 0));

fn slot(index: usize) -> Option<&'static Slot> {
    TABLE.get(index / SLOTS)?.get()?.get(index % SLOTS)
}

/// Hold on a registered range; dropped, the range is none of ours any more.
#[derive(Debug)]
pub(super) struct Registration {
    index: usize,
    torn: Arc<Torn>,
}

impl Registration {
    /// Registers a mapping, which is made of whole pages of `page` bytes. Nothing when there are more windows than slots.
    pub(super) fn new(start: usize, len: usize, page: usize) -> Option<Self> {
        install();
        let index = {
            let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
            match free.0.pop() {
                Some(index) => index,
                None if free.1 < SLOTS * BLOCKS => {
                    free.1 += 1;
                    free.1 - 1
                }
                None => return None,
            }
        };
        TABLE[index / SLOTS].get_or_init(|| (0..SLOTS).map(|_| Slot::default()).collect());
        let torn = Arc::new(Torn::default());
        slot(index)?.set(Entry { start, len, page, torn: Arc::as_ptr(&torn).cast_mut() });
        Some(Self { index, torn })
    }

    #[inline]
    pub(super) fn torn(&self) -> &Torn {
        &self.torn
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(slot) = slot(self.index) {
            slot.set(Entry::FREE);
        }
        FREE.lock().unwrap_or_else(PoisonError::into_inner).0.push(self.index);
    }
}

fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: all zeroes is a valid sigaction: no flags, empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handle as extern "C" fn(_, _, _) as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the action is complete, and its handler does only what a handler may (see `handle`).
        let outcome = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) };
        if outcome != 0 {
            tracing::error!("SIGBUS cannot be caught: a client that shrinks its memory can end the target");
        }
    });
}

extern "C" fn handle(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to a handler with SA_SIGINFO, and SIGBUS has an address.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // By any other code it was sent: this thread does not access the address.
    let is_access = matches!(code, libc::BUS_ADRERR | libc::BUS_MCEERR_AR);
    if !(is_access && patch(address)) {
        // Not ours: the access is repeated under the default, which ends the process and leaves a core with its cause.
        // SAFETY: setting a default action is allowed in a handler.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
    }
}

/// The entry whose range an address is in. One look at each slot is enough for an address that this thread accesses: its window was
/// registered before the thread knew of it, and stays so while it is accessed, so a slot that changes meanwhile is another's.
fn find(address: usize) -> Option<Entry> {
    let slots = TABLE.iter().map_while(OnceLock::get).flatten();
    slots.filter_map(Slot::get).find(|entry| address.wrapping_sub(entry.start) < entry.len)
}

/// Puts memory under an address of a registered range. Async-signal-safe: atomics and one system call.
///
/// The caller is about to repeat an access to the address, which holds the mapping there alive: through a view, a span, or the
/// request of one. So an entry that has the address in its range is this mapping's, and no earlier one's: that was cleared before its
/// range was unmapped, hence before the address could become this mapping's. And it stays as long as the access is not made.
fn patch(address: usize) -> bool {
    let Some(Entry { start, len, page, torn }) = find(address) else { return false };
    let from = address & !(page - 1);
    let rest = start + len - from;
    // Told before there is memory again: another reactor may use it at once, and must not take it for the guest's.
    // SAFETY: the mark lives in an `Arc` of the registration, which clears its slot before it lets go of it; the access that
    // is under way on this very thread keeps the registration (see above).
    unsafe { &*torn }.0.store(true, Ordering::Release);
    TORN.fetch_add(1, Ordering::AcqRel);
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: the range is inside a mapping that the access under way on this very thread keeps (see above), and its owner
    // unmaps all of it in the end, whatever is under it.
    let mapped = unsafe { libc::mmap(from as *mut libc::c_void, rest, access, flags, -1, 0) };
    mapped != libc::MAP_FAILED
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn entry_is_never_of_two_uses_of_its_slot() {
        // With the length of the second, the first would reach over the second and far beyond.
        let entry = |nth: usize| {
            let (start, len) = [(0x1000, 0x1000), (0x10_0000, 0x100_0000), (0, 0)][nth % 3];
            Entry { start, len, page: 0, torn: ptr::null_mut() }
        };
        let slot = Slot::default();
        let mut mixed = Vec::new();

        thread::scope(|scope| {
            // So many that two threads on one core are interrupted in the middle often enough.
            let turns = scope.spawn(|| (0..20_000_000).for_each(|nth| slot.set(entry(nth))));
            while !turns.is_finished() {
                mixed.extend(slot.get().filter(|found| ![0, 1, 2].map(entry).contains(found)));
            }
        });

        assert_eq!(mixed, []);
    }

    #[test]
    fn entry_that_is_being_changed_is_none() {
        let slot = Slot::default();
        slot.set(Entry { start: 0x1000, len: 0x1000, ..Entry::FREE });
        slot.turn.fetch_add(1, Ordering::Relaxed);
        assert_eq!(slot.get(), None);
    }
}
