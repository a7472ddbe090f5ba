//! A controller's state and its admin commands, whatever carries them.
//!
//! Lives on one reactor. The transport owns queues and registers' bytes; it enables and disables the controller, hands
//! it the admin commands that do not concern queues ([`Controller::admin`]), and asks for events to complete.

mod events;
mod features;
mod identify;
mod logs;

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use events::Events;
use features::Features;
use logs::ErrorLog;

use super::{
    data::{ABSENT, Data},
    link::{Link, flag},
    spec::{Command, Status, admin},
    subsystem::Subsystem,
};

/// What a transport allows a controller.
#[derive(Clone, Copy, Debug)]
pub struct ControllerOptions {
    /// Entries of an I/O queue at most.
    pub max_queue_depth: u16,
    /// I/O queue pairs at most.
    pub max_io_queues: u16,
    /// Bytes of one command's data at most; a power of two of pages.
    pub max_io_size: u32,
    /// Compare is not offered.
    pub disable_compare: bool,
    /// Doorbell Buffer Config is offered, where the host's memory is mapped.
    pub shadow_doorbells: bool,
    /// ONCS bits that are hidden.
    pub masked_oncs: u16,
    /// FUSES bits that are hidden.
    pub masked_fuses: u16,
    /// PCI vendor ID, where there is one.
    pub pci_vendor: u16,
}

impl Default for ControllerOptions {
    fn default() -> Self {
        Self {
            max_queue_depth: 256,
            max_io_queues: 127,
            max_io_size: 131_072,
            disable_compare: false,
            shadow_doorbells: true,
            masked_oncs: 0,
            masked_fuses: 0,
            pci_vendor: 0,
        }
    }
}

/// Bits of ONCS (Base, figure 275).
pub mod oncs {
    /// Compare.
    pub const COMPARE: u16 = 1;
    /// Write Uncorrectable.
    pub const WRITE_UNCORRECTABLE: u16 = 1 << 1;
    /// Dataset Management.
    pub const DSM: u16 = 1 << 2;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u16 = 1 << 3;
    /// Reservations.
    pub const RESERVATIONS: u16 = 1 << 5;
    /// Verify.
    pub const VERIFY: u16 = 1 << 7;
    /// Copy.
    pub const COPY: u16 = 1 << 8;
}

/// Limits of single commands, as Identify tells them.
pub mod limits {
    /// Source ranges of a Copy, zero-based.
    pub const MAX_COPY_RANGES: u8 = 127;
    /// Blocks of one source range of Copy.
    pub const MAX_COPY_BLOCKS: u16 = 0xffff;
    /// Blocks of one Copy.
    pub const MAX_COPY_TOTAL: u32 = 0x10_0000;
    /// Granularity of the Keep Alive timer, in units of 100 ms (KAS).
    pub const KEEP_ALIVE_UNITS: u16 = 10;
}

impl ControllerOptions {
    /// The optional commands that are offered.
    #[must_use]
    pub fn oncs(&self) -> u16 {
        use oncs::{COMPARE, COPY, DSM, RESERVATIONS, VERIFY, WRITE_ZEROES};
        let compare = if self.disable_compare { 0 } else { COMPARE };
        (compare | DSM | WRITE_ZEROES | RESERVATIONS | VERIFY | COPY) & !self.masked_oncs
    }

    /// Whether fused Compare and Write is offered.
    #[must_use]
    pub fn fuses(&self) -> u16 {
        u16::from(self.oncs() & oncs::COMPARE != 0) & !self.masked_fuses
    }
}

/// What became of an admin command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It is done: status, and dword 0 of the completion.
    Done(Status, u32),
    /// It waits for an event.
    Held,
}

impl Reply {
    /// Success with nothing to say.
    pub const OK: Self = Self::Done(Status::SUCCESS, 0);
}

/// Why a command is not a success: its status.
type Refused = Status;

/// A controller.
pub struct Controller {
    subsystem: Arc<Subsystem>,
    link: Arc<Link>,
    options: ControllerOptions,
    features: Features,
    events: Events,
    errors: ErrorLog,
    power_cycles: u64,
    started: std::time::Instant,
    is_memory_private: bool,
}

impl Controller {
    /// A controller that no host has enabled.
    #[must_use]
    pub fn new(subsystem: Arc<Subsystem>, link: Arc<Link>, options: ControllerOptions) -> Self {
        Self {
            subsystem,
            link,
            options,
            features: Features::default(),
            events: Events::default(),
            errors: ErrorLog::default(),
            power_cycles: 0,
            started: std::time::Instant::now(),
            is_memory_private: false,
        }
    }

    /// Its subsystem.
    #[must_use]
    pub fn subsystem(&self) -> &Arc<Subsystem> {
        &self.subsystem
    }

    /// Its ends that others hold.
    #[must_use]
    pub fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// What its transport allows.
    #[must_use]
    pub fn options(&self) -> &ControllerOptions {
        &self.options
    }

    /// Tells whether the host's memory is reached by messages only.
    pub fn set_memory_private(&mut self, is_private: bool) {
        self.is_memory_private = is_private;
    }

    /// Whether Doorbell Buffer Config is offered. Not where it would have to be refused: SPDK's driver (19.10) uses its
    /// buffers all the same, and rings no register any more.
    #[must_use]
    pub fn offers_shadow_doorbells(&self) -> bool {
        self.options.shadow_doorbells && !self.is_memory_private
    }

    /// A host has enabled it.
    pub fn enable(&mut self) {
        self.power_cycles += 1;
        self.link.set_enabled(true);
    }

    /// It was reset: everything is as after power-on but what is kept on purpose (Base, 3.7.2).
    pub fn reset(&mut self) {
        self.features = Features::default();
        self.events = Events::default();
        self.link.take_changed();
        self.link.set_host_id([0; 16]);
        self.link.set_write_through(false);
        self.link.set_enabled(false);
        self.link.set_queues(Vec::new());
        self.link.mask_notifications(BTreeMap::new());
    }

    /// Follows what others changed: true if the queues must look at the subsystem again. `reset` is called for a reset
    /// of the subsystem.
    pub fn follow(&mut self) -> (bool, bool) {
        let flags = self.link.take_flags();
        if flags & flag::NAMESPACES != 0 {
            self.events.namespaces_changed();
        }
        if flags & flag::ANA != 0 {
            self.events.ana_changed();
        }
        if flags & flag::RESERVATION != 0 {
            self.events.reservation_logged();
        }
        if flags & flag::BAD_DOORBELL != 0 {
            self.errors.log(0xffff, 0xffff, Status::INVALID_FIELD, 0, 0);
            self.events.invalid_doorbell();
        }
        if flags & flag::NO_DOORBELL != 0 {
            self.errors.log(0xffff, 0xffff, Status::INVALID_FIELD, 0, 0);
            self.events.invalid_register();
        }
        (flags & (flag::NAMESPACES | flag::ANA) != 0, flags & flag::SUBSYSTEM_RESET != 0)
    }

    /// An event request that can be completed now: its command identifier, and dword 0.
    pub fn take_event(&mut self) -> Option<(u16, u32)> {
        self.events.take(self.features.async_event)
    }

    /// Executes an admin command that does not concern queues. Done with [`ABSENT`], it is to be given again.
    pub fn admin(&mut self, command: &Command, data: &impl Data) -> Reply {
        let reply = match command.opcode {
            // Admin commands over PCIe use PRPs (PCIe, 4.3); over fabrics the transport has turned them into plain data.
            _ if command.fuse() != 0 => Err(Status::INVALID_FIELD),
            admin::IDENTIFY => self.identify(command, data).map(|()| Reply::OK),
            admin::GET_LOG_PAGE => self.get_log_page(command, data).map(|()| Reply::OK),
            admin::SET_FEATURES => {
                self.set_features(command, data).map(|dw0| Reply::Done(Status::SUCCESS, dw0))
            }
            admin::GET_FEATURES => {
                self.get_features(command, data).map(|dw0| Reply::Done(Status::SUCCESS, dw0))
            }
            admin::ASYNC_EVENT => self.events.hold(command.cid).map(|()| Reply::Held),
            admin::ABORT => Ok(self.abort(command)),
            // The transport counts the time; without a timer the command is valid all the same.
            admin::KEEP_ALIVE => Ok(Reply::OK),
            _ => Err(Status::INVALID_OPCODE),
        };
        if reply == Err(ABSENT) {
            return Reply::Done(ABSENT, 0);
        }
        self.link.admin.commands.fetch_add(1, Ordering::Relaxed);
        reply.unwrap_or_else(|status| {
            self.errors.log(0, command.cid, status, 0, command.nsid);
            Reply::Done(status, 0)
        })
    }

    /// Logs a command that failed in a transport's hands.
    pub fn log_error(&mut self, sqid: u16, cid: u16, status: Status, nsid: u32) {
        self.errors.log(sqid, cid, status, 0, nsid);
    }

    /// Abort of an admin command: of an event request. Bit 0 of dword 0 tells that nothing was aborted (Base, 5.1).
    fn abort(&mut self, command: &Command) -> Reply {
        let (sqid, cid) = (command.cdw10 & 0xffff, (command.cdw10 >> 16) as u16);
        let aborted = sqid == 0 && self.events.abort(cid);
        Reply::Done(Status::SUCCESS, u32::from(!aborted))
    }

    /// An event request that was aborted: its command identifier.
    pub fn take_aborted(&mut self) -> Option<u16> {
        self.events.take_aborted()
    }
}
