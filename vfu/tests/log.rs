//! What a guest can repeat at will fills no log.
#![cfg(feature = "mock")]

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    span::{Attributes, Id, Record},
};
use vfu::{
    mock::{client::Client, memory::Memory, nvme::Nvme, server::Server},
    nvme::{
        controller::ControllerOptions,
        spec::{cc, reg},
        subsystem::{Subsystem, SubsystemOptions},
    },
};

/// Counts the lines that a log of usual verbosity has.
struct Lines(Arc<AtomicUsize>);

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, _event: &Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}

#[test]
fn controller_that_is_enabled_again_and_again_does_not_fill_the_log() {
    let lines = Arc::<AtomicUsize>::default();
    tracing::subscriber::set_global_default(Lines(Arc::clone(&lines))).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(1);
    let options = SubsystemOptions { enable_nssr: true, ..SubsystemOptions::new("nqn.2016-06.io.spdk:log") };
    let socket = dir.path().join("cntrl");
    server.serve_nvme(&socket, &Subsystem::new(options), ControllerOptions::default(), false);
    let memory = Memory::new(4 << 20).unwrap();
    let mut client = Client::connect(&socket).unwrap();
    client.map_memory(&memory).unwrap();
    let mut nvme = Nvme::over(client, memory).unwrap();
    nvme.enable().unwrap();
    let before = lines.load(Ordering::Relaxed);

    for _ in 0..200 {
        nvme.disable().unwrap();
        nvme.enable().unwrap();
        nvme.disable().unwrap();
        // Pages of 8 KiB, which there are not.
        nvme.write32(reg::CC, 1 << 7 | cc::EN).unwrap();
        nvme.disable().unwrap();
        // "NVMe".
        nvme.write32(reg::NSSR, 0x4e56_4d65).unwrap();
    }

    let more = lines.load(Ordering::Relaxed) - before;
    assert!(more < 20, "{more} lines");
}
