//! Tests that what is written from the method table, and committed, is what the table says now: the command line of
//! `scripts/rpc.py` and the reference of all methods.
//!
//! After a change of a method: `scripts/generate`, which runs these tests with `RINGSIDE_GENERATE` set; they then write
//! the files instead of comparing them.

use std::{fs, path::PathBuf, sync::Arc};

use reactor::{CoreMask, Group};
use rpc::{Dispatcher, MethodTable};

use crate::{
    cores::CoreClaims,
    endpoints::{Endpoints, Sockets},
    methods,
    target::Target,
    tracepoints::Tracepoints,
    values::Owner,
};

/// All methods, of a target that does not run.
fn dispatcher() -> Dispatcher {
    let sockets = Sockets { dir: PathBuf::new(), mode: 0o600, owner: Owner::default() };
    let endpoints = Endpoints::new(Vec::new(), sockets);
    let core_claims = CoreClaims::new(CoreMask::new(), PathBuf::new());
    let app_thread = Group::new("app_thread", CoreMask::of(0));
    let tracepoints = Tracepoints::new(Vec::new(), None, 0);
    let target = Target::new(Vec::new(), app_thread, endpoints, core_claims, tracepoints);
    let stage = target.stage.clone();
    let mut table = MethodTable::new(Arc::new(target), stage);
    methods::TABLES.iter().for_each(|methods| table.register(methods).expect("no name is declared twice"));
    table.finish()
}

/// Writes the file if told to; fails if it does not hold this text.
fn assert_current(path: &str, text: &str) {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(path);
    if std::env::var_os("RINGSIDE_GENERATE").is_some() {
        fs::write(&path, text).expect("the tree can be written");
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    let differs = committed.lines().zip(text.lines()).find(|(committed, now)| committed != now);
    assert!(
        committed == text,
        "{} is stale: run scripts/generate. First difference: {differs:?}",
        path.display()
    );
}

#[test]
fn table_of_the_client_is_current() {
    assert_current("scripts/rpc_methods.json", &dispatcher().client_table());
}

#[test]
fn reference_of_the_methods_is_current() {
    const HEAD: &str = "# RPC methods\n\nWritten from the method table by `scripts/generate`; do not edit. How the \
                        wire works, and what differs from SPDK, is in [from-spdk.md](from-spdk.md).\n\n";
    assert_current("docs/rpc.md", &format!("{HEAD}{}", dispatcher().markdown()));
}
