//! Asynchronous events (Base, 5.2): requests that wait, events that wait, and which of them are told.

use std::collections::VecDeque;

use super::Refused;
use crate::nvme::spec::{Status, log};

/// Most requests that may wait, as AERL says (zero-based there).
pub(super) const LIMIT: usize = 4;

/// Configuration bits (Base, figure 329).
pub(super) mod config {
    /// Namespace attribute notices.
    pub(in super::super) const NAMESPACE: u32 = 1 << 8;
    /// ANA change notices.
    pub(in super::super) const ANA: u32 = 1 << 11;
    /// The critical warning of SMART / Health that there is: the temperature's.
    pub(in super::super) const TEMPERATURE: u32 = 1 << 1;
    /// Critical warnings of SMART / Health.
    pub(in super::super) const HEALTH: u32 = 0xff;
    /// All that can be switched on.
    pub(in super::super) const ALL: u32 = NAMESPACE | ANA | HEALTH;
}

/// An event, as in dword 0 of its completion: type, information, log page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Event {
    kind: u8,
    info: u8,
    page: u8,
}

const NAMESPACE: Event = Event { kind: 2, info: 0, page: log::id::CHANGED_NAMESPACES };
const ANA: Event = Event { kind: 2, info: 3, page: log::id::ANA };
const RESERVATION: Event = Event { kind: 6, info: 0, page: log::id::RESERVATION };
const TEMPERATURE: Event = Event { kind: 1, info: 1, page: log::id::HEALTH };
const BAD_DOORBELL: Event = Event { kind: 0, info: 1, page: log::id::ERROR };
const BAD_REGISTER: Event = Event { kind: 0, info: 0, page: log::id::ERROR };

/// Requests and events of one controller.
#[derive(Debug, Default)]
pub(super) struct Events {
    requests: VecDeque<u16>,
    pending: VecDeque<Event>,
    /// Events told, and masked until their log page is read (Base, 5.2.1).
    masked: Vec<Event>,
    aborted: VecDeque<u16>,
}

impl Events {
    fn add(&mut self, event: Event) {
        if !self.pending.contains(&event) {
            self.pending.push_back(event);
        }
    }

    pub(super) fn namespaces_changed(&mut self) {
        self.add(NAMESPACE);
    }

    pub(super) fn ana_changed(&mut self) {
        self.add(ANA);
    }

    pub(super) fn reservation_logged(&mut self) {
        self.add(RESERVATION);
    }

    pub(super) fn temperature_critical(&mut self) {
        self.add(TEMPERATURE);
    }

    pub(super) fn invalid_doorbell(&mut self) {
        self.add(BAD_DOORBELL);
    }

    /// A doorbell of a queue that is not there was written.
    pub(super) fn invalid_register(&mut self) {
        self.add(BAD_REGISTER);
    }

    /// A request waits.
    pub(super) fn hold(&mut self, cid: u16) -> Result<(), Refused> {
        if self.requests.len() == LIMIT {
            return Err(Status::ASYNC_EVENT_LIMIT);
        }
        self.requests.push_back(cid);
        Ok(())
    }

    /// The log page was read: its events may be told again.
    pub(super) fn page_read(&mut self, page: u8) {
        self.masked.retain(|event| event.page != page);
    }

    /// A request and the event that completes it.
    pub(super) fn take(&mut self, enabled: u32) -> Option<(u16, u32)> {
        // What the host has switched off is not told later either.
        self.pending.retain(|event| match *event {
            NAMESPACE => enabled & config::NAMESPACE != 0,
            ANA => enabled & config::ANA != 0,
            TEMPERATURE => enabled & config::TEMPERATURE != 0,
            _ => true,
        });
        if self.requests.is_empty() {
            return None;
        }
        let at = self.pending.iter().position(|event| !self.masked.contains(event))?;
        let event = self.pending.remove(at)?;
        self.masked.push(event);
        let dw0 = u32::from(event.page) << 16 | u32::from(event.info) << 8 | u32::from(event.kind);
        Some((self.requests.pop_front()?, dw0))
    }

    /// Aborts a request; false if it does not wait.
    pub(super) fn abort(&mut self, cid: u16) -> bool {
        let at = self.requests.iter().position(|&request| request == cid);
        if let Some(at) = at {
            self.requests.remove(at);
            self.aborted.push_back(cid);
        }
        at.is_some()
    }

    pub(super) fn take_aborted(&mut self) -> Option<u16> {
        self.aborted.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_is_told_once_until_its_page_is_read() {
        let mut events = Events::default();
        events.hold(1).unwrap();
        events.hold(2).unwrap();
        events.namespaces_changed();
        assert_eq!(events.take(config::ALL), Some((1, 0x04_00_02)));
        events.namespaces_changed();
        assert_eq!(events.take(config::ALL), None);
        events.page_read(log::id::CHANGED_NAMESPACES);
        assert_eq!(events.take(config::ALL), Some((2, 0x04_00_02)));
    }

    #[test]
    fn event_that_is_switched_off_is_not_told() {
        let mut events = Events::default();
        events.hold(1).unwrap();
        events.namespaces_changed();
        assert_eq!(events.take(0), None);
        assert_eq!(events.take(config::ALL), None);
    }

    #[test]
    fn requests_above_the_limit_are_refused_and_an_aborted_one_makes_room() {
        let mut events = Events::default();
        for cid in 0..4 {
            events.hold(cid).unwrap();
        }
        assert_eq!(events.hold(9), Err(Status::ASYNC_EVENT_LIMIT));
        assert!(events.abort(2) && !events.abort(2));
        assert_eq!(events.take_aborted(), Some(2));
        assert_eq!(events.hold(9), Ok(()));
    }
}
