//! A bdev whose requests end on another thread, one after the other, a while later, and which tells only who has armed.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use bdev::{Bdev, BdevInfo, Channel, Completion, OpKind, OpenError, Rejected, Request, Status, Token};
use vfu::{irq, nvme::namespace::NamespaceOptions};

use crate::rig::Rig;

/// What a channel and the thread that ends its requests share.
struct Shared {
    armed: AtomicBool,
    done: Mutex<Vec<Token>>,
    event: OwnedFd,
}

/// The bdev.
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
            *to = Completion { token, status: Status::Ok };
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

/// Adds a namespace over one with so many blocks of 512 bytes: number 2.
pub(crate) fn add(rig: &Rig, blocks: u64) {
    let info = BdevInfo::new("elsewhere", "Disk elsewhere", "Elsewhere0".to_owned(), 512, blocks);
    rig.server.registry().register(Arc::new(Elsewhere(Arc::new(info)))).unwrap();
    rig.subsystem.add_namespace(rig.server.registry(), "Elsewhere0", NamespaceOptions::default()).unwrap();
}
