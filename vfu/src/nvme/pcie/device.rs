//! A controller with its queues over PCIe, on its home reactor: registers, and the control blocks of the I/O queues; `admin`
//! has its admin queue. [`super::NvmePci`] and the admin queue's poller share it; both live on the home reactor.

use std::sync::Arc;

use reactor::Handle;

use super::{
    admin::Admin,
    control::{Abort, Control, State},
    doorbells::{Buffers, Doorbells, Side},
    keep_alive::KeepAlive,
    registers::{Register, Registers, capabilities},
    remote::Errands,
    ring::{Cq, Setup, Sq},
    shutdown::Shutdown,
};
use crate::{
    device::{Bus, Home, Progress},
    dma::{Asker, View},
    nvme::{
        controller::{Controller, Reply},
        link::{QueueInfo, flag},
        spec::{Command, NSSR_MAGIC, PAGE, Status, cc, csts, reg},
    },
};

/// Abort commands at a time (ACL of Identify Controller, counted from one).
const ABORTS_MAX: usize = 4;
/// Dword 0 of an Abort that did not.
const NOT_ABORTED: u32 = 1;

/// A completion queue, as the home sees it.
pub(super) struct Group {
    pub(super) control: Arc<Control>,
    /// Its submission queues.
    pub(super) sqs: Vec<u16>,
    pub(super) setup: Setup,
    /// MSI-X vector, if interrupts are enabled.
    pub(super) vector: Option<u16>,
    /// Where it runs, or is to run next.
    pub(super) reactor: Handle,
    /// It is stopping only to start again there.
    pub(super) is_moving: bool,
}

/// A queue command that waits for the queue's owner.
pub(super) struct Deletion {
    pub(super) cid: u16,
    pub(super) cqid: u16,
    /// None for the completion queue itself.
    pub(super) sqid: Option<u16>,
}

/// What a reset that waits for the queues is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum After {
    /// The host cleared CC.EN.
    Disable,
    /// The subsystem is reset.
    Subsystem,
    /// Back to power-on.
    PowerOn,
}

pub(super) struct Device {
    pub(super) controller: Controller,
    pub(super) home: Home,
    pub(super) bus: Arc<Bus>,
    pub(super) doorbells: Arc<Doorbells>,
    pub(super) registers: Registers,
    pub(super) admin: Option<Admin>,
    /// By identifier; the first is the admin queue's and stays empty.
    pub(super) groups: Vec<Option<Group>>,
    /// The completion queue of each submission queue, by identifier.
    pub(super) sqs: Vec<Option<u16>>,
    pub(super) deletions: Vec<Deletion>,
    /// Abort commands whose queue has not answered yet: identifier and completion queue.
    pub(super) aborts: Vec<(u16, u16)>,
    pub(super) buffers: Option<Buffers>,
    resetting: Option<After>,
    /// The admin queue is to be looked at again: commands were left for the next pass.
    pub(super) is_behind: bool,
    /// Something that is to be posted to the admin queue found no room.
    pub(super) lacks_room: bool,
    /// What the admin queue had under way to the guest when a reset began.
    leaving: Option<Box<Errands>>,
    /// A shutdown that is not over.
    shutdown: Option<Shutdown>,
    /// One that a reset, or one without notice, has ended while its flush goes on.
    last_flush: Option<Shutdown>,
    pub(super) keep_alive: KeepAlive,
    /// The owner of a queue has panicked.
    pub(super) is_faulted: bool,
}

impl Drop for Device {
    fn drop(&mut self) {
        // Nothing to do after an orderly end. When the endpoint itself has panicked, its queues are told to go.
        self.groups.iter().flatten().for_each(|group| group.control.discard());
    }
}

impl Device {
    pub(super) fn new(controller: Controller, home: Home, bus: Arc<Bus>, doorbells: Doorbells) -> Self {
        let options = controller.options();
        let queues = usize::from(options.max_io_queues) + 1;
        let cap = capabilities(options.max_queue_depth, controller.subsystem().options().enable_nssr);
        Self {
            registers: Registers { cap, ..Registers::default() },
            controller,
            home,
            bus,
            doorbells: Arc::new(doorbells),
            admin: None,
            groups: (0..queues).map(|_| None).collect(),
            sqs: vec![None; queues],
            deletions: Vec::new(),
            aborts: Vec::new(),
            buffers: None,
            resetting: None,
            is_behind: false,
            lacks_room: false,
            leaving: None,
            shutdown: None,
            last_flush: None,
            keep_alive: KeepAlive::default(),
            is_faulted: false,
        }
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        if offset >= reg::DOORBELLS {
            for (at, word) in (offset..).step_by(4).zip(data.chunks_exact(4)) {
                self.ring(at - reg::DOORBELLS, u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
            }
            return;
        }
        for (register, value) in self.registers.patch(offset, data) {
            self.set(register, value);
        }
    }

    /// A doorbell came as a message: it is stored where the owner looks, and the owner is woken.
    fn ring(&mut self, at: u64, value: u32) {
        let (Ok(qid), true) = (u16::try_from(at / 8), at.is_multiple_of(4)) else { return };
        let side = if at.is_multiple_of(8) { Side::Tail } else { Side::Head };
        let exists = match side {
            _ if qid == 0 => self.admin.is_some(),
            Side::Tail => self.sqs.get(usize::from(qid)).is_some_and(Option::is_some),
            Side::Head => self.groups.get(usize::from(qid)).is_some_and(Option::is_some),
        };
        if !exists {
            if self.registers.csts & csts::RDY != 0 {
                self.controller.link().notify(flag::NO_DOORBELL);
            }
            return;
        }
        self.doorbells.store(qid, side, value);
        if qid == 0 {
            self.poll_admin();
            return;
        }
        let cqid = if side == Side::Tail { self.sqs[usize::from(qid)].unwrap_or(0) } else { qid };
        if let Some(group) = &self.groups[usize::from(cqid)] {
            group.control.wake();
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "`patch` gives each register a value of its own width"
    )]
    fn set(&mut self, register: Register, value: u64) {
        match register {
            Register::Intms => self.mask(self.registers.intms | value as u32),
            Register::Intmc => self.mask(self.registers.intms & !(value as u32)),
            // Bits 11:0 and 27:16; addresses are those of pages (Base, 3.1.3.8 to 3.1.3.10).
            Register::Aqa => self.registers.aqa = value as u32 & 0x0fff_0fff,
            Register::Asq => self.registers.asq = value & !(PAGE - 1),
            Register::Acq => self.registers.acq = value & !(PAGE - 1),
            Register::Csts => self.registers.csts &= !(value as u32 & csts::NSSRO),
            Register::Nssr => {
                let subsystem = self.controller.subsystem();
                if value as u32 == NSSR_MAGIC && subsystem.options().enable_nssr {
                    // As below, at debug level: a guest can have these lines written as often as it likes.
                    tracing::debug!(nqn = subsystem.options().nqn, "subsystem reset");
                    subsystem.reset();
                }
            }
            Register::Cc => self.set_cc(value as u32 & cc::WRITABLE),
        }
    }

    /// INTMS and INTMC: without MSI-X, vector 0 is the pin (PCIe, 3.1.2).
    fn mask(&mut self, mask: u32) {
        self.registers.intms = mask;
        self.bus.irqs.mask_pin(mask & 1 != 0);
    }

    fn set_cc(&mut self, value: u32) {
        let old = std::mem::replace(&mut self.registers.cc, value);
        let changed = old ^ value;
        if changed & cc::EN != 0 {
            if value & cc::EN == 0 {
                self.stop(After::Disable);
            } else if self.resetting.is_none() {
                self.enable();
            }
        }
        if cc::shn(value) != 0 && cc::shn(old) == 0 {
            // One without notice wants to be quick: only the other one waits for what bdevs have in caches. One that is under
            // way goes on.
            if cc::shn(value) == cc::SHN_NORMAL {
                self.shutdown.get_or_insert_default();
            } else {
                self.give_up_flush();
            }
            self.tell_shutdown(csts::SHST_PROCESSING);
            self.progress_shutdown();
        }
    }

    fn tell_shutdown(&mut self, status: u32) {
        self.registers.csts = self.registers.csts & !csts::SHST | status;
    }

    /// Tells the host that the shutdown is over, once it is.
    fn progress_shutdown(&mut self) {
        self.last_flush.take_if(|flush| flush.is_over());
        if self.shutdown.is_some() && self.last_flush.is_some() {
            return;
        }
        let over = |shutdown: &mut Shutdown| shutdown.progress(&self.controller, &self.home, &self.bus);
        if self.registers.csts & csts::SHST == csts::SHST_PROCESSING
            && self.shutdown.as_mut().is_none_or(over)
        {
            self.shutdown = None;
            self.tell_shutdown(csts::SHST_COMPLETE);
        }
    }

    /// Waits no more for the flush of a shutdown, which goes on; the next one waits until it is over, so that there is one at a
    /// time.
    fn give_up_flush(&mut self) {
        let given_up = self.shutdown.take().filter(|shutdown| !shutdown.is_over());
        self.last_flush = given_up.or(self.last_flush.take());
    }

    fn enable(&mut self) {
        let value = self.registers.cc;
        let Registers { aqa, asq, acq, .. } = self.registers;
        let (sq_size, cq_size) = ((aqa & 0xfff) as u16 + 1, (aqa >> 16 & 0xfff) as u16 + 1);
        // The NVM command set, alone or as an I/O command set; pages of 4 KiB; round robin.
        let valid = matches!(cc::css(value), 0 | 6)
            && cc::mps(value) == 0
            && cc::ams(value) == 0
            && sq_size >= 2
            && cq_size >= 2;
        self.doorbells.clear();
        let sq = Sq::new(Setup { qid: 0, size: sq_size, base: asq }, &self.doorbells);
        let cq = Cq::new(Setup { qid: 0, size: cq_size, base: acq }, &self.doorbells);
        let mut admin = Admin {
            sq,
            cq,
            view: View::new(&self.bus.windows),
            signal: self.bus.irqs.signal(0),
            asserted: false,
            remote: None,
        };
        // Some drivers enable the controller before they let it reach memory; its first command finds the rings then.
        let home = Asker::Home(self.home.waker.clone());
        let reachable = admin.resolve(&self.bus, &home) || !self.bus.bus_master();
        if !valid || !reachable {
            tracing::debug!(
                cc = format!("{value:#x}"),
                aqa = format!("{aqa:#x}"),
                valid,
                "a host's settings cannot be used"
            );
            self.registers.csts |= csts::CFS;
            return;
        }
        self.admin = Some(admin);
        self.controller.enable();
        self.registers.csts |= csts::RDY;
        tracing::debug!(
            nqn = self.controller.subsystem().options().nqn,
            cntlid = self.controller.link().cntlid,
            "controller enabled"
        );
    }

    /// Stops all queues; [`Self::progress`] does the rest when they have.
    fn stop(&mut self, after: After) {
        self.resetting = self.resetting.max(Some(after));
        self.silence();
    }

    /// Takes no more commands, and posts no more completions.
    pub(super) fn silence(&mut self) {
        if let Some(admin) = self.admin.take() {
            if admin.asserted {
                self.bus.irqs.deassert_level();
            }
            self.leaving = admin.remote.or(self.leaving.take());
        }
        self.deletions.clear();
        self.aborts.clear();
        self.keep_alive.clear();
        for group in self.groups.iter_mut().flatten() {
            group.is_moving = false;
            group.control.discard();
        }
    }

    /// Starts a reset to power-on state.
    pub(super) fn power_on(&mut self) {
        self.stop(After::PowerOn);
    }

    fn stopped(&mut self, after: After) {
        self.groups.iter_mut().for_each(|group| *group = None);
        self.sqs.fill(None);
        self.buffers = None;
        self.give_up_flush();
        self.doorbells.clear();
        self.controller.reset();
        self.mask(0);
        let Registers { cap, aqa, asq, acq, cc, .. } = self.registers;
        self.registers = match after {
            // The admin queue's registers are kept (Base, 3.7.2).
            After::Disable => Registers { cap, aqa, asq, acq, cc, ..Registers::default() },
            After::Subsystem => Registers { cap, csts: csts::NSSRO, ..Registers::default() },
            After::PowerOn => Registers { cap, ..Registers::default() },
        };
        // A host that did not wait for RDY to fall.
        if self.registers.cc & cc::EN != 0 {
            self.enable();
        }
    }

    /// Windows, interrupts or bus mastering changed.
    pub(super) fn sync(&mut self) {
        if let Some(admin) = &mut self.admin {
            admin.view = View::new(&self.bus.windows);
            admin.signal = self.bus.irqs.signal(0);
            admin.resolve(&self.bus, &Asker::Home(self.home.waker.clone()));
        }
        self.sync_groups();
        self.poll_admin();
    }

    fn sync_groups(&self) {
        for group in self.groups.iter().flatten() {
            group.control.sync();
        }
    }

    pub(super) fn progress(&mut self) -> Progress {
        self.progress_shutdown();
        self.end_silence();
        if self.controller.link().is_notified() {
            let (refresh, reset) = self.controller.follow();
            if refresh {
                self.sync_groups();
            }
            if reset {
                self.stop(After::Subsystem);
            }
        }
        let failed = self.groups.iter().flatten().any(|group| group.control.state() == State::Failed);
        self.is_faulted |= failed;
        if failed && self.resetting.is_none() {
            self.registers.csts |= csts::CFS;
        }
        if let Some(after) = self.resetting {
            let gone = |group: &Group| matches!(group.control.state(), State::Stopped | State::Failed);
            let admin_is_gone = self.leaving.as_mut().is_none_or(|errands| errands.is_over());
            if !admin_is_gone || !self.groups.iter().flatten().all(gone) {
                let awaits_client = |group: &Group| gone(group) || group.control.awaits_client();
                // A host that disables the controller looks at RDY until it falls, and its processor may answer our
                // messages only when its own are answered.
                let is_told_later =
                    after == After::Disable && self.groups.iter().flatten().all(awaits_client);
                return if is_told_later { Progress::Done } else { Progress::Pending };
            }
            (self.resetting, self.leaving) = (None, None);
            self.stopped(after);
            return Progress::Done;
        }
        self.end_aborts();
        if self.restart_moved() {
            return Progress::Pending;
        }
        self.end_deletions();
        self.tell_events();
        if self.serve_remote() | std::mem::take(&mut self.is_behind) {
            self.poll_admin();
        }
        // A queue that is being deleted holds nobody else up; one that has not followed a change does.
        let deleted = |cqid: usize| self.deletions.iter().any(|deletion| usize::from(deletion.cqid) == cqid);
        let settled = self.groups.iter().enumerate().all(|(cqid, group)| {
            let settled = |control: &Control| control.is_settled() || control.awaits_client();
            group.as_ref().is_none_or(|group| settled(&group.control) || deleted(cqid))
        });
        if settled { Progress::Done } else { Progress::Pending }
    }

    /// Abort of an I/O command: its queue knows (Base, 5.1).
    pub(super) fn abort(&mut self, command: &Command) -> Result<Reply, Status> {
        #[expect(clippy::cast_possible_truncation, reason = "the halves")]
        let (sqid, cid) = (command.cdw10 as u16, (command.cdw10 >> 16) as u16);
        let cqid = self.sqs.get(usize::from(sqid)).copied().flatten();
        let Some(group) = cqid.and_then(|cqid| self.groups[usize::from(cqid)].as_ref()) else {
            return Ok(Reply::Done(Status::SUCCESS, NOT_ABORTED));
        };
        if self.aborts.len() >= ABORTS_MAX {
            return Err(Status::ABORT_LIMIT);
        }
        group.control.abort(Abort { by: command.cid, sqid, cid });
        self.aborts.push((command.cid, cqid.unwrap_or(0)));
        Ok(Reply::Held)
    }

    /// Completes Abort commands whose queue has answered, or is gone.
    fn end_aborts(&mut self) {
        let mut at = 0;
        // An answer that is taken is posted.
        while at < self.aborts.len() && self.has_room() {
            let (by, cqid) = self.aborts[at];
            let group = self.groups[usize::from(cqid)].as_ref();
            // A queue that moves takes what is asked of it along.
            let is_gone = |group: &Group| match group.control.state() {
                State::Starting | State::Running => false,
                State::Stopped => !group.is_moving,
                State::Failed => true,
            };
            let answer = group.map_or(Some(false), |group| {
                let is_gone = is_gone(group);
                group.control.take_aborted(by).or(is_gone.then_some(false))
            });
            let Some(aborted) = answer else {
                at += 1;
                continue;
            };
            self.aborts.remove(at);
            self.post(by, Status::SUCCESS, if aborted { 0 } else { NOT_ABORTED });
            self.raise();
        }
    }

    fn end_deletions(&mut self) {
        let mut at = 0;
        while at < self.deletions.len() {
            let Deletion { cid, cqid, sqid } = self.deletions[at];
            let group = self.groups[usize::from(cqid)].as_ref();
            let settled = group.is_none_or(|group| group.control.is_settled());
            if !settled || !self.has_room() {
                at += 1;
                continue;
            }
            self.deletions.remove(at);
            match sqid {
                Some(sqid) => self.sqs[usize::from(sqid)] = None,
                None => self.groups[usize::from(cqid)] = None,
            }
            self.tell_queues();
            self.post(cid, Status::SUCCESS, 0);
            self.raise();
        }
    }

    /// Says which queues there are, for those who ask over RPC.
    pub(super) fn tell_queues(&self) {
        let info = |(qid, cqid): (usize, &Option<u16>)| {
            let group = self.groups[usize::from((*cqid)?)].as_ref()?;
            Some(QueueInfo { qid: u16::try_from(qid).ok()?, core: group.reactor.core() })
        };
        self.controller.link().set_queues(self.sqs.iter().enumerate().filter_map(info).collect());
    }

    /// Whether an admin queue is at work.
    pub(super) fn is_enabled(&self) -> bool {
        self.admin.is_some()
    }
}
