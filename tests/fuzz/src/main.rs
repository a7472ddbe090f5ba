//! Runs fuzz targets without any tool: seeds, and inputs made of them by chance. For long runs guided by coverage see
//! `scripts/fuzz`.
//!
//!     cargo run -p fuzz --release -- TARGET|all [--seconds N] [--seed N] [--replay FILE]
//!
//! An input that makes a target panic, or that takes longer than a minute, is left as a file; the exit status is not zero.

use std::{
    io::Write,
    panic,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::Parser;
use fuzz::{TARGETS, Target, seeds, target};

/// Longest that one input may take.
const HANG: Duration = Duration::from_secs(60);

/// Fuzz targets of the vfio-user server.
#[derive(Debug, Parser)]
struct Args {
    /// Which target, or all.
    target: String,
    /// How long each runs.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Where chance starts.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Runs one input, and nothing else.
    #[arg(long)]
    replay: Option<PathBuf>,
    /// Where an input that fails is left.
    #[arg(long, default_value = ".")]
    findings: PathBuf,
}

/// xorshift64*: good enough to choose by.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap_or(0) % end.max(1)
    }

    fn byte(&mut self) -> u8 {
        (self.next() >> 56) as u8
    }
}

/// Makes an input of seeds: cut, joined, with bytes changed, or of chance alone.
fn make(input: &mut Vec<u8>, seeds: &[Vec<u8>], len_max: usize, chance: &mut Chance) {
    input.clear();
    if chance.below(4) == 0 {
        let len = chance.below(len_max);
        input.extend((0..len).map(|_| chance.byte()));
        return;
    }
    for _ in 0..=chance.below(3) {
        let seed = &seeds[chance.below(seeds.len())];
        let from = chance.below(seed.len());
        let to = from + chance.below(seed.len() - from + 1);
        input.extend_from_slice(&seed[from..to]);
    }
    for _ in 0..chance.below(12) {
        if input.is_empty() {
            return;
        }
        let at = chance.below(input.len());
        match chance.below(4) {
            0 => input[at] = chance.byte(),
            1 => input[at] ^= 1 << chance.below(8),
            2 => {
                input.remove(at);
            }
            _ => input.insert(at, chance.byte()),
        }
    }
    input.truncate(len_max);
}

/// The input under way, for who finds that it never ends.
type Current = Arc<Mutex<(Instant, Vec<u8>)>>;

fn watch_for_hangs(current: &Current, findings: PathBuf) {
    let current = Arc::clone(current);
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let (since, input) = current.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if since.elapsed() > HANG {
                let path = findings.join("hang");
                let _ = std::fs::write(&path, input);
                let _ =
                    writeln!(std::io::stderr(), "an input takes longer than {HANG:?}: {}", path.display());
                std::process::exit(2);
            }
        }
    });
}

fn run(target: Target, args: &Args, current: &Current) -> anyhow::Result<u64> {
    let seeds = seeds::of(target.name);
    let mut chance = Chance(args.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut input = Vec::new();
    let start = Instant::now();
    let mut executions = 0;
    while start.elapsed() < Duration::from_secs(args.seconds) {
        for _ in 0..64 {
            make(&mut input, &seeds, target.len_max, &mut chance);
            {
                let mut current = current.lock().unwrap_or_else(PoisonError::into_inner);
                current.0 = Instant::now();
                current.1.clone_from(&input);
            }
            if panic::catch_unwind(|| (target.run)(&input)).is_err() {
                let path = args.findings.join(format!("crash-{}-{executions}", target.name));
                std::fs::write(&path, &input).context("writing the finding")?;
                bail!("{} fails on {}", target.name, path.display());
            }
            executions += 1;
        }
    }
    Ok(executions)
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let chosen = match args.target.as_str() {
        "all" => TARGETS.to_vec(),
        name => vec![target(name).with_context(|| format!("there is no target {name}"))?],
    };
    if let Some(file) = &args.replay {
        let input = std::fs::read(file).with_context(|| file.display().to_string())?;
        (chosen[0].run)(&input);
        return Ok(());
    }
    let current: Current = Arc::new(Mutex::new((Instant::now(), Vec::new())));
    watch_for_hangs(&current, args.findings.clone());
    let mut out = std::io::stdout();
    writeln!(out, "| target | executions | seconds |\n|---|---|---|")?;
    for target in chosen {
        let executions = run(target, &args, &current)?;
        writeln!(out, "| {} | {executions} | {} |", target.name, args.seconds)?;
    }
    Ok(())
}
