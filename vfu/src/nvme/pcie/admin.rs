//! The admin queue (Base, 3.3): its rings, and the way of an admin command from there to its completion.

use std::sync::{Arc, atomic::Ordering};

use super::{
    device::Device,
    memory::GuestData,
    remote::{Errands, Outcome},
    ring::{Cq, Sq},
};
use crate::{
    device::Bus,
    dma::{Asker, View},
    irq::Signal,
    nvme::{
        controller::Reply,
        data::{ABSENT, Data},
        io::Finished,
        link::{Counters, flag},
        spec::{Command, Status, admin, feature},
    },
};

/// Admin commands executed in one pass.
const COMMANDS_PER_PASS: u16 = 64;
/// Looks at what only messages reach in one go; everything mapped, it might not end.
const REMOTE_STEPS: usize = 64;

/// The admin queue pair.
pub(super) struct Admin {
    pub(super) sq: Sq,
    pub(super) cq: Cq,
    pub(super) view: View,
    pub(super) signal: Signal,
    pub(super) asserted: bool,
    /// What only messages reach, once there was something.
    pub(super) remote: Option<Box<Errands>>,
}

impl Device {
    pub(super) fn has_room(&mut self) -> bool {
        let has_room = self.admin.as_mut().is_some_and(|admin| {
            let owed = admin.remote.as_ref().map_or(0, |errands| errands.owed());
            admin.cq.room(owed + 1) > owed
        });
        self.lacks_room |= !has_room;
        has_room
    }

    pub(super) fn post(&mut self, cid: u16, status: Status, dw0: u32) {
        let Some(admin) = &mut self.admin else { return };
        match &mut admin.remote {
            Some(errands) if admin.cq.is_remote => errands.post(0, Finished { tag: 0, cid, status, dw0 }),
            // Nothing is taken, or posted, without room: a queue that is not mapped has none.
            _ => {
                admin.cq.post_raw(admin.sq.head, 0, cid, status, dw0);
            }
        }
    }

    /// Interrupts for what was posted; where that takes messages, [`Self::serve_remote`] does when it has arrived.
    pub(super) fn raise(&mut self) {
        if self.admin.as_ref().is_some_and(|admin| !admin.cq.is_remote) {
            self.interrupt();
        }
    }

    fn interrupt(&mut self) {
        let Some(admin) = &mut self.admin else { return };
        self.controller.link().admin.interrupts.fetch_add(1, Ordering::Relaxed);
        if admin.signal.is_pin() && !admin.asserted {
            admin.asserted = true;
            self.bus.irqs.assert_level();
        }
        admin.signal.raise_level();
    }

    /// Completes event requests for which there is an event, and those that were aborted.
    pub(super) fn tell_events(&mut self) {
        let mut told = false;
        while self.has_room()
            && let Some(cid) = self.controller.take_aborted()
        {
            self.post(cid, Status::ABORT_REQUESTED, 0);
            told = true;
        }
        while self.has_room()
            && let Some((cid, dw0)) = self.controller.take_event()
        {
            self.post(cid, Status::SUCCESS, dw0);
            told = true;
        }
        if told {
            self.raise();
        }
    }

    /// Executes what waits in the admin queue. True if there was something.
    pub(super) fn poll_admin(&mut self) -> bool {
        let mut taken = 0;
        if let Some(admin) = &mut self.admin
            && admin.asserted
            && admin.cq.is_consumed()
        {
            admin.asserted = false;
            self.bus.irqs.deassert_level();
        }
        while taken < COMMANDS_PER_PASS
            && let Some(command) = self.next_admin()
        {
            taken += 1;
            match self.execute_mapped(&command) {
                Reply::Done(ABSENT, _) => self.hand_over(&command),
                Reply::Done(status, dw0) => self.post(command.cid, status, dw0),
                Reply::Held => {}
            }
        }
        if taken > 0 {
            self.raise();
            self.tell_events();
        }
        self.is_behind = taken == COMMANDS_PER_PASS;
        // The driver may have made room; where doorbells are mapped, nobody else sees that.
        if self.is_behind | std::mem::take(&mut self.lacks_room) {
            self.home.waker.wake();
        }
        self.serve_remote() || taken > 0
    }

    /// Has the data of a command brought by messages.
    #[cold]
    fn hand_over(&mut self, command: &Command) {
        let Some(admin) = &mut self.admin else { return };
        let errands = errands(&mut admin.remote, &self.bus, &Asker::Home(self.home.waker.clone()));
        // There is room: no command was taken without.
        errands.take(0, &[*command]);
    }

    /// Moves on what only messages reach. True if something moved.
    pub(super) fn serve_remote(&mut self) -> bool {
        let moved = (0..REMOTE_STEPS).take_while(|_| self.step_remote()).count();
        if moved == REMOTE_STEPS {
            self.home.waker.wake();
        }
        moved > 0
    }

    fn step_remote(&mut self) -> bool {
        let owed = self.owed();
        let Some(Admin { sq, cq, view, remote, .. }) = &mut self.admin else { return false };
        // Out of the way of what it executes.
        let Some(mut errands) = remote.take() else { return false };
        let (view, sqs) = (view.clone(), std::slice::from_mut(sq));
        let moves = errands.advance(sqs, cq, &view);
        let is_bad = sqs[0].is_remote && sqs[0].look().is_err();
        let owed = owed + errands.owed();
        let room = cq.room(owed + 1).saturating_sub(owed);
        let brought = errands.bring_entries(sqs, room, &view);
        let executed = errands.execute(&view, |_, commands, data| match self.execute(&commands[0], data) {
            Reply::Done(status, dw0) => Outcome::Done(status, dw0),
            Reply::Held => Outcome::Held,
        });
        if let Some(admin) = &mut self.admin {
            admin.remote = Some(errands);
        }
        if is_bad {
            self.controller.link().notify(flag::BAD_DOORBELL);
        }
        if moves.arrived {
            self.interrupt();
        }
        if executed {
            self.tell_events();
        }
        moves.moved || executed || brought > 0
    }

    /// Completions that commands which wait will need.
    fn owed(&self) -> u16 {
        u16::try_from(self.deletions.len() + self.aborts.len()).unwrap_or(u16::MAX)
    }

    /// The next admin command for whose completion there is room, besides those that are owed.
    fn next_admin(&mut self) -> Option<Command> {
        let mut owed = self.owed();
        let admin = self.admin.as_mut()?;
        owed += admin.remote.as_ref().map_or(0, |errands| errands.owed());
        match admin.sq.look() {
            Ok(0) => return None,
            Ok(_) => {}
            Err(_) => {
                self.controller.link().notify(flag::BAD_DOORBELL);
                return None;
            }
        }
        let is_full = admin.remote.as_ref().is_some_and(|errands| !errands.has_room());
        if is_full || admin.cq.room(owed.saturating_add(1)) <= owed {
            return None;
        }
        let command = admin.sq.peek(0)?;
        admin.sq.advance(1);
        Some(command)
    }

    fn execute_mapped(&mut self, command: &Command) -> Reply {
        let Some(admin) = &self.admin else { return Reply::Done(Status::INTERNAL_ERROR, 0) };
        let view = admin.view.clone();
        self.execute(command, &GuestData { view: &view, admin: true })
    }

    fn execute(&mut self, command: &Command, data: &impl Data) -> Reply {
        let is_private = self.admin.as_ref().is_some_and(|admin| admin.sq.is_remote);
        self.controller.set_memory_private(is_private);
        let queue = match command.opcode {
            admin::CREATE_CQ => self.create_cq(command),
            admin::CREATE_SQ => self.create_sq(command),
            admin::DELETE_CQ => self.delete_cq(command),
            admin::DELETE_SQ => self.delete_sq(command),
            admin::DOORBELL_BUFFER => self.set_buffers(command),
            admin::ABORT if command.cdw10 & 0xffff != 0 => self.abort(command),
            _ => {
                let reply = self.controller.admin(command, data);
                if command.opcode == admin::SET_FEATURES && reply == Reply::OK && sets_moderation(command) {
                    self.tell_moderation();
                }
                if reply == Reply::OK {
                    self.hear(command);
                }
                return reply;
            }
        };
        Counters::add(&self.controller.link().admin.commands, 1);
        queue.unwrap_or_else(|status| {
            self.controller.log_error(0, command.cid, status, command.nsid);
            Reply::Done(status, 0)
        })
    }

    /// Asks for a doorbell of the admin queue; true if there is something already.
    pub(super) fn arm_admin(&self) -> bool {
        self.admin.as_ref().is_some_and(|admin| admin.sq.arm())
    }
}

/// Whether Set Features is about how interrupts are held back.
fn sets_moderation(command: &Command) -> bool {
    matches!(command.cdw10.to_le_bytes()[0], feature::COALESCING | feature::VECTOR)
}

impl Admin {
    /// Finds the rings anew; false where they cannot be reached.
    pub(super) fn resolve(&mut self, bus: &Arc<Bus>, home: &Asker) -> bool {
        let Self { sq, cq, remote, .. } = self;
        let view = bus.bus_master().then_some(&self.view);
        // The admin queue has no shadow doorbells: Linux and SPDK ring it by its register.
        let is_mapped = cq.resolve(view, None) & sq.resolve(view, None);
        let found = is_mapped || view.is_some_and(|view| cq.go_remote(view) & sq.go_remote(view));
        if found && !is_mapped {
            errands(remote, bus, home);
        }
        if let Some(errands) = remote {
            errands.retry(&self.view);
        }
        found
    }
}

fn errands<'a>(there: &'a mut Option<Box<Errands>>, bus: &Arc<Bus>, home: &Asker) -> &'a mut Errands {
    there.get_or_insert_with(|| Box::new(Errands::new(bus, home.clone())))
}
