//! virtio-scsi commands: command blocks true and false, with data of any length cut anyhow, beside a model of the unit's
//! blocks. Each is answered once with codes that exist; the next right command works.

use std::cell::RefCell;

use vfu::virtio::{
    device::VirtioDevice,
    scsi::{
        ReservationTable, Scsi, ScsiHandler, Targets,
        spec::{CommandHeader, OWN_QUEUES, ResponseHeader, SENSE_LEN, op, response, status},
    },
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::{
    choices::Choices,
    desk::{Answer, Ask, BLOCK, BLOCKS, DISK_LEN, Desk, disk},
};

const RESPONSE_LEN: usize = size_of::<ResponseHeader>() + SENSE_LEN;
/// Commands that there are; the rest of the codes come by chance.
const CODES: [u8; 33] = [
    op::TEST_UNIT_READY,
    op::REQUEST_SENSE,
    op::READ_6,
    op::WRITE_6,
    op::INQUIRY,
    op::MODE_SENSE_6,
    op::START_STOP_UNIT,
    op::PREVENT_ALLOW,
    op::READ_CAPACITY_10,
    op::READ_10,
    op::WRITE_10,
    op::VERIFY_10,
    op::SYNCHRONIZE_CACHE_10,
    op::WRITE_SAME_10,
    op::UNMAP,
    op::MODE_SENSE_10,
    op::PERSISTENT_RESERVE_IN,
    op::PERSISTENT_RESERVE_OUT,
    op::READ_16,
    op::WRITE_16,
    op::VERIFY_16,
    op::SYNCHRONIZE_CACHE_16,
    op::WRITE_SAME_16,
    op::SERVICE_ACTION_IN_16,
    op::REPORT_LUNS,
    op::READ_12,
    op::WRITE_12,
    op::VERIFY_12,
    op::WRITE_VERIFY_10,
    op::WRITE_VERIFY_12,
    op::WRITE_VERIFY_16,
    op::MAINTENANCE_IN,
    0xff,
];

struct World {
    desk: Desk<ScsiHandler>,
    disk: Vec<u8>,
    _targets: Targets,
}

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

impl World {
    fn new() -> Self {
        let (targets, table) = (Targets::default(), ReservationTable::default());
        let slot = targets.slot(0).expect("free");
        let descriptor = disk(slot.callback());
        slot.add(descriptor, &table).expect("free");
        let scsi = Scsi::new(&targets, 1, 64, 1);
        let handler = scsi.handler(OWN_QUEUES, 0)().expect("it needs nothing");
        Self { desk: Desk::new(handler), disk: vec![0; DISK_LEN], _targets: targets }
    }

    /// A command block: of a known command, its numbers small as often as not.
    fn cdb(choices: &mut Choices<'_>) -> [u8; 32] {
        let mut cdb = [0; 32];
        let code = choices.u8();
        cdb[0] = CODES.get(usize::from(code)).copied().unwrap_or(code);
        if choices.u8() & 1 == 0 {
            cdb[1..].iter_mut().for_each(|byte| *byte = choices.u8());
            return cdb;
        }
        // The place of the low bytes of address and length depends on the command's size.
        let (lba, blocks) = (choices.u8() % (BLOCKS as u8 + 2), choices.u8() % 20);
        let (lba_at, blocks_at) = match cdb[0] >> 5 {
            0 => (3, 4),
            1 | 2 => (5, 8),
            5 => (5, 9),
            _ => (9, 13),
        };
        (cdb[lba_at], cdb[blocks_at]) = (lba, blocks);
        cdb[1] = choices.u8() & choices.u8();
        if matches!(cdb[0], op::INQUIRY | op::PERSISTENT_RESERVE_IN | op::PERSISTENT_RESERVE_OUT) {
            (cdb[2], cdb[4], cdb[8]) = (choices.u8(), 255, 24);
        }
        cdb
    }

    fn step(&mut self, choices: &mut Choices<'_>) {
        let mut header = CommandHeader::new_zeroed();
        header.lun = [1, 0, 0, 0, 0, 0, 0, 0];
        if choices.u8() > 240 {
            header.lun[usize::from(choices.u8() % 8)] = choices.u8();
        }
        header.cdb = Self::cdb(choices);
        let blocks = usize::from(choices.u8() % 20);
        let out: Vec<u8> = match choices.u8() {
            0..120 => Vec::new(),
            120..200 => (0..blocks * BLOCK).map(|at| (at / 5) as u8).collect(),
            200..230 => vec![0; BLOCK],
            _ => {
                let len = usize::from(choices.u8());
                choices.bytes(len).to_vec()
            }
        };
        let room = match choices.u8() {
            0..100 => 0,
            100..220 => blocks * BLOCK,
            _ => usize::from(choices.u16() % 1024),
        };
        let mut ask = Ask::default();
        let header_len =
            if choices.u8() < 250 { header.as_bytes().len() } else { usize::from(choices.u8() % 51) };
        self.desk.add(&mut ask, &header.as_bytes()[..header_len], false, choices);
        if !out.is_empty() {
            self.desk.add(&mut ask, &out, false, choices);
        }
        let response_len = if choices.u8() < 250 { RESPONSE_LEN } else { usize::from(choices.u8()) };
        self.desk.add(&mut ask, &vec![0xee; response_len], true, choices);
        if room > 0 {
            self.desk.add(&mut ask, &vec![0xee; room], true, choices);
        }
        let answer = self.desk.run(&ask);
        // Of a header that was cut the device takes what follows for the rest: another command than the one at hand.
        let is_whole = header_len == header.as_bytes().len();
        if !ask.is_wild && is_whole && answer.len.is_some() {
            self.check(&header.cdb, &answer);
        }
        self.read_all();
    }

    /// The answer, and for reads the data.
    fn check(&self, cdb: &[u8; 32], answer: &Answer) {
        let (head, _) = ResponseHeader::read_from_prefix(&answer.written).expect("it was accepted");
        let known = [response::OK, response::OVERRUN, response::BAD_TARGET, response::FAILURE];
        assert!(known.contains(&head.response), "{head:?}");
        let codes = [status::GOOD, status::CHECK_CONDITION, status::RESERVATION_CONFLICT];
        assert!(codes.contains(&head.status), "{head:?}");
        assert_eq!(head.status == status::CHECK_CONDITION, head.sense_len > 0, "{head:?}");
        assert!(head.sense_len as usize <= SENSE_LEN);
        let given = answer.len.unwrap_or(0) as usize;
        assert!((RESPONSE_LEN..=answer.written.len()).contains(&given), "{given}");
        let data = &answer.written[RESPONSE_LEN..given];
        if cdb[0] == op::READ_10 && (head.response, head.status) == (response::OK, status::GOOD) {
            let at = u32::from_be_bytes([cdb[2], cdb[3], cdb[4], cdb[5]]) as usize * BLOCK;
            assert_eq!(data.len(), usize::from(u16::from_be_bytes([cdb[7], cdb[8]])) * BLOCK);
            assert!(data == &self.disk[at..at + data.len()], "not what was written");
        }
    }

    /// A command that is right in every way, by which the model learns what is there.
    fn read_all(&mut self) {
        let mut header = CommandHeader::new_zeroed();
        header.lun = [1, 0, 0, 0, 0, 0, 0, 0];
        (header.cdb[0], header.cdb[8]) = (op::READ_10, BLOCKS as u8);
        // The first may tell what another command did to this nexus.
        for _ in 0..2 {
            let mut none = Choices::new(&[]);
            let mut ask = Ask::default();
            self.desk.add(&mut ask, header.as_bytes(), false, &mut none);
            self.desk.add(&mut ask, &[0xee; RESPONSE_LEN], true, &mut none);
            self.desk.add(&mut ask, &vec![0xee; DISK_LEN], true, &mut none);
            let answer = self.desk.run(&ask);
            let (head, _) = ResponseHeader::read_from_prefix(&answer.written).expect("it was accepted");
            if head.status == status::GOOD {
                assert_eq!(answer.len, Some((RESPONSE_LEN + DISK_LEN) as u32));
                self.disk.copy_from_slice(&answer.written[RESPONSE_LEN..]);
                return;
            }
        }
        panic!("a right read is refused");
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
