//! What goes with a figure: where it was measured, with what, and how quiet the machine was.
//!
//! Reports call this. Reads `/proc`; a file that is not there gives "unknown" or zero, never an error.

use std::fs;

use serde::Serialize;

/// The machine and the code.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Host {
    /// Host name.
    name: String,
    /// Kernel release.
    kernel: String,
    /// Model of the first processor.
    cpu: String,
    /// Processors.
    cpus: usize,
    /// Commit of the working directory, with a mark when it has changes.
    pub(crate) revision: String,
}

fn line(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.lines().next()?.trim().to_owned()).filter(|line| !line.is_empty())
}

fn cpu_model(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// `git describe` of the working directory.
fn revision() -> Option<String> {
    let git =
        std::process::Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]).output();
    let text = String::from_utf8(git.ok().filter(|output| output.status.success())?.stdout).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

impl Host {
    /// This machine.
    pub(crate) fn here() -> Self {
        let unknown = || "unknown".to_owned();
        Self {
            name: line("/proc/sys/kernel/hostname").unwrap_or_else(unknown),
            kernel: line("/proc/sys/kernel/osrelease").unwrap_or_else(unknown),
            cpu: fs::read_to_string("/proc/cpuinfo")
                .ok()
                .and_then(|text| cpu_model(&text))
                .unwrap_or_else(unknown),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            revision: revision().unwrap_or_else(unknown),
        }
    }
}

/// What kept this thread from running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Disturbance {
    /// Time spent runnable, on no processor.
    pub(crate) waited_ns: u64,
    /// Time that the hypervisor took from all processors together, in clock ticks of 10 ms.
    pub(crate) stolen_ticks: u64,
}

/// The second number of `/proc/thread-self/schedstat` (kernel: Documentation/scheduler/sched-stats.rst).
fn run_queue_wait(schedstat: &str) -> Option<u64> {
    schedstat.split_whitespace().nth(1)?.parse().ok()
}

/// The eighth number of the first line of `/proc/stat` (proc(5)).
fn steal(stat: &str) -> Option<u64> {
    stat.lines().next()?.split_whitespace().nth(8)?.parse().ok()
}

impl Disturbance {
    /// The counters as they are now.
    pub(crate) fn now() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self {
            waited_ns: run_queue_wait(&read("/proc/thread-self/schedstat")).unwrap_or(0),
            stolen_ticks: steal(&read("/proc/stat")).unwrap_or(0),
        }
    }

    /// What was added since.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            waited_ns: self.waited_ns.saturating_sub(before.waited_ns),
            stolen_ticks: self.stolen_ticks.saturating_sub(before.stolen_ticks),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_where_the_kernel_puts_them() {
        assert_eq!(run_queue_wait("123 456 7\n"), Some(456));
        assert_eq!(steal("cpu  1 2 3 4 5 6 7 88 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n"), Some(88));
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: A B\n"), Some("A B".to_owned()));
    }

    #[test]
    fn what_is_missing_is_none() {
        assert_eq!(run_queue_wait(""), None);
        assert_eq!(steal("cpu 1"), None);
        assert_eq!(cpu_model("processor : 0"), None);
    }

    #[test]
    fn disturbance_is_a_difference_and_never_negative() {
        let before = Disturbance { waited_ns: 10, stolen_ticks: 9 };
        let after = Disturbance { waited_ns: 25, stolen_ticks: 0 };
        assert_eq!(after.since(before), Disturbance { waited_ns: 15, stolen_ticks: 0 });
    }
}
