//! Trace points of endpoints and of their queues (`trace_*` RPCs).

use trace::{Group, Point};

/// The points of the socket. A message's object is its id, which its reply carries too.
pub static ENDPOINT: Group = Group::new(
    "vfu",
    33,
    &[
        Point { name: "VFU_CLIENT_CONNECT", object: "pid", args: &["endpoint:text"] },
        Point { name: "VFU_CLIENT_DISCONNECT", object: "pid", args: &["endpoint:text"] },
        Point { name: "VFU_COMMAND", object: "message", args: &["command", "bytes", "fds"] },
        Point { name: "VFU_REPLY", object: "message", args: &["command", "errno"] },
    ],
);

pub(crate) const CLIENT_CONNECT: u8 = 0;
pub(crate) const CLIENT_DISCONNECT: u8 = 1;
pub(crate) const COMMAND: u8 = 2;
pub(crate) const REPLY: u8 = 3;

const QUEUE: &[Point] = &[
    Point { name: "QUEUE_START", object: "vector", args: &["queue:text"] },
    Point { name: "QUEUE_STOP", object: "vector", args: &["queue:text"] },
];

/// The points of virtio queues.
pub static VIRTIO: Group = Group::new("vfu_virtio", 34, QUEUE);
/// The points of NVMe queues.
pub static NVME: Group = Group::new("nvmf_vfu", 35, QUEUE);

pub(crate) const QUEUE_START: u8 = 0;
pub(crate) const QUEUE_STOP: u8 = 1;
