//! The admin queue with more commands than a pass takes, and with less room than they need: a driver that sizes its rings
//! as it likes, and rings when it likes.

use std::{
    collections::BTreeSet,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use vfu::{
    dma::Span,
    mock::nvme::{Nvme, status_of},
    nvme::spec::{CQE_LEN, Command, Completion, SQE_LEN, Status, admin, cc, csts, reg},
};

use crate::rig::{Doorbells, Rig, buffer};

const DOORBELLS: usize = reg::DOORBELLS as usize;

/// An admin queue pair that never wraps.
struct AdminQueue {
    nvme: Nvme,
    sq: u64,
    cq: Span,
    /// Where doorbells are mapped: a ring is a store that nobody is told of.
    page: Option<Span>,
    tail: u16,
    cq_size: usize,
    /// Completions that were seen.
    taken: usize,
}

impl AdminQueue {
    /// An enabled controller whose queues have so many entries.
    fn new(rig: &mut Rig, doorbells: Doorbells, [sq_size, cq_size]: [u16; 2]) -> Self {
        let mut nvme = rig.connect("cntrl", doorbells);
        let sq = nvme.memory.allocate(usize::from(sq_size) * SQE_LEN, 4096).unwrap();
        let cq_len = usize::from(cq_size) * CQE_LEN;
        let cq = nvme.memory.allocate(cq_len, 4096).unwrap();
        nvme.write32(reg::AQA, u32::from(cq_size - 1) << 16 | u32::from(sq_size - 1)).unwrap();
        nvme.client().region_write(0, reg::ASQ as u64, &sq.to_le_bytes()).unwrap();
        nvme.client().region_write(0, reg::ACQ as u64, &cq.to_le_bytes()).unwrap();
        nvme.write32(reg::CC, 4 << 20 | 6 << 16 | cc::EN).unwrap();
        assert_eq!(nvme.read32(reg::CSTS).unwrap(), csts::RDY);
        let page = (doorbells == Doorbells::Mapped).then(|| nvme.doorbell_page().unwrap());
        let cq = nvme.memory.span(cq, cq_len).unwrap();
        Self { nvme, sq, cq, page, tail: 0, cq_size: cq_size.into(), taken: 0 }
    }

    fn ring(&mut self, at: usize, value: u16) {
        match &self.page {
            Some(page) => page.slice().store_u32(at, value.into(), Ordering::Release),
            None => self.nvme.write32(DOORBELLS + at, value.into()).unwrap(),
        }
    }

    /// Puts commands into the queue, known by their number, and rings once.
    fn submit(&mut self, commands: &[Command]) {
        for &command in commands {
            let command = Command { cid: self.tail, ..command };
            let at = self.sq + u64::from(self.tail) * SQE_LEN as u64;
            self.nvme.memory.write(at, zerocopy::IntoBytes::as_bytes(&command)).unwrap();
            self.tail += 1;
        }
        self.ring(0, self.tail);
    }

    /// Waits for the next completion; the controller is not told that it was seen.
    fn next(&mut self) -> Completion {
        let deadline = Instant::now() + Duration::from_secs(30);
        let (at, phase) =
            (self.taken % self.cq_size * CQE_LEN, (self.taken / self.cq_size).is_multiple_of(2));
        while (self.cq.slice().load_u32(at + 12, Ordering::Acquire) >> 16 & 1 == 1) != phase {
            assert!(Instant::now() < deadline, "completion {} does not come", self.taken);
            std::thread::sleep(Duration::from_millis(1));
        }
        self.taken += 1;
        self.cq.slice().read(at)
    }

    /// Tells the controller which completions were seen.
    fn make_room(&mut self) {
        self.ring(4, (self.taken % self.cq_size).try_into().unwrap());
    }

    /// A command to its end, behind all others.
    fn run(&mut self, command: Command) {
        self.submit(&[command]);
        let done = self.next();
        assert_eq!((done.cid + 1, status_of(&done)), (self.tail, Status::SUCCESS));
        self.make_room();
    }
}

/// Asks to be told of namespaces that come.
fn tell() -> Command {
    Command { opcode: admin::SET_FEATURES, cdw10: 0xb, cdw11: 0x100, ..Command::default() }
}

fn event_request() -> Command {
    Command { opcode: admin::ASYNC_EVENT, ..Command::default() }
}

/// The event of one that came.
const ADDED: u32 = 0x04_00_02;

#[test]
fn commands_of_one_doorbell_are_all_executed_however_many() {
    for doorbells in [Doorbells::Trapped, Doorbells::Mapped, Doorbells::Private] {
        let mut rig = Rig::new();
        let mut queue = AdminQueue::new(&mut rig, doorbells, [256, 256]);
        let dptr = buffer(&mut queue.nvme);
        queue.submit(&[Command { opcode: admin::IDENTIFY, dptr, cdw10: 1, ..Command::default() }; 200]);
        let done: Vec<Completion> = (0..200).map(|_| queue.next()).collect();
        let cids: BTreeSet<u16> = done.iter().map(|done| done.cid).collect();
        assert!(cids.into_iter().eq(0..200), "{doorbells:?}");
        assert!(done.iter().all(|done| status_of(done).is_success()));
    }
}

#[test]
fn event_that_found_no_room_is_told_when_the_driver_makes_some() {
    for doorbells in [Doorbells::Trapped, Doorbells::Mapped] {
        let mut rig = Rig::new();
        // Room for one.
        let mut queue = AdminQueue::new(&mut rig, doorbells, [16, 2]);
        let dptr = buffer(&mut queue.nvme);
        queue.run(tell());
        queue.submit(&[
            event_request(),
            Command { opcode: admin::IDENTIFY, dptr, cdw10: 1, ..Command::default() },
        ]);
        assert_eq!(queue.next().cid, 2);
        rig.add("Extra");
        // The controller has looked at everything when it answers the second time.
        queue.nvme.read32(reg::CSTS).unwrap();
        queue.nvme.read32(reg::CSTS).unwrap();
        queue.make_room();
        let done = queue.next();
        assert_eq!((done.cid, done.dw0), (1, ADDED), "{doorbells:?}");
    }
}

#[test]
fn abort_whose_room_an_event_has_taken_ends_when_the_driver_makes_some() {
    let mut rig = Rig::new();
    let mut queue = AdminQueue::new(&mut rig, Doorbells::Trapped, [16, 2]);
    let dptr = buffer(&mut queue.nvme);
    queue.run(tell());
    // The second queue is on the second reactor.
    for (opcode, base, cdw11) in [(admin::CREATE_CQ, dptr[0], 1), (admin::CREATE_SQ, dptr[1], 2 << 16 | 1)] {
        queue.run(Command { opcode, dptr: [base, 0], cdw10: 63 << 16 | 2, cdw11, ..Command::default() });
    }
    let (release, held) = std::sync::mpsc::channel::<()>();
    rig.server.reactors()[1].send(Box::new(move |_| held.recv().unwrap())).unwrap();
    queue.submit(&[
        event_request(),
        Command { opcode: admin::ABORT, cdw10: 7 << 16 | 2, ..Command::default() },
    ]);
    rig.add("Extra");
    let event = queue.next();
    assert_eq!((event.cid, event.dw0), (3, ADDED));
    release.send(()).unwrap();
    // Answered once the queue has followed, and has said that it has no such command.
    queue.nvme.read32(reg::CSTS).unwrap();
    queue.nvme.read32(reg::CSTS).unwrap();
    queue.make_room();
    let done = queue.next();
    assert_eq!((done.cid, done.dw0), (4, 1), "not aborted");
    assert_eq!(rig.server.faults(), 0);
}
