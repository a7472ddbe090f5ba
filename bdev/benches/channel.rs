//! Cost of a request through the wrapper: `null` for the wrapper itself, with a histogram and under other bdevs, and
//! `malloc` against a plain copy of the same memory.
//!
//! `cargo bench -p bdev --bench channel`. All cases take turns, many short rounds each, and the median round counts: the
//! machine may be busy with other things, and then all cases suffer alike. Differences are taken round by round. Prints
//! a table, and what the bars ask for.
#![expect(clippy::print_stdout, reason = "a bench reports on stdout")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use bdev::arena::{Memory, StaticBuffer};
use bdev::types::{MallocParams, NullParams, PassthruParams, RaidParams, malloc, null, passthru, raid};
use bdev::{Access, Completion, HistogramSpec, IoChannel, IoVec, Op, Registry, Request, Token};

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

    fn report(&self) {
        let median = quantile(&self.ns_per_request, 0.5);
        let gib_per_s = self.bytes_per_request as f64 / median / 1.073_741_824;
        let (low, high) = (quantile(&self.ns_per_request, 0.1), quantile(&self.ns_per_request, 0.9));
        println!("{:<32} {median:>9.2} {low:>9.2} {high:>9.2} {gib_per_s:>9.2}", self.name);
    }
}

fn quantile(values: &[f64], fraction: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[(fraction * (sorted.len() - 1) as f64) as usize]
}

/// What every round says of two cases, by `relate`: median and the middle eight tenths.
fn bar(cases: &[Case], name: &str, bar: &str, of: &str, to: &str, relate: fn(f64, f64) -> f64) {
    let rounds = |wanted: &str| {
        let case = cases.iter().find(|case| case.name == wanted);
        &case.expect("a case of this bench").ns_per_request
    };
    let values: Vec<f64> = rounds(of).iter().zip(rounds(to)).map(|(a, b)| relate(*a, *b)).collect();
    let [median, low, high] = [0.5, 0.1, 0.9].map(|fraction| quantile(&values, fraction));
    println!("{name:<44} {median:>8.2} ({low:.2} to {high:.2})  bar: {bar}");
}

fn open(registry: &Arc<Registry>, name: &str) -> IoChannel {
    let descriptor = registry.open(name, Access::ReadWrite, |_| ()).expect("just made");
    descriptor.open_channel(DEPTH).expect("channels of memory types open")
}

fn make_null(registry: &Arc<Registry>, name: &str) {
    let params =
        NullParams { name: name.into(), block_size: 512, num_blocks: 1 << 30, ..NullParams::default() };
    null::create(registry, params).expect("valid");
}

fn null() -> IoChannel {
    let registry = Registry::new();
    make_null(&registry, "n");
    open(&registry, "n")
}

fn null_with_histogram() -> IoChannel {
    let registry = Registry::new();
    make_null(&registry, "n");
    let spec = HistogramSpec::new(None, None, None, None).expect("the defaults");
    registry.get("n").expect("just made").enable_histogram(Some(spec));
    open(&registry, "n")
}

fn passthru_on_null() -> IoChannel {
    let registry = Registry::new();
    make_null(&registry, "n");
    let params = PassthruParams { name: "p".into(), base_bdev_name: "n".into(), uuid: None };
    passthru::create(&registry, params).expect("the base is there");
    open(&registry, "p")
}

fn raid0_over_two_null() -> IoChannel {
    let registry = Registry::new();
    make_null(&registry, "a");
    make_null(&registry, "b");
    let params = RaidParams {
        name: "r".into(),
        strip_size_kb: 64,
        raid_level: raid::Level::Raid0,
        base_bdevs: vec!["a".into(), "b".into()],
        uuid: None,
        superblock: false,
    };
    raid::create(&registry, params).expect("the bases are there");
    open(&registry, "r")
}

fn malloc() -> IoChannel {
    let registry = Registry::new();
    let params = MallocParams::new(512, (DISK_BYTES / 512) as u64);
    let name = malloc::create(&registry, params).expect("64 MiB of memory").name().to_owned();
    open(&registry, &name)
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
fn plain_copies(copies: u32, len: usize, op: Op) -> impl FnMut() -> u32 {
    let memory = Memory::zeroed(DISK_BYTES).expect("64 MiB of memory");
    let buffer = StaticBuffer::new(len).expect("a buffer");
    let iov = buffer.iovec(0, len).expect("the whole");
    let mut offset = 0;
    move || {
        for _ in 0..copies {
            let copied = match op {
                Op::Read => memory.copy_to(offset, black_box(iov)),
                _ => memory.copy_from(offset, black_box(iov)),
            };
            assert!(copied);
            offset = (offset + len) % DISK_BYTES;
        }
        copies
    }
}

fn main() {
    let nulls = |name: &str, make: fn() -> IoChannel| {
        [1, 32, 128].map(|batch| {
            Case::new(
                &format!("{name}, {batch} a pass"),
                4096,
                passes(make(), Op::Read, batch, 20_000 / batch, 4096),
            )
        })
    };
    let mut cases: Vec<Case> = [
        nulls("null 4k", null),
        nulls("with a histogram", null_with_histogram),
        nulls("passthru on null", passthru_on_null),
        nulls("raid0 over two null", raid0_over_two_null),
    ]
    .into_iter()
    .flatten()
    .collect();
    for (len, batch, rounds) in [(4096, 32, 125), (128 << 10, 8, 16)] {
        for (op, direction) in [(Op::Read, "read"), (Op::WRITE, "write")] {
            let name = |what: &str| format!("{what} {}k {direction}", len >> 10);
            cases.push(Case::new(&name("memcpy"), len, plain_copies(batch * rounds, len, op)));
            cases.push(Case::new(&name("malloc"), len, passes(malloc(), op, batch, rounds, len)));
        }
    }
    for _ in 0..ROUNDS {
        for case in &mut cases {
            case.run();
        }
    }
    println!("{:<32} {:>9} {:>9} {:>9} {:>9}", "case", "ns median", "ns p10", "ns p90", "GiB/s");
    cases.iter().for_each(Case::report);
    println!();
    for batch in [1, 32, 128] {
        let case = |name: &str| format!("{name}, {batch} a pass");
        let null = case("null 4k");
        bar(&cases, &format!("{null}: ns"), "under 20", &null, &null, |ns, _| ns);
        for (name, most) in [("with a histogram", 5), ("passthru on null", 8), ("raid0 over two null", 15)] {
            let (name, most) = (case(name), format!("at most {most}"));
            bar(&cases, &format!("{name}: ns more"), &most, &name, &null, |ns, null| ns - null);
        }
    }
    for direction in ["read", "write"] {
        let (of, to) = (format!("malloc 128k {direction}"), format!("memcpy 128k {direction}"));
        let name = format!("{of} / memcpy, bandwidth");
        bar(&cases, &name, "at least 0.90", &of, &to, |malloc, memcpy| memcpy / malloc);
    }
}
