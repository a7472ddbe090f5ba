//! A queue pair against a model of it: two queues of numbers, whatever driver and controller do in whatever order.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::{
    dma::{Protection, Windows},
    nvme::spec::nvm,
};

const BASE: u64 = 0x10_0000;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The driver puts commands into the queue, and rings.
    Submit(u16),
    /// The controller takes commands.
    Take(u16),
    /// It posts completions, of any command that it has taken.
    Post(u16, usize),
    /// The driver takes completions, and rings.
    Consume(u16),
    /// The driver rings with a value outside its queue, and then with the right one.
    RingNonsense(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1_u16..20).prop_map(Step::Submit),
        4 => (1_u16..20).prop_map(Step::Take),
        4 => (1_u16..20, 0_usize..64).prop_map(|(n, which)| Step::Post(n, which)),
        4 => (1_u16..20).prop_map(Step::Consume),
        1 => any::<u32>().prop_map(Step::RingNonsense),
    ]
}

/// The pair with its driver's side, and the model.
struct Pair {
    doorbells: Doorbells,
    sq: Sq,
    cq: Cq,
    view: View,
    size: u16,
    /// The driver's indexes.
    tail: u16,
    head: u16,
    phase: bool,
    next_cid: u16,
    /// The model: commands that wait, that were taken, and completions that were posted.
    waiting: VecDeque<u16>,
    taken: Vec<u16>,
    posted: VecDeque<u16>,
}

impl Pair {
    fn new(size: u16) -> Self {
        let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::empty()).unwrap();
        rustix::fs::ftruncate(&file, 0x2000).unwrap();
        let windows = Windows::default();
        windows.map(BASE, 0x2000, Protection { read: true, write: true }, Some((file, 0))).unwrap();
        let view = View::new(&windows);
        let doorbells = Doorbells::new(true).unwrap();
        let setup = |base| Setup { qid: 1, size, base };
        let (mut sq, mut cq) = (Sq::new(setup(BASE), &doorbells), Cq::new(setup(BASE + 0x1000), &doorbells));
        assert!(sq.resolve(Some(&view), None) && cq.resolve(Some(&view), None));
        Self {
            doorbells,
            sq,
            cq,
            view,
            size,
            tail: 0,
            head: 0,
            phase: true,
            next_cid: 0,
            waiting: VecDeque::new(),
            taken: Vec::new(),
            posted: VecDeque::new(),
        }
    }

    fn submit(&mut self) {
        if self.waiting.len() + 1 == usize::from(self.size) {
            return;
        }
        let command = Command { cid: self.next_cid, ..Command::default() };
        let at = BASE + u64::from(self.tail) * SQE_LEN as u64;
        self.view.write(at, zerocopy::IntoBytes::as_bytes(&command)).unwrap();
        self.waiting.push_back(self.next_cid);
        self.next_cid = self.next_cid.wrapping_add(1);
        self.tail = (self.tail + 1) % self.size;
    }

    fn take(&mut self) {
        let Some(expected) = self.waiting.pop_front() else { return };
        assert_eq!(self.sq.peek(0).unwrap().cid, expected);
        self.sq.advance(1);
        self.taken.push(expected);
    }

    fn post(&mut self, which: usize) {
        // As the owner does: nothing is posted where there is no room.
        let room = self.cq.room(1);
        let truth = usize::from(self.size) - 1 - self.posted.len();
        assert!(usize::from(room) <= truth, "{room} of {truth}");
        assert_eq!(usize::from(self.cq.room(u16::MAX)), truth, "who wants more is told how it is now");
        if self.taken.is_empty() || room == 0 {
            return;
        }
        let cid = self.taken.swap_remove(which % self.taken.len());
        self.cq.post_raw(self.sq.head, 1, cid, Status::SUCCESS, u32::from(cid) * 3);
        self.posted.push_back(cid);
    }

    /// What the driver finds in its completion queue, if anything.
    fn consume(&mut self) {
        let mut entry = [0; CQE_LEN];
        self.view.read(BASE + 0x1000 + u64::from(self.head) * CQE_LEN as u64, &mut entry).unwrap();
        let is_new = (entry[14] & 1 == 1) == self.phase;
        let expected = self.posted.front().copied();
        assert_eq!(is_new, expected.is_some(), "the phase tells what was posted");
        let Some(cid) = expected else { return };
        let word = |at: usize| u16::from_le_bytes([entry[at], entry[at + 1]]);
        assert_eq!((word(12), word(10), word(14) >> 1), (cid, 1, 0));
        assert_eq!(u32::from(word(0)) | u32::from(word(2)) << 16, u32::from(cid) * 3);
        self.posted.pop_front();
        self.head = (self.head + 1) % self.size;
        self.phase ^= self.head == 0;
        self.doorbells.store(1, Side::Head, self.head.into());
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Submit(n) => {
                (0..n).for_each(|_| self.submit());
                self.doorbells.store(1, Side::Tail, self.tail.into());
            }
            Step::Take(n) => (0..n).for_each(|_| self.take()),
            Step::Post(n, which) => (0..n).for_each(|_| self.post(which)),
            Step::Consume(n) => (0..n).for_each(|_| self.consume()),
            Step::RingNonsense(value) => {
                self.doorbells.store(1, Side::Tail, value.max(self.size.into()));
                // Told once in the life of a queue; nothing is taken meanwhile.
                assert!(matches!(self.sq.look(), Err(BadDoorbell) | Ok(0)));
                self.doorbells.store(1, Side::Tail, self.tail.into());
            }
        }
        assert_eq!(self.sq.look().unwrap(), u16::try_from(self.waiting.len()).unwrap());
    }
}

#[test]
fn tail_behind_one_of_nonsense_keeps_the_queue_from_sleeping() {
    let mut pair = Pair::new(8);
    pair.doorbells.store(1, Side::Tail, 8);
    assert!(pair.sq.arm(), "it is not told yet");
    assert!(pair.sq.look().is_err());
    assert!(!pair.sq.arm(), "nothing to do until there is another");
    pair.submit();
    pair.doorbells.store(1, Side::Tail, 1);
    assert!(pair.sq.arm());
    assert_eq!(pair.sq.look().unwrap(), 1);
}

proptest! {
    #[test]
    fn queue_pair_is_two_queues_of_numbers(
        size in 2_u16..40,
        steps in proptest::collection::vec(step(), 1..200),
    ) {
        let mut pair = Pair::new(size);
        for step in steps {
            pair.run(step);
        }
    }
}

proptest! {
    /// What is read of an entry in words is what is read of it whole.
    #[test]
    fn transfer_by_words_is_the_command(mut bytes in any::<[u8; 64]>(), plain in any::<bool>()) {
        let opcodes = [nvm::READ, nvm::WRITE];
        if plain {
            (bytes[0], bytes[1]) = (opcodes[usize::from(bytes[0] & 1)], 0);
        }
        let mut pair = Pair::new(16);
        pair.view.write(BASE, &bytes).unwrap();

        let (command, transfer) = (pair.sq.peek(0).unwrap(), pair.sq.peek_transfer());
        prop_assert_eq!(transfer.is_some(), command.flags == 0 && opcodes.contains(&command.opcode));
        if let Some(transfer) = transfer {
            let Transfer { cid, nsid, is_write, prp1, slba, cdw12 } = transfer;
            prop_assert_eq!((cid, nsid, cdw12), (command.cid, command.nsid, command.cdw12));
            prop_assert_eq!((prp1, slba), (command.dptr[0], command.slba()));
            prop_assert_eq!(is_write, command.opcode == nvm::WRITE);
        }
        pair.sq.aborted.push(7);
        prop_assert!(pair.sq.peek_transfer().is_none(), "it may be the one");
    }
}
