//! A device's request handler with a ring of its own and a driver that is correct about the ring, but not about what it
//! puts there. Shared by the targets for requests.

use std::sync::Arc;

use bdev::{
    Access, Descriptor, Registry,
    types::{Malloc, MallocParams},
};
use vfu::{
    dma::View,
    mock::{
        memory::{DEFAULT_BASE, Memory},
        ring::{Buffer, DriverRing, RingSetup},
        split::SplitDriver,
    },
    stages::Untimed,
    virtio::{
        device::{Handler, Verdict, offer_chain, offer_triple},
        queue::{Chain, QueueConfig, Ring, SplitRing},
        spec::feature,
    },
};

use crate::{choices::Choices, windows_over};

pub(crate) const BLOCK: usize = 512;
pub(crate) const BLOCKS: u64 = 64;
pub(crate) const DISK_LEN: usize = BLOCK * BLOCKS as usize;
/// Entries of the ring, and so many buffers a request may have.
const RING: u16 = 64;
const BUFFERS_MAX: usize = 24;
/// The memory that requests are made in.
const AREA_LEN: usize = 0x2_0000;
/// Bytes behind a request that are looked at too. All of the area is, of one request in so many.
const BEHIND: usize = 0x1000;
const WHOLE_PERIOD: u64 = 64;
/// Looks at a request in flight; memory takes one.
const REAPS: usize = 1000;

/// A malloc disk of [`BLOCKS`] blocks, opened.
pub(crate) fn disk(callback: impl Fn(bdev::Event) + Send + Sync + 'static) -> Arc<Descriptor> {
    let registry = Registry::new();
    let disk = Malloc::new("disk".to_owned(), &MallocParams::new(BLOCK as u32, BLOCKS)).expect("memory");
    registry.register(Arc::new(disk)).expect("the first of its name");
    Arc::new(registry.open("disk", Access::ReadWrite, callback).expect("just made"))
}

pub(crate) struct Desk<H> {
    memory: Memory,
    view: View,
    driver: SplitDriver,
    ring: SplitRing,
    chain: Chain,
    pub(crate) handler: H,
    area: u64,
    used: usize,
    /// The area before a request and after it; made once, as an input has many requests.
    before: Vec<u8>,
    after: Vec<u8>,
    runs: u64,
    takes_short_way: bool,
}

/// A request as it is made, byte by byte.
#[derive(Default)]
pub(crate) struct Ask {
    pub(crate) buffers: Vec<Buffer>,
    /// A buffer is somewhere else than it should be: what is read and written is not known.
    pub(crate) is_wild: bool,
}

/// How a request ended.
pub(crate) struct Answer {
    /// None where the handler called it broken.
    pub(crate) len: Option<u32>,
    /// What the buffers that the device writes hold now, one after the other; not for wild requests.
    pub(crate) written: Vec<u8>,
}

impl<H: Handler> Desk<H> {
    pub(crate) fn new(handler: H) -> Self {
        let mut memory = Memory::new(1 << 20).expect("memory");
        let features = feature::VERSION_1;
        let setup = RingSetup { size: RING, features, indirect: None };
        let driver = SplitDriver::new(&mut memory, &setup).expect("memory for a ring");
        let areas = driver.areas();
        let area = memory.allocate(AREA_LEN, 4096).expect("memory for requests");
        let config = QueueConfig {
            size: RING,
            desc: areas.desc,
            driver: areas.driver,
            device: areas.device,
            features,
        };
        let view = View::new(&windows_over(&memory));
        let layout = config.check().expect("a good layout");
        let ring = SplitRing::activate(&layout, SplitRing::START, &view).expect("in memory");
        let (before, after) = (vec![0; AREA_LEN], vec![0; AREA_LEN]);
        let chain = Chain::new();
        let takes_short_way = false;
        Self {
            memory,
            view,
            driver,
            ring,
            chain,
            handler,
            area,
            used: 0,
            before,
            after,
            runs: 0,
            takes_short_way,
        }
    }

    /// Adds a buffer, cut into pieces by chance. One that the device reads holds `bytes`; one that it writes, 0xee.
    pub(crate) fn add(
        &mut self,
        ask: &mut Ask,
        bytes: &[u8],
        device_writes: bool,
        choices: &mut Choices<'_>,
    ) {
        let mut left = bytes;
        loop {
            let cut = choices.u8();
            let last = cut < 200 || ask.buffers.len() >= BUFFERS_MAX;
            let n = if last { left.len() } else { usize::from(choices.u16()).min(left.len()) };
            let (now, later) = left.split_at(n);
            left = later;
            // A gap between buffers shows what is written beside them.
            self.used += 3;
            let addr = if cut == 199 {
                ask.is_wild = true;
                match choices.address() {
                    // Not the ring itself: this driver is correct about that.
                    address if (DEFAULT_BASE..self.area).contains(&address) => self.area,
                    address => address,
                }
            } else {
                self.area + self.used as u64
            };
            assert!(self.used + n <= AREA_LEN, "requests are small");
            self.memory.write(self.area + self.used as u64, now).expect("inside");
            self.used += n;
            ask.buffers.push(Buffer { addr, len: n as u32, device_writes });
            if last {
                return;
            }
        }
    }

    /// Sends a request and waits for its end. Checks that nothing is written but the buffers for that.
    pub(crate) fn run(&mut self, ask: &Ask) -> Answer {
        self.runs += 1;
        let whole = self.runs.is_multiple_of(WHOLE_PERIOD);
        let len = if whole { AREA_LEN } else { (self.used + BEHIND).min(AREA_LEN) };
        let mut before = std::mem::take(&mut self.before);
        let mut after = std::mem::take(&mut self.after);
        self.memory.read(self.area, &mut before[..len]).expect("inside");
        self.driver.add(&ask.buffers).expect("an empty ring");
        self.driver.publish_quietly();
        assert_eq!(self.ring.pending(), Ok(true));
        let answer = self.serve();
        while self.driver.pop().expect("a device that obeys").is_some() {}
        self.used = 0;
        let mut written = Vec::new();
        if !ask.is_wild {
            self.memory.read(self.area, &mut after[..len]).expect("inside");
            for buffer in ask.buffers.iter().filter(|buffer| buffer.device_writes) {
                let from = usize::try_from(buffer.addr - self.area).expect("inside");
                let to = from + buffer.len as usize;
                written.extend_from_slice(&after[from..to]);
                before[from..to].copy_from_slice(&after[from..to]);
            }
            assert!(before[..len] == after[..len], "memory was written that is not the device's to write");
        }
        (self.before, self.after) = (before, after);
        Answer { len: answer, written }
    }

    /// What an owner does with one chain.
    fn serve(&mut self) -> Option<u32> {
        self.handler.begin(1, &self.view);
        // Every other one goes the long way though it needs not: both must do the same.
        self.takes_short_way = !self.takes_short_way;
        let offered = match self.takes_short_way {
            true => offer_triple((&mut self.ring, &mut self.handler), &self.view, &mut Untimed),
            false => None,
        };
        let (head, verdict) = offered.unwrap_or_else(|| {
            let parts = (&mut self.ring, &mut self.handler);
            let verdict = offer_chain(parts, &self.view, &mut self.chain, &mut Untimed);
            (self.chain.head(), verdict.expect("the driver keeps to the ring's rules"))
        });
        let id = head.id;
        self.ring.advance(head);
        let mut answer = match verdict {
            Verdict::Done(len) => Some(len),
            Verdict::Broken => {
                self.give_back(id, 0);
                return None;
            }
            Verdict::InFlight => None,
            Verdict::Full | Verdict::Reused => panic!("nothing else is in flight"),
        };
        self.handler.kick();
        for _ in 0..REAPS {
            if answer.is_some() {
                break;
            }
            self.handler.reap(&self.view, &mut Untimed, |done, len| {
                assert_eq!(done, id);
                assert!(answer.replace(len).is_none(), "answered twice");
            });
        }
        let len = answer.expect("the request ends");
        assert!(!self.handler.is_in_flight(id) && self.handler.in_flight() == 0);
        self.give_back(id, len);
        Some(len)
    }

    fn give_back(&mut self, id: u16, len: u32) {
        self.ring.push_used(id, len);
        self.ring.publish();
    }
}
