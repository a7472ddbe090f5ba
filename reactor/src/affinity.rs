//! Which cores the process may run on, and pinning a thread to one of them.
//!
//! Called by the runtime when reactors start. `core_affinity` aborts the process for an id that a `cpu_set_t` cannot
//! hold and says no more than "false" for the rest, so every core is checked here first.

use std::fs;
use std::sync::OnceLock;

use crate::cpumask::{CORES_MAX, CoreMask};

/// The cores this process was allowed on when first asked.
///
/// Pinning narrows the calling thread's own set and threads inherit it, so the first call must come from a thread that
/// is not pinned: the main thread, early.
pub fn allowed_cores() -> CoreMask {
    static ALLOWED: OnceLock<CoreMask> = OnceLock::new();
    *ALLOWED.get_or_init(|| {
        let cores = core_affinity::get_core_ids().unwrap_or_default();
        cores
            .into_iter()
            .filter_map(|core| u32::try_from(core.id).ok())
            .filter(|core| *core < CORES_MAX)
            .collect()
    })
}

/// The cores that are switched on in this machine, ours or not.
pub(crate) fn online_cores() -> CoreMask {
    let list = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    // The kernel writes "0-3,8": our list syntax without the brackets. Where /sys is missing, what we may use is all
    // that is known.
    format!("[{}]", list.trim()).parse().unwrap_or_else(|_| allowed_cores())
}

/// Pins the calling thread to `core`; false where the kernel refuses or the core is not ours.
pub(crate) fn pin_current_thread(core: u32) -> bool {
    allowed_cores().contains(core)
        && core_affinity::set_for_current(core_affinity::CoreId { id: core as usize })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowed_cores_are_online_cores() {
        let allowed = allowed_cores();
        assert!(!allowed.is_empty());
        assert!(allowed.is_subset(&online_cores()));
    }

    #[test]
    fn pinning_to_a_core_that_is_not_ours_is_refused_without_abort() {
        assert!(!pin_current_thread(CORES_MAX - 1));
        assert!(!pin_current_thread(u32::MAX));
    }

    #[test]
    fn pinning_to_an_allowed_core_narrows_only_this_thread() {
        let before = allowed_cores();
        let core = before.first().unwrap();
        let pinned = std::thread::spawn(move || {
            let done = pin_current_thread(core);
            (done, core_affinity::get_core_ids().unwrap().len())
        });
        assert_eq!(pinned.join().unwrap(), (true, 1));
        assert_eq!(allowed_cores(), before);
    }
}
