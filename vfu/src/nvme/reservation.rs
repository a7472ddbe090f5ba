//! Reservations of one namespace (Base, 8.19): who is registered, who holds it, and what others may do.
//!
//! Shared by all controllers of the subsystem. The hot path reads one byte; only a namespace that is reserved costs more.

use std::{
    io,
    path::PathBuf,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
};

use serde::{Deserialize, Serialize};

use super::{keeper::Keeper, spec::Status};

/// A host, by its 128-bit identifier.
pub type HostId = [u8; 16];

/// Kinds of notification (Base, figure 258).
pub mod notice {
    /// A registration was preempted.
    pub const PREEMPTED: u8 = 1;
    /// The reservation was released.
    pub const RELEASED: u8 = 2;
    /// The reservation was preempted.
    pub const RESERVATION_PREEMPTED: u8 = 3;
}

/// Most hosts that may be registered.
pub const MAX_REGISTRANTS: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Registrant {
    host: HostId,
    key: u64,
    /// The controller it registered through.
    cntlid: u16,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    registrants: Vec<Registrant>,
    /// The host that holds the reservation; for the types "all registrants", the last one that acquired.
    holder: Option<HostId>,
    kind: u8,
    generation: u32,
    /// Persist Through Power Loss.
    ptpl: bool,
}

/// Whom to tell what: a notification and its host.
pub type Notice = (HostId, u8);

/// Reservations of a namespace.
#[derive(Debug, Default)]
pub struct Reservations {
    /// Type of the reservation; zero for none.
    kind: AtomicU8,
    state: Mutex<State>,
    keeper: Option<Keeper>,
    /// The last change that the keeper was given.
    change: AtomicU64,
}

const WRITE_EXCLUSIVE: u8 = 1;
const EXCLUSIVE_ACCESS: u8 = 2;
const WRITE_EXCLUSIVE_REGISTRANTS: u8 = 3;
const EXCLUSIVE_ACCESS_ALL: u8 = 6;

fn is_all_registrants(kind: u8) -> bool {
    kind >= 5
}

impl State {
    fn key_of(&self, host: &HostId) -> Option<u64> {
        self.registrants.iter().find(|registrant| registrant.host == *host).map(|registrant| registrant.key)
    }

    fn holds(&self, host: &HostId) -> bool {
        self.kind != 0
            && if is_all_registrants(self.kind) {
                self.key_of(host).is_some()
            } else {
                self.holder == Some(*host)
            }
    }

    fn others(&self, host: &HostId, kind: u8) -> Vec<Notice> {
        self.registrants.iter().filter(|other| other.host != *host).map(|other| (other.host, kind)).collect()
    }

    /// Releases the reservation if it has no holder any more.
    fn drop_orphan(&mut self) -> bool {
        let orphan = self.kind != 0
            && if is_all_registrants(self.kind) {
                self.registrants.is_empty()
            } else {
                self.holder.is_none_or(|holder| self.key_of(&holder).is_none())
            };
        if orphan {
            self.kind = 0;
            self.holder = None;
        }
        orphan
    }
}

impl Reservations {
    /// None, or those that the file remembers. To be called by no reactor: it waits for the disk.
    ///
    /// # Errors
    /// The file is not one of reservations, or cannot be read or written.
    pub fn load(file: Option<PathBuf>) -> io::Result<Self> {
        let Some((keeper, state)) = file.map(Keeper::open).transpose()? else { return Ok(Self::default()) };
        Ok(Self {
            kind: AtomicU8::new(state.kind),
            state: Mutex::new(state),
            keeper: Some(keeper),
            change: AtomicU64::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether they can outlive the target.
    #[must_use]
    pub fn can_persist(&self) -> bool {
        self.keeper.is_some()
    }

    /// The number of the last change, for [`Self::is_kept`].
    #[must_use]
    pub fn last_change(&self) -> u64 {
        self.change.load(Ordering::Acquire)
    }

    /// Whether a change outlives the target from now on, as far as it is to; none while it is being written.
    #[must_use]
    pub fn is_kept(&self, change: u64) -> Option<bool> {
        self.keeper.as_ref().map_or(Some(true), |keeper| keeper.is_kept(change))
    }

    fn commit(&self, state: &State) {
        self.kind.store(state.kind, Ordering::Release);
        let Some(keeper) = &self.keeper else { return };
        let kept = if state.ptpl { state.clone() } else { State::default() };
        self.change.store(keeper.keep(kept), Ordering::Release);
    }

    /// Whether there is no reservation: nothing is to be checked.
    #[inline]
    #[must_use]
    pub fn is_free(&self) -> bool {
        self.kind.load(Ordering::Acquire) == 0
    }

    /// Whether a host may read, or write, as things stand.
    #[must_use]
    pub fn allows(&self, host: &HostId, writes: bool) -> bool {
        let state = self.lock();
        match state.kind {
            0 => true,
            WRITE_EXCLUSIVE => !writes || state.holds(host),
            EXCLUSIVE_ACCESS => state.holds(host),
            // 3 and 5 fence writers, 4 and 6 everybody, who is not registered.
            kind => {
                (!writes && (kind == WRITE_EXCLUSIVE_REGISTRANTS || kind == 5))
                    || state.key_of(host).is_some()
            }
        }
    }

    /// Reservation Register (Base, 7.4).
    ///
    /// # Errors
    /// The status of the command.
    pub fn register(
        &self,
        host: HostId,
        cntlid: u16,
        action: u8,
        (ignore_key, ptpl): (bool, u8),
        (current, new): (u64, u64),
    ) -> Result<Vec<Notice>, Status> {
        let mut state = self.lock();
        let registered = state.key_of(&host);
        let mut notices = Vec::new();
        // What is refused changes nothing.
        if (action != 1 && new == 0) || (ptpl == 0b11 && !self.can_persist()) {
            return Err(Status::INVALID_FIELD);
        }
        let is_full = state.registrants.len() >= MAX_REGISTRANTS;
        match action {
            0 => match registered {
                Some(key) if key == new => {}
                Some(_) => return Err(Status::RESERVATION_CONFLICT),
                None if is_full => return Err(Status::INTERNAL_ERROR),
                None => state.registrants.push(Registrant { host, key: new, cntlid }),
            },
            1 => {
                if registered.is_none_or(|key| !ignore_key && key != current) {
                    return Err(Status::RESERVATION_CONFLICT);
                }
                let kind = state.kind;
                let others = state.others(&host, notice::RELEASED);
                state.registrants.retain(|other| other.host != host);
                // Hosts that had access as registrants are told (Base, 8.19.4).
                if state.drop_orphan() && (3..=4).contains(&kind) {
                    notices = others;
                }
            }
            2 => {
                let known = registered.is_some_and(|key| ignore_key || key == current);
                let newcomer = ignore_key && registered.is_none();
                if !(known || newcomer) {
                    return Err(Status::RESERVATION_CONFLICT);
                }
                if newcomer && is_full {
                    return Err(Status::INTERNAL_ERROR);
                }
                if newcomer {
                    state.registrants.push(Registrant { host, key: new, cntlid });
                }
                for registrant in state.registrants.iter_mut().filter(|registrant| registrant.host == host) {
                    registrant.key = new;
                }
            }
            _ => return Err(Status::INVALID_FIELD),
        }
        match ptpl {
            0b10 => state.ptpl = false,
            0b11 => state.ptpl = true,
            _ => {}
        }
        state.generation = state.generation.wrapping_add(1);
        self.commit(&state);
        Ok(notices)
    }

    /// Reservation Acquire (Base, 7.2).
    ///
    /// # Errors
    /// The status of the command.
    pub fn acquire(
        &self,
        host: HostId,
        action: u8,
        kind: u8,
        (current, preempted): (u64, u64),
    ) -> Result<Vec<Notice>, Status> {
        let mut state = self.lock();
        if state.key_of(&host) != Some(current) {
            return Err(Status::RESERVATION_CONFLICT);
        }
        if !(WRITE_EXCLUSIVE..=EXCLUSIVE_ACCESS_ALL).contains(&kind) {
            return Err(Status::INVALID_FIELD);
        }
        let mut notices = Vec::new();
        match action {
            0 if state.kind == 0 => {
                state.kind = kind;
                state.holder = Some(host);
            }
            0 if state.holds(&host) && state.kind == kind => {}
            0 => return Err(Status::RESERVATION_CONFLICT),
            // Preempt. Preempt and Abort is refused: commands at a bdev cannot be taken back, and who asks for it relies on that.
            1 => {
                let old = state.kind;
                let all = old != 0 && is_all_registrants(old) && preempted == 0;
                let holder_key = state.holder.and_then(|holder| state.key_of(&holder));
                let holders =
                    old != 0 && (all || (!is_all_registrants(old) && holder_key == Some(preempted)));
                if preempted == 0 && !all {
                    return Err(Status::INVALID_FIELD);
                }
                let goes = |other: &Registrant| other.host != host && (all || other.key == preempted);
                let gone: Vec<HostId> =
                    state.registrants.iter().filter(|&other| goes(other)).map(|other| other.host).collect();
                if gone.is_empty() && !holders {
                    return Err(Status::RESERVATION_CONFLICT);
                }
                state.registrants.retain(|other| !goes(other));
                notices.extend(gone.iter().map(|&other| (other, notice::PREEMPTED)));
                if holders {
                    state.kind = kind;
                    state.holder = Some(host);
                    if old != kind {
                        notices.extend(state.others(&host, notice::RELEASED));
                    }
                } else {
                    state.drop_orphan();
                }
                state.generation = state.generation.wrapping_add(1);
            }
            _ => return Err(Status::INVALID_FIELD),
        }
        self.commit(&state);
        Ok(notices)
    }

    /// Reservation Release (Base, 7.5).
    ///
    /// # Errors
    /// The status of the command.
    pub fn release(&self, host: HostId, action: u8, kind: u8, current: u64) -> Result<Vec<Notice>, Status> {
        let mut state = self.lock();
        if state.key_of(&host) != Some(current) {
            return Err(Status::RESERVATION_CONFLICT);
        }
        let mut notices = Vec::new();
        match action {
            0 if state.kind == 0 || !state.holds(&host) => {}
            0 => {
                if state.kind != kind {
                    return Err(Status::INVALID_FIELD);
                }
                if state.kind > EXCLUSIVE_ACCESS {
                    notices = state.others(&host, notice::RELEASED);
                }
                state.kind = 0;
                state.holder = None;
            }
            1 => {
                notices = state.others(&host, notice::RESERVATION_PREEMPTED);
                let generation = state.generation.wrapping_add(1);
                *state = State { generation, ptpl: state.ptpl, ..State::default() };
            }
            _ => return Err(Status::INVALID_FIELD),
        }
        self.commit(&state);
        Ok(notices)
    }

    /// Reservation Status data structure (Base, figure 405), extended by 128-bit host identifiers or not.
    #[must_use]
    pub fn report(&self, extended: bool) -> Vec<u8> {
        let state = self.lock();
        let count = u16::try_from(state.registrants.len()).unwrap_or(u16::MAX);
        let mut bytes = vec![0; if extended { 64 } else { 24 }];
        bytes[0..4].copy_from_slice(&state.generation.to_le_bytes());
        bytes[4] = state.kind;
        bytes[5..7].copy_from_slice(&count.to_le_bytes());
        bytes[9] = u8::from(state.ptpl);
        for registrant in &state.registrants {
            let mut entry = vec![0; if extended { 64 } else { 24 }];
            entry[0..2].copy_from_slice(&registrant.cntlid.to_le_bytes());
            entry[2] = u8::from(state.holds(&registrant.host));
            if extended {
                entry[8..16].copy_from_slice(&registrant.key.to_le_bytes());
                entry[16..32].copy_from_slice(&registrant.host);
            } else {
                entry[8..16].copy_from_slice(&registrant.host[..8]);
                entry[16..24].copy_from_slice(&registrant.key.to_le_bytes());
            }
            bytes.extend_from_slice(&entry);
        }
        bytes
    }

    /// Persist Through Power Loss State.
    #[must_use]
    pub fn persists(&self) -> bool {
        self.lock().ptpl
    }

    /// Sets Persist Through Power Loss State; false if they cannot. It is in the file soon after.
    pub fn set_persists(&self, on: bool) -> bool {
        if on && !self.can_persist() {
            return false;
        }
        let mut state = self.lock();
        state.ptpl = on;
        self.commit(&state);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: HostId = [1; 16];
    const B: HostId = [2; 16];

    fn both_registered() -> Reservations {
        let reservations = Reservations::default();
        reservations.register(A, 1, 0, (false, 0), (0, 0xa)).unwrap();
        reservations.register(B, 2, 0, (false, 0), (0, 0xb)).unwrap();
        reservations
    }

    #[test]
    fn write_exclusive_lets_others_read_and_not_write() {
        let reservations = both_registered();
        reservations.acquire(A, 0, WRITE_EXCLUSIVE, (0xa, 0)).unwrap();
        assert!(!reservations.is_free());
        assert!(reservations.allows(&A, true));
        assert!(reservations.allows(&B, false) && !reservations.allows(&B, true));
        assert_eq!(reservations.acquire(B, 0, WRITE_EXCLUSIVE, (0xb, 0)), Err(Status::RESERVATION_CONFLICT));
    }

    #[test]
    fn preempting_takes_the_reservation_and_the_registration_and_tells() {
        let reservations = both_registered();
        reservations.acquire(A, 0, EXCLUSIVE_ACCESS, (0xa, 0)).unwrap();
        let told = reservations.acquire(B, 1, EXCLUSIVE_ACCESS, (0xb, 0xa)).unwrap();
        assert_eq!(told, [(A, notice::PREEMPTED)]);
        assert!(reservations.allows(&B, true) && !reservations.allows(&A, false));
    }

    #[test]
    fn the_last_registrant_that_goes_frees_the_namespace() {
        let reservations = both_registered();
        reservations.acquire(A, 0, EXCLUSIVE_ACCESS_ALL, (0xa, 0)).unwrap();
        reservations.register(A, 1, 1, (false, 0), (0xa, 0)).unwrap();
        assert!(!reservations.is_free() && reservations.allows(&B, true) && !reservations.allows(&A, false));
        reservations.register(B, 2, 1, (false, 0), (0xb, 0)).unwrap();
        assert!(reservations.is_free());
    }

    #[test]
    fn wrong_key_conflicts_everywhere() {
        let reservations = both_registered();
        assert_eq!(reservations.acquire(A, 0, 1, (0xb, 0)), Err(Status::RESERVATION_CONFLICT));
        assert_eq!(reservations.release(A, 1, 0, 0xb), Err(Status::RESERVATION_CONFLICT));
        assert_eq!(reservations.register(A, 1, 1, (false, 0), (0xb, 0)), Err(Status::RESERVATION_CONFLICT));
    }

    #[test]
    fn registering_that_is_refused_changes_nothing() {
        let reservations = both_registered();
        let before = reservations.report(true);
        let refused = Err(Status::INVALID_FIELD);
        // No file to persist in; and a key of zero is none.
        for action in 0..3 {
            assert_eq!(reservations.register(A, 1, action, (true, 0b11), (0xa, 0xc)), refused, "{action}");
        }
        assert_eq!(reservations.register([3; 16], 3, 0, (false, 0), (0, 0)), refused);
        assert_eq!(reservations.register(A, 1, 2, (false, 0), (0xa, 0)), refused);
        assert_eq!(reservations.report(true), before);
    }

    #[test]
    fn no_way_to_register_leads_beyond_the_most_registrants() {
        let reservations = Reservations::default();
        let host = |n: usize| [u8::try_from(n).unwrap(); 16];
        for n in 0..MAX_REGISTRANTS {
            reservations.register(host(n), 1, 2, (true, 0), (0, 0xa)).unwrap();
        }
        let one_more = host(MAX_REGISTRANTS);
        assert!(reservations.register(one_more, 1, 0, (false, 0), (0, 0xa)).is_err());
        assert!(reservations.register(one_more, 1, 2, (true, 0), (0, 0xa)).is_err());
        reservations.register(host(0), 1, 2, (true, 0), (0, 0xb)).unwrap();
    }

    #[test]
    fn clearing_tells_the_others_that_the_reservation_was_preempted() {
        let reservations = both_registered();
        reservations.acquire(A, 0, WRITE_EXCLUSIVE, (0xa, 0)).unwrap();
        let told = reservations.release(B, 1, 0, 0xb).unwrap();
        assert_eq!(told, [(A, notice::RESERVATION_PREEMPTED)]);
        assert!(reservations.is_free());
    }

    #[test]
    fn preempting_with_an_abort_that_there_is_not_is_refused() {
        let reservations = both_registered();
        reservations.acquire(A, 0, EXCLUSIVE_ACCESS, (0xa, 0)).unwrap();
        let abort = reservations.acquire(B, 2, EXCLUSIVE_ACCESS, (0xb, 0xa));
        assert_eq!(abort, Err(Status::INVALID_FIELD));
        assert!(reservations.allows(&A, true));
    }

    #[test]
    fn persistent_reservations_are_read_back_from_their_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = Some(dir.path().join("ptpl"));
        let before = Reservations::load(file.clone()).unwrap();
        before.register(A, 1, 0, (false, 0b11), (0, 0xa)).unwrap();
        before.acquire(A, 0, WRITE_EXCLUSIVE, (0xa, 0)).unwrap();

        let change = before.last_change();
        while before.is_kept(change).is_none() {
            std::thread::yield_now();
        }
        let after = Reservations::load(file).unwrap();

        assert!(after.persists() && !after.allows(&B, true) && after.allows(&A, true));
    }

    #[test]
    fn report_lists_registrants_in_both_forms() {
        let reservations = both_registered();
        reservations.acquire(B, 0, WRITE_EXCLUSIVE, (0xb, 0)).unwrap();
        let (short, long) = (reservations.report(false), reservations.report(true));
        assert_eq!((short.len(), long.len()), (24 * 3, 64 * 3));
        assert_eq!((short[4], short[5], short[24 + 2], short[48 + 2]), (1, 2, 0, 1));
        assert_eq!(long[64 + 16..64 + 32], A);
    }
}
