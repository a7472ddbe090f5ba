//! What the tests across crates share: a running target with a folder of its own, SPDK's client, and guests.
//!
//! A target is the real binary, built by `scripts/test` before the tests run; it is stopped, by its own id, when the
//! value that stands for it is dropped.

mod guest;
mod target;

pub use guest::{Guest, Outcome, Running};
pub use target::{RpcError, Target};

use std::path::PathBuf;

/// The project's root.
#[must_use]
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the project").to_owned()
}

/// A binary of the workspace, built for the profile that the tests run in.
///
/// # Panics
/// If it was not built.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let profile = test.ancestors().nth(2).expect("tests run from target/PROFILE/deps");
    let path = profile.join(name);
    assert!(path.exists(), "{} is missing: run scripts/test, or cargo build --workspace", path.display());
    path
}
