//! Trace points of every channel (`trace_*` RPCs), by SPDK's names.

use trace::{Group, Point};

/// The points. The object of a request is its channel's number shifted by 16, and its token.
pub static POINTS: Group = Group::new(
    "bdev",
    3,
    &[
        Point {
            name: "BDEV_IO_START",
            object: "io",
            args: &["op:read|write|flush|unmap|write_zeroes", "lba", "blocks"],
        },
        Point {
            name: "BDEV_IO_DONE",
            object: "io",
            args: &[
                "status:success|failed|invalid|out_of_range|unsupported|read_only|no_space|nomem|media_error|aborted|removed|timed_out",
            ],
        },
        Point { name: "BDEV_IOCH_CREATE", object: "channel", args: &["bdev:text"] },
        Point { name: "BDEV_IOCH_DESTROY", object: "channel", args: &["bdev:text"] },
    ],
);

pub(crate) const IO_START: u8 = 0;
pub(crate) const IO_DONE: u8 = 1;
pub(crate) const CHANNEL_CREATE: u8 = 2;
pub(crate) const CHANNEL_DESTROY: u8 = 3;
