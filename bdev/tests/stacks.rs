//! The conformance suite on bdevs that stand on others, alone and in a stack, and on aio with all it can do.

mod subjects;

mod aio_with_fallocate {
    bdev::conformance_suite!(super::subjects::AIO);
}

mod passthru_on_malloc {
    bdev::conformance_suite!(super::subjects::PASSTHRU);
}

mod delay_on_malloc {
    bdev::conformance_suite!(super::subjects::DELAY);
}

mod error_on_malloc {
    bdev::conformance_suite!(super::subjects::ERROR);
}

mod split_of_malloc {
    bdev::conformance_suite!(super::subjects::SPLIT);
}

mod raid0_of_three {
    bdev::conformance_suite!(super::subjects::RAID0);
}

mod concat_of_three {
    bdev::conformance_suite!(super::subjects::CONCAT);
}

/// delay on split on raid0 on uring.
mod stack_of_four {
    bdev::conformance_suite!(super::subjects::STACK);
}

/// Files that grow under load, alone and below another bdev: the checks that growth concerns.
mod growing_files {
    use bdev::conformance::{grows_under_load_or_refuses_to, matches_a_model_through_random_interleavings};

    use super::subjects::{DELAY_ON_URING, URING};

    #[test]
    fn a_file_grows_under_load() {
        grows_under_load_or_refuses_to(&URING);
        matches_a_model_through_random_interleavings(&URING);
    }

    #[test]
    fn a_bdev_grows_with_the_file_below() {
        grows_under_load_or_refuses_to(&DELAY_ON_URING);
        matches_a_model_through_random_interleavings(&DELAY_ON_URING);
    }
}
