//! Cost of finding guest memory: a guest address into an IoVec, with one window and with 64.
//!
//! `cargo bench -p vfu --bench translate`. Prints nanoseconds a translation: the median of many short rounds.
#![expect(clippy::print_stdout, reason = "a bench reports on stdout")]

use std::{hint::black_box, time::Instant};

use vfu::dma::{Protection, View, Windows};

const ROUNDS: usize = 301;
const ADDRESSES: usize = 4096;
const WINDOW_LEN: u64 = 0x1_0000;

/// A view of so many windows, side by side.
fn view(windows_count: u64) -> View {
    let file = rustix::fs::memfd_create("bench", rustix::fs::MemfdFlags::CLOEXEC).expect("a descriptor");
    rustix::fs::ftruncate(&file, windows_count * WINDOW_LEN).expect("memory");
    let windows = Windows::default();
    let both = Protection { read: true, write: true };
    for nth in 0..windows_count {
        let file = file.try_clone().expect("a descriptor");
        windows
            .map(nth * 2 * WINDOW_LEN, WINDOW_LEN, both, Some((file, nth * WINDOW_LEN)))
            .expect("a free range");
    }
    View::new(&windows)
}

/// Addresses in windows that follow each other by chance, or all in one.
fn addresses(windows_count: u64, scattered: bool) -> Vec<u64> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 16
    };
    (0..ADDRESSES)
        .map(|_| {
            let window = if scattered { next() % windows_count } else { windows_count / 2 };
            window * 2 * WINDOW_LEN + (next() % (WINDOW_LEN - 4096)) / 512 * 512
        })
        .collect()
}

fn measure(windows_count: u64, scattered: bool) -> f64 {
    let view = view(windows_count);
    let addresses = addresses(windows_count, scattered);
    let mut out = Vec::with_capacity(8);
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            for &address in &addresses {
                out.clear();
                view.translate(black_box(address), 4096, true, &mut out).expect("inside a window");
                black_box(&out);
            }
            start.elapsed().as_nanos() as f64 / ADDRESSES as f64
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

fn main() {
    for (windows_count, scattered, name) in
        [(1, false, "1 window"), (64, false, "64 windows, the same one"), (64, true, "64 windows, by chance")]
    {
        println!("{name:<26} {:>6.2} ns", measure(windows_count, scattered));
    }
}
