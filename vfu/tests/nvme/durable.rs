//! What a host may take for durable: FUA, a write cache that is off, and a shutdown with notice.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use bdev::{
    Bdev, BdevInfo, Channel, Completion, Op, OpKind, OpenError, Rejected, Request, Status as Outcome, Token,
};
use vfu::{
    mock::nvme::{Nvme, blocks_command, status_of},
    nvme::{
        namespace::NamespaceOptions,
        spec::{Command, CopyRange, Status, admin, cc, csts, nvm, reg},
    },
};
use zerocopy::IntoBytes;

use crate::rig::{Doorbells, Rig, buffer, malloc, until};

/// What the disk was asked for.
#[derive(Default)]
struct Asked {
    /// Whether each write asked to be durable.
    writes: Mutex<Vec<bool>>,
    flushes: AtomicUsize,
    /// Nothing ends.
    holds: AtomicBool,
}

/// A disk that remembers.
struct Disk(Arc<BdevInfo>, Arc<Asked>);

impl Bdev for Disk {
    fn info(&self) -> &Arc<BdevInfo> {
        &self.0
    }

    fn supports(&self, _kind: OpKind) -> bool {
        true
    }

    fn open_channel(&self, _depth: u16) -> Result<Box<dyn Channel>, OpenError> {
        Ok(Box::new(DiskChannel(Arc::clone(&self.1), Vec::new())))
    }

    fn config(&self) -> Option<(&'static str, serde_json::Value)> {
        None
    }
}

struct DiskChannel(Arc<Asked>, Vec<Token>);

impl Channel for DiskChannel {
    fn submit(&mut self, request: &Request<'_>) -> Result<(), Rejected> {
        match request.op {
            Op::Write { fua } => self.0.writes.lock().unwrap().push(fua),
            Op::Flush => {
                self.0.flushes.fetch_add(1, Ordering::Release);
            }
            _ => {}
        }
        self.1.push(request.token);
        Ok(())
    }

    fn kick(&mut self) {}

    fn reap(&mut self, done: &mut [Completion]) -> usize {
        if self.0.holds.load(Ordering::Acquire) {
            return 0;
        }
        let n = self.1.len().min(done.len());
        for (to, token) in done.iter_mut().zip(self.1.drain(..n)) {
            *to = Completion { token, status: Outcome::Ok };
        }
        n
    }

    fn in_flight(&self) -> usize {
        self.1.len()
    }
}

/// Adds one as namespace 2.
fn add(rig: &Rig) -> Arc<Asked> {
    let asked = Arc::<Asked>::default();
    let info = BdevInfo::new("durable", "Disk that remembers", "Durable0".to_owned(), 512, 8192);
    rig.server.registry().register(Arc::new(Disk(Arc::new(info), Arc::clone(&asked)))).unwrap();
    rig.subsystem.add_namespace(rig.server.registry(), "Durable0", NamespaceOptions::default()).unwrap();
    asked
}

#[test]
fn copy_is_durable_when_it_asks_for_that_or_the_cache_is_off() {
    let mut rig = Rig::new();
    let asked = add(&rig);
    let mut nvme = rig.driver(Doorbells::Trapped, 1);
    let dptr = buffer(&mut nvme);
    nvme.memory.write(dptr[0], CopyRange { blocks: 7, ..CopyRange::default() }.as_bytes()).unwrap();
    let copy = Command { opcode: nvm::COPY, nsid: 2, dptr, cdw10: 1000, ..Command::default() };
    let fua = Command { cdw12: 1 << 30, ..copy };
    // Feature 6 is the volatile write cache.
    let cache_off = Command { opcode: admin::SET_FEATURES, cdw10: 6, cdw11: 0, ..Command::default() };

    assert_eq!(status_of(&nvme.io(0, copy).unwrap()), Status::SUCCESS);
    assert_eq!(status_of(&nvme.io(0, fua).unwrap()), Status::SUCCESS);
    nvme.admin_ok(cache_off).unwrap();
    assert_eq!(status_of(&nvme.io(0, copy).unwrap()), Status::SUCCESS);

    assert_eq!(*asked.writes.lock().unwrap(), [false, true, true]);
}

#[test]
fn shutdown_with_notice_is_over_when_what_was_written_is_flushed() {
    let mut rig = Rig::new();
    let asked = add(&rig);
    let mut nvme = rig.driver(Doorbells::Trapped, 1);
    let dptr = buffer(&mut nvme);
    let write = blocks_command(nvm::WRITE, 2, 0, 8, dptr);
    assert_eq!(status_of(&nvme.io(0, write).unwrap()), Status::SUCCESS);
    let now = nvme.read32(reg::CC).unwrap();

    asked.holds.store(true, Ordering::Release);
    nvme.write32(reg::CC, now | cc::SHN_NORMAL << 14).unwrap();
    while asked.flushes.load(Ordering::Acquire) == 0 {
        std::thread::yield_now();
    }
    assert_eq!(nvme.read32(reg::CSTS).unwrap(), csts::RDY | csts::SHST_PROCESSING);
    asked.holds.store(false, Ordering::Release);
    while nvme.read32(reg::CSTS).unwrap() == csts::RDY | csts::SHST_PROCESSING {
        std::thread::yield_now();
    }
    assert_eq!(nvme.read32(reg::CSTS).unwrap(), csts::RDY | csts::SHST_COMPLETE);

    // And one without notice, or that a reset cuts short, waits for nothing.
    asked.holds.store(true, Ordering::Release);
    nvme.disable().unwrap();
    nvme.enable().unwrap();
    nvme.write32(reg::CC, now | 2 << 14).unwrap();
    assert_eq!(nvme.read32(reg::CSTS).unwrap(), csts::RDY | csts::SHST_COMPLETE);
    nvme.disable().unwrap();
    nvme.enable().unwrap();
    nvme.write32(reg::CC, now | cc::SHN_NORMAL << 14).unwrap();
    nvme.disable().unwrap();
    nvme.enable().unwrap();
    assert_eq!(nvme.read32(reg::CSTS).unwrap(), csts::RDY);
    asked.holds.store(false, Ordering::Release);
    assert_eq!(rig.server.faults(), 0);
}

/// Somebody's processor stands still while its doorbell is not answered (QEMU 10.1).
#[test]
fn doorbell_waits_for_nothing_that_it_did_not_start() {
    let mut rig = Rig::new();
    let asked = add(&rig);
    let mut nvme = rig.driver(Doorbells::Trapped, 2);
    let dptr = buffer(&mut nvme);
    asked.holds.store(true, Ordering::Release);
    nvme.submit(0, &[blocks_command(nvm::WRITE, 2, 0, 8, dptr)]).unwrap();
    until("the write arrives", || !asked.writes.lock().unwrap().is_empty());
    // Queue 0 follows when nothing is in flight, which is never.
    rig.add("Another");

    nvme.client.set_timeout(vfu::endpoint::WRITE_ANSWER_MAX / 4);
    // The tail of the second queue, as it stands.
    nvme.write32(0x1000 + 2 * 8, 0).unwrap();
    assert_eq!(status_of(&nvme.io(1, blocks_command(nvm::READ, 1, 0, 8, dptr)).unwrap()), Status::SUCCESS);

    asked.holds.store(false, Ordering::Release);
    assert_eq!(nvme.drain(0).unwrap().len(), 1);
}

/// However often a host asks, and whatever it resets in between: one flush at a time.
#[test]
fn shutdowns_over_and_over_flush_once_at_a_time() {
    let mut rig = Rig::new();
    let asked = add(&rig);
    let mut nvme = rig.driver(Doorbells::Trapped, 1);
    let now = nvme.read32(reg::CC).unwrap();
    let shut_down = now | cc::SHN_NORMAL << 14;
    asked.holds.store(true, Ordering::Release);
    for round in 0..10 {
        for _ in 0..10 {
            nvme.write32(reg::CC, shut_down).unwrap();
            nvme.write32(reg::CC, now).unwrap();
        }
        assert_eq!(nvme.read32(reg::CSTS).unwrap(), csts::RDY | csts::SHST_PROCESSING, "round {round}");
        nvme.disable().unwrap();
        nvme.enable().unwrap();
    }
    // The flush looks at its bdev every millisecond.
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(asked.flushes.load(Ordering::Acquire), 1);

    // One without notice waits for no flush, neither its predecessor's nor one that a reset has cut short.
    for before in [now, shut_down] {
        nvme.write32(reg::CC, before).unwrap();
        nvme.write32(reg::CC, now).unwrap();
        nvme.write32(reg::CC, now | 2 << 14).unwrap();
        assert_eq!(nvme.read32(reg::CSTS).unwrap(), csts::RDY | csts::SHST_COMPLETE);
        nvme.write32(reg::CC, now).unwrap();
    }
    assert_eq!(asked.flushes.load(Ordering::Acquire), 1);

    nvme.write32(reg::CC, shut_down).unwrap();
    assert_eq!(nvme.read32(reg::CSTS).unwrap(), csts::RDY | csts::SHST_PROCESSING);
    asked.holds.store(false, Ordering::Release);
    while nvme.read32(reg::CSTS).unwrap() != csts::RDY | csts::SHST_COMPLETE {
        std::thread::yield_now();
    }
    assert_eq!(asked.flushes.load(Ordering::Acquire), 2, "the last one has waited for its turn");
    assert_eq!(rig.server.faults(), 0);
}

#[test]
fn reservation_that_outlives_the_target_ends_when_it_is_on_the_disk() {
    let mut rig = Rig::new();
    let (file, new) = (rig.socket("ptpl"), rig.socket("ptpl.new"));
    malloc(rig.server.registry(), "Malloc1", 64);
    let options = NamespaceOptions { ptpl_file: Some(file.clone()), ..NamespaceOptions::default() };
    rig.subsystem.add_namespace(rig.server.registry(), "Malloc1", options).unwrap();
    let mut nvme = rig.driver(Doorbells::Trapped, 1);
    let dptr = buffer(&mut nvme);
    nvme.memory.write(dptr[0], &[1; 16]).unwrap();
    // Feature 81h is the host's identifier.
    let host_id = Command { opcode: admin::SET_FEATURES, dptr, cdw10: 0x81, cdw11: 1, ..Command::default() };
    nvme.admin_ok(host_id).unwrap();
    let persists = 0b11 << 30;
    let register =
        Command { opcode: nvm::RESERVATION_REGISTER, nsid: 2, dptr, cdw10: persists, ..Command::default() };
    nvme.memory.write(dptr[0], &[[0; 8], [7; 8]].concat()).unwrap();

    // Whoever opens a pipe for writing waits for a reader: a disk that hangs.
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &new, mode).unwrap();
    let registered = nvme.submit(0, &[register]).unwrap()[0];
    let next = |nvme: &mut Nvme| {
        let mut done = Vec::new();
        until("a command ends", || {
            done = nvme.reap(0).unwrap();
            !done.is_empty()
        });
        assert_eq!(done.len(), 1);
        (done[0].cid, status_of(&done[0]))
    };
    let read = blocks_command(nvm::READ, 2, 0, 1, buffer(&mut nvme));
    for _ in 0..100 {
        let cid = nvme.submit(0, &[read]).unwrap()[0];
        assert_eq!(next(&mut nvme), (cid, Status::SUCCESS));
    }
    // A pipe keeps nothing.
    drop(std::fs::File::open(&new).unwrap());
    assert_eq!(next(&mut nvme), (registered, Status::INTERNAL_ERROR));

    std::fs::remove_file(&new).unwrap();
    assert_eq!(status_of(&nvme.io(0, register).unwrap()), Status::SUCCESS);
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains(&format!(r#""key":{}"#, u64::from_le_bytes([7; 8]))), "{text}");
    assert_eq!(rig.server.faults(), 0);
}
