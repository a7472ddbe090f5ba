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
        atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering},
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

/// A registered range. `len` of zero means that the slot is free; it is stored last and cleared first.
struct Slot {
    start: AtomicUsize,
    len: AtomicUsize,
    torn: AtomicPtr<Torn>,
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
    /// Registers a mapping. Nothing when there are more windows than slots.
    pub(super) fn new(start: usize, len: usize) -> Option<Self> {
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
        TABLE[index / SLOTS].get_or_init(|| {
            let free = || Slot { start: 0.into(), len: 0.into(), torn: AtomicPtr::new(ptr::null_mut()) };
            (0..SLOTS).map(|_| free()).collect()
        });
        let torn = Arc::new(Torn::default());
        let slot = slot(index)?;
        slot.torn.store(Arc::as_ptr(&torn).cast_mut(), Ordering::Relaxed);
        slot.start.store(start, Ordering::Relaxed);
        slot.len.store(len, Ordering::Release);
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
            slot.len.store(0, Ordering::Release);
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
    let address = unsafe { (*info).si_addr() } as usize;
    if !patch(address) {
        // Not ours: the access is repeated under the default, which ends the process and leaves a core with its cause.
        // SAFETY: setting a default action is allowed in a handler.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
    }
}

/// Puts memory under an address of a registered range. Async-signal-safe: atomics and one system call.
fn patch(address: usize) -> bool {
    for block in TABLE.iter().map_while(OnceLock::get) {
        for slot in block {
            let len = slot.len.load(Ordering::Acquire);
            let start = slot.start.load(Ordering::Relaxed);
            if len == 0 || address < start || address - start >= len {
                continue;
            }
            let page = address & !(PAGE - 1);
            let rest = (start + len).next_multiple_of(PAGE) - page;
            // Told before there is memory again: another reactor may use it at once, and must not take it for the guest's.
            let torn = slot.torn.load(Ordering::Relaxed);
            // SAFETY: the mark lives in an `Arc` of the registration, whose owner keeps it until after it has cleared the slot; an
            // access to the range is under way on this very thread, so the owner is alive.
            unsafe { &*torn }.0.store(true, Ordering::Release);
            TORN.fetch_add(1, Ordering::AcqRel);
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
            // SAFETY: the range is inside a mapping that its registration's owner keeps until after it has cleared the
            // slot; an access to it is under way on this very thread, so the owner is alive. Its owner unmaps the whole
            // range, whatever is under it.
            let mapped = unsafe { libc::mmap(page as *mut libc::c_void, rest, access, flags, -1, 0) };
            return mapped != libc::MAP_FAILED;
        }
    }
    false
}

/// Smallest page of the machines this runs on. A larger one makes the range a multiple of it all the same: mappings
/// start at pages.
const PAGE: usize = 4096;
