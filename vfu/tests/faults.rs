//! A part of the target that panics takes its endpoint down, and nothing else.
#![cfg(feature = "mock")]
#![expect(clippy::unwrap_used, reason = "all of it is a test, the steps that tests share too")]

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bdev::{Bdev, BdevInfo, Channel, Completion, OpKind, OpenError, Rejected, Request};
use vfu::{
    endpoint::State,
    mock::{
        blk::{BlkDriver, BlkOptions},
        client::Client,
        memory::Memory,
        server::{DiskOptions, Server},
        split::SplitDriver,
    },
};

/// A bdev with a bug: it panics on every request.
struct Buggy(Arc<BdevInfo>);

impl Bdev for Buggy {
    fn info(&self) -> &Arc<BdevInfo> {
        &self.0
    }

    fn supports(&self, _kind: OpKind) -> bool {
        true
    }

    fn open_channel(&self, _depth: u16) -> Result<Box<dyn Channel>, OpenError> {
        Ok(Box::new(BuggyChannel))
    }

    fn config(&self) -> Option<(&'static str, serde_json::Value)> {
        None
    }
}

struct BuggyChannel;

impl Channel for BuggyChannel {
    fn submit(&mut self, _request: &Request<'_>) -> Result<(), Rejected> {
        panic!("a bug of a bdev")
    }

    fn kick(&mut self) {}

    fn reap(&mut self, _done: &mut [Completion]) -> usize {
        0
    }

    fn in_flight(&self) -> usize {
        0
    }
}

fn guest(socket: &Path) -> BlkDriver<SplitDriver> {
    let mut client = Client::connect(socket).unwrap();
    // The victim's request is never answered; the others are, in far less.
    client.set_timeout(Duration::from_secs(3));
    let mut guest = BlkDriver::new(client, Memory::new(64 << 20).unwrap(), BlkOptions::default()).unwrap();
    guest.start().unwrap();
    guest
}

#[test]
fn panic_in_a_queue_closes_its_endpoint_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(1);
    let register = |name: &str| {
        let info = BdevInfo::new("buggy", "Buggy disk", name.to_owned(), 512, 8192);
        server.registry().register(Arc::new(Buggy(Arc::new(info)))).unwrap();
    };
    register("Buggy0");
    let params = bdev::types::MallocParams::new(512, 8192);
    let malloc = bdev::types::Malloc::new("Malloc0".to_owned(), &params).unwrap();
    server.registry().register(Arc::new(malloc)).unwrap();
    let (bad, good) = (dir.path().join("bad"), dir.path().join("good"));
    let endpoint = server.serve(&bad, &DiskOptions::new("Buggy0"));
    server.serve(&good, &DiskOptions::new("Malloc0"));
    let (mut victim, mut neighbour) = (guest(&bad), guest(&good));

    assert!(victim.write(0, 0, &[7; 512]).is_err());

    let deadline = Instant::now() + Duration::from_secs(20);
    while endpoint.state() != State::Gone {
        assert!(Instant::now() < deadline, "the endpoint is still there");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(!bad.exists());
    assert_eq!(server.faults(), 1);
    neighbour.write(0, 0, &[7; 512]).unwrap();
    assert_eq!(neighbour.read(0, 0, 512).unwrap(), [7; 512]);
}
