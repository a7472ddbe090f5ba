//! DEVICE_SET_IRQS: decoded and checked into an [`Order`], then carried out.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use zerocopy::FromBytes;

use super::session::Reply;
use crate::{
    function::Function,
    irq::{Irqs, check_eventfd},
    wire::spec::{IrqSet, irq, irq_set_flags as set},
};

/// What a client wants of a range of interrupts.
enum Order {
    /// Set their eventfds, or take them away.
    Assign(Vec<Option<OwnedFd>>),
    /// Fire, mask or unmask those that are marked.
    Act(Action, Vec<bool>),
}

#[derive(Clone, Copy)]
enum Action {
    Trigger,
    Mask,
    Unmask,
}

/// DEVICE_SET_IRQS.
pub(super) fn set(function: &mut Function, payload: &[u8], fds: Vec<OwnedFd>) -> Result<Reply, Errno> {
    let (request, data) = IrqSet::read_from_prefix(payload).map_err(|_short| Errno::INVAL)?;
    let order = decode(&request, data, fds, &function.bus().irqs)?;
    let irqs = &function.bus().irqs;
    match order {
        Order::Assign(eventfds) => {
            for (number, eventfd) in (request.start..).zip(eventfds) {
                irqs.assign(request.index, number, eventfd);
            }
        }
        Order::Act(action, marked) => {
            let act = match action {
                Action::Trigger => Irqs::trigger,
                Action::Mask => Irqs::mask,
                Action::Unmask => Irqs::unmask,
            };
            for (number, _) in (request.start..).zip(marked).filter(|(_, marked)| *marked) {
                act(irqs, request.index, number);
            }
        }
    }
    function.model().adopt();
    Ok(Reply::empty())
}

fn decode(request: &IrqSet, data: &[u8], fds: Vec<OwnedFd>, irqs: &Irqs) -> Result<Order, Errno> {
    let IrqSet { argsz, flags, index, start, count } = *request;
    let (kind, action) = (flags & set::DATA_MASK, flags & set::ACTIONS);
    let known = flags & !(set::DATA_MASK | set::ACTIONS) == 0;
    if (argsz as usize) < size_of::<IrqSet>()
        || !known
        || !kind.is_power_of_two()
        || !action.is_power_of_two()
    {
        return Err(Errno::INVAL);
    }
    if index >= irq::COUNT || (kind != set::DATA_EVENTFD && !fds.is_empty()) {
        return Err(Errno::INVAL);
    }
    if matches!(index, irq::ERR | irq::REQ) && (count > 1 || action != set::ACTION_TRIGGER) {
        return Err(Errno::INVAL);
    }
    let all = irqs.count(index);
    // Nothing, from the start, without data: switch all of them off.
    if start == 0 && count == 0 && kind == set::DATA_NONE && action == set::ACTION_TRIGGER {
        return Ok(Order::Assign((0..all).map(|_| None).collect()));
    }
    if start >= all || start.checked_add(count).is_none_or(|end| end > all) {
        return Err(Errno::INVAL);
    }
    let action = match action {
        set::ACTION_MASK => Action::Mask,
        set::ACTION_UNMASK => Action::Unmask,
        _ => Action::Trigger,
    };
    let count = count as usize;
    match kind {
        set::DATA_NONE => Ok(Order::Act(action, vec![true; count])),
        set::DATA_BOOL if data.len() == count => {
            Ok(Order::Act(action, data.iter().map(|&byte| byte != 0).collect()))
        }
        set::DATA_EVENTFD if matches!(action, Action::Trigger) => assignment(count, fds),
        _ => Err(Errno::INVAL),
    }
}

/// As many eventfds as interrupts, or none at all, which takes them away.
fn assignment(count: usize, fds: Vec<OwnedFd>) -> Result<Order, Errno> {
    if fds.is_empty() {
        return Ok(Order::Assign((0..count).map(|_| None).collect()));
    }
    if fds.len() != count {
        return Err(Errno::INVAL);
    }
    let checked = fds.into_iter().map(|fd| check_eventfd(fd).map(Some));
    checked.collect::<Result<_, _>>().map(Order::Assign).map_err(|_not_an_eventfd| Errno::INVAL)
}
