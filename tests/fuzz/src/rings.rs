//! Split and packed rings, from the device's side, over memory that a hostile driver writes: descriptors, heads, indices,
//! indirect tables, event words. The device takes what a ring says it may, and no ring may claim what it has not.

use std::cell::RefCell;

use vfu::{
    dma::View,
    mock::memory::{DEFAULT_BASE, Memory},
    virtio::{
        queue::{Chain, PackedRing, QueueConfig, Ring, RingLayout, SplitRing, Triple},
        spec::{Desc, PackedDesc, feature},
    },
};
use zerocopy::IntoBytes;

use crate::{choices::Choices, windows_over};

/// Where the areas are, and the indirect tables: behind each other, so that what runs out of one runs into the next.
const DESC_AT: u64 = DEFAULT_BASE;
const DRIVER_AT: u64 = DEFAULT_BASE + 0x2000;
const DEVICE_AT: u64 = DEFAULT_BASE + 0x3000;
const TABLES_AT: u64 = DEFAULT_BASE + 0x4000;
/// All that a driver writes here.
const LEN: usize = 0x6000;
const SIZE_MAX: u16 = 256;
/// As an owner does.
const CHAINS_PER_PASS: usize = 256;

struct Ground {
    memory: Memory,
    view: View,
}

thread_local! {
    static GROUND: RefCell<Option<Ground>> = const { RefCell::new(None) };
}

/// An address that is often one of a table or of the rings themselves.
fn address(choices: &mut Choices<'_>) -> u64 {
    match choices.u8() {
        0..160 => DEFAULT_BASE + u64::from(choices.u16()) % LEN as u64,
        160..200 => TABLES_AT + u64::from(choices.u8()) * 16,
        _ => choices.address(),
    }
}

fn len(choices: &mut Choices<'_>) -> u32 {
    match choices.u8() {
        count @ 0..100 => u32::from(count) * 16,
        100..200 => u32::from(choices.u16()),
        _ => choices.u32(),
    }
}

/// Writes as the driver does, but anything.
fn scribble(ground: &Ground, packed: bool, size: u16, kind: u8, choices: &mut Choices<'_>) {
    let write = |at: u64, bytes: &[u8]| ground.memory.write(at, bytes).expect("all of it is in the RAM");
    match kind {
        0..6 => {
            // In the ring's table or, as often, in an indirect one.
            let table = if choices.u8() & 1 == 0 { DESC_AT } else { TABLES_AT };
            let at = table + 16 * u64::from(choices.u16() % (size + 1));
            let (addr, len, flags) = (address(choices), len(choices), choices.u16());
            let link = choices.u16() % (size + size / 4 + 1);
            if packed {
                write(at, PackedDesc { addr, len, id: link, flags }.as_bytes());
            } else {
                write(at, Desc { addr, len, flags: flags & 7, next: link }.as_bytes());
            }
        }
        6 | 7 => {
            let head = choices.u16() % (size + 1);
            write(DRIVER_AT + 4 + 2 * u64::from(choices.u16() % size), &head.to_le_bytes());
        }
        8 => {
            // The available index, or a packed ring's event word.
            let index = match choices.u8() {
                small @ 0..200 => u16::from(small) % (size + 1),
                _ => choices.u16(),
            };
            write(DRIVER_AT + 2, &index.to_le_bytes());
        }
        _ => write(DRIVER_AT + u64::from(choices.u16() % 0x800), choices.bytes(8)),
    }
}

/// One pass of an owner. None once the driver has broken the ring.
fn pass<R: Ring>(
    ring: &mut R,
    view: &View,
    chain: &mut Chain,
    in_flight: &mut Vec<u16>,
    size: u16,
) -> Option<()> {
    let mut waits = ring.pending().ok()?;
    let mut taken = 0;
    while waits && taken < CHAINS_PER_PASS {
        let triple = ring.peek_triple(view);
        let popped = ring.pop(view, chain);
        if let Some(Triple { head, buffers: [first, second, third], is_read }) = triple {
            assert_eq!(popped, Ok(()), "the short way took what the long way refuses");
            let (readable, writable) = (chain.readable(), chain.writable());
            assert_eq!(head, chain.head());
            if is_read {
                assert_eq!((readable, writable), (&[first][..], &[second, third][..]));
            } else {
                assert_eq!((readable, writable), (&[first, second][..], &[third][..]));
            }
        }
        popped.ok()?;
        let id = chain.id();
        assert!(id < size, "{id} of {size}");
        assert!(chain.readable().len() + chain.writable().len() <= Chain::MAX_SEGMENTS);
        assert!((1..=size).contains(&chain.head().entries));
        if in_flight.contains(&id) {
            return None;
        }
        in_flight.push(id);
        assert!(in_flight.len() <= usize::from(size));
        ring.advance(chain.head());
        waits = ring.has_next();
        taken += 1;
    }
    Some(())
}

fn attack<R: Ring>(ground: &Ground, layout: &RingLayout, packed: bool, choices: &mut Choices<'_>) {
    let size = layout.config().size;
    let mut ring = R::activate(layout, R::START, &ground.view).expect("all of it is in the RAM");
    let (mut chain, mut in_flight) = (Chain::new(), Vec::new());
    while !choices.is_empty() {
        match choices.u8() & 15 {
            kind @ 0..10 => scribble(ground, packed, size, kind, choices),
            10..13 => {
                if pass(&mut ring, &ground.view, &mut chain, &mut in_flight, size).is_none() {
                    return;
                }
            }
            13 => {
                // Some are given back, the latest first.
                for _ in 0..choices.u8() % 16 {
                    let Some(id) = in_flight.pop() else { break };
                    ring.push_used(id, choices.u32());
                }
                ring.publish();
            }
            14 => {
                ring.enable_kicks();
                ring.disable_kicks();
            }
            _ => {
                // As for a change of windows: everything is given back, and the ring starts again where it stands.
                in_flight.drain(..).for_each(|id| ring.push_used(id, 1));
                ring.publish();
                ring = R::activate(layout, ring.position(), &ground.view).expect("a position of its own");
            }
        }
    }
}

pub(super) fn run(input: &[u8]) {
    GROUND.with_borrow_mut(|ground| {
        let ground = ground.get_or_insert_with(|| {
            let memory = Memory::new(1 << 20).expect("memory");
            let view = View::new(&windows_over(&memory));
            Ground { memory, view }
        });
        ground.memory.write(DEFAULT_BASE, &[0; LEN]).expect("inside");
        let mut choices = Choices::new(input);
        let (form, bits) = (choices.u8(), choices.u8());
        let packed = form & 1 != 0;
        let size = if packed { 1 + u16::from(form >> 1) } else { 1 << (form >> 1).min(8) }.min(SIZE_MAX);
        let mut features = feature::VERSION_1;
        for (bit, feature) in
            [feature::EVENT_IDX, feature::INDIRECT_DESC, feature::IN_ORDER].into_iter().enumerate()
        {
            features |= if bits >> bit & 1 != 0 { feature } else { 0 };
        }
        features |= if packed { feature::RING_PACKED } else { 0 };
        let config = QueueConfig { size, desc: DESC_AT, driver: DRIVER_AT, device: DEVICE_AT, features };
        let layout = config.check().expect("sizes and addresses are good");
        if packed {
            attack::<PackedRing>(ground, &layout, true, &mut choices);
        } else {
            attack::<SplitRing>(ground, &layout, false, &mut choices);
        }
    });
}
