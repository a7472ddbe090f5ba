//! Get Log Page (Base, 5.16).

use std::collections::{BTreeMap, VecDeque};

use zerocopy::{FromZeros, IntoBytes};

use super::{Controller, Refused, features};
use crate::nvme::{
    data::{self, Data},
    link::MAX_CHANGED,
    spec::{
        Command, NSID_ALL, Status, admin,
        log::{ErrorEntry, Firmware, Health, ReservationNotification, id},
        nvm,
    },
};

/// Entries of the error log, as ELPE says (zero-based there).
pub(super) const MAX_ERRORS: usize = 64;
/// Most bytes of a log page that are handed out at once.
const MAX_LEN: u64 = 1 << 20;

/// Errors, the newest first.
#[derive(Debug, Default)]
pub(super) struct ErrorLog {
    entries: VecDeque<ErrorEntry>,
    count: u64,
}

impl ErrorLog {
    pub(super) fn log(&mut self, sqid: u16, cid: u16, status: Status, lba: u64, nsid: u32) {
        self.count += 1;
        self.entries.truncate(MAX_ERRORS - 1);
        let mut entry = ErrorEntry::new_zeroed();
        entry.error_count = self.count;
        (entry.sqid, entry.cid, entry.status) = (sqid, cid, status.word(false));
        // No field is to blame in particular.
        entry.location = 0xffff;
        (entry.lba, entry.nsid) = (lba, nsid);
        self.entries.push_front(entry);
    }
}

/// What a disk that is memory or a file says of its temperature: that of a room, in kelvins.
pub(super) const TEMPERATURE: u16 = 300;

/// Critical Warning of SMART / Health (Base, figure 207).
mod critical {
    /// Over or under a threshold.
    pub(super) const TEMPERATURE: u8 = 1 << 1;
}

/// Supported, and what it does to namespaces (Base, figure 211).
const SUPPORTED: u32 = 1;
const CHANGES_DATA: u32 = 1 << 1;

/// Log pages of a controller.
const PAGES: &[u8] = &[
    id::SUPPORTED,
    id::ERROR,
    id::HEALTH,
    id::FIRMWARE,
    id::CHANGED_NAMESPACES,
    id::EFFECTS,
    id::ANA,
    id::FEATURES,
    id::RESERVATION,
];

impl Controller {
    pub(super) fn get_log_page(&mut self, command: &Command, data: &impl Data) -> Result<(), Refused> {
        #[expect(clippy::cast_possible_truncation, reason = "the identifier is the low byte")]
        let page = command.cdw10 as u8;
        let dwords = u64::from(command.cdw10 >> 16) | u64::from(command.cdw11 & 0xffff) << 16;
        let offset = u64::from(command.cdw13) << 32 | u64::from(command.cdw12);
        let len = (dwords + 1) * 4;
        if len > MAX_LEN || offset & 3 != 0 || len > u64::from(self.options.max_io_size) {
            return Err(Status::INVALID_FIELD);
        }
        // Only a read without RAE clears what the page tells (Base, 5.16.1).
        let keep = command.cdw10 & 1 << 15 != 0;
        let scoped = command.nsid != 0 && command.nsid != NSID_ALL;
        if !self.has_page(page) {
            return Err(Status::INVALID_LOG_PAGE);
        }
        // Health is the controller's, not a namespace's (LPA bit 0 is clear).
        if page == id::HEALTH && scoped {
            return Err(Status::INVALID_FIELD);
        }
        // Before the page is made: some are taken by being read.
        let target = data::target(data, command, usize::try_from(len).unwrap_or(0))?;
        let bytes = match page {
            id::SUPPORTED => self.supported_pages(),
            id::ERROR => self.error_page(),
            id::HEALTH => self.health_page(),
            id::FIRMWARE => firmware_page(),
            id::CHANGED_NAMESPACES => self.changed_page(keep),
            id::EFFECTS => self.effects_page(),
            id::ANA => self.ana_page(command.cdw10 & 1 << 8 != 0),
            id::FEATURES => features_page(),
            _ => self.reservation_page(),
        };
        if offset > bytes.len() as u64 {
            return Err(Status::INVALID_FIELD);
        }
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let mut out = vec![0; usize::try_from(len).unwrap_or(0)];
        let n = out.len().min(bytes.len() - from);
        out[..n].copy_from_slice(&bytes[from..from + n]);
        target.store(&out)?;
        if !keep {
            self.events.page_read(page);
        }
        Ok(())
    }

    fn has_page(&self, page: u8) -> bool {
        PAGES.contains(&page) && (page != id::ANA || self.subsystem.options().ana_reporting)
    }

    fn supported_pages(&self) -> Vec<u8> {
        let mut words = [0_u32; 256];
        for &page in PAGES.iter().filter(|&&page| self.has_page(page)) {
            words[usize::from(page)] = 1;
        }
        words.as_bytes().to_vec()
    }

    fn error_page(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> =
            self.errors.entries.iter().flat_map(|entry| entry.as_bytes().to_vec()).collect();
        bytes.resize(MAX_ERRORS * size_of::<ErrorEntry>(), 0);
        bytes
    }

    fn health_page(&self) -> Vec<u8> {
        let mut health = Health::new_zeroed();
        // A disk that is memory or a file has no wear.
        health.temperature = TEMPERATURE;
        health.critical_warning =
            if self.features.is_temperature_critical() { critical::TEMPERATURE } else { 0 };
        (health.available_spare, health.spare_threshold) = (100, 10);
        // Thousands of units of 512 bytes, rounded up (Base, figure 207).
        let units = |sectors: u64| u128::from(sectors.div_ceil(1000));
        health.data_units_read = units(self.link.sum(|counters| &counters.sectors_read));
        health.data_units_written = units(self.link.sum(|counters| &counters.sectors_written));
        health.host_read_commands = self.link.sum(|counters| &counters.reads).into();
        health.host_write_commands = self.link.sum(|counters| &counters.writes).into();
        health.media_errors = self.link.sum(|counters| &counters.media_errors).into();
        health.power_cycles = self.power_cycles.into();
        health.power_on_hours = (self.started.elapsed().as_secs() / 3600).into();
        health.error_log_entries = self.errors.count.into();
        health.as_bytes().to_vec()
    }

    fn changed_page(&self, keep: bool) -> Vec<u8> {
        let changed = if keep { self.link.changed() } else { self.link.take_changed() };
        let mut list = [0_u32; MAX_CHANGED];
        if changed.len() > MAX_CHANGED {
            list[0] = NSID_ALL;
        } else {
            list[..changed.len()].copy_from_slice(&changed);
        }
        list.as_bytes().to_vec()
    }

    fn effects_page(&self) -> Vec<u8> {
        let oncs = self.options.oncs();
        let has = |bit: u16, effects: u32| if oncs & bit != 0 { effects } else { 0 };
        // Admin commands in the first 256 dwords, I/O commands in the next.
        let mut words = [0_u32; 1024];
        let mut set = |base: usize, opcode: u8, effects: u32| words[base + usize::from(opcode)] = effects;
        for opcode in [
            admin::DELETE_SQ,
            admin::CREATE_SQ,
            admin::GET_LOG_PAGE,
            admin::DELETE_CQ,
            admin::CREATE_CQ,
            admin::IDENTIFY,
            admin::ABORT,
            admin::SET_FEATURES,
            admin::GET_FEATURES,
            admin::ASYNC_EVENT,
            admin::KEEP_ALIVE,
        ] {
            set(0, opcode, SUPPORTED);
        }
        set(0, admin::DOORBELL_BUFFER, u32::from(self.offers_shadow_doorbells()));
        use super::oncs::{COMPARE, COPY, DSM, RESERVATIONS, VERIFY, WRITE_ZEROES};
        set(256, nvm::FLUSH, SUPPORTED);
        set(256, nvm::READ, SUPPORTED);
        set(256, nvm::WRITE, SUPPORTED | CHANGES_DATA);
        set(256, nvm::COMPARE, has(COMPARE, SUPPORTED));
        set(256, nvm::WRITE_ZEROES, has(WRITE_ZEROES, SUPPORTED | CHANGES_DATA));
        set(256, nvm::DATASET_MANAGEMENT, has(DSM, SUPPORTED | CHANGES_DATA));
        set(256, nvm::VERIFY, has(VERIFY, SUPPORTED));
        set(256, nvm::COPY, has(COPY, SUPPORTED | CHANGES_DATA));
        for opcode in [
            nvm::RESERVATION_REGISTER,
            nvm::RESERVATION_REPORT,
            nvm::RESERVATION_ACQUIRE,
            nvm::RESERVATION_RELEASE,
        ] {
            set(256, opcode, has(RESERVATIONS, SUPPORTED));
        }
        words.as_bytes().to_vec()
    }

    /// ANA log page (Base, figure 222); `groups_only` is RGO.
    fn ana_page(&self, groups_only: bool) -> Vec<u8> {
        let mut groups: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for namespace in self.subsystem.namespaces() {
            groups.entry(namespace.anagrpid()).or_default().push(namespace.nsid);
        }
        let changes = self.link.ana.changes() + self.subsystem.regroupings();
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&changes.to_le_bytes());
        bytes.extend_from_slice(&u16::try_from(groups.len()).unwrap_or(u16::MAX).to_le_bytes());
        bytes.extend_from_slice(&[0; 6]);
        for (group, namespaces) in groups {
            let listed: &[u32] = if groups_only { &[] } else { &namespaces };
            bytes.extend_from_slice(&group.to_le_bytes());
            bytes.extend_from_slice(&u32::try_from(listed.len()).unwrap_or(0).to_le_bytes());
            bytes.extend_from_slice(&changes.to_le_bytes());
            bytes.push(self.link.ana.get(group) as u8);
            bytes.extend_from_slice(&[0; 15]);
            bytes.extend(listed.iter().flat_map(|nsid| nsid.to_le_bytes()));
        }
        bytes
    }

    fn reservation_page(&mut self) -> Vec<u8> {
        match self.link.take_notification() {
            None => ReservationNotification::default().as_bytes().to_vec(),
            Some((mut notification, left)) => {
                notification.available = u8::try_from(left).unwrap_or(u8::MAX);
                notification.as_bytes().to_vec()
            }
        }
    }
}

fn firmware_page() -> Vec<u8> {
    let mut firmware = Firmware::new_zeroed();
    firmware.afi = 1;
    firmware.revisions[0] = super::identify::firmware_revision();
    firmware.as_bytes().to_vec()
}

fn features_page() -> Vec<u8> {
    let mut words = [0_u32; 256];
    for &(feature, scope) in features::SUPPORTED {
        // FSUPP, FSP (scope) in bits 31:20.
        words[usize::from(feature)] = 1 | scope << 20;
    }
    words.as_bytes().to_vec()
}
