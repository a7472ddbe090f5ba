//! What is on the medium after writes, zeroes, unmaps and flushes.
//!
//! Contents are compared where the subject keeps data; statuses and guards always.

use std::thread;

use super::Subject;
use super::rig::{Rig, drain, pattern};
use crate::{Completion, IoChannel, IoVec, Op, OpKind, Request, Status, Token};

fn assert_reads(rig: &mut Rig, subject: &Subject, lba: u64, expected: &[u8], what: &str) {
    let blocks = (expected.len() / rig.block_bytes()) as u64;
    let seen = rig.read(lba, blocks);
    // Not assert_eq: a megabyte of bytes says less than the first place that differs.
    let differs = seen.iter().zip(expected).position(|(a, b)| a != b);
    assert!(!subject.keeps_data || differs.is_none(), "{what}: byte {differs:?} from block {lba} on differs");
}

/// First and last block.
pub fn reads_back_what_was_written_at_both_ends(subject: &Subject) {
    let mut rig = Rig::new(subject, 4);
    let (block, last) = (rig.block_bytes(), rig.num_blocks() - 1);

    rig.write(0, &pattern(1, block));
    rig.write(last, &pattern(2, block));

    assert_reads(&mut rig, subject, 0, &pattern(1, block), "first block");
    assert_reads(&mut rig, subject, last, &pattern(2, block), "last block");
    assert_reads(&mut rig, subject, 1, &vec![0; block], "a block never written");
}

/// The lengths a range of `len` bytes is cut into, in units of `align`.
fn shapes(len: usize, align: usize, max_segments: usize) -> Vec<Vec<usize>> {
    let most = max_segments.min(len / align);
    let mut many = vec![align; most - 1];
    many.push(len - align * (most - 1));
    let mut with_holes = vec![0, align, 0, 0, len - 2 * align, 0, align, 0];
    with_holes.push(0);
    vec![
        vec![len],
        vec![align, len - align],
        vec![len - align, align],
        vec![len / 2, len - len / 2],
        with_holes,
        many,
    ]
}

fn cut(rig: &Rig, offset: usize, lengths: &[usize], gap: usize) -> Vec<IoVec> {
    let mut at = offset;
    lengths
        .iter()
        .map(|&len| {
            let vector = rig.vector(at, len);
            at += len + gap;
            vector
        })
        .collect()
}

/// Every shape of writing against every shape of reading, with gaps between the vectors; splits of single
/// bytes where alignment permits.
pub fn takes_vectors_of_every_shape(subject: &Subject) {
    let mut rig = Rig::new(subject, 4);
    let align = rig.info().buf_align as usize;
    let blocks = 8;
    let len = blocks as usize * rig.block_bytes();
    let shapes = shapes(len, align, rig.info().max_segments as usize);

    for (w, written) in shapes.iter().enumerate() {
        for (r, read) in shapes.iter().enumerate() {
            let bytes = pattern((w * 100 + r) as u64, len);
            let source = cut(&rig, 0, written, align);
            assert_eq!(crate::iov::scatter(&source, &bytes), len);
            assert_eq!(rig.run(Op::WRITE, 3, blocks, &source), Ok(Status::Ok), "{written:?}");

            let target = cut(&rig, 4 << 20, read, align);
            assert_eq!(rig.run(Op::Read, 3, blocks, &target), Ok(Status::Ok), "{read:?}");
            let mut seen = vec![0; len];
            crate::iov::gather(&target, &mut seen);
            assert!(!subject.keeps_data || seen == bytes, "written as {written:?}, read as {read:?}");
        }
    }
}

/// A read changes nothing before, between and after its vectors; a write changes no memory at all.
pub fn touches_only_the_memory_of_the_vectors(subject: &Subject) {
    let mut rig = Rig::new(subject, 4);
    let block = rig.block_bytes();
    let guard = 512;
    rig.write(0, &pattern(5, 2 * block));
    let area = 3 * guard + 2 * block;
    rig.put(0, &vec![0xc3; area]);
    let vectors = [rig.vector(guard, block), rig.vector(2 * guard + block, block)];

    assert_eq!(rig.run(Op::Read, 0, 2, &vectors), Ok(Status::Ok));

    let seen = rig.get(0, area);
    for start in [0, guard + block, 2 * (guard + block)] {
        assert_eq!(seen[start..start + guard], vec![0xc3; guard], "guard at {start}");
    }
    assert_eq!(rig.run(Op::WRITE, 0, 2, &vectors), Ok(Status::Ok));
    assert!(rig.get(0, area) == seen, "a write changed its source");
}

/// The largest request the bdev takes, in every shape, while a small one is in flight.
pub fn takes_one_request_over_the_whole_bdev(subject: &Subject) {
    let mut rig = Rig::new(subject, 4);
    let (block, info) = (rig.block_bytes(), rig.info().clone());
    let limit = if info.max_io_blocks == 0 { u64::MAX } else { info.max_io_blocks.into() };
    let blocks = rig.num_blocks().min(limit);
    let len = blocks as usize * block;
    let align = info.buf_align as usize;
    let small = [rig.vector(7 << 20, block)];

    for (n, shape) in shapes(len, align, info.max_segments as usize).iter().enumerate() {
        let bytes = pattern(8 + n as u64, len);
        let whole = cut(&rig, 0, shape, align);
        for op in [Op::WRITE, Op::Read] {
            // A read over what it should find would prove nothing.
            let fill = if op == Op::Read { &vec![0xdd; len] } else { &bytes };
            crate::iov::scatter(&whole, fill);
            let requests = [
                Request { op, lba: 0, blocks, iov: &whole, token: Token(2) },
                Request { op: Op::Read, lba: 0, blocks: 1, iov: &small, token: Token(0) },
            ];
            for request in &requests {
                assert_eq!(rig.channel().submit(request), Ok(()));
            }
            rig.channel().kick();
            let mut done = rig.drain();
            done.sort_by_key(|c| c.token);
            let ends: Vec<_> = done.iter().map(|c| (c.token.0, c.status)).collect();
            assert_eq!(ends, [(0, Status::Ok), (2, Status::Ok)]);
        }
        let mut seen = vec![0; len];
        crate::iov::gather(&whole, &mut seen);
        assert!(!subject.keeps_data || seen == bytes, "read in shape {n}");
        assert_reads(&mut rig, subject, 0, &bytes, "the whole bdev");
    }
}

/// Each byte is one that one of the writers wrote there.
pub fn leaves_overlapping_writes_as_one_of_them(subject: &Subject) {
    let mut rig = Rig::new(subject, 16);
    let block = rig.block_bytes();
    let vectors: Vec<_> = (0..16).map(|i| rig.vector(i * 4 * block, 4 * block)).collect();
    for (i, vector) in vectors.iter().enumerate() {
        vector.fill(0, 4 * block, i as u8 + 1);
    }

    for (i, vector) in vectors.iter().enumerate() {
        let iov = [*vector];
        let request =
            Request { op: Op::WRITE, lba: i as u64 % 3, blocks: 4, iov: &iov, token: Token(i as u32) };
        assert_eq!(rig.channel().submit(&request), Ok(()));
    }
    rig.channel().kick();
    let done = rig.drain();

    assert_eq!(done.len(), 16);
    assert!(done.iter().all(|c| c.status == Status::Ok));
    let seen = rig.read(0, 6);
    assert!(!subject.keeps_data || seen.iter().all(|b| (1..=16).contains(b)));
}

/// Flush and FUA complete, and what they covered is there for a channel opened afterwards.
pub fn keeps_flushed_data_over_a_new_channel(subject: &Subject) {
    let mut rig = Rig::new(subject, 4);
    let block = rig.block_bytes();
    rig.write(0, &pattern(1, block));
    let flushed = rig.supports(OpKind::Flush).then(|| rig.run(Op::Flush, 0, 0, &[]));
    assert!(matches!(flushed, None | Some(Ok(Status::Ok))));
    rig.put(0, &pattern(2, block));
    let vector = [rig.vector(0, block)];
    assert_eq!(rig.run(Op::Write { fua: true }, 1, 1, &vector), Ok(Status::Ok));

    rig.reopen_channel(2);

    assert_reads(&mut rig, subject, 0, &pattern(1, block), "flushed");
    assert_reads(&mut rig, subject, 1, &pattern(2, block), "written with FUA");
}

fn clears(subject: &Subject, rig: &mut Rig, op: Op, must_read_zero: bool) {
    let block = rig.block_bytes();
    let blocks = rig.num_blocks();
    let before = pattern(77, blocks as usize * block);
    for (lba, len) in [(1, 1), (7, 13), (blocks / 2, blocks / 4), (blocks - 1, 1), (0, blocks)] {
        rig.write(0, &before);

        assert_eq!(rig.run(op, lba, len, &[]), Ok(Status::Ok), "{op:?} {lba}+{len}");

        let (from, to) = (lba as usize * block, (lba + len) as usize * block);
        let seen = rig.read(0, blocks);
        let zeroed = !must_read_zero || seen[from..to].iter().all(|&b| b == 0);
        let kept = seen[..from] == before[..from] && seen[to..] == before[to..];
        assert!(!subject.keeps_data || zeroed, "{op:?} {lba}+{len}: not zeroes");
        assert!(!subject.keeps_data || kept, "{op:?} {lba}+{len}: neighbours changed");
    }
}

/// Zeroes inside the range, no change outside, with every combination of flags.
pub fn zeroes_exactly_the_blocks_asked_for(subject: &Subject) {
    let mut rig = Rig::new(subject, 4);
    let supported = rig.supports(OpKind::WriteZeroes);
    for (unmap, fua) in
        [(false, false), (true, false), (false, true), (true, true)].into_iter().filter(|_| supported)
    {
        clears(subject, &mut rig, Op::WriteZeroes { unmap, fua }, true);
    }
}

/// As the description says inside the range, no change outside.
pub fn unmaps_exactly_the_blocks_asked_for(subject: &Subject) {
    let mut rig = Rig::new(subject, 4);
    if rig.supports(OpKind::Unmap) {
        let reads_zero = rig.info().unmap_reads_zero;
        clears(subject, &mut rig, Op::Unmap, reads_zero);
    }
}

/// One request on a channel that is not the rig's.
fn run_on(channel: &mut IoChannel, op: Op, lba: u64, vector: IoVec) {
    let iov = [vector];
    assert_eq!(channel.submit(&Request { op, lba, blocks: 1, iov: &iov, token: Token(0) }), Ok(()));
    channel.kick();
    let done = drain(channel);
    assert_eq!(done, [Completion { token: Token(0), status: Status::Ok }]);
}

/// Completed on one channel, visible on the other.
pub fn shows_writes_of_one_channel_to_another(subject: &Subject) {
    let mut rig = Rig::new(subject, 4);
    let block = rig.block_bytes();
    rig.write(9, &pattern(3, block));
    let mut other = rig.descriptor().open_channel(1).expect("a second channel opens");

    run_on(&mut other, Op::Read, 9, rig.vector(1 << 20, block));

    assert!(!subject.keeps_data || rig.get(1 << 20, block) == pattern(3, block));
}

/// Four threads, a channel each, a quarter of the bdev each: everyone finds their own data.
pub fn survives_channels_on_several_threads(subject: &Subject) {
    const THREADS: u64 = 4;
    const ROUNDS: u64 = 3;
    let rig = Rig::new(subject, 1);
    let (block, share) = (rig.block_bytes(), rig.num_blocks() / THREADS);
    let descriptor = rig.descriptor();
    let work = |mine: u64, vector: IoVec| {
        let mut channel = descriptor.open_channel(2).expect("a channel opens");
        let mut seen = vec![0; block];
        for round in 0..ROUNDS {
            let bytes = |i: u64| pattern((round * THREADS + mine) * share + i, block);
            for i in 0..share {
                vector.copy_from(0, &bytes(i));
                run_on(&mut channel, Op::WRITE, mine * share + i, vector);
            }
            for i in 0..share {
                run_on(&mut channel, Op::Read, mine * share + i, vector);
                vector.copy_to(0, &mut seen);
                assert!(!subject.keeps_data || seen == bytes(i), "thread {mine}, round {round}, block {i}");
            }
        }
    };

    thread::scope(|scope| {
        for mine in 0..THREADS {
            let (work, vector) = (&work, rig.vector((mine as usize) << 20, block));
            scope.spawn(move || work(mine, vector));
        }
    });

    let registered = descriptor.registered();
    assert_eq!(registered.stats().kind(OpKind::Write).ops, ROUNDS * THREADS * share);
}
