//! A chain of three descriptors taken off the short way, checked and translated, warm; on both rings, and nothing of a device type.

use std::{hint::black_box, time::Instant};

use bdev::IoVec;
use vfu::{
    dma::{Protection, View, Windows},
    mock::{
        memory::Memory,
        packed::PackedDriver,
        ring::{Buffer, DriverRing, RingSetup},
        split::SplitDriver,
    },
    virtio::{
        queue::{PackedRing, QueueConfig, Ring, SplitRing, Triple},
        spec::feature,
    },
};

use crate::{ROUNDS, report};

const SIZE: u16 = 256;
const CHAINS: u32 = 64;
const BATCHES: u32 = 16;
const RAM: u64 = 16 << 20;

/// Rounds of one ring; each returns nanoseconds a chain: popped, checked and translated, and to give it back.
fn rounds<D: DriverRing, R: Ring>(features: u64) -> impl FnMut() -> [f64; 2] {
    let mut memory = Memory::new(RAM).expect("memory");
    let windows = Windows::default();
    let both = Protection { read: true, write: true };
    for region in memory.regions() {
        let file = memory.file().try_clone_to_owned().expect("a descriptor");
        windows.map(region.address, region.len, both, Some((file, region.offset))).expect("one window");
    }
    let mut driver =
        D::new(&mut memory, &RingSetup { size: SIZE, features, indirect: None }).expect("memory");
    let base = memory.allocate(1 << 20, 4096).expect("memory");
    let areas = driver.areas();
    let config =
        QueueConfig { size: SIZE, desc: areas.desc, driver: areas.driver, device: areas.device, features };
    let view = View::new(&windows);
    let mut ring =
        R::activate(&config.check().expect("a good layout"), R::START, &view).expect("it is mapped");
    let mut iov: Vec<IoVec> = Vec::with_capacity(8);
    let mut ids = Vec::with_capacity(CHAINS as usize);
    move || {
        let mut nanos = [0.0; 2];
        for _ in 0..BATCHES {
            for nth in 0..u64::from(CHAINS) {
                let header = Buffer::readable(base + nth * 16, 16);
                let data = Buffer::writable(base + 0x10000 + nth * 4096, 4096);
                driver.add(&[header, data, Buffer::writable(base + 0x8000 + nth, 1)]).expect("room");
            }
            driver.publish_quietly();
            let start = Instant::now();
            let pending = ring.pending().expect("a good ring");
            for _ in 0..CHAINS {
                let Triple { head, buffers: [first, second, third], is_read } =
                    ring.peek_triple(&view).expect("three buffers");
                iov.clear();
                for (segment, is_written) in [(first, false), (second, is_read), (third, true)] {
                    view.translate(segment.addr, segment.len, is_written, &mut iov).expect("inside");
                }
                black_box(&iov);
                ring.advance(head);
                ids.push(head.id);
            }
            nanos[0] += start.elapsed().as_nanos() as f64;
            black_box(pending);
            let start = Instant::now();
            for id in ids.drain(..) {
                ring.push_used(id, 0);
            }
            nanos[1] += start.elapsed().as_nanos() as f64;
            ring.publish();
            while driver.pop().expect("a good device").is_some() {}
        }
        nanos.map(|nanos| nanos / f64::from(BATCHES * CHAINS))
    }
}

pub(crate) fn run() {
    let base = feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT_DESC;
    let mut split = rounds::<SplitDriver, SplitRing>(base);
    let mut packed = rounds::<PackedDriver, PackedRing>(base | feature::RING_PACKED);
    let mut samples = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        let rounds = [split(), packed()];
        for (samples, nanos) in samples.iter_mut().zip(rounds.as_flattened()) {
            samples.push(*nanos);
        }
    }
    println!("a chain of three descriptors, 64 at a time");
    let names = ["split, popped, checked and translated", "split, given back"];
    let names = [names, ["packed, popped, checked and translated", "packed, given back"]];
    for (name, samples) in names.as_flattened().iter().zip(&mut samples) {
        report(name, samples);
    }
}
