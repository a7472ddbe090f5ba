//! The admin queue with more commands than a pass takes, and with less room than they need: a driver that sizes its rings
//! as it likes, and rings when it likes.

use std::{
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
        Self { nvme, sq, cq, page, tail: 0 }
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

    /// Waits for an entry of the completion queue, with the phase of its lap.
    fn completion(&mut self, nth: usize, phase: bool) -> Completion {
        let deadline = Instant::now() + Duration::from_secs(30);
        let at = nth * CQE_LEN;
        while (self.cq.slice().load_u32(at + 12, Ordering::Acquire) >> 16 & 1 == 1) != phase {
            assert!(Instant::now() < deadline, "entry {nth} does not come");
            std::thread::sleep(Duration::from_millis(1));
        }
        self.cq.slice().read(at)
    }
}

#[test]
fn commands_of_one_doorbell_are_all_executed_however_many() {
    for doorbells in [Doorbells::Trapped, Doorbells::Mapped, Doorbells::Private] {
        let mut rig = Rig::new();
        let mut queue = AdminQueue::new(&mut rig, doorbells, [256, 256]);
        let dptr = buffer(&mut queue.nvme);
        queue.submit(&[Command { opcode: admin::IDENTIFY, dptr, cdw10: 1, ..Command::default() }; 200]);
        let done = queue.completion(199, true);
        assert_eq!((done.cid, status_of(&done)), (199, Status::SUCCESS), "{doorbells:?}");
    }
}

#[test]
fn event_that_found_no_room_is_told_when_the_driver_makes_some() {
    for doorbells in [Doorbells::Trapped, Doorbells::Mapped] {
        let mut rig = Rig::new();
        // Room for one.
        let mut queue = AdminQueue::new(&mut rig, doorbells, [16, 2]);
        let dptr = buffer(&mut queue.nvme);
        let tell = Command { opcode: admin::SET_FEATURES, cdw10: 0xb, cdw11: 0x100, ..Command::default() };
        queue.submit(&[tell]);
        assert_eq!(queue.completion(0, true).cid, 0);
        queue.ring(4, 1);
        let request = Command { opcode: admin::ASYNC_EVENT, ..Command::default() };
        queue.submit(&[request, Command { opcode: admin::IDENTIFY, dptr, cdw10: 1, ..Command::default() }]);
        assert_eq!(queue.completion(1, true).cid, 2);
        rig.add("Extra");
        // The controller has looked at everything when it answers the second time.
        queue.nvme.read32(reg::CSTS).unwrap();
        queue.nvme.read32(reg::CSTS).unwrap();
        queue.ring(4, 0);
        let done = queue.completion(0, false);
        assert_eq!((done.cid, done.dw0), (1, 0x04_00_02), "{doorbells:?}");
    }
}
