//! Cost of a trapped access on the target's side: from the request in the socket to the answer in it.
//!
//! `cargo bench -p vfu --bench trapped`. Endpoint, reactor and client share one thread, so no wake-up and no
//! other core is in the figures: what is timed is the pass of the reactor that takes the request and answers it. Prints
//! the median and the 99th percentile of each kind of access.
#![expect(clippy::print_stdout, reason = "a bench reports on stdout")]

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::Arc,
    time::Instant,
};

use bdev::{
    Access, Registry,
    types::{Null, NullParams},
};
use reactor::{Clock, CoreMask, Group, Mode, Reactor, ReactorConfig};
use vfu::{
    endpoint::{self, Listener, Spec},
    virtio::{
        blk::{Blk, BlkSpec, Events},
        transport::{TransportOptions, VirtioPci},
    },
    wire::{
        spec::{Command, HEADER_LEN, Header, RegionAccess},
        version,
    },
};
use zerocopy::IntoBytes;

const ROUNDS: usize = 20_001;
const ACCESS: usize = size_of::<RegionAccess>();

/// A target of one reactor that is driven by hand, and its client.
struct Rig {
    reactor: Reactor,
    client: UnixStream,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let mut reactor =
            Reactor::new(ReactorConfig { mode: Mode::PollOnly, ..ReactorConfig::new(0, Clock::system()) })
                .expect("descriptors for a reactor");
        let registry = Registry::new();
        let params = NullParams {
            name: "Null0".to_owned(),
            block_size: 512,
            num_blocks: 2048,
            ..NullParams::default()
        };
        registry.register(Arc::new(Null::new(params).expect("a null bdev"))).expect("the only one");
        let events = Arc::new(Events::default());
        let descriptor =
            registry.open("Null0", Access::ReadWrite, events.callback()).expect("nobody claims it");
        let blk = BlkSpec { descriptor: Arc::new(descriptor), events, num_queues: 2, queue_size: 128 };
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("socket");
        let spec = Spec {
            name: "bench".to_owned(),
            listener: Listener::bind(&path, 0o600).expect("a socket of our own"),
            reactors: vec![reactor.handle()],
            group: Group::new("bench", CoreMask::of(0)),
            vectors: TransportOptions::default().vectors(2),
            model: Box::new(move |home, bus| {
                let options = TransportOptions::default();
                Box::new(VirtioPci::new(Blk::new(blk), options, home.clone(), Arc::clone(bus)))
            }),
        };
        assert!(endpoint::start(spec).is_ok(), "a reactor with room in its mailbox");
        reactor.poll_once();
        let client = UnixStream::connect(path).expect("the endpoint listens");
        client.set_nonblocking(true).expect("a flag");
        let mut rig = Self { reactor, client, _dir: dir };
        rig.ask(Command::VERSION, &[&version::encode(0, None)]);
        rig
    }

    /// One command: nanoseconds until its answer can be read.
    fn ask(&mut self, command: Command, payload: &[&[u8]]) -> u64 {
        let payload = payload.concat();
        let message_size = u32::try_from(HEADER_LEN + payload.len()).expect("a short message");
        let header = Header { command, message_size, ..Header::default() };
        self.client.write_all(&[header.as_bytes(), &payload].concat()).expect("room in the socket");
        let start = Instant::now();
        let mut answer = [0; 8192];
        loop {
            self.reactor.poll_once();
            let nanoseconds = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            if self.client.read(&mut answer).is_ok() {
                return nanoseconds;
            }
        }
    }
}

fn main() {
    let mut rig = Rig::new();
    let access = |region, offset, count| RegionAccess { offset, region, count };
    let kinds = [
        ("read 4 bytes of configuration space", Command::REGION_READ, access(7, 0, 4), 0),
        ("write the command register", Command::REGION_WRITE, access(7, 4, 2), 2),
        ("read the device status", Command::REGION_READ, access(4, 20, 1), 0),
        ("write a doorbell", Command::REGION_WRITE, access(4, 0x3000, 2), 2),
    ];
    let none = [0; ACCESS];
    for (name, command, access, len) in kinds {
        let mut rounds: Vec<u64> =
            (0..ROUNDS).map(|_| rig.ask(command, &[access.as_bytes(), &none[..len]])).collect();
        rounds.sort_unstable();
        let at = |part: usize| rounds[ROUNDS * part / 100] as f64 / 1000.0;
        println!("{name:<40} {:>6.2} us, 99th percentile {:>6.2} us", at(50), at(99));
    }
}
