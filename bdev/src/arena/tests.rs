//! Tests of the arenas: contents, bounds, alignment, refusal.

use super::*;
use crate::iov;

#[test]
fn memory_starts_as_zeroes_and_keeps_what_is_copied_in() {
    let memory = Memory::zeroed(3 << 20).unwrap();
    let buffer = StaticBuffer::new(4096).unwrap();
    let vector = buffer.iovec(0, 4096).unwrap();
    vector.fill(0, 4096, 0xa5);

    assert!(memory.copy_to((3 << 20) - 4096, vector));
    let mut seen = [0xff; 4096];
    iov::gather(&[vector], &mut seen);
    assert_eq!(seen, [0; 4096]);

    vector.fill(0, 4096, 0x5a);
    assert!(memory.copy_from(1000, vector));
    assert!(memory.zero(1001, 2));
    assert!(memory.copy_to(999, vector));
    iov::gather(&[vector], &mut seen);
    assert_eq!(seen[..5], [0, 0x5a, 0, 0, 0x5a]);
}

#[test]
fn copies_past_the_end_do_nothing() {
    let memory = Memory::zeroed(8192).unwrap();
    let buffer = StaticBuffer::new(4096).unwrap();
    let vector = buffer.iovec(0, 4096).unwrap();
    vector.fill(0, 4096, 7);

    assert!(!memory.copy_from(4097, vector));
    assert!(!memory.copy_to(usize::MAX, vector));
    assert!(!memory.zero(8192, 1));
    assert!(memory.zero(8192, 0));

    let mut seen = [0; 4096];
    iov::gather(&[vector], &mut seen);
    assert_eq!(seen, [7; 4096]);
}

#[test]
fn large_regions_are_aligned_for_transparent_hugepages() {
    let arena = PageArena::new((2 << 20) + 1).unwrap();

    assert_eq!(arena.base().addr().get() % (2 << 20), 0);
    assert_eq!(arena.len_bytes(), (2 << 20) + 1);
}

#[test]
fn more_memory_than_the_machine_can_spare_is_refused() {
    // 2^50 bytes: a pebibyte.
    assert!(matches!(Memory::zeroed(1 << 50), Err(Error::NoMemory { len_bytes }) if len_bytes == 1 << 50));
    assert!(matches!(Memory::zeroed(usize::MAX), Err(Error::NoMemory { .. })));
    assert!(matches!(Memory::zeroed(0), Err(Error::Invalid(_))));
}

#[test]
fn a_vector_over_part_of_a_buffer_stays_inside_it() {
    let buffer = StaticBuffer::new(100).unwrap();

    assert_eq!(buffer.iovec(40, 60).map(|v| v.len()), Some(60));
    assert!(buffer.iovec(40, 61).is_none());
    assert!(buffer.iovec(usize::MAX, 2).is_none());
}
