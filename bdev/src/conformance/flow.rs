//! Depth, counting, removal, resize: what happens around the data.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::Subject;
use super::rig::{Rig, pattern};
use crate::{Completion, Error, Event, Op, OpKind, Rejected, Request, ResetMode, Status, Token};

/// A removal that takes longer than this hangs. Not a measure of speed.
const HANG: Duration = Duration::from_secs(60);

/// Submits reads or writes of one block to the tokens given, as many as are accepted.
fn submit_all(rig: &mut Rig, op: Op, tokens: std::ops::Range<u32>) -> u32 {
    let block = rig.block_bytes();
    let blocks = rig.num_blocks();
    let mut accepted = 0;
    for token in tokens {
        let iov = [rig.vector(token as usize * block, block)];
        let lba = u64::from(token) % blocks;
        let answer = rig.channel().submit(&Request { op, lba, blocks: 1, iov: &iov, token: Token(token) });
        match answer {
            Ok(()) => accepted += 1,
            Err(Rejected::Full) => break,
            Err(Rejected::Failed(status)) => panic!("refused with {status:?}"),
        }
    }
    rig.channel().kick();
    accepted
}

/// As deep as asked, then Full, then room again as requests are reaped; every token back once.
pub fn fills_to_its_depth_and_completes_each_request_once(subject: &Subject) {
    for depth in [1u16, 2, 7, 128] {
        let mut rig = Rig::new(subject, depth);
        let block = rig.block_bytes();
        for op in [Op::WRITE, Op::Read, Op::WRITE] {
            let accepted = submit_all(&mut rig, op, 0..u32::from(depth));
            assert_eq!(accepted, u32::from(depth), "a channel is as deep as it was opened");
            assert_eq!(rig.channel().in_flight(), usize::from(depth));
            let iov = [rig.vector(0, block)];
            let more = Request { op: Op::Read, lba: 0, blocks: 1, iov: &iov, token: Token(0) };
            assert_eq!(rig.channel().submit(&more), Err(Rejected::Full));

            let mut done = rig.drain();

            assert!(done.iter().all(|c| c.status == Status::Ok));
            done.sort_by_key(|c| c.token);
            let tokens: Vec<_> = done.iter().map(|c| c.token.0).collect();
            assert_eq!(tokens, (0..u32::from(depth)).collect::<Vec<_>>());
        }
    }
}

/// An array shorter than what is ready is filled, and the rest stays for the next call.
pub fn reaps_into_short_arrays(subject: &Subject) {
    let mut rig = Rig::new(subject, 8);
    assert_eq!(submit_all(&mut rig, Op::Read, 0..8), 8);
    assert_eq!(rig.channel().reap(&mut []), 0);

    let mut seen = Vec::new();
    while rig.channel().in_flight() > 0 {
        let before = rig.channel().in_flight();
        let mut one = [Completion::EMPTY; 1];
        let n = rig.channel().reap(&mut one);
        seen.extend(one[..n].iter().map(|c| c.token.0));
        assert_eq!(rig.channel().in_flight(), before - n);
    }

    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6, 7]);
}

/// Operations, bytes, latencies by the ticks given, refusals; reset; and the sum outlives the channel.
pub fn counts_what_it_did(subject: &Subject) {
    let mut rig = Rig::new(subject, 8);
    let block = rig.block_bytes() as u64;
    rig.channel().set_now(1000);
    rig.write(0, &pattern(1, 2 * block as usize));
    rig.channel().set_now(2000);
    assert_eq!(submit_all(&mut rig, Op::Read, 0..3), 3);
    rig.channel().set_now(2007);
    rig.drain();
    let beyond = rig.num_blocks();
    assert_eq!(rig.run(Op::Read, beyond, 1, &[]), Err(Rejected::Failed(Status::OutOfRange)));

    let registered = rig.descriptor().registered().clone();
    let stats = registered.stats();
    let (read, write) = (*stats.kind(OpKind::Read), *stats.kind(OpKind::Write));
    assert_eq!((write.ops, write.bytes), (1, 2 * block));
    assert_eq!((read.ops, read.bytes, read.latency_ticks), (3, 3 * block, 21));
    assert_eq!((read.latency_ticks_max, read.latency_ticks_min), (7, Some(7)));
    assert_eq!(stats.errors(Status::OutOfRange), 1);
    assert_eq!(registered.channel_stats().len(), 1);

    rig.close_channel();
    assert_eq!(registered.stats(), stats, "closing a channel loses nothing");
    registered.reset_stats(ResetMode::All);
    assert_eq!(registered.stats(), crate::IoStats::default());
}

/// Deleted while full: told so, everything in flight ends, new requests are refused.
pub fn ends_what_is_in_flight_when_removed(subject: &Subject) {
    let mut rig = Rig::new(subject, 64);
    let (gone, when_gone) = mpsc::channel();
    let accepted = submit_all(&mut rig, Op::WRITE, 0..64);

    let name = rig.name().to_owned();
    rig.registry().delete(&name, move || gone.send(()).expect("the test waits")).expect("deleted");

    assert_eq!(rig.events(), [Event::Removed]);
    let done = rig.drain();
    assert_eq!(done.len(), accepted as usize);
    assert!(done.iter().all(|c| matches!(c.status, Status::Ok | Status::Removed)));
    assert_eq!(rig.run(Op::Read, 0, 0, &[]), Err(Rejected::Failed(Status::Removed)));
    assert!(when_gone.try_recv().is_err(), "still open");
    rig.close_channel();
    rig.close_descriptor();
    assert_eq!(when_gone.recv_timeout(HANG), Ok(()));
}

/// The name stays taken, and nobody can open it, until the last one has let go.
pub fn is_removed_only_when_closed(subject: &Subject) {
    let mut rig = Rig::new(subject, 1);
    let name = rig.name().to_owned();
    let registry = rig.registry().clone();
    let (gone, when_gone) = mpsc::channel();
    registry.delete(&name, move || gone.send(()).expect("the test waits")).expect("deleted");

    assert!(matches!(registry.delete(&name, || ()), Err(Error::NoSuchDevice { .. })));
    let reopened = registry.open(&name, crate::Access::Read, |_| ());
    assert!(matches!(reopened, Err(Error::NoSuchDevice { .. })));
    rig.close_descriptor();
    assert!(registry.get(&name).is_ok(), "a channel keeps it");
    rig.close_channel();

    assert_eq!(when_gone.recv_timeout(HANG), Ok(()));
    assert!(registry.get(&name).is_err());
}

/// Not what a caller should do, but nothing breaks.
pub fn can_be_dropped_with_requests_in_flight(subject: &Subject) {
    let mut rig = Rig::new(subject, 32);
    assert_eq!(submit_all(&mut rig, Op::WRITE, 0..32), 32);

    rig.reopen_channel(32);

    assert_eq!(rig.channel().in_flight(), 0);
    assert_eq!(submit_all(&mut rig, Op::Read, 0..32), 32);
    assert_eq!(rig.drain().len(), 32);
}

/// A larger size: told, usable at once, nothing lost, with requests in flight. Or a clear no.
pub fn grows_under_load_or_refuses_to(subject: &Subject) {
    let mut rig = Rig::new(subject, 8);
    let (block, old) = (rig.block_bytes(), rig.num_blocks());
    let new = old + 16;
    let name = rig.name().to_owned();
    rig.write(old - 1, &pattern(4, block));
    assert_eq!(submit_all(&mut rig, Op::Read, 0..8), 8);

    let grow = subject.grow.unwrap_or(super::by_resize);
    let resized = grow(rig.registry(), &name, new);

    let grows = subject.grow.is_some();
    assert_eq!(resized.is_ok(), grows, "{resized:?}");
    assert_eq!(rig.drain().len(), 8);
    let expected = if grows { (new, vec![Event::Resized { num_blocks: new }]) } else { (old, vec![]) };
    assert_eq!((rig.num_blocks(), rig.events()), expected);
    let last = rig.num_blocks() - 1;
    rig.write(last, &pattern(5, block));
    let seen = rig.read(last, 1);
    assert!(!subject.keeps_data || seen == pattern(5, block));
}

/// A request in flight was checked against the size it had.
pub fn refuses_to_shrink_while_open(subject: &Subject) {
    let rig = Rig::new(subject, 1);
    let old = rig.num_blocks();

    let shrunk = rig.registry().notify_resized(rig.name(), old - 1);

    assert!(matches!(shrunk, Err(Error::Busy { .. })));
    assert_eq!(rig.num_blocks(), old);
    assert_eq!(rig.events(), []);
}

/// Runs mixed I/O of every supported kind at full depth and returns how many allocations that took, as
/// `allocations` counts them for this thread. For a test whose global allocator counts; it should find 0.
pub fn allocations_of_mixed_io(subject: &Subject, allocations: fn() -> u64) -> u64 {
    const DEPTH: u16 = 32;
    let mut rig = Rig::new(subject, DEPTH);
    let block = rig.block_bytes();
    let blocks = rig.num_blocks();
    let whole_len = blocks as usize * block;
    let vectors: Vec<_> = (0..DEPTH as usize)
        .map(|i| [rig.vector(i * block, block / 2), rig.vector(i * block + block / 2, block / 2)])
        .collect();
    let whole = [rig.vector(0, whole_len)];
    let whole_blocks = if rig.info().max_io_blocks == 0 { blocks } else { 0 };
    let zeroes = rig.supports(OpKind::WriteZeroes);
    let flush = rig.supports(OpKind::Flush);
    let mut done = [Completion::EMPTY; DEPTH as usize];
    let channel = rig.channel();

    let mut pass = |tick: u64| {
        channel.set_now(tick);
        for (i, iov) in vectors.iter().enumerate() {
            let (token, lba) = (Token(i as u32), (tick + i as u64) % blocks);
            let request = match i {
                0 if flush => Request { op: Op::Flush, lba: 0, blocks: 0, iov: &[], token },
                1 if zeroes => Request { op: Op::WRITE_ZEROES, lba, blocks: 1, iov: &[], token },
                2 if whole_blocks > 0 => Request { op: Op::Read, lba: 0, blocks, iov: &whole, token },
                3 => Request { op: Op::Read, lba: blocks, blocks: 1, iov, token },
                _ if i % 2 == 0 => Request { op: Op::Read, lba, blocks: 1, iov, token },
                _ => Request { op: Op::WRITE, lba, blocks: 1, iov, token },
            };
            // Refusals (token 3 is out of range) are part of the mix.
            let _ = channel.submit(&request);
        }
        channel.kick();
        while channel.in_flight() > 0 {
            if channel.reap(&mut done) == 0 {
                thread::yield_now();
            }
        }
    };
    // The first passes may fault in lazily made things of the runtime.
    (0..4).for_each(&mut pass);
    let before = allocations();
    (4..100).for_each(&mut pass);
    allocations() - before
}
