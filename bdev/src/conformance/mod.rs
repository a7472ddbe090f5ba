//! The suite that every bdev type, and every stack of types, must pass.
//!
//! An integration test describes its [`Subject`] and calls [`conformance_suite!`](crate::conformance_suite),
//! which makes one test of each check. All checks go through the registry and
//! [`IoChannel`](crate::IoChannel), as a device model does. Behind the feature `conformance`; not part of the
//! program.

mod data;
mod flow;
mod random;
mod refusals;
mod rig;

use std::sync::Arc;

use crate::{Error, Registry};

pub use data::*;
pub use flow::*;
pub use random::*;
pub use refusals::*;
pub use rig::Rig;

/// How a type is made, and what it may be expected to do.
///
/// The bdev must be new, hold between 512 KiB and 4 MiB, and, if it keeps data, read as zeroes.
#[derive(Clone, Copy)]
pub struct Subject {
    /// Creates the bdev (and what it stands on) and returns its name.
    pub make: fn(&Arc<Registry>) -> String,
    /// Reads return what was written. False for `null`: everything but contents is checked.
    pub keeps_data: bool,
    /// Makes it larger, if that is possible: `registry, name, number of blocks`.
    pub grow: Option<Grow>,
}

/// How a type is made larger.
pub type Grow = fn(&Arc<Registry>, &str, u64) -> Result<(), Error>;

/// The way of types whose size is what the registry says.
pub fn by_resize(registry: &Arc<Registry>, name: &str, num_blocks: u64) -> Result<(), Error> {
    registry.resize(name, num_blocks)
}

/// One test per check of the suite, for one subject.
#[macro_export]
macro_rules! conformance_suite {
    ($subject:expr) => {
        $crate::conformance_suite! { @checks $subject;
            describes_itself_consistently,
            refuses_ranges_outside_the_bdev,
            refuses_vectors_that_do_not_add_up,
            refuses_too_many_vectors_and_takes_misaligned_ones,
            refuses_tokens_out_of_range_or_in_flight,
            refuses_operations_it_does_not_support,
            refuses_changes_through_a_read_only_descriptor,
            completes_requests_of_no_blocks,
            reads_back_what_was_written_at_both_ends,
            takes_vectors_of_every_shape,
            touches_only_the_memory_of_the_vectors,
            takes_one_request_over_the_whole_bdev,
            leaves_overlapping_writes_as_one_of_them,
            keeps_flushed_data_over_a_new_channel,
            zeroes_exactly_the_blocks_asked_for,
            unmaps_exactly_the_blocks_asked_for,
            shows_writes_of_one_channel_to_another,
            survives_channels_on_several_threads,
            fills_to_its_depth_and_completes_each_request_once,
            reaps_into_short_arrays,
            counts_what_it_did,
            ends_what_is_in_flight_when_removed,
            is_removed_only_when_closed,
            can_be_dropped_with_requests_in_flight,
            grows_under_load_or_refuses_to,
            refuses_to_shrink_while_open,
            matches_a_model_through_random_interleavings,
        }
    };
    (@checks $subject:expr; $($check:ident,)+) => {
        $(
            #[test]
            fn $check() {
                $crate::conformance::$check(&$subject);
            }
        )+
    };
}
