//! `ringside trace`: prints what a target has traced, one that runs or one that has died.

use std::{
    collections::HashMap,
    io::{self, BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context;
use serde_json::{Map, Value, json};
use trace::{Description, Event, Snapshot};

use crate::tracepoints;

/// Which trace, and what of it.
#[derive(Debug, clap::Args)]
pub(crate) struct ShowTrace {
    /// The target with this process id.
    #[arg(short = 'p', long, value_name = "PID")]
    pid: Option<u32>,

    /// The target that was started with this --shm-id.
    #[arg(short = 'i', long, value_name = "ID")]
    shm_id: Option<u32>,

    /// The file that trace_get_info names.
    #[arg(short = 'f', long, value_name = "FILE")]
    file: Option<PathBuf>,

    /// Only what happened on this core.
    #[arg(short = 'c', long, value_name = "CORE")]
    core: Option<u32>,

    /// Only points whose names begin so.
    #[arg(short = 't', long, value_name = "NAME", default_value = "")]
    tpoint: String,

    /// Only the last so many events.
    #[arg(short = 'n', long, value_name = "EVENTS")]
    last: Option<usize>,

    /// A line of JSON for each event.
    #[arg(short = 'j', long)]
    json: bool,
}

/// Prints it.
pub(crate) fn run(args: &ShowTrace) -> ExitCode {
    match print(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A reader that has seen enough closes the pipe.
            let closed = error.downcast_ref::<io::Error>().map(io::Error::kind);
            if closed != Some(io::ErrorKind::BrokenPipe) {
                let _ = writeln!(io::stderr(), "ringside trace: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

impl ShowTrace {
    fn path(&self) -> anyhow::Result<PathBuf> {
        match (&self.file, self.shm_id, self.pid) {
            (Some(file), None, None) => Ok(file.clone()),
            (None, Some(id), None) => Ok(tracepoints::path(&id.to_string())),
            (None, None, Some(pid)) => Ok(tracepoints::path(&format!("pid{pid}"))),
            _ => anyhow::bail!("say which trace by one of --pid, --shm-id and --file"),
        }
    }
}

fn print(args: &ShowTrace) -> anyhow::Result<()> {
    let path = args.path()?;
    let snapshot = Snapshot::read(&path).with_context(|| format!("{}", path.display()))?;
    let described = snapshot.events.iter().filter_map(|event| Some((event, snapshot.point(event.point)?)));
    let of_core = |event: &Event| args.core.is_none_or(|core| core == event.core);
    let chosen: Vec<(&Event, &Description)> =
        described.filter(|(event, point)| of_core(event) && point.name.starts_with(&args.tpoint)).collect();
    let skipped = args.last.map_or(0, |last| chosen.len().saturating_sub(last));
    let Some((first, _)) = chosen.first() else { return Ok(()) };
    let us = |ticks: u64| ticks as f64 * 1e6 / snapshot.ticks_per_second as f64;
    // When the same thing had its last event: of the same part of the target, with the same kind of object.
    let mut seen: HashMap<(&str, &str, u64), u64> = HashMap::new();
    let mut out = BufWriter::new(io::stdout().lock());
    for (nth, (event, point)) in chosen.iter().enumerate() {
        let at_us = us(event.tick - first.tick);
        let before = seen.insert((&point.group, &point.object, event.object), event.tick);
        let since_us = before.map(|tick| us(event.tick - tick));
        if nth < skipped {
            continue;
        }
        if args.json {
            writeln!(out, "{}", as_json(event, point, at_us, since_us))?;
        } else {
            let args: String = arguments(event, point)
                .iter()
                .map(|(name, value)| format!(" {name}={}", plain(value)))
                .collect();
            let since = since_us.map_or(String::new(), |us| format!(" +{us:.3}"));
            writeln!(
                out,
                "{:>3} {at_us:>14.3} {:<20} {}={:#x}{args}{since}",
                event.core, point.name, point.object, event.object
            )?;
        }
    }
    out.flush()?;
    Ok(())
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn as_json(event: &Event, point: &Description, at_us: f64, since_us: Option<f64>) -> Value {
    let args: Map<String, Value> = arguments(event, point).into_iter().collect();
    json!({
        "core": event.core,
        "us": at_us,
        "group": point.group,
        "name": point.name,
        "object_type": point.object,
        "object": event.object,
        "since_us": since_us,
        "args": args,
    })
}

/// The arguments by their names ([`trace::Point::args`] says how they are described).
fn arguments(event: &Event, point: &Description) -> Vec<(String, Value)> {
    let argument = |(nth, described): (usize, &String)| {
        let number = event.args.get(nth).copied().unwrap_or(0);
        let (name, form) = described.split_once(':').unwrap_or((described, ""));
        let value = match form {
            "" => number.into(),
            "text" => {
                let bytes: Vec<u8> = event.args[nth..].iter().flat_map(|word| word.to_le_bytes()).collect();
                let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
                String::from_utf8_lossy(&bytes[..end]).into()
            }
            words => {
                let word = usize::try_from(number).ok().and_then(|number| words.split('|').nth(number));
                word.map_or_else(|| number.into(), Value::from)
            }
        };
        (name.to_owned(), value)
    };
    point.args.iter().enumerate().take(event.args.len()).map(argument).collect()
}
