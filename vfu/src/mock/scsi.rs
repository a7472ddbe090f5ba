//! A virtio-scsi driver (virtio 1.2, 5.6): one request queue, one command at a time, for tests.

use std::time::{Duration, Instant};

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{
    client::Client,
    memory::Memory,
    ring::{Buffer, DriverRing, RingSetup},
    transport::{DriverError, Kicks, QueueSetup, Transport},
};
use crate::{
    dma::Span,
    irq::NO_VECTOR,
    virtio::{
        scsi::spec::{CommandHeader, DEVICE_ID, Event, OWN_QUEUES, ResponseHeader, SENSE_LEN, Tmf, feature},
        spec::{feature as ring_feature, status},
    },
};

const CONTROL: u16 = 0;
const EVENTS: u16 = 1;
const RING: u16 = 64;
const EVENT_BUFFERS: u16 = 8;
/// Most data of a command, each way.
pub const MAX_DATA: u32 = 256 << 10;
const RESPONSE_LEN: usize = size_of::<ResponseHeader>() + SENSE_LEN;

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The transport's code.
    pub response: u8,
    /// SCSI status.
    pub status: u8,
    /// Sense key, code and qualifier; zeroes without sense data.
    pub sense: [u8; 3],
    /// Bytes not transferred.
    pub residual: u32,
    /// What the device wrote.
    pub data: Vec<u8>,
}

/// A SCSI host.
#[derive(Debug)]
pub struct ScsiDriver<R> {
    /// Registers and connection.
    pub transport: Transport,
    memory: Memory,
    rings: Vec<R>,
    page: Span,
    page_at: u64,
    events: Span,
    events_at: u64,
    timeout: Duration,
}

/// Where things are in the driver's own memory: a command's header, a task management request, their answers, data out,
/// data in.
const TMF_AT: usize = 256;
const RESPONSE_AT: usize = 512;
const TMF_RESPONSE_AT: usize = 1024;
const OUT_AT: usize = 4096;
const IN_AT: usize = OUT_AT + MAX_DATA as usize;

/// The tag of the command under way, which [`ScsiDriver::manage`] names too.
const TAG: u64 = 7;

/// The address of unit `lun` of a target.
#[must_use]
pub fn lun(target: u8, lun: u8) -> [u8; 8] {
    [1, target, 0x40, lun, 0, 0, 0, 0]
}

impl<R: DriverRing> ScsiDriver<R> {
    /// Brings the device up.
    ///
    /// # Errors
    /// See [`DriverError`].
    pub fn new(mut client: Client, mut memory: Memory, features: u64) -> Result<Self, DriverError> {
        client.map_memory(&memory)?;
        let mut transport = Transport::new(client, Kicks::Auto)?;
        if transport.function.device_id != DEVICE_ID {
            return Err(DriverError::Type(transport.function.device_id));
        }
        transport.reset()?;
        transport.function.enable(&mut transport.client)?;
        transport.add_status(status::ACKNOWLEDGE | status::DRIVER)?;
        let format = if R::PACKED { ring_feature::RING_PACKED } else { 0 };
        let features = features | format | ring_feature::VERSION_1 | feature::HOTPLUG | feature::CHANGE;
        if transport.device_features()? & features != features {
            return Err(DriverError::Features(features));
        }
        transport.set_driver_features(features)?;
        transport.add_status(status::FEATURES_OK)?;
        let mut rings = Vec::new();
        for queue in [CONTROL, EVENTS, OWN_QUEUES] {
            let size = transport.queue_size(queue)?.min(RING);
            let ring = R::new(&mut memory, &RingSetup { size, features, indirect: None })?;
            transport.set_queue(queue, &QueueSetup { size, vector: NO_VECTOR, areas: ring.areas() })?;
            rings.push(ring);
        }
        let mut place = |len: usize| -> Result<(u64, Span), DriverError> {
            let at = memory.allocate(len, 4096).map_err(DriverError::Memory)?;
            Ok((at, memory.span(at, len).expect("just allocated")))
        };
        let (page_at, page) = place(IN_AT + MAX_DATA as usize)?;
        let (events_at, events) = place(4096)?;
        let timeout = transport.client.timeout();
        transport.add_status(status::DRIVER_OK)?;
        let mut new = Self { transport, memory, rings, page, page_at, events, events_at, timeout };
        for _ in 0..EVENT_BUFFERS {
            new.offer_event_buffer()?;
        }
        Ok(new)
    }

    /// The guest's memory.
    pub fn memory(&mut self) -> &mut Memory {
        &mut self.memory
    }

    fn kick(&mut self, ring: usize, queue: u16) -> Result<(), DriverError> {
        if self.rings[ring].publish() {
            self.transport.kick(queue)?;
        }
        Ok(())
    }

    fn offer_event_buffer(&mut self) -> Result<(), DriverError> {
        let len = size_of::<Event>() as u32;
        if let Some(slot) = self.rings[1].next_slot() {
            self.rings[1].add(&[Buffer::writable(self.events_at + u64::from(slot) * u64::from(len), len)]);
        }
        self.kick(1, EVENTS)
    }

    fn wait(&mut self, ring: usize) -> Result<Option<super::ring::Used>, DriverError> {
        let deadline = Instant::now() + self.timeout;
        while Instant::now() < deadline {
            if let Some(used) = self.rings[ring].pop()? {
                return Ok(Some(used));
            }
            std::thread::yield_now();
        }
        Ok(None)
    }

    /// The next event, once there is one.
    ///
    /// # Errors
    /// See [`DriverError`].
    ///
    /// # Panics
    /// When none comes.
    pub fn next_event(&mut self) -> Result<Event, DriverError> {
        let used = self.wait(1)?.expect("an event within the timeout");
        let event = self.events.slice().read(usize::from(used.slot) * size_of::<Event>());
        self.offer_event_buffer()?;
        Ok(event)
    }

    /// Runs a command with `out` as its data, and room for `room` bytes of an answer.
    ///
    /// # Errors
    /// See [`DriverError`].
    ///
    /// # Panics
    /// When the device does not answer.
    pub fn run(&mut self, lun: [u8; 8], cdb: &[u8], out: &[u8], room: u32) -> Result<Answer, DriverError> {
        self.start(lun, cdb, out, room)?;
        self.finish(room)
    }

    /// The first half of [`Self::run`]: sends the command.
    ///
    /// # Errors
    /// See [`DriverError`].
    pub fn start(&mut self, lun: [u8; 8], cdb: &[u8], out: &[u8], room: u32) -> Result<(), DriverError> {
        let mut header = CommandHeader::new_zeroed();
        header.lun = lun;
        header.id = TAG.to_le_bytes();
        header.cdb[..cdb.len()].copy_from_slice(cdb);
        let page = self.page.slice();
        page.copy_from(0, header.as_bytes());
        page.copy_from(RESPONSE_AT, &[0xee; RESPONSE_LEN]);
        page.copy_from(OUT_AT, out);
        page.copy_from(IN_AT, &vec![0xee; room as usize]);
        let at = |offset: usize| self.page_at + offset as u64;
        let mut buffers = vec![Buffer::readable(at(0), size_of::<CommandHeader>() as u32)];
        if !out.is_empty() {
            buffers.push(Buffer::readable(at(OUT_AT), out.len() as u32));
        }
        buffers.push(Buffer::writable(at(RESPONSE_AT), RESPONSE_LEN as u32));
        if room > 0 {
            buffers.push(Buffer::writable(at(IN_AT), room));
        }
        self.rings[2].add(&buffers).expect("nothing else is in flight");
        self.kick(2, OWN_QUEUES)
    }

    /// Runs a command whose data are in memory of the caller's own, which the device reads or writes.
    ///
    /// # Errors
    /// See [`DriverError`].
    ///
    /// # Panics
    /// When the device does not answer.
    pub fn run_over(&mut self, lun: [u8; 8], cdb: &[u8], data: Buffer) -> Result<Answer, DriverError> {
        let mut header = CommandHeader::new_zeroed();
        header.lun = lun;
        header.cdb[..cdb.len()].copy_from_slice(cdb);
        self.page.slice().copy_from(0, header.as_bytes());
        let header = Buffer::readable(self.page_at, size_of::<CommandHeader>() as u32);
        let response = Buffer::writable(self.page_at + RESPONSE_AT as u64, RESPONSE_LEN as u32);
        let buffers = if data.device_writes { [header, response, data] } else { [header, data, response] };
        self.rings[2].add(&buffers).expect("nothing else is in flight");
        self.kick(2, OWN_QUEUES)?;
        self.finish(0)
    }

    /// The second half of [`Self::run`]: waits for the answer.
    ///
    /// # Errors
    /// See [`DriverError`].
    ///
    /// # Panics
    /// When the device does not answer.
    pub fn finish(&mut self, room: u32) -> Result<Answer, DriverError> {
        let used = self.wait(2)?.expect("an answer within the timeout");
        let mut bytes = [0; RESPONSE_LEN];
        self.page.slice().copy_to(RESPONSE_AT, &mut bytes);
        let (header, sense) = ResponseHeader::read_from_prefix(&bytes).expect("longer than the header");
        let sense = if header.sense_len >= 14 { [sense[2], sense[12], sense[13]] } else { [0; 3] };
        let mut data = vec![0; (used.len as usize).saturating_sub(RESPONSE_LEN).min(room as usize)];
        self.page.slice().copy_to(IN_AT, &mut data);
        Ok(Answer {
            response: header.response,
            status: header.status,
            sense,
            residual: header.residual,
            data,
        })
    }

    /// Runs a task management function.
    ///
    /// # Errors
    /// See [`DriverError`].
    ///
    /// # Panics
    /// When the device does not answer.
    pub fn manage(&mut self, subtype: u32, lun: [u8; 8]) -> Result<u8, DriverError> {
        let request = Tmf { kind: 0, subtype, lun, id: TAG };
        self.page.slice().copy_from(TMF_AT, request.as_bytes());
        self.page.slice().copy_from(TMF_RESPONSE_AT, &[0xee]);
        let (ask, answer) = (self.page_at + TMF_AT as u64, self.page_at + TMF_RESPONSE_AT as u64);
        let buffers = [Buffer::readable(ask, size_of::<Tmf>() as u32), Buffer::writable(answer, 1)];
        self.rings[0].add(&buffers).expect("nothing else is in flight");
        self.kick(0, CONTROL)?;
        self.wait(0)?.expect("an answer within the timeout");
        Ok(self.page.slice().read(TMF_RESPONSE_AT))
    }
}
