//! A queue that sleeps with commands at its bdev, and memory that its owner takes away meanwhile.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use bdev::{
    Bdev, BdevInfo, Channel, Completion, OpKind, OpenError, Rejected, Request, Status as BdevStatus, Token,
};
use vfu::{
    irq,
    mock::nvme::{blocks_command, status_of},
    nvme::{
        namespace::NamespaceOptions,
        spec::{Command, Status, nvm},
    },
};

use crate::rig::{BLOCK, Doorbells, Rig, write};

/// What a channel and the thread that ends its requests share.
struct Shared {
    armed: AtomicBool,
    done: Mutex<Vec<Token>>,
    event: OwnedFd,
}

/// A bdev whose requests end on another thread, a while later, and which tells only who has armed.
struct Elsewhere(Arc<BdevInfo>);

impl Bdev for Elsewhere {
    fn info(&self) -> &Arc<BdevInfo> {
        &self.0
    }

    fn supports(&self, _kind: OpKind) -> bool {
        true
    }

    fn open_channel(&self, _depth: u16) -> Result<Box<dyn Channel>, OpenError> {
        let shared = Arc::new(Shared {
            armed: AtomicBool::new(false),
            done: Mutex::default(),
            event: irq::eventfd().unwrap(),
        });
        let (send, receive) = mpsc::channel::<Token>();
        let theirs = Arc::clone(&shared);
        std::thread::spawn(move || {
            while let Ok(token) = receive.recv() {
                // Longer than a queue spins before it sleeps.
                std::thread::sleep(Duration::from_millis(2));
                theirs.done.lock().unwrap().push(token);
                if theirs.armed.swap(false, Ordering::SeqCst) {
                    rustix::io::write(&theirs.event, &1_u64.to_ne_bytes()).unwrap();
                }
            }
        });
        Ok(Box::new(ElsewhereChannel { shared, send, in_flight: 0 }))
    }

    fn config(&self) -> Option<(&'static str, serde_json::Value)> {
        None
    }
}

struct ElsewhereChannel {
    shared: Arc<Shared>,
    send: mpsc::Sender<Token>,
    in_flight: usize,
}

impl Channel for ElsewhereChannel {
    fn submit(&mut self, request: &Request<'_>) -> Result<(), Rejected> {
        self.send.send(request.token).unwrap();
        self.in_flight += 1;
        Ok(())
    }

    fn kick(&mut self) {}

    fn reap(&mut self, done: &mut [Completion]) -> usize {
        self.shared.armed.store(false, Ordering::SeqCst);
        let _ = irq::take_eventfd(&self.shared.event);
        let mut ended = self.shared.done.lock().unwrap();
        let n = ended.len().min(done.len());
        for (to, token) in done.iter_mut().zip(ended.drain(..n)) {
            *to = Completion { token, status: BdevStatus::Ok };
        }
        self.in_flight -= n;
        n
    }

    fn arm(&mut self) -> bool {
        self.shared.armed.store(true, Ordering::SeqCst);
        self.shared.done.lock().unwrap().is_empty()
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.shared.event.as_fd())
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }
}

#[test]
fn queue_that_sleeps_is_told_of_what_ends_at_its_bdev() {
    let mut rig = Rig::new();
    let info = BdevInfo::new("elsewhere", "Disk elsewhere", "Elsewhere0".to_owned(), 512, 4096);
    rig.server.registry().register(Arc::new(Elsewhere(Arc::new(info)))).unwrap();
    rig.subsystem.add_namespace(rig.server.registry(), "Elsewhere0", NamespaceOptions::default()).unwrap();
    // Trapped: nothing looks at a queue that sleeps.
    let mut nvme = rig.driver(Doorbells::Trapped, 1);
    let dptr = crate::rig::buffer(&mut nvme);
    for _ in 0..100 {
        let done = nvme.io(0, blocks_command(nvm::READ, 2, 0, 1, dptr)).unwrap();
        assert_eq!(status_of(&done), Status::SUCCESS);
    }
    assert_eq!(rig.server.faults(), 0);
}

#[test]
fn command_whose_memory_was_taken_away_fails_and_the_controller_goes_on() {
    let mut rig = Rig::new();
    let mut nvme = rig.driver(Doorbells::Trapped, 1);
    assert_eq!(write(&mut nvme, 1, 0, &[7; BLOCK]), Status::SUCCESS);
    let ranges = Command { opcode: nvm::DATASET_MANAGEMENT, nsid: 1, cdw11: 4, ..Command::default() };
    for (nth, command) in [
        blocks_command(nvm::READ, 1, 0, 1, [0; 2]),
        blocks_command(nvm::WRITE, 1, 8, 1, [0; 2]),
        blocks_command(nvm::COMPARE, 1, 0, 1, [0; 2]),
        ranges,
    ]
    .into_iter()
    .enumerate()
    {
        let file = rustix::fs::memfd_create("taken", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, 0x2000).unwrap();
        let address = (0x100 + nth as u64) << 32;
        let both = vfu::dma::Protection { read: true, write: true };
        nvme.client().dma_map(address, 0x2000, both, Some((file.as_fd(), 0))).unwrap();
        // Half of it is left: no byte of the second page is there.
        rustix::fs::ftruncate(&file, 0x1000).unwrap();
        let command = Command { dptr: [address + 0x1000, 0], ..command };
        let done = nvme.io(0, command).unwrap();
        assert_eq!(status_of(&done), Status::DATA_TRANSFER_ERROR, "{command:?}");
    }
    assert_eq!(crate::rig::read(&mut nvme, 1, 0, 1), (Status::SUCCESS, vec![7; BLOCK]));
    assert_eq!(rig.server.faults(), 0);
}
