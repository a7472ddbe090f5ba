//! Pins the calling thread to one core, after looking whether it may.
//!
//! The load generator calls this before it measures. `core_affinity` alone aborts on ids beyond its table and says only
//! true or false.

use core_affinity::CoreId;

/// Why a thread cannot be pinned.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PinError {
    /// Not a core of this machine, or not one that this process may run on.
    #[error("core {core} is not available: this process may run on {allowed}")]
    NotAvailable {
        /// The core that was asked for.
        core: usize,
        /// Those there are.
        allowed: String,
    },
    /// The kernel did not do it.
    #[error("the kernel refuses to pin a thread to core {0}")]
    Refused(usize),
}

/// Pins the calling thread, and whatever threads it starts later.
pub(crate) fn pin(core: usize) -> Result<(), PinError> {
    let allowed = core_affinity::get_core_ids().unwrap_or_default();
    if !allowed.contains(&CoreId { id: core }) {
        let names: Vec<String> = allowed.iter().map(|core| core.id.to_string()).collect();
        return Err(PinError::NotAvailable { core, allowed: names.join(", ") });
    }
    if core_affinity::set_for_current(CoreId { id: core }) { Ok(()) } else { Err(PinError::Refused(core)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn core_that_does_not_exist_is_an_error_that_names_those_that_do() {
        let error = pin(5000).unwrap_err();
        assert!(
            matches!(&error, PinError::NotAvailable { core: 5000, allowed } if !allowed.is_empty()),
            "{error}"
        );
    }

    #[test]
    fn thread_runs_on_its_core_and_on_no_other() {
        let core = core_affinity::get_core_ids().unwrap()[0];
        let after = std::thread::spawn(move || {
            pin(core.id).unwrap();
            core_affinity::get_core_ids().unwrap()
        });
        assert_eq!(after.join().unwrap(), [core]);
    }
}
