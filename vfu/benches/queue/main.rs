//! What a request costs on the device's side: the rings, the owner, virtio-blk and the bdev's channel, without a second
//! core and without a socket on the way.
//!
//!     cargo bench -p vfu --bench queue                all of it, medians of interleaved rounds
//!     cargo bench -p vfu --bench queue -- pingpong    depth 1 between two cores, beside a bare ring
//!     cargo bench -p vfu --bench queue -- hostile 60  a neighbour beside a hostile guest, for so many seconds
//!
//! The reactor is driven by hand on this thread, and only its passes are timed: what the driver does between them is
//! not. Rings and data are warm here; the lines that travel between cores are `pingpong`'s and the load generator's.
//! `scripts/instructions` counts the same passes.
#![expect(clippy::print_stdout, reason = "a bench reports on stdout")]

mod chain;
mod cost;
mod hostile;
mod pingpong;
mod rig;

fn main() {
    // Cargo adds `--bench`.
    let mut words = std::env::args().skip(1).filter(|word| !word.starts_with('-'));
    match words.next().as_deref() {
        None => {
            chain::run();
            cost::run();
        }
        Some("chain") => chain::run(),
        Some("cost") => cost::run(),
        Some("pingpong") => pingpong::run(),
        Some("hostile") => hostile::run(words.next().and_then(|seconds| seconds.parse().ok()).unwrap_or(60)),
        Some(other) => println!("no such part: {other}"),
    }
}

/// Interleaved rounds of every case of a table.
const ROUNDS: usize = 301;

/// One line of the report: the median of a case, and where most of its rounds were.
fn report(name: &str, samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    let at = |fraction: f64| samples[(fraction * (samples.len() - 1) as f64) as usize];
    println!("{name:<44} {:>8.2} ns   p10 {:>8.2}   p90 {:>8.2}", at(0.5), at(0.1), at(0.9));
    at(0.5)
}

/// xorshift: the same numbers each time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % end
    }
}
