//! No request allocates, on any type: counted by a global allocator.
#![expect(unsafe_code, reason = "a global allocator that counts cannot be had without")]

mod subjects;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use bdev::conformance::{Subject, allocations_of_mixed_io};
use bdev::types::{Malloc, MallocParams, Null, NullParams};

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: hands everything on to the system's allocator; the counter is a plain cell of this thread without a
// destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: as promised by our caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: as promised by our caller.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count() -> u64 {
    COUNT.get()
}

#[test]
fn the_counter_counts() {
    let before = count();

    drop(std::hint::black_box(Box::new(1)));

    assert_eq!(count() - before, 2);
}

#[test]
fn malloc_allocates_nothing_per_request() {
    let subject = Subject {
        make: |registry| {
            let malloc = Malloc::new("Malloc0".to_owned(), &MallocParams::new(512, 4096)).expect("memory");
            registry.register(Arc::new(malloc)).expect("a new registry").name().to_owned()
        },
        keeps_data: true,
        grow: None,
    };

    assert_eq!(allocations_of_mixed_io(&subject, count), 0);
}

#[test]
fn null_allocates_nothing_per_request() {
    let subject = Subject {
        make: |registry| {
            let params = NullParams {
                name: "Null0".into(),
                block_size: 512,
                num_blocks: 4096,
                ..NullParams::default()
            };
            registry
                .register(Arc::new(Null::new(params).expect("valid")))
                .expect("a new registry")
                .name()
                .to_owned()
        },
        keeps_data: false,
        grow: Some(bdev::conformance::by_resize),
    };

    assert_eq!(allocations_of_mixed_io(&subject, count), 0);
}

#[test]
fn files_allocate_nothing_per_request() {
    assert_eq!(allocations_of_mixed_io(&subjects::URING, count), 0);
    assert_eq!(allocations_of_mixed_io(&subjects::AIO, count), 0);
}

#[test]
fn bdevs_on_others_allocate_nothing_per_request() {
    let stacked = [
        subjects::PASSTHRU,
        subjects::DELAY,
        subjects::DELAY_ON_URING,
        subjects::ERROR,
        subjects::SPLIT,
        subjects::RAID0,
        subjects::CONCAT,
        subjects::STACK,
    ];

    assert_eq!(stacked.map(|subject| allocations_of_mixed_io(&subject, count)), [0; 8]);
}
