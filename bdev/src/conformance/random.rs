//! Random interleavings of requests, reaps, reopening, growth, rate limits and removal, against a model in memory.
//!
//! Requests that overlap one in flight wait for it, so that the model knows what must be there; overlap has a
//! check of its own.

use std::ops::Range;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::Subject;
use super::rig::{Rig, pattern};
use crate::{Completion, IoVec, Op, OpKind, QosParams, Rejected, Request, Status, Token};

const DEPTH: u16 = 8;
/// Longest request in blocks; also the stretch of the buffer that belongs to one token.
const MAX_BLOCKS: u64 = 40;
/// One round of these takes milliseconds on a type in memory.
const CASES: u32 = 64;
/// Ticks, which are nanoseconds here, that pass while a request waits for a rate limit.
const PAUSE: u64 = 200_000;

/// One step of an interleaving. Positions are fractions of what there is when the step is taken.
#[derive(Debug, Clone)]
enum Step {
    Submit { op: Op, lba: u64, blocks: u64, cuts: Vec<u16>, seed: u64 },
    Kick,
    Reap { room: usize },
    Reopen,
    Grow,
    Limit { ios_per_sec: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let op = prop_oneof![
        4 => Just(Op::Read),
        4 => any::<bool>().prop_map(|fua| Op::Write { fua }),
        1 => Just(Op::Flush),
        1 => Just(Op::Unmap),
        1 => any::<(bool, bool)>().prop_map(|(unmap, fua)| Op::WriteZeroes { unmap, fua }),
    ];
    let submit = (op, any::<u64>(), 0..=MAX_BLOCKS, prop::collection::vec(any::<u16>(), 0..6), any::<u64>())
        .prop_map(|(op, lba, blocks, cuts, seed)| Step::Submit { op, lba, blocks, cuts, seed });
    prop_oneof![
        12 => submit,
        3 => Just(Step::Kick),
        4 => (0..=DEPTH as usize).prop_map(|room| Step::Reap { room }),
        1 => Just(Step::Reopen),
        1 => Just(Step::Grow),
        1 => prop_oneof![Just(0), Just(1000), Just(100_000)].prop_map(|ios_per_sec| Step::Limit { ios_per_sec }),
    ]
}

/// What is in flight for a token.
#[derive(Debug, Clone)]
struct Pending {
    op: Op,
    range: Range<u64>,
    vectors: Vec<IoVec>,
}

/// What the medium must hold; `None` for a byte that may be anything.
struct Model {
    bytes: Vec<Option<u8>>,
    block: usize,
    unmap_reads_zero: bool,
}

impl Model {
    fn span(&self, range: &Range<u64>) -> Range<usize> {
        range.start as usize * self.block..range.end as usize * self.block
    }

    fn apply(&mut self, op: Op, range: &Range<u64>, written: &[u8]) {
        let span = self.span(range);
        match op.kind() {
            OpKind::Write => {
                for (to, from) in self.bytes[span].iter_mut().zip(written) {
                    *to = Some(*from);
                }
            }
            OpKind::WriteZeroes => self.bytes[span].fill(Some(0)),
            OpKind::Unmap => {
                let left = self.unmap_reads_zero.then_some(0);
                self.bytes[span].fill(left);
            }
            OpKind::Read | OpKind::Flush => {}
        }
    }

    fn first_difference(&self, range: &Range<u64>, seen: &[u8]) -> Option<usize> {
        self.bytes[self.span(range)]
            .iter()
            .zip(seen)
            .position(|(model, seen)| model.is_some_and(|m| m != *seen))
    }
}

struct Run<'a> {
    subject: &'a Subject,
    rig: Rig,
    model: Model,
    pending: Vec<Option<Pending>>,
    tick: u64,
    /// Requests may end because of that.
    is_removed: bool,
}

impl Run<'_> {
    fn in_flight(&self) -> usize {
        self.pending.iter().flatten().count()
    }

    fn finish(&mut self, completion: Completion) {
        let pending = self.pending[completion.token.0 as usize].take().expect("completes what was submitted");
        if self.is_removed && completion.status == Status::Removed {
            return;
        }
        assert_eq!(completion.status, Status::Ok, "{pending:?}");
        if pending.op == Op::Read {
            let mut seen = vec![0; crate::iov::total_len(&pending.vectors).expect("small")];
            crate::iov::gather(&pending.vectors, &mut seen);
            let differs = self.model.first_difference(&pending.range, &seen);
            assert!(!self.subject.keeps_data || differs.is_none(), "byte {differs:?} of {:?}", pending.range);
        }
    }

    fn reap(&mut self, room: usize, ticks: u64) {
        self.tick += ticks;
        let mut done = [Completion::EMPTY; DEPTH as usize];
        let tick = self.tick;
        self.rig.channel().set_now(tick);
        let n = self.rig.channel().reap(&mut done[..room]);
        assert!(n <= room);
        for completion in &done[..n] {
            self.finish(*completion);
        }
        assert_eq!(self.rig.channel().in_flight(), self.in_flight());
    }

    fn drain(&mut self) {
        self.rig.channel().kick();
        for completion in self.rig.drain() {
            self.finish(completion);
        }
        assert_eq!(self.in_flight(), 0);
    }

    fn overlaps(&self, op: Op, range: &Range<u64>) -> bool {
        self.pending.iter().flatten().any(|p| {
            let conflict = p.op.kind().modifies() || op.kind().modifies();
            conflict && p.range.start < range.end && range.start < p.range.end
        })
    }

    fn submit(&mut self, op: Op, lba: u64, blocks: u64, cuts: &[u16], seed: u64) {
        if !self.rig.supports(op.kind()) {
            return;
        }
        let range = if op == Op::Flush {
            0..0
        } else {
            let start = lba % (self.rig.num_blocks() - blocks + 1);
            start..start + blocks
        };
        if self.in_flight() == usize::from(DEPTH) || self.overlaps(op, &range) {
            self.drain();
        }
        let token = self.pending.iter().position(Option::is_none).expect("one was freed") as u32;
        let len = if op.kind().has_data() { blocks as usize * self.rig.block_bytes() } else { 0 };
        let vectors = self.vectors(token, len, cuts);
        let bytes = pattern(seed, len);
        if op.kind() == OpKind::Write {
            crate::iov::scatter(&vectors, &bytes);
        }
        let request = Request {
            op,
            lba: range.start,
            blocks: range.end - range.start,
            iov: &vectors,
            token: Token(token),
        };
        loop {
            match self.rig.channel().submit(&request) {
                Ok(()) => break,
                Err(Rejected::Full) => {
                    self.rig.channel().kick();
                    self.reap(DEPTH.into(), PAUSE);
                }
                Err(Rejected::Failed(status)) => panic!("{request:?} is refused with {status:?}"),
            }
        }
        self.model.apply(op, &range, &bytes);
        self.pending[token as usize] = Some(Pending { op, range, vectors });
    }

    /// The token's stretch of the buffer, cut at random places that keep to the alignment.
    fn vectors(&self, token: u32, len: usize, cuts: &[u16]) -> Vec<IoVec> {
        if len == 0 {
            return Vec::new();
        }
        let align = self.rig.info().buf_align as usize;
        let mut at: Vec<_> = cuts.iter().map(|&c| usize::from(c) % (len + 1) / align * align).collect();
        at.extend([0, len]);
        at.sort_unstable();
        let base = token as usize * MAX_BLOCKS as usize * self.rig.block_bytes();
        at.windows(2).map(|w| self.rig.vector(base + w[0], w[1] - w[0])).collect()
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Submit { op, lba, blocks, cuts, seed } => self.submit(*op, *lba, *blocks, cuts, *seed),
            Step::Kick => self.rig.channel().kick(),
            Step::Reap { room } => self.reap(*room, 1),
            Step::Reopen => {
                self.drain();
                self.rig.reopen_channel(DEPTH);
            }
            Step::Grow => {
                let blocks = self.rig.num_blocks() + 1;
                let name = self.rig.name().to_owned();
                if let Some(grow) = self.subject.grow {
                    grow(self.rig.registry(), &name, blocks).expect("it grows");
                    self.model.bytes.resize(blocks as usize * self.model.block, None);
                }
            }
            Step::Limit { ios_per_sec } => self.limit(*ios_per_sec),
        }
    }
}

impl Run<'_> {
    fn limit(&self, ios_per_sec: u64) {
        let params = QosParams { rw_ios_per_sec: Some(ios_per_sec), ..QosParams::default() };
        self.rig.descriptor().registered().set_qos(params).expect("a limit can be set");
    }

    /// Reads everything back.
    fn check_all(&mut self) {
        let whole = 0..self.rig.num_blocks();
        for lba in whole.clone().step_by(MAX_BLOCKS as usize) {
            let range = lba..(lba + MAX_BLOCKS).min(whole.end);
            let seen = self.rig.read(lba, range.end - lba);
            let differs = self.model.first_difference(&range, &seen);
            assert!(!self.subject.keeps_data || differs.is_none(), "byte {differs:?} from block {lba} on");
        }
    }

    /// Removes the bdev under what is in flight: all of it ends.
    fn remove(&mut self) {
        let name = self.rig.name().to_owned();
        self.is_removed = true;
        self.rig.registry().delete(&name, || ()).expect("it is there");
        self.drain();
    }
}

/// Nothing is lost, mixed up, completed twice or forgotten, whatever comes after what.
pub fn matches_a_model_through_random_interleavings(subject: &Subject) {
    let mut runner = TestRunner::new(Config { cases: CASES, failure_persistence: None, ..Config::default() });
    let steps = (prop::collection::vec(step(), 1..120), any::<bool>());
    let result = runner.run(&steps, |(steps, removes)| {
        let rig = Rig::new(subject, DEPTH);
        let (block, blocks) = (rig.block_bytes(), rig.num_blocks());
        assert!(
            usize::from(DEPTH) * MAX_BLOCKS as usize * block <= 4 << 20,
            "the tokens' stretches fit the buffer"
        );
        let model = Model {
            bytes: vec![Some(0); blocks as usize * block],
            block,
            unmap_reads_zero: rig.info().unmap_reads_zero,
        };
        let pending = vec![None; usize::from(DEPTH)];
        let mut run = Run { subject, rig, model, pending, tick: 0, is_removed: false };
        for step in &steps {
            run.take(step);
        }
        if removes {
            run.remove();
        } else {
            run.limit(0);
            run.drain();
            run.check_all();
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}
