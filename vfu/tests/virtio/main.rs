//! Virtio devices in a server of this process, driven by the guest's side: queues in every shape, requests of every
//! kind, and what happens behind a device while it is used.
#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod blk;
mod queues;
mod recorder;
mod rig;
mod scsi;
