//! The reservation commands (Base, 7.2 to 7.5): decoded here, kept by the namespace.

use super::{Executor, Verdict, job::Kind};
use crate::nvme::{
    data::{self, Data},
    link::Counters,
    spec::{Command, Status, nvm},
};

fn keys(bytes: [u8; 16]) -> (u64, u64) {
    let [a, b]: [u64; 2] = zerocopy::transmute!(bytes);
    (a, b)
}

impl Executor {
    pub(super) fn reserve(
        &mut self,
        tag: u16,
        command: &Command,
        data: &impl Data,
    ) -> Result<Verdict, Status> {
        let at = self.space(command.nsid)?;
        let Some(space) = &self.spaces[at] else { return Err(Status::INVALID_NAMESPACE) };
        if space.inaccessible {
            return Err(Status::ANA_INACCESSIBLE);
        }
        let namespace = std::sync::Arc::clone(&space.namespace);
        let host = self.link.host_id();
        // A host without a name cannot reserve (Base, 8.19).
        if host == [0; 16] {
            return Err(Status::HOST_ID_INCONSISTENT);
        }
        let action = u8::try_from(command.cdw10 & 7).unwrap_or(0);
        let ignore_key = command.cdw10 & 1 << 3 != 0;
        let kind = u8::try_from(command.cdw10 >> 8 & 0xff).unwrap_or(0);
        let reservations = &namespace.reservations;
        if command.opcode == nvm::RESERVATION_REPORT {
            let extended = command.cdw11 & 1 == 1;
            let mut report = reservations.report(extended);
            let len = (u64::from(command.cdw10) + 1) * 4;
            if len > u64::from(self.options.max_io_size) {
                return Err(Status::INVALID_FIELD);
            }
            report.resize(usize::try_from(len).unwrap_or(0), 0);
            data::store(data, command, &report)?;
            return Ok(self.reserved());
        }
        // What is to be kept ends as a job.
        if reservations.can_persist() && !self.has_job() {
            return Ok(Verdict::Full);
        }
        let mut bytes = [0; 16];
        let len = if command.opcode == nvm::RESERVATION_RELEASE { 8 } else { 16 };
        data::fetch(data, command, &mut bytes[..len])?;
        let notices = match command.opcode {
            nvm::RESERVATION_REGISTER => {
                let ptpl = u8::try_from(command.cdw10 >> 30).unwrap_or(0);
                reservations.register(host, self.link.cntlid, action, (ignore_key, ptpl), keys(bytes))?
            }
            // IEKEY was removed from these two and must be clear (Base, 7.2).
            _ if ignore_key => return Err(Status::INVALID_FIELD),
            nvm::RESERVATION_ACQUIRE => reservations.acquire(host, action, kind, keys(bytes))?,
            _ => reservations.release(host, action, kind, keys(bytes).0)?,
        };
        for (told, notice) in notices {
            for link in self.subsystem.links().iter().filter(|link| link.host_id() == told) {
                link.log_reservation(notice, namespace.nsid);
            }
        }
        let change = reservations.last_change();
        if reservations.is_kept(change) == Some(true) {
            return Ok(self.reserved());
        }
        self.start(tag, command, at, Kind::Keep { change })
    }

    fn reserved(&self) -> Verdict {
        Counters::add(&self.counters.commands, 1);
        Verdict::Done(Status::SUCCESS)
    }

    /// What became of a change that is to outlive the target; none while it is on its way to the disk.
    pub(super) fn kept(&self, at: usize, change: u64) -> Option<Status> {
        let Some(space) = self.spaces.get(at).and_then(Option::as_ref) else {
            return Some(Status::INVALID_NAMESPACE);
        };
        let is_kept = space.namespace.reservations.is_kept(change)?;
        Some(if is_kept { Status::SUCCESS } else { Status::INTERNAL_ERROR })
    }
}
