//! Persistent reservations (SPC-4, 5.13): who may read and write a bdev that several endpoints offer.
//!
//! One [`Reservations`] for each bdev, shared by all units over it; one [`Nexus`] for each unit. The rules run on the
//! control commands only, under a lock; what a nexus may do is left in an atomic for the I/O path.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU8, AtomicU32, Ordering},
    },
};

use super::sense::Sense;

const READ: u8 = 1;
const WRITE: u8 = 2;
/// Most registrations of one bdev.
const MAX_REGISTRATIONS: usize = 256;

/// The reservations of all bdevs that have units; the program has one of it.
#[derive(Debug, Default)]
pub struct ReservationTable(Mutex<HashMap<String, Weak<Reservations>>>);

impl ReservationTable {
    /// Those of a bdev.
    pub(super) fn of(&self, bdev: &str) -> Arc<Reservations> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.retain(|_, there| there.strong_count() > 0);
        if let Some(there) = table.get(bdev).and_then(Weak::upgrade) {
            return there;
        }
        let new = Arc::new(Reservations::default());
        table.insert(bdev.to_owned(), Arc::downgrade(&new));
        new
    }
}

/// One unit's standing.
#[derive(Debug)]
pub(super) struct Nexus {
    all: Arc<Reservations>,
    access: AtomicU8,
    /// A unit attention that waits, packed; zero for none.
    attention: AtomicU32,
}

#[derive(Debug)]
struct Registration {
    nexus: Weak<Nexus>,
    key: u64,
}

#[derive(Debug, Default)]
struct State {
    generation: u32,
    registrations: Vec<Registration>,
    /// Type, and the holder where it is one.
    reserved: Option<(u8, Weak<Nexus>)>,
    everyone: Vec<Weak<Nexus>>,
}

/// The reservations of one bdev.
#[derive(Debug, Default)]
pub(super) struct Reservations(Mutex<State>);

fn is(weak: &Weak<Nexus>, nexus: &Arc<Nexus>) -> bool {
    std::ptr::eq(weak.as_ptr(), Arc::as_ptr(nexus))
}

/// Types whose holders are all registrants.
fn is_shared(kind: u8) -> bool {
    matches!(kind, 7 | 8)
}

impl State {
    fn key_of(&self, nexus: &Arc<Nexus>) -> Option<u64> {
        self.registrations.iter().find(|it| is(&it.nexus, nexus)).map(|it| it.key)
    }

    fn holds(&self, nexus: &Arc<Nexus>) -> bool {
        self.reserved.as_ref().is_some_and(|(kind, holder)| {
            is(holder, nexus) || is_shared(*kind) && self.key_of(nexus).is_some()
        })
    }

    /// What each nexus may do now (SPC-4, table 61).
    fn settle(&mut self) {
        self.everyone.retain(|nexus| nexus.strong_count() > 0);
        self.registrations.retain(|it| it.nexus.strong_count() > 0);
        if let Some((kind, holder)) = &self.reserved {
            let orphaned =
                if is_shared(*kind) { self.registrations.is_empty() } else { holder.strong_count() == 0 };
            if orphaned {
                self.reserved = None;
            }
        }
        for nexus in self.everyone.iter().filter_map(Weak::upgrade) {
            let registered = self.key_of(&nexus).is_some();
            let access = match self.reserved.as_ref().map(|(kind, _)| *kind) {
                None => READ | WRITE,
                Some(_) if self.holds(&nexus) => READ | WRITE,
                // Write exclusive: others read. With "registrants only" the registered ones write too.
                Some(1) => READ,
                Some(5 | 7) => {
                    if registered {
                        READ | WRITE
                    } else {
                        READ
                    }
                }
                Some(6 | 8) if registered => READ | WRITE,
                Some(_) => 0,
            };
            nexus.access.store(access, Ordering::Release);
        }
    }

    fn tell(&self, who: impl Fn(&Arc<Nexus>) -> bool, sense: Sense) {
        self.everyone
            .iter()
            .filter_map(Weak::upgrade)
            .filter(|nexus| who(nexus))
            .for_each(|nexus| nexus.attend(sense));
    }

    fn unregister(&mut self, nexus: &Arc<Nexus>) {
        let held = self.reserved.as_ref().map(|(kind, holder)| (*kind, is(holder, nexus)));
        self.registrations.retain(|it| !is(&it.nexus, nexus));
        match held {
            Some((kind, _)) if is_shared(kind) && self.registrations.is_empty() => self.reserved = None,
            Some((kind, true)) if !is_shared(kind) => {
                self.reserved = None;
                if matches!(kind, 5 | 6) {
                    self.tell(|other| self.key_of(other).is_some(), Sense::RESERVATIONS_RELEASED);
                }
            }
            _ => {}
        }
    }
}

/// Why a command about reservations is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Conflict,
    Sense(Sense),
}

/// PERSISTENT RESERVE OUT, with its parameters (SPC-4, 6.16).
#[derive(Clone, Copy, Debug)]
pub(super) struct ReserveOut {
    pub(super) action: u8,
    pub(super) scope_type: u8,
    pub(super) key: u64,
    pub(super) new_key: u64,
}

impl Nexus {
    /// A new standing with a bdev.
    pub(super) fn new(all: Arc<Reservations>) -> Arc<Self> {
        let new = Arc::new(Self { all, access: AtomicU8::new(0), attention: AtomicU32::new(0) });
        let mut state = new.lock();
        state.everyone.push(Arc::downgrade(&new));
        state.settle();
        drop(state);
        new
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.all.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    pub(super) fn may(&self, modifies: bool) -> bool {
        self.access.load(Ordering::Acquire) & if modifies { WRITE } else { READ } != 0
    }

    /// Something the driver is to be told with its next command.
    pub(super) fn attend(&self, sense: Sense) {
        self.attention.store(sense.packed(), Ordering::Release);
    }

    /// What it is to be told, once.
    #[inline]
    pub(super) fn take_attention(&self) -> Option<Sense> {
        if self.attention.load(Ordering::Relaxed) == 0 {
            return None;
        }
        Some(self.attention.swap(0, Ordering::AcqRel)).filter(|&word| word != 0).map(Sense::unpacked)
    }

    /// PERSISTENT RESERVE IN (SPC-4, 6.15).
    pub(super) fn read(self: &Arc<Self>, action: u8) -> Option<Vec<u8>> {
        let state = self.lock();
        let mut data = state.generation.to_be_bytes().to_vec();
        let mut body = Vec::new();
        match action {
            0 => state.registrations.iter().for_each(|it| body.extend(it.key.to_be_bytes())),
            1 => {
                if let Some((kind, holder)) = &state.reserved {
                    let key = holder.upgrade().filter(|_| !is_shared(*kind)).and_then(|it| state.key_of(&it));
                    body.extend(key.unwrap_or(0).to_be_bytes());
                    body.extend([0, 0, 0, 0, 0, *kind, 0, 0]);
                }
            }
            // REPORT CAPABILITIES: all types; nothing survives a loss of power.
            2 => return Some(vec![0, 8, 0, 0x80, 0xea, 0x01, 0, 0]),
            3 => {
                for it in &state.registrations {
                    let holder = it.nexus.upgrade().is_some_and(|nexus| state.holds(&nexus));
                    let kind = state.reserved.as_ref().filter(|_| holder).map_or(0, |(kind, _)| *kind);
                    body.extend(it.key.to_be_bytes());
                    body.extend([0, 0, 0, 0, u8::from(holder), kind, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
                }
            }
            _ => return None,
        }
        data.extend((body.len() as u32).to_be_bytes());
        data.extend(body);
        Some(data)
    }

    /// PERSISTENT RESERVE OUT.
    pub(super) fn change(self: &Arc<Self>, out: ReserveOut) -> Result<(), Refused> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let mine = state.key_of(self);
        let kind = out.scope_type & 0xf;
        if matches!(out.action, 1 | 2 | 4 | 5)
            && (out.scope_type >> 4 != 0 || !matches!(kind, 1 | 3 | 5 | 6 | 7 | 8))
        {
            return Err(Refused::Sense(Sense::INVALID_FIELD));
        }
        // REGISTER takes any key of an unregistered nexus that is zero; the one that ignores keys takes all.
        let known = match out.action {
            6 => true,
            0 => mine.unwrap_or(0) == out.key,
            _ => mine == Some(out.key),
        };
        if !known {
            return Err(Refused::Conflict);
        }
        match out.action {
            0 | 6 => {
                match (mine, out.new_key) {
                    (None, 0) => return Ok(()),
                    (Some(_), 0) => state.unregister(self),
                    (Some(_), key) => {
                        state
                            .registrations
                            .iter_mut()
                            .filter(|it| is(&it.nexus, self))
                            .for_each(|it| it.key = key);
                    }
                    (None, _) if state.registrations.len() == MAX_REGISTRATIONS => {
                        return Err(Refused::Sense(Sense::NO_REGISTRATIONS_LEFT));
                    }
                    (None, key) => {
                        state.registrations.push(Registration { nexus: Arc::downgrade(self), key });
                    }
                }
                state.generation = state.generation.wrapping_add(1);
            }
            1 => match &state.reserved {
                Some((held, _)) if !state.holds(self) || *held != kind => return Err(Refused::Conflict),
                Some(_) => {}
                None => state.reserved = Some((kind, Arc::downgrade(self))),
            },
            2 => {
                if state.holds(self) {
                    let held = state.reserved.as_ref().map(|(held, _)| *held);
                    if held != Some(kind) {
                        return Err(Refused::Sense(Sense::BAD_RELEASE));
                    }
                    state.reserved = None;
                    if kind >= 5 {
                        let others = |it: &Arc<Self>| !Arc::ptr_eq(it, self) && state.key_of(it).is_some();
                        state.tell(others, Sense::RESERVATIONS_RELEASED);
                    }
                }
            }
            3 => {
                let others = |it: &Arc<Self>| !Arc::ptr_eq(it, self) && state.key_of(it).is_some();
                state.tell(others, Sense::PREEMPTED);
                state.registrations.clear();
                state.reserved = None;
                state.generation = state.generation.wrapping_add(1);
            }
            4 | 5 => self.preempt(state, kind, out.new_key)?,
            _ => return Err(Refused::Sense(Sense::INVALID_FIELD)),
        }
        state.settle();
        Ok(())
    }

    /// PREEMPT, and PREEMPT AND ABORT: what the others had in flight is finished before they can do more, as each
    /// request is checked when it is taken.
    fn preempt(self: &Arc<Self>, state: &mut State, kind: u8, victim: u64) -> Result<(), Refused> {
        let holder_key = match &state.reserved {
            Some((held, _)) if is_shared(*held) => Some(0),
            Some((_, holder)) => holder.upgrade().and_then(|it| state.key_of(&it)),
            None => None,
        };
        let takes_over = holder_key == Some(victim) && state.reserved.is_some();
        if victim == 0 && !takes_over {
            return Err(Refused::Sense(Sense::BAD_PARAMETER));
        }
        let goes =
            |it: &Registration| !is(&it.nexus, self) && (it.key == victim || takes_over && victim == 0);
        if !takes_over && !state.registrations.iter().any(|it| it.key == victim) {
            return Err(Refused::Conflict);
        }
        let gone: Vec<_> =
            state.registrations.iter().filter(|it| goes(it)).filter_map(|it| it.nexus.upgrade()).collect();
        state.registrations.retain(|it| !goes(it));
        gone.iter().for_each(|nexus| nexus.attend(Sense::REGISTRATIONS_PREEMPTED));
        if takes_over {
            state.reserved = Some((kind, Arc::downgrade(self)));
        }
        state.generation = state.generation.wrapping_add(1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> (Arc<Nexus>, Arc<Nexus>) {
        let table = ReservationTable::default();
        (Nexus::new(table.of("a")), Nexus::new(table.of("a")))
    }

    fn out(action: u8, kind: u8, key: u64, new_key: u64) -> ReserveOut {
        ReserveOut { action, scope_type: kind, key, new_key }
    }

    #[test]
    fn write_exclusive_lets_others_read_and_the_holder_write() {
        let (one, two) = two();
        one.change(out(0, 0, 0, 11)).unwrap();
        one.change(out(1, 1, 11, 0)).unwrap();

        assert!(one.may(true) && two.may(false) && !two.may(true));
        assert_eq!(two.change(out(1, 1, 22, 0)), Err(Refused::Conflict), "not registered");
        one.change(out(2, 1, 11, 0)).unwrap();
        assert!(two.may(true));
    }

    #[test]
    fn exclusive_access_shuts_others_out_until_they_preempt() {
        let (one, two) = two();
        one.change(out(0, 0, 0, 11)).unwrap();
        one.change(out(1, 3, 11, 0)).unwrap();
        two.change(out(0, 0, 0, 22)).unwrap();
        assert!(!two.may(false));

        two.change(out(4, 3, 22, 11)).unwrap();

        assert!(two.may(true) && !one.may(false));
        assert_eq!(one.take_attention(), Some(Sense::REGISTRATIONS_PREEMPTED));
        assert_eq!(one.take_attention(), None);
    }

    #[test]
    fn registrants_only_lets_every_registrant_write() {
        let (one, two) = two();
        one.change(out(0, 0, 0, 11)).unwrap();
        one.change(out(1, 5, 11, 0)).unwrap();
        assert!(!two.may(true));
        two.change(out(0, 0, 0, 22)).unwrap();
        assert!(two.may(true));

        one.change(out(0, 0, 11, 0)).unwrap();
        assert_eq!(two.take_attention(), Some(Sense::RESERVATIONS_RELEASED));
        assert_eq!(one.read(0).unwrap()[8..], 22_u64.to_be_bytes());
    }

    #[test]
    fn clear_takes_all_registrations_and_counts_a_generation() {
        let (one, two) = two();
        one.change(out(0, 0, 0, 11)).unwrap();
        two.change(out(0, 0, 0, 22)).unwrap();
        one.change(out(3, 0, 11, 0)).unwrap();
        assert_eq!(one.read(0).unwrap(), [0, 0, 0, 3, 0, 0, 0, 0]);
        assert_eq!(two.take_attention(), Some(Sense::PREEMPTED));
    }
}
