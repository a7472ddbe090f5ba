//! The control and the event queue, and the handler that is any of a device's queues.

use std::{os::fd::BorrowedFd, sync::Arc};

use zerocopy::{FromBytes, IntoBytes};

use super::{
    request::{Commands, address},
    spec::{Event, OWN_QUEUES, Tmf, control, control::tmf, event, response},
    units::Shared,
};
use crate::{
    dma::View,
    stages::Laps,
    virtio::{
        device::{Handler, Verdict},
        queue::{Chain, Segment},
    },
};

/// Handles the requests of one queue.
pub struct ScsiHandler(Role);

enum Role {
    Control(Control),
    Events(Arc<Shared>),
    Commands(Box<Commands>),
}

/// A task management function that waits for a drain.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    id: u16,
    response: Segment,
    drain: u64,
}

/// The control queue.
///
/// A bdev cannot take a request back, and a guest's memory must not be touched once a task is reported as aborted. So
/// every function that ends tasks waits until all of the device's queues have finished what they had. Those that it names
/// go no further than the request of their bdev that they are at.
struct Control {
    shared: Arc<Shared>,
    waiting: Vec<Waiting>,
}

impl ScsiHandler {
    pub(super) fn new(index: u16, shared: Arc<Shared>, depth: u16) -> Self {
        Self(match index {
            0 => Role::Control(Control { shared, waiting: Vec::with_capacity(usize::from(depth)) }),
            1 => Role::Events(shared),
            _ => Role::Commands(Box::new(Commands::new(index - OWN_QUEUES, shared, depth))),
        })
    }
}

impl Control {
    fn submit(&mut self, chain: &Chain, view: &View) -> Verdict {
        let (Some(&ask), Some(&answer)) = (chain.readable().first(), chain.writable().last()) else {
            return Verdict::Broken;
        };
        let mut kind = [0; 4];
        if answer.len == 0 || ask.len < 4 || view.read(ask.addr, &mut kind).is_err() {
            return Verdict::Broken;
        }
        let done = |code: u8| {
            let _ = view.write(answer.addr, &[code]);
            Verdict::Done(1)
        };
        match u32::from_le_bytes(kind) {
            control::TMF => {
                let mut bytes = [0; size_of::<Tmf>()];
                if (ask.len as usize) < bytes.len() || view.read(ask.addr, &mut bytes).is_err() {
                    return done(response::FAILURE);
                }
                let Ok(request) = Tmf::read_from_bytes(&bytes) else { return done(response::FAILURE) };
                self.manage(&request, chain.id(), answer, done)
            }
            // No asynchronous notifications: none are there, none are subscribed to.
            control::AN_QUERY | control::AN_SUBSCRIBE if answer.len >= 5 => {
                let _ = view.write(answer.addr, &[0, 0, 0, 0, response::OK]);
                Verdict::Done(5)
            }
            _ => done(response::FAILURE),
        }
    }

    fn manage(&mut self, request: &Tmf, id: u16, answer: Segment, done: impl Fn(u8) -> Verdict) -> Verdict {
        let Some((target, lun)) = address(request.lun) else { return done(response::BAD_TARGET) };
        if self.shared.unit(target).is_none() {
            return done(response::BAD_TARGET);
        }
        if lun != 0 && request.subtype != tmf::I_T_NEXUS_RESET {
            return done(response::INCORRECT_LUN);
        }
        match request.subtype {
            tmf::ABORT_TASK
            | tmf::ABORT_TASK_SET
            | tmf::CLEAR_TASK_SET
            | tmf::I_T_NEXUS_RESET
            | tmf::LOGICAL_UNIT_RESET => {
                let tag = (request.subtype == tmf::ABORT_TASK).then_some(request.id);
                self.shared.tasks.abort(target, tag);
                let drain = self.shared.start_drain();
                self.waiting.push(Waiting { id, response: answer, drain });
                Verdict::InFlight
            }
            tmf::CLEAR_ACA => done(response::FUNCTION_COMPLETE),
            // SAM-5, 7.8 and 7.9: succeeded says that it is there, complete that it is not.
            tmf::QUERY_TASK | tmf::QUERY_TASK_SET => {
                let tag = (request.subtype == tmf::QUERY_TASK).then_some(request.id);
                let is_there = self.shared.tasks.holds(target, tag);
                done(if is_there { response::FUNCTION_SUCCEEDED } else { response::FUNCTION_COMPLETE })
            }
            _ => done(response::FUNCTION_REJECTED),
        }
    }

    fn reap(&mut self, view: &View, done: &mut dyn FnMut(u16, u32)) {
        let shared = &self.shared;
        self.waiting.retain(|waiting| {
            if !shared.is_drained(waiting.drain) {
                return true;
            }
            let _ = view.write(waiting.response.addr, &[response::FUNCTION_COMPLETE]);
            done(waiting.id, 1);
            false
        });
    }
}

/// Writes the next event into a buffer.
fn send_event(shared: &Shared, chain: &Chain, view: &View) -> Verdict {
    let Some(buffer) = chain.writable().first().filter(|it| it.len as usize >= size_of::<Event>()) else {
        return Verdict::Broken;
    };
    let Some((happened, missed)) = shared.take_event() else { return Verdict::Full };
    let mut message = Event { event: event::NO_EVENT, lun: [0; 8], reason: 0 };
    if let Some(happened) = happened {
        message = Event {
            event: happened.event,
            // Not in the flat format of virtio 1.2, 5.6.6.1: Linux takes the two bytes for the number as they are, and QEMU
            // gives it zero.
            lun: [1, happened.target, 0, 0, 0, 0, 0, 0],
            reason: happened.reason,
        };
    }
    if missed {
        message.event |= event::MISSED;
    }
    // A buffer that is not there is the driver's own loss.
    let _ = view.write(buffer.addr, message.as_bytes());
    Verdict::Done(size_of::<Event>() as u32)
}

impl Handler for ScsiHandler {
    fn begin(&mut self, now: u64, _view: &View) {
        if let Role::Commands(commands) = &mut self.0 {
            commands.set_now(now);
        }
    }

    fn submit(&mut self, chain: &Chain, view: &View, laps: &mut impl Laps) -> Verdict {
        match &mut self.0 {
            Role::Control(control) => control.submit(chain, view),
            Role::Events(shared) => send_event(shared, chain, view),
            Role::Commands(commands) => commands.submit(chain, view, laps),
        }
    }

    fn prefetch(&self, view: &View) {
        if let Role::Commands(commands) = &self.0 {
            commands.prefetch(view);
        }
    }

    fn kick(&mut self) {
        if let Role::Commands(commands) = &mut self.0 {
            commands.kick();
        }
    }

    fn reap(&mut self, view: &View, laps: &mut impl Laps, mut done: impl FnMut(u16, u32)) {
        match &mut self.0 {
            Role::Control(control) => control.reap(view, &mut done),
            Role::Events(_) => {}
            Role::Commands(commands) => commands.reap(view, laps, &mut done),
        }
    }

    fn in_flight(&self) -> usize {
        match &self.0 {
            Role::Control(control) => control.waiting.len(),
            Role::Events(_) => 0,
            Role::Commands(commands) => commands.in_flight(),
        }
    }

    fn drain(&mut self, stops: bool) {
        if let Role::Commands(commands) = &mut self.0 {
            commands.drain(stops);
        }
    }

    fn refresh(&mut self) {
        if let Role::Commands(commands) = &mut self.0 {
            commands.refresh();
        }
    }

    fn is_in_flight(&self, id: u16) -> bool {
        match &self.0 {
            Role::Control(control) => control.waiting.iter().any(|waiting| waiting.id == id),
            Role::Events(_) => false,
            Role::Commands(commands) => commands.is_in_flight(id),
        }
    }

    fn is_accepting(&self) -> bool {
        match &self.0 {
            // Buffers stay on the ring until there is something to put into one.
            Role::Events(shared) => shared.has_events(),
            _ => true,
        }
    }

    fn arm(&mut self) -> bool {
        match &mut self.0 {
            Role::Commands(commands) => commands.arm(),
            _ => false,
        }
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.0 {
            Role::Commands(commands) => commands.event_fd(),
            _ => None,
        }
    }
}
