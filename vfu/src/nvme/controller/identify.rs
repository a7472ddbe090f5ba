//! Identify (Base, 5.17; NVM, 4.1.5).

use zerocopy::{FromZeros, IntoBytes};

use super::{
    Controller, Refused, events,
    limits::{KEEP_ALIVE_UNITS, MAX_COPY_BLOCKS, MAX_COPY_RANGES, MAX_COPY_TOTAL},
    logs,
};
use crate::nvme::{
    data::{self, Data},
    namespace::Namespace,
    spec::{
        self, Command, NSID_ALL, Status,
        identify::{self, cns},
    },
    subsystem::MAX_NAMESPACES,
};

/// Bytes of every Identify data structure.
const LEN: usize = 4096;
/// Optional Asynchronous Events Supported: namespace attributes, ANA changes.
const OAES_NAMESPACE: u32 = 1 << 8;
const OAES_ANA: u32 = 1 << 11;
/// Optional Admin Command Support: Doorbell Buffer Config.
const OACS_DOORBELL_BUFFER: u16 = 1 << 8;
/// Reservation Capabilities: all types; persistence is added where there is a file for it.
const RESCAP: u8 = 0x7e;

/// Text in a fixed field: ASCII, padded with spaces (Base, 1.4.2).
fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    for (to, from) in field.iter_mut().zip(text.bytes()) {
        *to = if from.is_ascii_graphic() || from == b' ' { from } else { b'?' };
    }
    field
}

/// Firmware revision: the crate's version.
pub(super) fn firmware_revision() -> [u8; 8] {
    padded(env!("CARGO_PKG_VERSION"))
}

/// A list of numbers above `after`, ascending, zero-terminated if there is room.
fn list(numbers: impl Iterator<Item = u32>, after: u32) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        numbers.filter(|&number| number > after).take(LEN / 4).flat_map(u32::to_le_bytes).collect();
    bytes.resize(LEN, 0);
    bytes
}

impl Controller {
    pub(super) fn identify(&mut self, command: &Command, data: &impl Data) -> Result<(), Refused> {
        #[expect(clippy::cast_possible_truncation, reason = "CNS is the low byte")]
        let cns = command.cdw10 as u8;
        let csi = command.cdw11 >> 24;
        let nsid = command.nsid;
        let nvm = csi == 0;
        let bytes = match cns {
            cns::NAMESPACE | cns::ALLOCATED_NAMESPACE => self.namespace(nsid)?,
            cns::CONTROLLER => self.controller_data(),
            // Numbers of all namespaces above NSID, which must leave room for one (Base, 5.17.2.2).
            cns::ACTIVE | cns::ALLOCATED | cns::CSI_ACTIVE if nsid >= NSID_ALL - 1 => {
                return Err(Status::INVALID_NAMESPACE);
            }
            cns::ACTIVE | cns::ALLOCATED => self.namespace_list(nsid),
            cns::CSI_ACTIVE if nvm => self.namespace_list(nsid),
            cns::DESCRIPTORS => descriptors(&*self.active(nsid)?),
            // No protection information, so nothing to say of one that is there (NVM, figure 102).
            cns::CSI_NAMESPACE if nvm => self.of_namespace(nsid, |_| vec![0; LEN])?,
            cns::CSI_CONTROLLER if nvm => self.nvm_controller(),
            cns::INDEPENDENT => self.of_namespace(nsid, |namespace| self.independent(namespace))?,
            cns::NAMESPACE_CONTROLLERS => {
                self.active(nsid)?;
                self.controller_list(command.cdw10 >> 16)
            }
            cns::CONTROLLERS => self.controller_list(command.cdw10 >> 16),
            cns::COMMAND_SETS => {
                let mut bytes = vec![0; LEN];
                // One combination: the NVM command set.
                bytes[0] = 1;
                bytes
            }
            _ => return Err(Status::INVALID_FIELD),
        };
        data::store(data, command, &bytes)
    }

    fn active(&self, nsid: u32) -> Result<std::sync::Arc<Namespace>, Refused> {
        self.subsystem.namespace(nsid).ok_or(Status::INVALID_NAMESPACE)
    }

    fn namespace_list(&self, after: u32) -> Vec<u8> {
        list(self.subsystem.namespaces().iter().map(|namespace| namespace.nsid), after)
    }

    /// Controllers from `from` on; a number, then 16-bit IDs (Base, figure 138).
    fn controller_list(&self, from: u32) -> Vec<u8> {
        let mut ids: Vec<u16> = self.subsystem.links().iter().map(|link| link.cntlid).collect();
        ids.retain(|&id| u32::from(id) >= from);
        ids.sort_unstable();
        ids.truncate(LEN / 2 - 1);
        let mut bytes = u16::try_from(ids.len()).unwrap_or(0).to_le_bytes().to_vec();
        bytes.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
        bytes.resize(LEN, 0);
        bytes
    }

    fn controller_data(&self) -> Vec<u8> {
        let (subsystem, options) = (self.subsystem.options(), &self.options);
        let mut id = identify::Controller::new_zeroed();
        (id.vid, id.ssvid) = (options.pci_vendor, options.pci_vendor);
        (id.sn, id.mn, id.fr) = (padded(&subsystem.serial), padded(&subsystem.model), firmware_revision());
        id.rab = 6;
        // Ports, controllers, ANA. A guest that is told of more than one way in puts its multipath layer on top.
        id.cmic = if self.is_shared() { 0b011 | u8::from(subsystem.ana_reporting) << 3 } else { 0 };
        id.mdts = mdts(options.max_io_size);
        id.cntlid = self.link.cntlid;
        id.ver = spec::VERSION;
        id.oaes = OAES_NAMESPACE | if subsystem.ana_reporting { OAES_ANA } else { 0 };
        // Host identifiers of 128 bits.
        id.ctratt = 1;
        id.cntrltype = 1;
        id.oacs = if self.offers_shadow_doorbells() { OACS_DOORBELL_BUFFER } else { 0 };
        id.acl = 3;
        id.aerl = u8::try_from(events::LIMIT - 1).expect("a few");
        // One slot, read-only, active without a reset.
        id.frmw = 0b1_0011;
        // Effects log page, extended data for Get Log Page, supported log pages.
        id.lpa = 0b10_0110;
        id.elpe = u8::try_from(logs::MAX_ERRORS - 1).expect("below 256");
        (id.wctemp, id.cctemp) = (343, 353);
        id.kas = KEEP_ALIVE_UNITS;
        if subsystem.ana_reporting {
            id.anatt = 10;
            // Optimized, non-optimized, inaccessible; group IDs may change.
            id.anacap = 0b0000_0111;
            (id.anagrpmax, id.nanagrpid) = (subsystem.max_namespaces, subsystem.max_namespaces);
        }
        (id.sqes, id.cqes) = (0x66, 0x44);
        id.maxcmd = options.max_queue_depth;
        id.nn = subsystem.max_namespaces.min(MAX_NAMESPACES);
        id.mnan = id.nn;
        id.oncs = options.oncs();
        id.fuses = options.fuses();
        // A cache may be there; Flush with all namespaces is understood.
        id.vwc = 0b111;
        // Copy descriptors of format 0.
        id.ocfs = 1;
        // SGLs without alignment rules.
        id.sgls = 1;
        let nqn = subsystem.nqn.as_bytes();
        let n = nqn.len().min(223);
        let mut subnqn = [0; 256];
        subnqn[..n].copy_from_slice(&nqn[..n]);
        id.subnqn = subnqn;
        // One power state of 25 W (in hundredths), the minimum that tools show something for.
        id.psd[0][..2].copy_from_slice(&2500_u16.to_le_bytes());
        id.as_bytes().to_vec()
    }

    fn namespace(&self, nsid: u32) -> Result<Vec<u8>, Refused> {
        if nsid == NSID_ALL {
            // What all have in common (Base, 5.17.2.1): the one format there would be without a namespace.
            let mut id = identify::Namespace::new_zeroed();
            id.lbaf[0] = 9 << 16;
            return Ok(id.as_bytes().to_vec());
        }
        self.of_namespace(nsid, |namespace| self.namespace_data(namespace))
    }

    /// What a data structure says of a namespace; zeroes of one that is not active (Base, 3.2.1.4).
    fn of_namespace(&self, nsid: u32, say: impl FnOnce(&Namespace) -> Vec<u8>) -> Result<Vec<u8>, Refused> {
        if nsid == 0 || nsid > self.subsystem.options().max_namespaces {
            return Err(Status::INVALID_NAMESPACE);
        }
        Ok(self.subsystem.namespace(nsid).map_or_else(|| vec![0; LEN], |namespace| say(&namespace)))
    }

    /// Whether namespaces are reached by more than one controller, or may be.
    fn is_shared(&self) -> bool {
        self.subsystem.options().ana_reporting || self.subsystem.links().len() > 1
    }

    fn rescap(&self, namespace: &Namespace) -> u8 {
        let offered = self.options.oncs() & super::oncs::RESERVATIONS != 0;
        if offered { RESCAP | 0x80 | u8::from(namespace.reservations.can_persist()) } else { 0 }
    }

    fn namespace_data(&self, namespace: &Namespace) -> Vec<u8> {
        let info = namespace.info();
        let mut id = identify::Namespace::new_zeroed();
        let blocks = info.num_blocks();
        (id.nsze, id.ncap, id.nuse) = (blocks, blocks, blocks);
        // Optimal sizes are told where the bdev has some.
        let clamp = |value: u32| u16::try_from(value.saturating_sub(1)).unwrap_or(u16::MAX);
        let preferred = info.preferred_write_granularity != 0 || info.preferred_unmap_granularity != 0;
        id.nsfeat = u8::from(preferred) << 4;
        (id.npwg, id.npwa) = (clamp(info.preferred_write_granularity), clamp(info.preferred_write_alignment));
        (id.npdg, id.npda) = (clamp(info.preferred_unmap_granularity), clamp(info.preferred_unmap_alignment));
        id.nows = clamp(info.optimal_write_size);
        id.noiob = u16::try_from(info.optimal_io_boundary).unwrap_or(0);
        id.nmic = u8::from(self.is_shared());
        id.rescap = self.rescap(namespace);
        // Blocks that were deallocated read as zeroes where the bdev says so; Write Zeroes may deallocate.
        id.dlfeat = if info.unmap_reads_zero { 0b1001 } else { 0b1000 };
        (id.mssrl, id.mcl, id.msrc) = (MAX_COPY_BLOCKS, MAX_COPY_TOTAL, MAX_COPY_RANGES);
        if self.subsystem.options().ana_reporting {
            id.anagrpid = namespace.anagrpid();
        }
        id.nsattr = u8::from(!namespace.descriptor().is_writable());
        let bytes = u128::from(blocks) * u128::from(info.block_size);
        id.nvmcap = bytes.to_le_bytes();
        id.nguid = namespace.guid();
        id.eui64 = namespace.eui64.unwrap_or_default();
        id.lbaf[0] = info.block_size.ilog2() << 16;
        id.as_bytes().to_vec()
    }

    fn independent(&self, namespace: &Namespace) -> Vec<u8> {
        let mut id = identify::IndependentNamespace::new_zeroed();
        id.nmic = u8::from(self.is_shared());
        id.rescap = self.rescap(namespace);
        if self.subsystem.options().ana_reporting {
            id.anagrpid = namespace.anagrpid();
        }
        id.nsattr = u8::from(!namespace.descriptor().is_writable());
        // Ready.
        id.nstat = 1;
        id.as_bytes().to_vec()
    }

    fn nvm_controller(&self) -> Vec<u8> {
        let mut id = identify::NvmController::new_zeroed();
        id.vsl = mdts(self.options.max_io_size);
        id.wzsl = self.subsystem.options().wzsl;
        id.dmrsl = self.subsystem.options().dmrsl;
        id.as_bytes().to_vec()
    }
}

/// Maximum Data Transfer Size: pages, as a power of two.
fn mdts(bytes: u32) -> u8 {
    let pages = (u64::from(bytes) / spec::PAGE).max(1);
    u8::try_from(pages.ilog2()).unwrap_or(0)
}

/// Namespace Identification Descriptors (Base, figure 277).
fn descriptors(namespace: &Namespace) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(LEN);
    let mut add = |kind: u8, value: &[u8]| {
        bytes.extend_from_slice(&[kind, u8::try_from(value.len()).unwrap_or(0), 0, 0]);
        bytes.extend_from_slice(value);
    };
    if let Some(eui64) = &namespace.eui64 {
        add(1, eui64);
    }
    add(2, &namespace.guid());
    add(3, &namespace.uuid);
    // The NVM command set.
    add(4, &[0]);
    bytes.resize(LEN, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn largest_transfer_is_a_power_of_two_of_pages() {
        assert_eq!((mdts(131_072), mdts(4096), mdts(1 << 20)), (5, 0, 8));
    }

    #[test]
    fn text_is_padded_cut_and_kept_ascii() {
        assert_eq!(&padded::<4>("a"), b"a   ");
        assert_eq!(&padded::<2>("abc"), b"ab");
        assert_eq!(&padded::<3>("é"), b"?? ");
    }

    #[test]
    fn list_starts_above_its_argument() {
        let bytes = list([1, 5, 9].into_iter(), 1);
        assert_eq!(bytes[..12], [5, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
    }
}
