//! The control plane of a running target: its life from flags to exit status, configurations and their return, the
//! state that survives a crash, the wire, and how it keeps up.

#![expect(clippy::unwrap_used, reason = "all of it is a test, the steps that tests share too")]

mod calls;
mod clients;
mod configs;
mod conformance;
mod examples;
mod flags;
mod journal;
mod model;
mod peers;
mod trace;
