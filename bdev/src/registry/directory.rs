//! The tables behind the registry: bdevs by name and in order of creation, and who watches them.
//!
//! Used by [`Registry`](crate::Registry) and its reaper. Holds its lock for look-ups only and never while
//! calling out.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::registered::Registered;
use crate::{Bdev, Error};

/// A change to the set of bdevs; what notifications and examination are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// A bdev has appeared.
    Registered,
    /// A bdev has gone.
    Unregistered,
    /// A bdev has another size.
    Resized,
}

pub(super) type OnChange = Arc<dyn Fn(Change, &Arc<Registered>) + Send + Sync>;

#[derive(Default)]
struct Tables {
    by_name: HashMap<String, Arc<Registered>>,
    in_order: BTreeMap<u64, Arc<Registered>>,
    auto_names: HashMap<&'static str, u64>,
    watchers: Vec<OnChange>,
    next_seq: u64,
}

#[derive(Default)]
pub(super) struct Directory {
    tables: Mutex<Tables>,
}

impl Directory {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        // Nothing that runs under this lock can panic halfway through a change.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn link(&self, bdev: Arc<dyn Bdev>) -> Result<Arc<Registered>, Error> {
        let mut tables = self.tables();
        let name = bdev.info().name.clone();
        let uuid = bdev.info().uuid.to_string();
        for taken in [&name, &uuid] {
            if tables.by_name.contains_key(taken) {
                return Err(Error::Exists { name: taken.clone() });
            }
        }
        let seq = tables.next_seq;
        tables.next_seq += 1;
        let registered = Arc::new(Registered::new(bdev, seq));
        tables.by_name.insert(name, registered.clone());
        tables.by_name.insert(uuid, registered.clone());
        tables.in_order.insert(seq, registered.clone());
        drop(tables);
        self.announce(Change::Registered, &registered);
        Ok(registered)
    }

    pub(super) fn unlink(&self, registered: &Arc<Registered>) {
        let mut tables = self.tables();
        tables.in_order.remove(&registered.seq);
        tables.by_name.remove(registered.name());
        for alias in registered.aliases() {
            tables.by_name.remove(&alias);
        }
        drop(tables);
        self.announce(Change::Unregistered, registered);
    }

    pub(super) fn find(&self, name: &str) -> Result<Arc<Registered>, Error> {
        let found = self.tables().by_name.get(name).cloned();
        found.ok_or_else(|| Error::NoSuchDevice { name: name.to_owned() })
    }

    pub(super) fn list(&self) -> Vec<Arc<Registered>> {
        self.tables().in_order.values().cloned().collect()
    }

    pub(super) fn auto_name(&self, prefix: &'static str) -> String {
        let mut tables = self.tables();
        let next = tables.auto_names.entry(prefix).or_default();
        let name = format!("{prefix}{next}");
        *next += 1;
        name
    }

    pub(super) fn add_alias(&self, name: &str, alias: &str) -> Result<(), Error> {
        let registered = self.find(name)?;
        let mut tables = self.tables();
        if tables.by_name.contains_key(alias) {
            return Err(Error::Exists { name: alias.to_owned() });
        }
        // Found before the lock: it may have been unlinked since, and an alias must not bring it back.
        if !tables.in_order.contains_key(&registered.seq) {
            return Err(Error::NoSuchDevice { name: name.to_owned() });
        }
        tables.by_name.insert(alias.to_owned(), registered.clone());
        registered.push_alias(alias);
        Ok(())
    }

    pub(super) fn remove_alias(&self, name: &str, alias: &str) -> Result<(), Error> {
        let registered = self.find(name)?;
        let mut tables = self.tables();
        let is_its_own = tables.by_name.get(alias).is_some_and(|r| Arc::ptr_eq(r, &registered));
        if !is_its_own || alias == registered.name() {
            return Err(Error::Invalid(format!("\"{alias}\" is no alias of \"{}\"", registered.name())));
        }
        tables.by_name.remove(alias);
        registered.drop_alias(alias);
        Ok(())
    }

    pub(super) fn watch(&self, on_change: OnChange) {
        self.tables().watchers.push(on_change);
    }

    pub(super) fn announce(&self, change: Change, registered: &Arc<Registered>) {
        let watchers = self.tables().watchers.clone();
        for on_change in watchers {
            on_change(change, registered);
        }
    }
}
