//! Endpoints on real reactors, with bdevs behind them, driven by the guest's side of this crate.
//!
//! One binary, so that it is linked once. A test that counts the descriptors of the process has one of its own
//! (`tests/descriptors.rs`).
#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod chains;
mod disk;
mod held;
mod hostile;
mod kicks;
mod life;
mod memory;
mod protocol;
mod random;
mod registers;
mod removal;
mod rig;
