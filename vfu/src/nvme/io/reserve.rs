//! The reservation commands (Base, 7.2 to 7.5): decoded here, kept by the namespace.

use super::Executor;
use crate::nvme::{
    data::{self, Data},
    spec::{Command, Status, nvm},
};

fn keys(bytes: [u8; 16]) -> (u64, u64) {
    let [a, b]: [u64; 2] = zerocopy::transmute!(bytes);
    (a, b)
}

impl Executor {
    pub(super) fn reserve(&mut self, command: &Command, data: &impl Data) -> Result<(), Status> {
        let at = self.space(command.nsid)?;
        let Some(space) = &self.spaces[at] else { return Err(Status::INVALID_NAMESPACE) };
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
            return data::store(data, command, &report);
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
        Ok(())
    }
}
