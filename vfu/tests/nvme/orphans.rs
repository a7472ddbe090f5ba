//! An endpoint that panics: its queues, on reactors of their own, are not left behind.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use reactor::{CoreMask, Group, Handle};
use vfu::{
    device::{DeviceDescription, DeviceModel, Mappable, Progress},
    endpoint::{self, Listener, Spec},
    mock::client::Client,
    nvme::{
        pcie::{NvmePci, NvmeSpec, vectors},
        spec::reg,
    },
    pci::Layout,
    wire::spec::region,
};

use crate::rig::{BLOCK, Doorbells, Rig, connect, write};

/// A controller with a bug: it panics when CAP is written.
struct Buggy(NvmePci);

impl DeviceModel for Buggy {
    fn layout(&self) -> &Layout {
        self.0.layout()
    }

    fn read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        self.0.read(bar, offset, data);
    }

    fn write(&mut self, bar: u8, offset: u64, data: &[u8]) {
        assert!((bar, offset) != (0, reg::CAP as u64), "a bug of a controller");
        self.0.write(bar, offset, data);
    }

    fn mappable(&self, bar: u8) -> Option<Mappable<'_>> {
        self.0.mappable(bar)
    }

    fn place(&mut self, reactors: &[Handle]) {
        self.0.place(reactors);
    }

    fn move_queue(&mut self, queue: u16, to: &Handle) -> bool {
        self.0.move_queue(queue, to)
    }

    fn sync(&mut self) {
        self.0.sync();
    }

    fn reset(&mut self) {
        self.0.reset();
    }

    fn progress(&mut self) -> Progress {
        self.0.progress()
    }

    fn is_faulted(&self) -> bool {
        self.0.is_faulted()
    }

    fn describe(&self) -> DeviceDescription {
        self.0.describe()
    }
}

fn serve(rig: &mut Rig, name: &str) -> std::path::PathBuf {
    let socket = rig.socket(name);
    let reactors = rig.server.reactors().to_vec();
    let mask: CoreMask = reactors.iter().map(Handle::core).collect();
    let spec = NvmeSpec {
        subsystem: Arc::clone(&rig.subsystem),
        ana: Arc::default(),
        options: rig.options,
        is_mappable: false,
    };
    let endpoint = endpoint::start(Spec {
        group: Group::new(name.to_owned(), mask),
        name: name.to_owned(),
        listener: Listener::bind(&socket, 0o600).unwrap(),
        reactors,
        vectors: vectors(rig.options.max_io_queues),
        model: Box::new(move |home, bus| Box::new(Buggy(NvmePci::new(spec, home.clone(), Arc::clone(bus))))),
    });
    rig.server.adopt(endpoint.unwrap());
    socket
}

#[test]
fn queues_of_an_endpoint_that_panics_go_with_it() {
    let mut rig = Rig::new();
    let before = Arc::strong_count(&rig.subsystem);
    let mut nvme = connect(&serve(&mut rig, "buggy"), Doorbells::Trapped);
    nvme.enable().unwrap();
    nvme.create_queues(4, 64).unwrap();
    write(&mut nvme, 1, 0, &[1; BLOCK]);
    assert!(Arc::strong_count(&rig.subsystem) > before + 4, "each queue has the subsystem");

    let bar = region::BAR0;
    assert!(Client::region_write(nvme.client(), bar, reg::CAP as u64, &[0; 4]).is_err());

    let deadline = Instant::now() + Duration::from_secs(30);
    while Arc::strong_count(&rig.subsystem) > before {
        assert!(Instant::now() < deadline, "queues are still there");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(rig.server.faults(), 1);
}
