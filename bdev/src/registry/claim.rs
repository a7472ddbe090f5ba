//! Who holds a bdev, and how: the rules by which a module keeps others from writing to it.
//!
//! A stacked bdev claims its base so that nobody else writes there. The four kinds and when they conflict
//! follow SPDK's `spdk_bdev_claim_type`. Plain state under the lock of [`Registered`](crate::Registered);
//! knows no threads.

use std::fmt;

/// How a holder claims a bdev.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimKind {
    /// One holder, who may write; nobody else may open the bdev for writing from now on. Writers that were
    /// there before stay: who examines a bdev while it is in use claims it like this.
    ExclusiveWrite,
    /// One holder, who writes, and any number of readers; refused while another writer is there.
    ReadManyWriteOne,
    /// Any number of holders, all readers; refused while a writer is there.
    ReadManyWriteNone,
    /// Any number of holders that may write and know each other by the same key; refused while a stranger
    /// writes.
    ReadManyWriteShared {
        /// Not zero.
        key: u64,
    },
}

impl ClaimKind {
    /// The `claim_type` of `bdev_get_bdevs`.
    pub const fn name(self) -> &'static str {
        match self {
            ClaimKind::ExclusiveWrite => "exclusive_write",
            ClaimKind::ReadManyWriteOne => "read_many_write_one",
            ClaimKind::ReadManyWriteNone => "read_many_write_none",
            ClaimKind::ReadManyWriteShared { .. } => "read_many_write_shared",
        }
    }

    fn writes(self) -> bool {
        !matches!(self, ClaimKind::ReadManyWriteNone)
    }

    fn is_shared(self) -> bool {
        matches!(self, ClaimKind::ReadManyWriteNone | ClaimKind::ReadManyWriteShared { .. })
    }
}

impl fmt::Display for ClaimKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a claim or an open was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refused {
    Claimed { holder: String, kind: ClaimKind },
    OtherWriter,
    Invalid(&'static str),
}

#[derive(Debug)]
struct OpenEntry {
    id: u64,
    write: bool,
}

#[derive(Debug)]
struct Claim {
    kind: ClaimKind,
    holders: Vec<(u64, String)>,
}

/// The opens of one bdev, by id, and the claim on it.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    opens: Vec<OpenEntry>,
    claim: Option<Claim>,
    next_id: u64,
}

impl Claims {
    /// Admits an open and returns its id.
    pub(crate) fn open(&mut self, write: bool) -> Result<u64, Refused> {
        if write && let Some(claim) = &self.claim {
            return Err(claim.refusal());
        }
        let id = self.next_id;
        self.next_id += 1;
        self.opens.push(OpenEntry { id, write });
        Ok(id)
    }

    /// Ends an open and its part of the claim.
    pub(crate) fn close(&mut self, id: u64) {
        self.release(id);
        self.opens.retain(|o| o.id != id);
    }

    /// Claims the bdev for open `id`. Returns whether that open may write from now on.
    pub(crate) fn claim(&mut self, id: u64, kind: ClaimKind, holder: &str) -> Result<bool, Refused> {
        let Some(at) = self.opens.iter().position(|o| o.id == id) else {
            return Err(Refused::Invalid("the bdev is not open"));
        };
        if kind == (ClaimKind::ReadManyWriteShared { key: 0 }) {
            return Err(Refused::Invalid("a shared claim needs a key"));
        }
        if kind == ClaimKind::ReadManyWriteNone && self.opens[at].write {
            return Err(Refused::Invalid("a claim that allows no writer needs a read-only open"));
        }
        if let Some(claim) = &self.claim {
            let joins = claim.kind == kind && kind.is_shared() && claim.holders.iter().all(|(h, _)| *h != id);
            if !joins {
                return Err(claim.refusal());
            }
        }
        let strangers_write = self.opens.iter().any(|o| o.write && o.id != id && !self.holds(o.id));
        if strangers_write && kind != ClaimKind::ExclusiveWrite {
            return Err(Refused::OtherWriter);
        }
        let claim = self.claim.get_or_insert_with(|| Claim { kind, holders: Vec::new() });
        claim.holders.push((id, holder.to_owned()));
        let open = &mut self.opens[at];
        open.write |= kind.writes();
        Ok(open.write)
    }

    /// Gives the claim of open `id` back, if it has one.
    pub(crate) fn release(&mut self, id: u64) {
        if let Some(claim) = &mut self.claim {
            claim.holders.retain(|(h, _)| *h != id);
            if claim.holders.is_empty() {
                self.claim = None;
            }
        }
    }

    pub(crate) fn kind(&self) -> Option<ClaimKind> {
        self.claim.as_ref().map(|c| c.kind)
    }

    pub(crate) fn is_open(&self) -> bool {
        !self.opens.is_empty()
    }

    fn holds(&self, id: u64) -> bool {
        self.claim.as_ref().is_some_and(|c| c.holders.iter().any(|(h, _)| *h == id))
    }
}

impl Claim {
    fn refusal(&self) -> Refused {
        let holder = self.holders.first().map_or_else(String::new, |(_, h)| h.clone());
        Refused::Claimed { holder, kind: self.kind }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exclusive_claim_refuses_a_second_claim_and_later_writers_but_not_readers() {
        let mut c = Claims::default();
        let holder = c.open(false).unwrap();
        let earlier_writer = c.open(true).unwrap();

        assert_eq!(c.claim(holder, ClaimKind::ExclusiveWrite, "raid"), Ok(true));

        let refused = Refused::Claimed { holder: "raid".into(), kind: ClaimKind::ExclusiveWrite };
        assert_eq!(c.claim(earlier_writer, ClaimKind::ExclusiveWrite, "split"), Err(refused.clone()));
        assert_eq!(c.open(true), Err(refused));
        assert!(c.open(false).is_ok());
    }

    #[test]
    fn a_released_claim_lets_the_next_one_in() {
        let mut c = Claims::default();
        let first = c.open(true).unwrap();
        let second = c.open(false).unwrap();
        c.claim(first, ClaimKind::ReadManyWriteOne, "a").unwrap();

        c.close(first);

        assert_eq!(c.kind(), None);
        assert_eq!(c.claim(second, ClaimKind::ReadManyWriteOne, "b"), Ok(true));
    }

    #[test]
    fn write_one_is_refused_while_a_stranger_writes() {
        let mut c = Claims::default();
        let _stranger = c.open(true).unwrap();
        let holder = c.open(false).unwrap();

        assert_eq!(c.claim(holder, ClaimKind::ReadManyWriteOne, "a"), Err(Refused::OtherWriter));
        assert_eq!(c.kind(), None);
    }

    #[test]
    fn write_none_is_shared_by_readers_and_denied_to_writers() {
        let mut c = Claims::default();
        let one = c.open(false).unwrap();
        let two = c.open(false).unwrap();
        assert_eq!(c.claim(one, ClaimKind::ReadManyWriteNone, "a"), Ok(false));
        assert_eq!(c.claim(two, ClaimKind::ReadManyWriteNone, "b"), Ok(false));
        assert!(c.open(true).is_err());

        c.release(one);

        assert_eq!(c.kind(), Some(ClaimKind::ReadManyWriteNone));
        assert!(c.open(true).is_err());
    }

    #[test]
    fn shared_writers_need_the_same_key() {
        let mut c = Claims::default();
        let (one, two, three) = (c.open(false).unwrap(), c.open(false).unwrap(), c.open(false).unwrap());
        let key = |key| ClaimKind::ReadManyWriteShared { key };

        assert!(matches!(c.claim(one, key(0), "a"), Err(Refused::Invalid(_))));
        assert_eq!(c.claim(one, key(7), "a"), Ok(true));
        assert_eq!(c.claim(two, key(7), "b"), Ok(true));
        assert!(matches!(c.claim(three, key(8), "c"), Err(Refused::Claimed { .. })));
    }
}
