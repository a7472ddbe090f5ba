//! virtio-blk requests: typed, cut into buffers anyhow, true and false, beside a model of the disk. Each is answered once,
//! with a status that exists; a read gives what the model holds, and nothing else is written.

use std::{cell::RefCell, sync::Arc};

use vfu::virtio::{
    blk::{Blk, BlkHandler, BlkSpec, Events},
    device::VirtioDevice,
    spec::blk::{Header, Range, feature, kind, status},
};
use zerocopy::IntoBytes;

use crate::{
    choices::Choices,
    desk::{Ask, BLOCK, BLOCKS, DISK_LEN, Desk, disk},
};

struct World {
    desk: Desk<BlkHandler>,
    disk: Vec<u8>,
}

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

impl World {
    fn new() -> Self {
        let events = Arc::new(Events::default());
        let descriptor = disk(events.callback());
        let blk = Blk::new(BlkSpec { descriptor, events, num_queues: 1, queue_size: 64 });
        let features = blk.features();
        let handler = blk.handler(0, features | feature::SECURE_ERASE)().expect("the bdev is there");
        Self { desk: Desk::new(handler), disk: vec![0; DISK_LEN] }
    }

    /// One request, and what it must have done.
    fn step(&mut self, choices: &mut Choices<'_>) {
        let which = choices.u8();
        let kind = match which {
            0..60 => kind::IN,
            60..120 => kind::OUT,
            120..140 => kind::FLUSH,
            140..160 => kind::GET_ID,
            160..170 => kind::GET_LIFETIME,
            170..190 => kind::DISCARD,
            190..220 => kind::WRITE_ZEROES,
            220..235 => kind::SECURE_ERASE,
            _ => choices.u32(),
        };
        let sector = match choices.u8() {
            near @ 0..220 => u64::from(near) % (BLOCKS + 2),
            _ => choices.address(),
        };
        let blocks = usize::from(choices.u8() % 20);
        let odd = if choices.u8() < 220 { 0 } else { usize::from(choices.u8()) };
        let len = blocks * BLOCK + odd;
        let header = Header { kind, reserved: 0, sector };
        let mut ask = Ask::default();
        let header_len = if choices.u8() < 240 { 16 } else { usize::from(choices.u8() % 17) };
        self.desk.add(&mut ask, &header.as_bytes()[..header_len], false, choices);
        let out = match kind {
            kind::IN | kind::FLUSH | kind::GET_ID | kind::GET_LIFETIME => Vec::new(),
            kind::DISCARD | kind::WRITE_ZEROES | kind::SECURE_ERASE => {
                let flags = if choices.u8() < 230 { u32::from(choices.u8() & 1) } else { choices.u32() };
                let range = Range { sector, num_sectors: blocks as u32, flags };
                let extra = vec![0; if odd == 0 { 0 } else { odd }];
                [range.as_bytes(), &extra].concat()
            }
            _ => (0..len).map(|at| which.wrapping_add((at / 7) as u8)).collect(),
        };
        if !out.is_empty() {
            self.desk.add(&mut ask, &out, false, choices);
        }
        let into = match kind {
            kind::IN => len,
            kind::GET_ID | kind::GET_LIFETIME => odd,
            _ => 0,
        };
        if into > 0 {
            self.desk.add(&mut ask, &vec![0xee; into], true, choices);
        }
        let status_len = usize::from(choices.u8() < 250);
        self.desk.add(&mut ask, &vec![0xee; status_len], true, choices);
        self.check(&ask, (kind, sector, header_len), &out);
    }

    fn check(&mut self, ask: &Ask, (kind, sector, header_len): (u32, u64, usize), out: &[u8]) {
        let answer = self.desk.run(ask);
        if ask.is_wild {
            // Whatever was read was written: the disk is what it is now.
            return self.read_all();
        }
        let Some((&byte, data)) = answer.written.split_last() else {
            assert_eq!(answer.len, None, "no room for a status");
            return;
        };
        assert!(answer.len.is_some_and(|len| len as usize <= answer.written.len()), "{:?}", answer.len);
        // Without a byte for it, the last byte of the data is the status (virtio 1.2, 5.2.6: the last byte there is).
        assert!(matches!(byte, status::OK | status::IOERR | status::UNSUPP), "status {byte}");
        let inside = |len: usize| {
            len > 0
                && len.is_multiple_of(BLOCK)
                && sector <= BLOCKS
                && len / BLOCK <= (BLOCKS - sector.min(BLOCKS)) as usize
        };
        let at = usize::try_from(sector.min(BLOCKS)).expect("few blocks") * BLOCK;
        let whole = header_len == 16;
        match kind {
            kind::IN if whole => {
                assert_eq!(byte == status::OK, inside(data.len()), "{} bytes at {sector}", data.len());
                if byte == status::OK {
                    assert!(data == &self.disk[at..at + data.len()], "not what was written");
                }
            }
            kind::OUT if whole => {
                assert_eq!(byte == status::OK, inside(out.len()), "{} bytes at {sector}", out.len());
                if byte == status::OK {
                    self.disk[at..at + out.len()].copy_from_slice(out);
                }
            }
            kind::FLUSH if whole => assert_eq!(byte, status::OK),
            _ if byte == status::OK => self.read_all(),
            _ => {}
        }
    }

    /// A request that is right in every way, by which the model learns what is there.
    fn read_all(&mut self) {
        let mut none = Choices::new(&[]);
        let mut ask = Ask::default();
        self.desk.add(
            &mut ask,
            Header { kind: kind::IN, reserved: 0, sector: 0 }.as_bytes(),
            false,
            &mut none,
        );
        self.desk.add(&mut ask, &vec![0xee; DISK_LEN], true, &mut none);
        self.desk.add(&mut ask, &[0xee], true, &mut none);
        let answer = self.desk.run(&ask);
        assert_eq!((answer.len, answer.written.last()), (Some(DISK_LEN as u32 + 1), Some(&status::OK)));
        self.disk.copy_from_slice(&answer.written[..DISK_LEN]);
    }
}

pub(super) fn run(input: &[u8]) {
    WORLD.with_borrow_mut(|world| {
        let world = world.get_or_insert_with(World::new);
        let mut choices = Choices::new(input);
        while !choices.is_empty() {
            world.step(&mut choices);
        }
    });
}
