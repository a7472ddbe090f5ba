//! Trace points of the loop (`trace_*` RPCs): when reactors and pollers sleep and wake.

use trace::{Group, Point};

/// The points.
pub static POINTS: Group = Group::new(
    "reactor",
    32,
    &[
        Point { name: "REACTOR_SLEEP", object: "core", args: &[] },
        Point { name: "REACTOR_WAKE", object: "core", args: &["slept_ticks"] },
        Point { name: "POLLER_PARK", object: "slot", args: &["poller:text"] },
        Point { name: "POLLER_WAKE", object: "slot", args: &["poller:text"] },
    ],
);

pub(crate) const REACTOR_SLEEP: u8 = 0;
pub(crate) const REACTOR_WAKE: u8 = 1;
pub(crate) const POLLER_PARK: u8 = 2;
pub(crate) const POLLER_WAKE: u8 = 3;
