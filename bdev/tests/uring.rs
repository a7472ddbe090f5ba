//! The conformance suite on `uring`: a file with O_DIRECT, a file in memory, and the rings that poll.

use std::sync::Arc;

use bdev::Registry;
use bdev::conformance::Subject;
use bdev::types::{UringParams, uring};

/// A bdev on a new file, which goes with it.
fn make(registry: &Arc<Registry>, dir: &str, params: UringParams, size_bytes: u64) -> String {
    let file = tempfile::NamedTempFile::new_in(dir).expect("a temporary file");
    file.as_file().set_len(size_bytes).expect("a sparse file");
    let filename = file.path().to_str().expect("a plain path").to_owned();
    let params = UringParams { name: "Uring0".to_owned(), filename, ..params };
    uring::create(registry, params).expect("a file can be opened").name().to_owned()
}

fn temp() -> String {
    std::env::temp_dir().to_str().expect("a plain path").to_owned()
}

fn blocks_of(block_size: u32) -> UringParams {
    UringParams { block_size, ..UringParams::default() }
}

/// On a disk, with O_DIRECT where it takes that: all but the checks that sync hundreds of times, which `in_memory` makes.
mod on_disk {
    use bdev::conformance::*;

    use super::*;

    const SUBJECT: Subject = Subject {
        make: |registry| make(registry, &temp(), blocks_of(512), 1 << 20),
        keeps_data: true,
        grow: None,
    };

    #[test]
    fn takes_what_is_asked() {
        describes_itself_consistently(&SUBJECT);
        refuses_too_many_vectors_and_takes_misaligned_ones(&SUBJECT);
        completes_requests_of_no_blocks(&SUBJECT);
        reads_back_what_was_written_at_both_ends(&SUBJECT);
        takes_vectors_of_every_shape(&SUBJECT);
        touches_only_the_memory_of_the_vectors(&SUBJECT);
        takes_one_request_over_the_whole_bdev(&SUBJECT);
        leaves_overlapping_writes_as_one_of_them(&SUBJECT);
        unmaps_exactly_the_blocks_asked_for(&SUBJECT);
    }

    #[test]
    fn flows() {
        keeps_flushed_data_over_a_new_channel(&SUBJECT);
        shows_writes_of_one_channel_to_another(&SUBJECT);
        fills_to_its_depth_and_completes_each_request_once(&SUBJECT);
        reaps_into_short_arrays(&SUBJECT);
        ends_what_is_in_flight_when_removed(&SUBJECT);
        can_be_dropped_with_requests_in_flight(&SUBJECT);
    }
}

mod in_memory {
    use super::*;

    const SUBJECT: Subject = Subject {
        make: |registry| make(registry, "/dev/shm", blocks_of(4096), 4 << 20),
        keeps_data: true,
        grow: None,
    };

    bdev::conformance_suite!(SUBJECT);
}

/// The checks that tell rings apart; what is above the ring is the same code.
mod other_rings {
    use bdev::conformance::*;

    use super::*;

    const POLLED: Subject = Subject {
        make: |registry| make(registry, &temp(), UringParams { iopoll: true, ..blocks_of(512) }, 1 << 20),
        keeps_data: true,
        grow: None,
    };
    const TAKEN: Subject = Subject {
        make: |registry| make(registry, "/dev/shm", UringParams { sqpoll: true, ..blocks_of(512) }, 1 << 20),
        keeps_data: true,
        grow: None,
    };

    #[test]
    fn polled_by_the_kernel_or_fallen_back() {
        takes_vectors_of_every_shape(&POLLED);
        fills_to_its_depth_and_completes_each_request_once(&POLLED);
        keeps_flushed_data_over_a_new_channel(&POLLED);
        can_be_dropped_with_requests_in_flight(&POLLED);
    }

    #[test]
    fn taken_by_a_thread_of_the_kernel() {
        takes_vectors_of_every_shape(&TAKEN);
        fills_to_its_depth_and_completes_each_request_once(&TAKEN);
        keeps_flushed_data_over_a_new_channel(&TAKEN);
        can_be_dropped_with_requests_in_flight(&TAKEN);
    }
}
