//! What is configured besides the bdevs there are: options of the bdev layer, stacks that wait for their bases, and the
//! entries that recreate all of it.
//!
//! Control path only.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Registered, Registry};
use crate::stack::Virtual;
use crate::{Error, iobuf};

/// The options of `bdev_set_options`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are the keys of the params")]
pub struct BdevOptions {
    pub bdev_io_pool_size: u32,
    pub bdev_io_cache_size: u32,
    pub bdev_auto_examine: bool,
    pub iobuf_small_cache_size: u32,
    pub iobuf_large_cache_size: u32,
}

impl Default for BdevOptions {
    fn default() -> BdevOptions {
        BdevOptions {
            bdev_io_pool_size: 65_535,
            bdev_io_cache_size: 256,
            bdev_auto_examine: true,
            iobuf_small_cache_size: 128,
            iobuf_large_cache_size: 16,
        }
    }
}

#[derive(Default)]
struct Inner {
    options: BdevOptions,
    virtuals: Vec<Arc<dyn Virtual>>,
    /// Names that `bdev_examine` was called with.
    examined: Vec<String>,
}

#[derive(Default)]
pub(super) struct Configured(Mutex<Inner>);

impl Configured {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing that runs under this lock can panic halfway through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    /// The options of the bdev layer.
    pub fn options(&self) -> BdevOptions {
        self.configured.lock().options
    }

    /// Sets them. There are no pools of requests here, so their sizes are only remembered.
    pub fn set_options(&self, options: BdevOptions) -> Result<(), Error> {
        if options.bdev_io_pool_size < options.bdev_io_cache_size {
            return Err(Error::Invalid("bdev_io_pool_size is smaller than bdev_io_cache_size".to_owned()));
        }
        iobuf::set_cache_sizes(options.iobuf_small_cache_size, options.iobuf_large_cache_size);
        self.configured.lock().options = options;
        Ok(())
    }

    /// Keeps a configuration on bases that may be missing. Refused if there is one of its type and name.
    pub fn add_virtual(&self, new: Arc<dyn Virtual>) -> Result<(), Error> {
        let virtuals = &mut self.configured.lock().virtuals;
        if virtuals.iter().any(|v| v.key() == new.key()) {
            return Err(Error::Exists { name: new.key().1.to_owned() });
        }
        virtuals.push(new);
        Ok(())
    }

    /// Forgets one.
    pub fn remove_virtual(&self, type_name: &str, name: &str) -> Option<Arc<dyn Virtual>> {
        let virtuals = &mut self.configured.lock().virtuals;
        let at = virtuals.iter().position(|v| v.key() == (type_name, name))?;
        Some(virtuals.remove(at))
    }

    /// Finds one.
    pub fn find_virtual(&self, type_name: &str, name: &str) -> Option<Arc<dyn Virtual>> {
        self.configured.lock().virtuals.iter().find(|v| v.key() == (type_name, name)).cloned()
    }

    /// All of them, in the order in which they were made.
    pub fn virtuals(&self) -> Vec<Arc<dyn Virtual>> {
        self.configured.lock().virtuals.clone()
    }

    /// Whether bdevs on others are made on this one: all by default, those named otherwise.
    pub fn examines(&self, bdev: &Registered) -> bool {
        let inner = self.configured.lock();
        let named = || inner.examined.iter().any(|name| crate::stack::is_called(bdev, name));
        inner.options.bdev_auto_examine || named()
    }

    /// Makes bdevs on this one where they are configured, now or when it appears. Only where that is not done for
    /// every bdev anyway.
    pub fn examine(&self, name: &str) -> Result<(), Error> {
        {
            let mut inner = self.configured.lock();
            if inner.options.bdev_auto_examine {
                return Err(Error::Invalid(
                    "manual examine is not allowed if auto examine is enabled".to_owned(),
                ));
            }
            if inner.examined.iter().any(|known| known == name) {
                return Err(Error::Exists { name: name.to_owned() });
            }
            inner.examined.push(name.to_owned());
        }
        if let Ok(bdev) = self.get(name) {
            self.show(&bdev);
        }
        Ok(())
    }

    /// Shows a bdev to all that wait for one.
    pub(super) fn show(&self, bdev: &Arc<Registered>) {
        let virtuals = self.virtuals();
        let Some(registry) = self.me.upgrade().filter(|_| !virtuals.is_empty() && self.examines(bdev)) else {
            return;
        };
        for waiting in virtuals {
            if let Err(error) = waiting.examine(&registry, bdev) {
                let (kind, name) = waiting.key();
                tracing::error!(bdev = bdev.name(), kind, name, %error, "a configured bdev cannot be made on this one");
            }
        }
    }

    /// The entries that recreate everything, in order: methods and params.
    pub fn config(&self) -> Vec<(&'static str, Value)> {
        let (options, virtuals, examined) = {
            let inner = self.configured.lock();
            (inner.options, inner.virtuals.clone(), inner.examined.clone())
        };
        let mut entries = vec![("bdev_set_options", json!(options))];
        entries.extend(examined.into_iter().map(|name| ("bdev_examine", json!({ "name": name }))));
        // Before their bases, as SPDK has them: who is made later waits.
        entries.extend(virtuals.iter().filter_map(|v| v.config()));
        // When one on others appears depends on the order of those: its services are told behind all creates, by name.
        let mut of_virtuals = Vec::new();
        for bdev in self.list().into_iter().filter(|bdev| !bdev.is_removed()) {
            let creates = bdev.bdev().config();
            if creates.is_none() {
                of_virtuals.push((bdev.name().to_owned(), services(&bdev)));
            } else {
                entries.extend(creates);
                entries.extend(services(&bdev));
            }
        }
        of_virtuals.sort_by(|(one, _), (other, _)| one.cmp(other));
        entries.extend(of_virtuals.into_iter().flat_map(|(_, services)| services));
        entries.push(("bdev_wait_for_examine", Value::Null));
        entries
    }
}

/// The calls that set what applies to bdevs of every type.
fn services(bdev: &Registered) -> Vec<(&'static str, Value)> {
    let mut entries = Vec::new();
    let limits = bdev.qos();
    if limits.any() {
        let mut params = json!(limits);
        params["name"] = bdev.name().into();
        entries.push(("bdev_set_qos_limit", params));
    }
    let timeout_us = bdev.timeout().timeout_us;
    if timeout_us > 0 {
        entries.push(("bdev_set_timeout", json!({ "name": bdev.name(), "timeout_us": timeout_us })));
    }
    if bdev.has_histogram() {
        entries.push(("bdev_enable_histogram", json!({ "name": bdev.name(), "enable": true })));
    }
    entries
}
