//! Buffers for requests whose own memory a bdev cannot take: two pools for the process, and a cache per thread.
//!
//! Set up with the first bdev that may need a buffer, by `iobuf_set_options` or the defaults; what is handed out most is
//! touched then, off the reactors. Getting a buffer allocates and locks nothing. Running out is no
//! error: who gets none tries again.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crossbeam::queue::ArrayQueue;
use serde::{Deserialize, Serialize};

use crate::arena::StaticBuffer;
use crate::{Error, IoVec};

/// Buffers that are touched when a pool is made; the others when they are first used.
const WARM: usize = 64;
/// Least numbers and sizes (IOBUF_MIN_*).
const SMALL_COUNT_MIN: u64 = 64;
const LARGE_COUNT_MIN: u64 = 8;
const SMALL_BYTES_MIN: u32 = 4096;
const LARGE_BYTES_MIN: u32 = 8192;
/// Alignment of buffers.
const ALIGN: usize = 4096;

/// The params of `iobuf_set_options`.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are the keys of the params")]
pub struct IobufOptions {
    pub small_pool_count: u64,
    pub large_pool_count: u64,
    pub small_bufsize: u32,
    pub large_bufsize: u32,
    pub enable_numa: bool,
}

impl Default for IobufOptions {
    fn default() -> IobufOptions {
        IobufOptions {
            small_pool_count: 8192,
            large_pool_count: 1024,
            small_bufsize: 8192,
            large_bufsize: 135_168,
            enable_numa: false,
        }
    }
}

/// One pool's counters, as `iobuf_get_stats` shows them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PoolStats {
    /// Buffers that came from a thread's cache.
    pub cache: u64,
    /// Buffers that came from the pool.
    pub main: u64,
    /// Times that there was none.
    pub retry: u64,
    /// What a thread's cache holds at most.
    pub cache_size: u64,
}

struct Pool {
    memory: StaticBuffer,
    each_bytes: usize,
    free: ArrayQueue<u32>,
    cache: AtomicU64,
    main: AtomicU64,
    retry: AtomicU64,
}

impl Pool {
    fn new(count: u64, each_bytes: u32) -> Result<Pool, Error> {
        let each = (each_bytes as usize).next_multiple_of(ALIGN);
        let too_much = || Error::NoMemory { len_bytes: count.saturating_mul(each as u64) };
        let count = usize::try_from(count).ok().filter(|n| u32::try_from(*n).is_ok()).ok_or_else(too_much)?;
        let len = count.checked_mul(each).ok_or_else(too_much)?;
        let memory = StaticBuffer::untouched(len)?;
        let warm = memory.iovec(0, len.min(WARM * each)).ok_or_else(too_much)?;
        warm.fill(0, warm.len(), 0);
        let free = ArrayQueue::new(count);
        for index in 0..count as u32 {
            // It has room for all of them.
            let _ = free.push(index);
        }
        Ok(Pool { memory, each_bytes: each, free, cache: 0.into(), main: 0.into(), retry: 0.into() })
    }
}

struct Pools {
    /// Small, large.
    pools: [Pool; 2],
}

static POOLS: OnceLock<Result<Pools, String>> = OnceLock::new();
static OPTIONS: Mutex<Option<IobufOptions>> = Mutex::new(None);
static CACHE_SIZES: [AtomicU64; 2] = [AtomicU64::new(128), AtomicU64::new(16)];

struct Cache {
    free: [Vec<u32>; 2],
}

impl Drop for Cache {
    fn drop(&mut self) {
        let Some(Ok(pools)) = POOLS.get() else { return };
        for (free, pool) in self.free.iter_mut().zip(&pools.pools) {
            for index in free.drain(..) {
                // The pool has room for all of its buffers.
                let _ = pool.free.push(index);
            }
        }
    }
}

thread_local! {
    static CACHE: RefCell<Cache> = RefCell::new(Cache {
        free: [0, 1].map(|pool: usize| Vec::with_capacity(cache_size(pool))),
    });
}

/// How many buffers of a pool a thread keeps at most: as was asked, which may be any number, and never more than there are.
fn cache_size(pool: usize) -> usize {
    let asked = usize::try_from(CACHE_SIZES[pool].load(Ordering::Relaxed)).unwrap_or(usize::MAX);
    match POOLS.get() {
        Some(Ok(pools)) => asked.min(pools.pools[pool].free.capacity()),
        _ => 0,
    }
}

/// Sets numbers and sizes, before the pools are made.
pub fn set_options(options: IobufOptions) -> Result<(), Error> {
    if options.small_pool_count < SMALL_COUNT_MIN || options.large_pool_count < LARGE_COUNT_MIN {
        return Err(Error::Invalid("too few buffers".to_owned()));
    }
    if options.small_bufsize < SMALL_BYTES_MIN || options.large_bufsize < LARGE_BYTES_MIN {
        return Err(Error::Invalid("buffers too small".to_owned()));
    }
    if POOLS.get().is_some() {
        return Err(Error::Busy { name: "iobuf".to_owned() });
    }
    *OPTIONS.lock().unwrap_or_else(PoisonError::into_inner) = Some(options);
    Ok(())
}

/// The options in force.
pub fn options() -> IobufOptions {
    OPTIONS.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or_default()
}

/// Sets how many buffers a thread that has none yet may keep.
pub fn set_cache_sizes(small: u32, large: u32) {
    CACHE_SIZES[0].store(small.into(), Ordering::Relaxed);
    CACHE_SIZES[1].store(large.into(), Ordering::Relaxed);
}

/// Makes the pools, if they are not there.
pub fn init() -> Result<(), Error> {
    let made = POOLS.get_or_init(|| {
        let options = options();
        let small = Pool::new(options.small_pool_count, options.small_bufsize);
        let both = small.and_then(|s| Ok([s, Pool::new(options.large_pool_count, options.large_bufsize)?]));
        both.map(|pools| Pools { pools }).map_err(|error| error.to_string())
    });
    made.as_ref().map(|_| ()).map_err(|text| Error::Unsupported(format!("no bounce buffers: {text}")))
}

/// Counters of the small and the large pool.
pub fn stats() -> [PoolStats; 2] {
    [0, 1].map(|at: usize| {
        let Some(Ok(pools)) = POOLS.get() else { return PoolStats::default() };
        let (pool, get) = (&pools.pools[at], |counter: &AtomicU64| counter.load(Ordering::Relaxed));
        PoolStats {
            cache: get(&pool.cache),
            main: get(&pool.main),
            retry: get(&pool.retry),
            cache_size: cache_size(at) as u64,
        }
    })
}

/// The longest buffer there is.
pub(crate) fn longest() -> usize {
    match POOLS.get() {
        Some(Ok(pools)) => pools.pools[1].each_bytes,
        _ => 0,
    }
}

/// A buffer; given back when dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    pool: u8,
    index: u32,
    whole: IoVec,
}

impl Buffer {
    /// One of at least `len` bytes, or none now.
    pub(crate) fn get(len: usize) -> Option<Buffer> {
        let Some(Ok(pools)) = POOLS.get() else { return None };
        let at = usize::from(len > pools.pools[0].each_bytes);
        let pool = &pools.pools[at];
        if len > pool.each_bytes {
            return None;
        }
        let cached = CACHE.with_borrow_mut(|cache| cache.free[at].pop());
        let (index, counter) = match cached {
            Some(index) => (Some(index), &pool.cache),
            None => (pool.free.pop(), &pool.main),
        };
        let Some(index) = index else {
            pool.retry.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let whole = pool.memory.iovec(index as usize * pool.each_bytes, pool.each_bytes)?;
        Some(Buffer { pool: at as u8, index, whole })
    }

    /// Its first `len` bytes.
    pub(crate) fn iovec(&self, len: usize) -> IoVec {
        self.whole.slice(0, len).unwrap_or(self.whole)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let at = usize::from(self.pool);
        let kept = CACHE.try_with(|cache| {
            let free = &mut cache.borrow_mut().free[at];
            let has_room = free.len() < free.capacity();
            if has_room {
                free.push(self.index);
            }
            has_room
        });
        if kept != Ok(true)
            && let Some(Ok(pools)) = POOLS.get()
        {
            // The pool has room for all of its buffers.
            let _ = pools.pools[at].free.push(self.index);
        }
    }
}

/// For tests that take all buffers: everything that is free in the pools of the process.
#[doc(hidden)]
pub fn exhaust() -> Vec<Arc<dyn std::any::Any>> {
    let mut all: Vec<Arc<dyn std::any::Any>> = Vec::new();
    for len in [1, longest()] {
        while let Some(buffer) = Buffer::get(len) {
            all.push(Arc::new(buffer));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_no_more_buffers_than_there_are() {
        init().unwrap();
        set_cache_sizes(u32::MAX, u32::MAX);

        let room = std::thread::spawn(|| {
            drop(Buffer::get(1));
            CACHE.with_borrow(|cache| [cache.free[0].capacity(), cache.free[1].capacity()])
        });

        let IobufOptions { small_pool_count, large_pool_count, .. } = IobufOptions::default();
        let room = room.join().unwrap().map(|n| n as u64);
        assert_eq!((room, stats().map(|pool| pool.cache_size)), ([small_pool_count, large_pool_count], room));
        set_cache_sizes(128, 16);
    }
}
