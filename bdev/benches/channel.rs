//! Cost of a request through the wrapper: `null` for the wrapper itself, `malloc` against a plain copy of the
//! same memory.
//!
//! `cargo bench -p bdev`. All cases take turns, many short rounds each, and the median round counts: the
//! machine may be busy with other things, and then all cases suffer alike. Prints a table.
#![expect(clippy::print_stdout, reason = "a bench reports on stdout")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use bdev::arena::{Memory, StaticBuffer};
use bdev::types::{Malloc, MallocParams, Null, NullParams};
use bdev::{Access, Bdev, Completion, IoChannel, IoVec, Op, Registry, Request, Token};

const DEPTH: u16 = 128;
const DISK_BYTES: usize = 64 << 20;
const ROUNDS: usize = 301;

/// One case: runs a round of about a millisecond and returns how many requests that were.
struct Case {
    name: String,
    bytes_per_request: usize,
    round: Box<dyn FnMut() -> u32>,
    ns_per_request: Vec<f64>,
}

impl Case {
    fn new(name: &str, bytes_per_request: usize, round: impl FnMut() -> u32 + 'static) -> Case {
        Case { name: name.to_owned(), bytes_per_request, round: Box::new(round), ns_per_request: Vec::new() }
    }

    fn run(&mut self) {
        let start = Instant::now();
        let requests = (self.round)();
        self.ns_per_request.push(start.elapsed().as_nanos() as f64 / f64::from(requests));
    }

    fn report(&mut self) {
        self.ns_per_request.sort_by(f64::total_cmp);
        let at = |fraction: f64| self.ns_per_request[(fraction * (ROUNDS - 1) as f64) as usize];
        let median = at(0.5);
        let gib_per_s = self.bytes_per_request as f64 / median / 1.073_741_824;
        println!("{:<28} {:>9.2} {:>9.2} {:>9.2} {:>9.2}", self.name, median, at(0.1), at(0.9), gib_per_s);
    }
}

fn open(bdev: Arc<dyn Bdev>) -> IoChannel {
    let registry = Registry::new();
    let name = registry.register(bdev).expect("a new registry").name().to_owned();
    let descriptor = registry.open(&name, Access::ReadWrite, |_| ()).expect("just made");
    descriptor.open_channel(DEPTH).expect("channels of memory types open")
}

fn null() -> IoChannel {
    let params =
        NullParams { name: "n".into(), block_size: 512, num_blocks: 1 << 30, ..NullParams::default() };
    open(Arc::new(Null::new(params).expect("valid")))
}

fn malloc() -> IoChannel {
    let params = MallocParams::new(512, (DISK_BYTES / 512) as u64);
    open(Arc::new(Malloc::new("m".into(), &params).expect("64 MiB of memory")))
}

/// A queue's passes: `batch` submits, a kick, reaps until empty; over the disk from start to end and again.
fn passes(mut channel: IoChannel, op: Op, batch: u32, passes: u32, len: usize) -> impl FnMut() -> u32 {
    let buffer = StaticBuffer::new(len).expect("a buffer");
    let iov: [IoVec; 1] = [buffer.iovec(0, len).expect("the whole")];
    let blocks = (len / 512) as u64;
    let mut lba = 0;
    let mut done = [Completion::EMPTY; DEPTH as usize];
    move || {
        for _ in 0..passes {
            channel.set_now(lba);
            for token in 0..batch {
                let request = Request { op, lba, blocks, iov: black_box(&iov), token: Token(token) };
                channel.submit(black_box(&request)).expect("a free token in range");
                lba = (lba + blocks) % (DISK_BYTES as u64 / 512);
            }
            channel.kick();
            while channel.in_flight() > 0 {
                black_box(channel.reap(&mut done));
            }
        }
        passes * batch
    }
}

/// What `malloc` does, without a bdev around it.
fn plain_copies(copies: u32, len: usize) -> impl FnMut() -> u32 {
    let memory = Memory::zeroed(DISK_BYTES).expect("64 MiB of memory");
    let buffer = StaticBuffer::new(len).expect("a buffer");
    let iov = buffer.iovec(0, len).expect("the whole");
    let mut offset = 0;
    move || {
        for _ in 0..copies {
            assert!(memory.copy_to(offset, black_box(iov)));
            offset = (offset + len) % DISK_BYTES;
        }
        copies
    }
}

fn main() {
    let mut cases = vec![
        Case::new("null 4k, 1 a pass", 4096, passes(null(), Op::Read, 1, 20_000, 4096)),
        Case::new("null 4k, 32 a pass", 4096, passes(null(), Op::Read, 32, 1_000, 4096)),
        Case::new("null 4k, 128 a pass", 4096, passes(null(), Op::Read, 128, 250, 4096)),
        Case::new("memcpy 4k", 4096, plain_copies(4_000, 4096)),
        Case::new("malloc 4k read", 4096, passes(malloc(), Op::Read, 32, 125, 4096)),
        Case::new("malloc 4k write", 4096, passes(malloc(), Op::WRITE, 32, 125, 4096)),
        Case::new("memcpy 128k", 128 << 10, plain_copies(128, 128 << 10)),
        Case::new("malloc 128k read", 128 << 10, passes(malloc(), Op::Read, 32, 4, 128 << 10)),
        Case::new("malloc 128k write", 128 << 10, passes(malloc(), Op::WRITE, 32, 4, 128 << 10)),
    ];
    for _ in 0..ROUNDS {
        for case in &mut cases {
            case.run();
        }
    }
    println!("{:<28} {:>9} {:>9} {:>9} {:>9}", "case", "ns median", "ns p10", "ns p90", "GiB/s");
    for case in &mut cases {
        case.report();
    }
}
