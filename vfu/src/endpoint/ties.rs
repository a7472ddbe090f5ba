//! What binds a session to the reactor that serves it: its descriptors in that reactor's epoll set.
//!
//! Apart from the session, so that a session can go to another reactor, where it is tied anew.

use std::{io, os::fd::BorrowedFd};

use reactor::{Interest, PollerCx, Watch};

/// The ties of one session.
pub(super) struct Ties {
    cx: PollerCx,
    client: Watch,
    twin: Option<Watch>,
    eventfds: Vec<Watch>,
}

impl Ties {
    /// Watches the client's socket.
    pub(super) fn new(client: BorrowedFd<'_>, cx: &PollerCx) -> io::Result<Self> {
        let client = cx.watch(client, Interest::Read)?;
        Ok(Self { cx: cx.clone(), client, twin: None, eventfds: Vec::new() })
    }

    /// Watches the twin socket too.
    pub(super) fn add_twin(&mut self, twin: BorrowedFd<'_>) -> io::Result<()> {
        self.twin = Some(self.cx.watch(twin, Interest::Read)?);
        Ok(())
    }

    /// Watches an eventfd that stands for doorbells.
    pub(super) fn add_eventfd(&mut self, eventfd: BorrowedFd<'_>) -> io::Result<()> {
        self.eventfds.push(self.cx.watch(eventfd, Interest::Read)?);
        Ok(())
    }

    /// What the client's socket is watched for.
    pub(super) fn await_client(&mut self, interest: Interest) -> io::Result<()> {
        self.client.set_interest(interest)
    }

    /// What the twin socket is watched for, if there is one.
    pub(super) fn await_twin(&mut self, interest: Interest) -> io::Result<()> {
        self.twin.as_mut().map_or(Ok(()), |twin| twin.set_interest(interest))
    }
}
