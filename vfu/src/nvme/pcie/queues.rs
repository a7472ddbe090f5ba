//! The admin commands that concern queues (PCIe, 4.1; Base, 5.4 to 5.8): they make sense over PCIe only.

use std::sync::Arc;

use reactor::{Handle, SendError};

use super::{
    control::{Control, State, Wanted},
    device::{Deletion, Device, Group},
    doorbells::{Buffers, Side},
    owner::{self, Start},
    ring::Setup,
};
use crate::{
    dma::View,
    nvme::{
        controller::Reply,
        spec::{CQE_LEN, Command, PAGE, SQE_LEN, Status, cc, csts},
    },
};

/// Physically Contiguous, of both kinds of queue.
const CONTIGUOUS: u32 = 1;
/// Interrupts Enabled, of a completion queue.
const INTERRUPTS: u32 = 1 << 1;

impl Device {
    /// Checks what creating a queue of either kind has in common.
    fn setup(&self, command: &Command, exists: bool, entry: usize) -> Result<Setup, Status> {
        #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
        let (qid, last) = (command.cdw10 as u16, (command.cdw10 >> 16) as u16);
        let options = self.controller.options();
        if qid == 0 || qid > options.max_io_queues || exists {
            return Err(Status::INVALID_QID);
        }
        if last == 0 || last >= options.max_queue_depth {
            return Err(Status::INVALID_QUEUE_SIZE);
        }
        let base = command.dptr[0];
        if command.cdw11 & CONTIGUOUS == 0 || command.psdt() != 0 {
            return Err(Status::INVALID_FIELD);
        }
        if !base.is_multiple_of(PAGE) {
            return Err(Status::INVALID_PRP_OFFSET);
        }
        let size = last + 1;
        let view = View::new(&self.bus.windows);
        if !view.covers(base, u64::from(size) * entry as u64, entry == CQE_LEN) {
            return Err(Status::DATA_TRANSFER_ERROR);
        }
        Ok(Setup { qid, size, base })
    }

    /// Zeroes a doorbell of a queue that is to be, wherever the driver will ring it. Not every driver does: older Linux keeps what an
    /// earlier life of the queue left in the shadow.
    fn start_doorbell(&self, doorbell: (u16, Side)) -> Result<(), Status> {
        self.doorbells.store(doorbell.0, doorbell.1, 0);
        let Some(buffers) = self.buffers else { return Ok(()) };
        let is_reached = buffers.start(&View::new(&self.bus.windows), doorbell, 0);
        is_reached.then_some(()).ok_or(Status::DATA_TRANSFER_ERROR)
    }

    pub(super) fn create_cq(&mut self, command: &Command) -> Result<Reply, Status> {
        let qid = (command.cdw10 & 0xffff) as usize;
        let exists = self.groups.get(qid).is_some_and(Option::is_some);
        let setup = self.setup(command, exists, CQE_LEN)?;
        if 1 << cc::iocqes(self.registers.cc) != CQE_LEN {
            return Err(Status::INVALID_QUEUE_SIZE);
        }
        let vector = (command.cdw11 >> 16) as u16;
        if vector > self.controller.options().max_io_queues {
            return Err(Status::INVALID_VECTOR);
        }
        self.start_doorbell((setup.qid, Side::Head))?;
        let vector = (command.cdw11 & INTERRUPTS != 0).then_some(vector);
        let reactor = self.home.reactors[(qid - 1) % self.home.reactors.len()].clone();
        let moderation = vector.and_then(|vector| self.controller.moderation(vector));
        let wanted = Wanted { sqs: Vec::new(), buffers: self.buffers, moderation };
        let control = self.start_owner(setup, vector, &reactor, wanted, None).map_err(|error| {
            tracing::error!(%error, qid, "a queue finds no reactor");
            Status::INTERNAL_ERROR
        })?;
        self.groups[qid] = Some(Group { control, sqs: Vec::new(), setup, vector, reactor, is_moving: false });
        Ok(Reply::OK)
    }

    /// Sends a completion queue's owner to a reactor, where it takes over what it had elsewhere.
    fn start_owner(
        &self,
        setup: Setup,
        vector: Option<u16>,
        reactor: &Handle,
        wanted: Wanted,
        from: Option<Arc<Control>>,
    ) -> Result<Arc<Control>, SendError> {
        let control = Control::new(self.home.waker.clone(), wanted);
        let start = Start {
            name: format!("{}_q{}", self.home.group.name(), setup.qid),
            group: self.home.group.clone(),
            bus: Arc::clone(&self.bus),
            doorbells: Arc::clone(&self.doorbells),
            control: Arc::clone(&control),
            subsystem: Arc::clone(self.controller.subsystem()),
            link: Arc::clone(self.controller.link()),
            options: *self.controller.options(),
            setup,
            vector,
            from,
        };
        owner::start(reactor, start)?;
        Ok(control)
    }

    /// Moves a live completion queue, with its submission queues, to another reactor. False if there is no such queue.
    pub(super) fn move_group(&mut self, cqid: u16, to: &Handle) -> bool {
        let Some(group) = self.groups.get_mut(usize::from(cqid)).and_then(Option::as_mut) else {
            return false;
        };
        // What is being reset does not start again elsewhere.
        if group.reactor.core() != to.core() && !group.control.is_discarding() {
            group.reactor = to.clone();
            group.is_moving = true;
            group.control.stop();
        }
        true
    }

    /// Starts what has stopped only to move. True if something did.
    pub(super) fn restart_moved(&mut self) -> bool {
        let mut moved = false;
        for cqid in 0..self.groups.len() {
            let Some(group) = &self.groups[cqid] else { continue };
            let deleted =
                self.deletions.iter().any(|one| usize::from(one.cqid) == cqid && one.sqid.is_none());
            if !group.is_moving || deleted || group.control.state() != State::Stopped {
                continue;
            }
            let (setup, vector, reactor) = (group.setup, group.vector, group.reactor.clone());
            let old = Arc::clone(&group.control);
            let started = self.start_owner(setup, vector, &reactor, old.wanted(), Some(old));
            let Some(group) = &mut self.groups[cqid] else { continue };
            match started {
                Ok(control) => {
                    group.control = control;
                    group.is_moving = false;
                }
                // Its rings are where they were: to be tried again.
                Err(SendError::Full(_)) => self.home.waker.wake(),
                Err(error) => {
                    tracing::error!(%error, qid = cqid, "a queue finds no reactor");
                    group.is_moving = false;
                    self.registers.csts |= csts::CFS;
                }
            }
            moved = true;
        }
        if moved {
            self.tell_queues();
        }
        moved
    }

    pub(super) fn create_sq(&mut self, command: &Command) -> Result<Reply, Status> {
        let qid = (command.cdw10 & 0xffff) as usize;
        let exists = self.sqs.get(qid).is_some_and(Option::is_some);
        let setup = self.setup(command, exists, SQE_LEN)?;
        if 1 << cc::iosqes(self.registers.cc) != SQE_LEN {
            return Err(Status::INVALID_QUEUE_SIZE);
        }
        let cqid = (command.cdw11 >> 16) as u16;
        if cqid == 0 || cqid > self.controller.options().max_io_queues {
            return Err(Status::INVALID_QID);
        }
        let going = self.deletions.iter().any(|deletion| deletion.cqid == cqid && deletion.sqid.is_none());
        if going || self.groups[usize::from(cqid)].is_none() {
            return Err(Status::INVALID_CQ);
        }
        self.start_doorbell((setup.qid, Side::Tail))?;
        let group = self.groups[usize::from(cqid)].as_mut().ok_or(Status::INVALID_CQ)?;
        group.sqs.push(setup.qid);
        group.control.want(|wanted| wanted.sqs.push(setup));
        self.sqs[qid] = Some(cqid);
        self.tell_queues();
        Ok(Reply::OK)
    }

    /// The completion follows when the owner has let go of the queue.
    pub(super) fn delete_sq(&mut self, command: &Command) -> Result<Reply, Status> {
        #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
        let qid = command.cdw10 as u16;
        let cqid = self.sqs.get(usize::from(qid)).copied().flatten().ok_or(Status::INVALID_QID)?;
        let going = self.deletions.iter().any(|deletion| deletion.sqid == Some(qid));
        let group = self.groups[usize::from(cqid)].as_mut().filter(|_| !going).ok_or(Status::INVALID_QID)?;
        group.sqs.retain(|&sq| sq != qid);
        group.control.want(|wanted| wanted.sqs.retain(|setup| setup.qid != qid));
        self.deletions.push(Deletion { cid: command.cid, cqid, sqid: Some(qid) });
        Ok(Reply::Held)
    }

    /// The completion follows when the owner is gone.
    pub(super) fn delete_cq(&mut self, command: &Command) -> Result<Reply, Status> {
        let qid = (command.cdw10 & 0xffff) as usize;
        let group = self.groups.get(qid).and_then(Option::as_ref).ok_or(Status::INVALID_QID)?;
        let cqid = u16::try_from(qid).unwrap_or(0);
        if self.deletions.iter().any(|deletion| deletion.cqid == cqid && deletion.sqid.is_none()) {
            return Err(Status::INVALID_QID);
        }
        if !group.sqs.is_empty() {
            return Err(Status::INVALID_QUEUE_DELETION);
        }
        group.control.stop();
        self.deletions.push(Deletion { cid: command.cid, cqid, sqid: None });
        Ok(Reply::Held)
    }

    /// Tells the queues how their interrupts are to be held back, after a feature was set.
    pub(super) fn tell_moderation(&self) {
        for group in self.groups.iter().flatten() {
            let moderation = group.vector.and_then(|vector| self.controller.moderation(vector));
            group.control.want(|wanted| wanted.moderation = moderation);
        }
    }

    /// Doorbell Buffer Config (Base, 5.8).
    pub(super) fn set_buffers(&mut self, command: &Command) -> Result<Reply, Status> {
        if !self.controller.offers_shadow_doorbells() {
            return Err(Status::INVALID_OPCODE);
        }
        let [shadow, event] = command.dptr;
        if shadow % PAGE != 0 || event % PAGE != 0 {
            return Err(Status::INVALID_PRP_OFFSET);
        }
        let buffers = Buffers { shadow, event };
        let view = View::new(&self.bus.windows);
        if buffers.spans(&view).is_none() || self.buffers.is_some_and(|old| old.spans(&view).is_none()) {
            return Err(Status::INVALID_FIELD);
        }
        // The queues that there are go on where they stand; in a page that the driver uses already it is for it to say.
        if self.buffers.is_none_or(|old| old.shadow != shadow) {
            let tails = (0_u16..).zip(&self.sqs).filter_map(|(qid, sq)| sq.map(|_| (qid, Side::Tail)));
            let heads = (0..).zip(&self.groups).filter(|(_, group)| group.is_some());
            for doorbell in tails.chain(heads.map(|(qid, _)| (qid, Side::Head))) {
                let stands = match self.buffers {
                    Some(old) => old.load(&view, doorbell),
                    None => Some(self.doorbells.load(doorbell.0, doorbell.1)),
                };
                stands.map(|value| buffers.start(&view, doorbell, value));
            }
        }
        self.buffers = Some(buffers);
        for group in self.groups.iter().flatten() {
            group.control.want(|wanted| wanted.buffers = Some(buffers));
        }
        Ok(Reply::OK)
    }
}
