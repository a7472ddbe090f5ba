//! The log: to standard error and, where there is one, to syslog, under the levels and flags of SPDK's `log_*` methods.
//!
//! SPDK's five levels are those of `tracing` by other names, one step apart in the middle: NOTICE is `info!`, INFO is
//! `debug!`, DEBUG is `trace!`. The last two are only written for parts of the target whose flag is set.
//!
//! Settings are the process's, as the log is. Reading them costs nothing where it matters: `tracing` remembers per call
//! site whether it is wanted, and is told when that changes.

use std::{
    fmt::Write as _,
    io::Write as _,
    os::unix::net::UnixDatagram,
    sync::atomic::{AtomicBool, AtomicU8, Ordering},
};

use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    subscriber::Interest,
};
use tracing_appender::non_blocking::NonBlocking;
use tracing_subscriber::{
    Layer,
    fmt::{
        MakeWriter,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    layer::Context,
};

/// SPDK's levels, by number.
pub(crate) const LEVELS: &[&str] = &["ERROR", "WARNING", "NOTICE", "INFO", "DEBUG"];
const WARNING: u8 = 1;
const NOTICE: u8 = 2;
const INFO: u8 = 3;
const DEBUG: u8 = 4;

/// The parts of the target that can be told to say more, and the module paths of their events. The first that fits
/// counts.
const FLAGS: [(&str, &str); 7] = [
    ("vfu_virtio", "vfu::virtio"),
    ("nvmf", "vfu::nvme"),
    ("vfu", "vfu"),
    ("bdev", "bdev"),
    ("reactor", "reactor"),
    ("rpc", "rpc"),
    ("app", ""),
];

static PRINT_LEVEL: AtomicU8 = AtomicU8::new(INFO);
static LEVEL: AtomicU8 = AtomicU8::new(NOTICE);
static TIMESTAMPS: AtomicBool = AtomicBool::new(true);
static FLAG_STATES: [AtomicBool; FLAGS.len()] = [const { AtomicBool::new(false) }; FLAGS.len()];

/// The number of a level.
pub(crate) fn level(name: &str) -> Option<u8> {
    LEVELS.iter().position(|level| *level == name).and_then(|at| u8::try_from(at).ok())
}

/// What goes to standard error.
pub(crate) fn print_level() -> &'static str {
    LEVELS[usize::from(PRINT_LEVEL.load(Ordering::Relaxed))]
}

/// What goes to syslog.
pub(crate) fn syslog_level() -> &'static str {
    LEVELS[usize::from(LEVEL.load(Ordering::Relaxed))]
}

/// Sets what goes to standard error.
pub(crate) fn set_print_level(level: u8) {
    PRINT_LEVEL.store(level.min(DEBUG), Ordering::Relaxed);
    tracing::callsite::rebuild_interest_cache();
}

/// Sets what goes to syslog.
pub(crate) fn set_syslog_level(level: u8) {
    LEVEL.store(level.min(DEBUG), Ordering::Relaxed);
    tracing::callsite::rebuild_interest_cache();
}

/// Whether lines start with the time.
pub(crate) fn set_timestamps(on: bool) {
    TIMESTAMPS.store(on, Ordering::Relaxed);
}

/// Every flag, sorted, and whether it is set.
pub(crate) fn flags() -> Vec<(&'static str, bool)> {
    let states = FLAG_STATES.iter().map(|state| state.load(Ordering::Relaxed));
    let mut flags: Vec<_> = FLAGS.iter().map(|(name, _)| *name).zip(states).collect();
    flags.sort_unstable();
    flags
}

/// Sets or clears the flags that a pattern names (`all`, or with wildcards; in any case). False if there is none.
pub(crate) fn set_flag(pattern: &str, on: bool) -> bool {
    let pattern = pattern.to_ascii_lowercase();
    let mut found = false;
    for ((name, _), state) in FLAGS.iter().zip(&FLAG_STATES) {
        if pattern == "all" || matches(pattern.as_bytes(), name.as_bytes()) {
            state.store(on, Ordering::Relaxed);
            found = true;
        }
    }
    tracing::callsite::rebuild_interest_cache();
    found
}

/// What the command line asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wishes<'a> {
    /// Warnings and errors only.
    pub(crate) silent: bool,
    /// Steps above the usual.
    pub(crate) verbose: u8,
    /// Flags to set.
    pub(crate) flags: &'a [String],
}

/// Applies them.
///
/// # Errors
/// The first flag that does not exist.
pub(crate) fn apply(wishes: Wishes<'_>) -> Result<(), String> {
    for flag in wishes.flags {
        if !set_flag(flag, true) {
            return Err(format!(
                "unknown log flag {flag}; there are: {}",
                FLAGS.map(|(name, _)| name).join(", ")
            ));
        }
    }
    if wishes.verbose > 0 {
        set_flag("all", true);
    }
    set_print_level(match (wishes.silent, wishes.verbose) {
        (true, _) => WARNING,
        (false, 1) => INFO,
        (false, 0) if wishes.flags.is_empty() => INFO,
        (false, _) => DEBUG,
    });
    Ok(())
}

/// fnmatch(3) without its brackets: `*` is anything, `?` is one character.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => (0..=text.len()).any(|skip| matches(rest, &text[skip..])),
        (Some((b'?', pattern)), Some((_, text))) => matches(pattern, text),
        (Some((expected, pattern)), Some((found, text))) => expected == found && matches(pattern, text),
        (Some(_), None) | (None, Some(_)) => false,
    }
}

fn level_of(metadata: &Metadata<'_>) -> u8 {
    match *metadata.level() {
        tracing::Level::ERROR => 0,
        tracing::Level::WARN => WARNING,
        tracing::Level::INFO => NOTICE,
        tracing::Level::DEBUG => INFO,
        tracing::Level::TRACE => DEBUG,
    }
}

fn is_wanted(metadata: &Metadata<'_>) -> bool {
    let level = level_of(metadata);
    let loudest = PRINT_LEVEL.load(Ordering::Relaxed).max(LEVEL.load(Ordering::Relaxed));
    if level > loudest {
        return false;
    }
    let flag = FLAGS.iter().position(|(_, path)| metadata.target().starts_with(path));
    level <= NOTICE || flag.is_some_and(|flag| FLAG_STATES[flag].load(Ordering::Relaxed))
}

/// Writes events.
pub(crate) struct Log {
    stderr: NonBlocking,
    syslog: Option<UnixDatagram>,
}

impl Log {
    /// To this writer, and to syslog if the machine has one.
    pub(crate) fn new(stderr: NonBlocking) -> Log {
        let syslog = UnixDatagram::unbound().ok().filter(|socket| {
            // Never waits for a daemon that does not read.
            socket.set_nonblocking(true).is_ok() && socket.connect("/dev/log").is_ok()
        });
        Log { stderr, syslog }
    }

    fn send_to_syslog(&self, level: u8, line: &str) {
        /// daemon, and the severities of our levels (RFC 3164, 4.1.1).
        const FACILITY: u8 = 3 << 3;
        const SEVERITIES: [u8; 5] = [3, 4, 5, 6, 7];
        if let Some(syslog) = &self.syslog {
            let priority = FACILITY + SEVERITIES[usize::from(level)];
            let pid = std::process::id();
            // Lost if the daemon is too slow: the log harms nobody.
            let _ = syslog.send(format!("<{priority}>ringside[{pid}]: {line}").as_bytes());
        }
    }
}

impl<S: Subscriber> Layer<S> for Log {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if is_wanted(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        is_wanted(metadata)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let level = level_of(metadata);
        let mut line = format!("*{}*: {}: ", LEVELS[usize::from(level)], metadata.target());
        event.record(&mut Fields(&mut line));
        if level <= LEVEL.load(Ordering::Relaxed) {
            self.send_to_syslog(level, &line);
        }
        if level > PRINT_LEVEL.load(Ordering::Relaxed) {
            return;
        }
        let mut printed = String::with_capacity(line.len() + 32);
        if TIMESTAMPS.load(Ordering::Relaxed) {
            printed.push('[');
            // A time that cannot be told is left out.
            let _ = SystemTime.format_time(&mut Writer::new(&mut printed));
            printed.push_str("] ");
        }
        printed.push_str(&line);
        printed.push('\n');
        // Standard error may be closed; there is nobody else to tell.
        let _ = self.stderr.make_writer().write_all(printed.as_bytes());
    }
}

/// Writes the message, then the other fields as `name=value`.
struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a String does not fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_matched_as_fnmatch_does() {
        for (pattern, text) in [("vfu*", "vfu_virtio"), ("*", ""), ("b?ev", "bdev"), ("*v*v*", "bdev_v")] {
            assert!(matches(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }
        for (pattern, text) in [("vfu", "vfu_virtio"), ("?", ""), ("b*x", "bdev")] {
            assert!(!matches(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }
    }

    #[test]
    fn flags_are_sorted_and_unknown_ones_are_told() {
        let names: Vec<_> = flags().into_iter().map(|(name, _)| name).collect();
        assert!(names.is_sorted());
        assert!(!set_flag("no-such-part", true));
        assert!(apply(Wishes { silent: false, verbose: 0, flags: &["nope".to_owned()] }).is_err());
    }

    #[test]
    fn levels_have_the_numbers_of_spdk() {
        assert_eq!(LEVELS.iter().map(|name| level(name)).collect::<Vec<_>>(), [0, 1, 2, 3, 4].map(Some));
        assert_eq!(level("info"), None);
    }
}
