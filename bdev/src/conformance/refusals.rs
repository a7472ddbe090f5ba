//! Requests that must be refused, and leave nothing behind.

use super::Subject;
use super::rig::{Rig, pattern};
use crate::{Access, Op, OpKind, Rejected, Request, Status, Token};

/// One operation of each kind.
const OPS: [Op; OpKind::COUNT] =
    [Op::Read, Op::WRITE, Op::Flush, Op::Unmap, Op::WriteZeroes { unmap: true, fua: false }];

fn supported(rig: &Rig) -> Vec<Op> {
    OPS.into_iter().filter(|op| rig.supports(op.kind())).collect()
}

/// The description, the registry's listing and the channel agree.
pub fn describes_itself_consistently(subject: &Subject) {
    let mut rig = Rig::new(subject, 4);
    let info = rig.info().clone();
    let described = rig.descriptor().registered().describe();

    assert_eq!(described.name, rig.name());
    assert_eq!((described.block_size, described.num_blocks), (info.block_size, info.num_blocks()));
    assert!(described.aliases.contains(&info.uuid.to_string()));
    assert!(info.block_size >= 512 && info.block_size.is_multiple_of(512));
    assert!(info.physical_block_size >= info.block_size);
    assert!(info.buf_align.is_power_of_two() && info.len_align().is_power_of_two());
    assert!(described.supported_io_types.read);
    assert!(described.driver_specific.is_object());
    assert_eq!(rig.channel().depth(), 4);
    assert!(crate::TYPES.iter().any(|t| t.name == info.type_name && t.product_name == info.product_name));
}

/// Ranges that end past the last block, also where the sum overflows.
pub fn refuses_ranges_outside_the_bdev(subject: &Subject) {
    let mut rig = Rig::new(subject, 4);
    let n = rig.num_blocks();
    let outside = [
        (n, 1),
        (n - 1, 2),
        (0, n + 1),
        (1, n),
        (n + 1, 0),
        (u64::MAX, 1),
        (1, u64::MAX),
        (u64::MAX, u64::MAX),
    ];

    for op in supported(&rig).into_iter().filter(|op| *op != Op::Flush) {
        for (lba, blocks) in outside {
            let answer = rig.run(op, lba, blocks, &[]);
            assert_eq!(answer, Err(Rejected::Failed(Status::OutOfRange)), "{op:?} {lba}+{blocks}");
        }
    }
    assert_eq!(rig.channel().in_flight(), 0);
}

/// Vectors shorter or longer than the range, and vectors where there is no data.
pub fn refuses_vectors_that_do_not_add_up(subject: &Subject) {
    let mut rig = Rig::new(subject, 4);
    let block = rig.block_bytes();
    let exact = rig.vector(0, block);
    let short = rig.vector(0, block - 1);
    let long = rig.vector(0, block + 1);
    let invalid = Err(Rejected::Failed(Status::Invalid));

    for op in supported(&rig) {
        if op.kind().has_data() {
            for wrong in [&[][..], &[short], &[long], &[exact, exact], &[short, long]] {
                let blocks = if wrong.len() == 2 { 3 } else { 1 };
                assert_eq!(rig.run(op, 0, blocks, wrong), invalid, "{op:?} {wrong:?}");
            }
        } else {
            assert_eq!(rig.run(op, 0, 1, &[exact]), invalid, "{op:?}");
        }
    }
}

/// More vectors than the description says are refused; memory that is aligned to nothing is taken.
pub fn refuses_too_many_vectors_and_takes_misaligned_ones(subject: &Subject) {
    let mut rig = Rig::new(subject, 4);
    let (block, info) = (rig.block_bytes(), rig.info().clone());
    let invalid = Err(Rejected::Failed(Status::Invalid));
    let moved = vec![rig.vector(1, block + 1), rig.vector(8 * block + 3, block - 1)];
    // At bases that O_DIRECT takes nearly everywhere, but of lengths that are no blocks.
    let short =
        vec![rig.vector(16, 2 * block - 32), rig.vector(8 * block, 16), rig.vector(9 * block + 64, 16)];
    for (vectors, seed) in [(moved, 7), (short, 8)] {
        rig.write(2, &pattern(6, 2 * block));
        assert_eq!(rig.run(Op::Read, 2, 2, &vectors), Ok(Status::Ok));
        let mut seen = vec![0; 2 * block];
        crate::iov::gather(&vectors, &mut seen);
        assert!(!subject.keeps_data || seen == pattern(6, 2 * block), "read into {vectors:?}");
        crate::iov::scatter(&vectors, &pattern(seed, 2 * block));
        assert_eq!(rig.run(Op::WRITE, 5, 2, &vectors), Ok(Status::Ok));
        let seen = rig.read(5, 2);
        assert!(!subject.keeps_data || seen == pattern(seed, 2 * block), "written from {vectors:?}");
    }

    let empty = rig.vector(0, 0);
    let mut many = vec![empty; info.max_segments as usize];
    many[0] = rig.vector(0, block);
    assert_eq!(rig.run(Op::Read, 0, 1, &many), Ok(Status::Ok));
    many.push(empty);
    assert_eq!(rig.run(Op::Read, 0, 1, &many), invalid);
}

/// A token at or above the depth, and one that is in flight.
pub fn refuses_tokens_out_of_range_or_in_flight(subject: &Subject) {
    let mut rig = Rig::new(subject, 4);
    let block = rig.block_bytes();
    let iov = [rig.vector(0, block)];
    let request = |token| Request { op: Op::Read, lba: 0, blocks: 1, iov: &iov, token: Token(token) };
    let invalid = Err(Rejected::Failed(Status::Invalid));

    assert_eq!(rig.channel().submit(&request(4)), invalid);
    assert_eq!(rig.channel().submit(&request(u32::MAX)), invalid);
    assert_eq!(rig.channel().submit(&request(3)), Ok(()));
    assert_eq!(rig.channel().submit(&request(3)), invalid);
    rig.channel().kick();
    let done = rig.drain();
    assert_eq!(done.len(), 1);
    assert_eq!(rig.channel().submit(&request(3)), Ok(()), "a reaped token is free again");
    rig.channel().kick();
    rig.drain();
}

/// What `supports` denies is refused, and nothing else.
pub fn refuses_operations_it_does_not_support(subject: &Subject) {
    let mut rig = Rig::new(subject, 4);

    for op in OPS {
        let expected =
            if rig.supports(op.kind()) { Ok(Status::Ok) } else { Err(Rejected::Failed(Status::Unsupported)) };
        assert_eq!(rig.run(op, 0, 0, &[]), expected, "{op:?}");
    }
}

/// Reads and flushes pass, changes do not.
pub fn refuses_changes_through_a_read_only_descriptor(subject: &Subject) {
    let mut rig = Rig::with_access(subject, 4, Access::Read);

    for op in supported(&rig) {
        let expected =
            if op.kind().modifies() { Err(Rejected::Failed(Status::ReadOnly)) } else { Ok(Status::Ok) };
        assert_eq!(rig.run(op, 0, 0, &[]), expected, "{op:?}");
    }
    assert!(!rig.descriptor().is_writable());
}

/// No blocks, no work, but a completion; also at the very end.
pub fn completes_requests_of_no_blocks(subject: &Subject) {
    let mut rig = Rig::new(subject, 4);
    let n = rig.num_blocks();
    let empty = rig.vector(0, 0);

    for op in supported(&rig) {
        for lba in [0, n] {
            assert_eq!(rig.run(op, lba, 0, &[]), Ok(Status::Ok), "{op:?} at {lba}");
        }
    }
    assert_eq!(rig.run(Op::Read, 0, 0, &[empty, empty]), Ok(Status::Ok));
}
