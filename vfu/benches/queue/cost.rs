//! Nanoseconds a request, from the available index to the used index, at depth 128; and malloc beside a plain copy loop
//! over the same random blocks.

use std::{hint::black_box, time::Instant};

use bdev::arena::{Memory, StaticBuffer};
use vfu::mock::{
    blk::{BlkDriver, Chains},
    packed::PackedDriver,
    ring::DriverRing,
    split::SplitDriver,
};

use crate::{
    Chance, ROUNDS, report,
    rig::{self, DEPTH, DISK_BYTES, IO_BYTES, Rig},
};

/// Batches of one round.
const BATCHES: usize = 8;
const SECTORS: u64 = IO_BYTES as u64 / 512;

/// A case: takes the sectors of a round and the reactor, and returns the nanoseconds it took.
type Round = Box<dyn FnMut(&mut Rig, &[u64]) -> f64>;

fn passes<R: DriverRing + 'static>(mut guest: BlkDriver<R>, depth: usize) -> Round {
    Box::new(move |rig, sectors| {
        let mut nanos = 0.0;
        for batch in sectors.chunks(depth) {
            rig::submit(&mut guest, batch);
            let start = Instant::now();
            rig.reactor.poll_once();
            nanos += start.elapsed().as_nanos() as f64;
            let done = rig::collect(&mut guest);
            assert_eq!(done, batch.len(), "one pass does a batch");
        }
        nanos
    })
}

/// What `malloc` is for, without anything around it: the blocks of the disk that the requests ask for, copied into as
/// many buffers as there are requests in flight.
fn plain_copies() -> Round {
    let disk = Memory::zeroed(usize::try_from(DISK_BYTES).expect("64 bits")).expect("memory for a disk");
    let len = IO_BYTES as usize;
    let buffers = StaticBuffer::new(len * usize::from(DEPTH)).expect("buffers");
    Box::new(move |_, sectors| {
        let start = Instant::now();
        for (nth, &sector) in sectors.iter().enumerate() {
            let to = buffers.iovec(nth % usize::from(DEPTH) * len, len).expect("inside");
            assert!(disk.copy_to(black_box(sector as usize * 512), black_box(to)));
        }
        start.elapsed().as_nanos() as f64
    })
}

fn cases(rig: &mut Rig) -> Vec<(&'static str, Round)> {
    let depth = usize::from(DEPTH);
    let direct = Chains::Direct;
    vec![
        ("null, split", passes(rig.guest::<SplitDriver>(rig::null("split", 4096), direct), depth)),
        ("null, packed", passes(rig.guest::<PackedDriver>(rig::null("packed", 4096), direct), depth)),
        (
            "null, split, blocks of 512",
            passes(rig.guest::<SplitDriver>(rig::null("split512", 512), direct), depth),
        ),
        (
            "null, packed, blocks of 512",
            passes(rig.guest::<PackedDriver>(rig::null("packed512", 512), direct), depth),
        ),
        (
            "null, split, indirect tables",
            passes(rig.guest::<SplitDriver>(rig::null("split_i", 512), Chains::Indirect), depth),
        ),
        (
            "null, packed, indirect tables",
            passes(rig.guest::<PackedDriver>(rig::null("packed_i", 512), Chains::Indirect), depth),
        ),
        ("null, split, 32 a pass", passes(rig.guest::<SplitDriver>(rig::null("split32", 512), direct), 32)),
        ("null, split, 1 a pass", passes(rig.guest::<SplitDriver>(rig::null("split1", 512), direct), 1)),
        ("plain copy loop", plain_copies()),
        ("malloc, split", passes(rig.guest::<SplitDriver>(rig::malloc("msplit"), direct), depth)),
        ("malloc, packed", passes(rig.guest::<PackedDriver>(rig::malloc("mpacked"), direct), depth)),
    ]
}

pub(crate) fn run() {
    let mut rig = Rig::new();
    let mut cases = cases(&mut rig);
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    let requests = BATCHES * usize::from(DEPTH);
    let mut samples = vec![Vec::with_capacity(ROUNDS); cases.len()];
    for _ in 0..ROUNDS {
        let sectors: Vec<u64> =
            (0..requests).map(|_| chance.below(DISK_BYTES / u64::from(IO_BYTES)) * SECTORS).collect();
        for ((_, round), samples) in cases.iter_mut().zip(&mut samples) {
            samples.push(round(&mut rig, &sectors) / requests as f64);
        }
    }
    println!("a 4 KiB read, from available index to used index, {DEPTH} a pass");
    let mut copy = None;
    for ((name, _), samples) in cases.iter().zip(&samples) {
        let median = report(name, &mut samples.clone());
        if *name == "plain copy loop" {
            copy = Some(samples.clone());
        }
        if let Some(copy) = copy.as_ref().filter(|_| name.starts_with("malloc")) {
            // Neighbours in time are compared, so that what disturbs the machine disturbs both.
            let mut ratios: Vec<f64> = copy.iter().zip(samples).map(|(copy, ours)| copy / ours).collect();
            ratios.sort_by(f64::total_cmp);
            println!("{:<44} {:>8.3} of the copy loop ({median:.0} ns)", "", ratios[ratios.len() / 2]);
        }
    }
}
