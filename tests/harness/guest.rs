//! A real Linux guest under QEMU, by `scripts/guest/run`.

use std::{
    io::{BufRead, BufReader, Read},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::root;

/// A guest to be booted.
pub struct Guest {
    command: Command,
}

/// How a guest ended.
pub struct Outcome {
    /// Exit status of its script, or a code of the runner (`scripts/guest/README.md`).
    pub status: i32,
    /// Its console.
    pub console: String,
}

impl Outcome {
    /// # Panics
    /// If a case in the guest failed; with the console.
    pub fn assert_passed(&self) {
        assert_eq!(self.status, 0, "the guest's console:\n{}", self.console);
    }
}

/// A guest that runs while the test goes on.
pub struct Running {
    child: Child,
    lines: Receiver<String>,
    console: String,
    errors: JoinHandle<String>,
}

/// Longer than any guest is allowed to take.
const PATIENCE: Duration = Duration::from_secs(260);

impl Running {
    /// Waits until the console says so.
    ///
    /// # Errors
    /// The guest ended, or nothing came.
    pub fn wait_for(&mut self, text: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                bail!("no {text:?} on the console:\n{}", self.console);
            };
            self.console.push_str(&line);
            if line.contains(text) {
                return Ok(());
            }
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// The runner cannot be waited for.
    pub fn finish(mut self) -> Result<Outcome> {
        self.console.extend(self.lines.iter());
        let status = self.child.wait()?;
        self.console.push_str(&self.errors.join().unwrap_or_default());
        Ok(Outcome { status: status.code().unwrap_or(-1), console: self.console })
    }
}

impl Guest {
    /// A guest with two processors and 1 GiB that runs a script of `scripts/guest/tests`.
    #[must_use]
    pub fn new(script: &str) -> Self {
        let scripts = root().join("scripts/guest");
        let mut command = Command::new(scripts.join("run"));
        command.arg("--script").arg(scripts.join("tests").join(script)).args([
            "--smp",
            "2",
            "--timeout",
            "240",
        ]);
        Self { command }
    }

    /// Adds an argument of the runner.
    #[must_use]
    pub fn arg(mut self, arg: &str) -> Self {
        self.command.arg(arg);
        self
    }

    /// Sets a variable of the script.
    #[must_use]
    pub fn env(self, name: &str, value: &str) -> Self {
        self.arg("--env").arg(&format!("{name}={value}"))
    }

    /// Gives it the device behind an endpoint's socket.
    #[must_use]
    pub fn disk(self, socket: PathBuf) -> Self {
        self.disk_at("4.0", socket)
    }

    /// The same at another PCI address; disks are named in the order of theirs.
    #[must_use]
    pub fn disk_at(self, address: &str, socket: PathBuf) -> Self {
        let device = serde_json::json!({"driver": "vfio-user-pci", "addr": address,
            "socket": {"type": "unix", "path": socket}});
        self.arg("--device").arg(&device.to_string())
    }

    /// A guest that boots from a disk, by this firmware; what it runs is on the disk.
    #[must_use]
    pub fn of_firmware(bios: &str) -> Self {
        let mut command = Command::new(root().join("scripts/guest/run"));
        command.args(["--no-kernel", "--bios", bios, "--timeout", "240"]);
        Self { command }
    }

    /// Boots it and lets it run.
    ///
    /// # Errors
    /// The runner cannot be started.
    pub fn start(mut self) -> Result<Running> {
        let mut child = self.command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (out, err) = (child.stdout.take().context("piped")?, child.stderr.take().context("piped")?);
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            let mut out = BufReader::new(out);
            let mut line = Vec::new();
            while out.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                // A test that failed listens no more.
                let _ = sender.send(String::from_utf8_lossy(&line).into_owned());
                line.clear();
            }
        });
        let errors = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = { err }.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        });
        Ok(Running { child, lines, console: String::new(), errors })
    }

    /// Boots it and waits for its end.
    ///
    /// # Errors
    /// The runner cannot be started.
    pub fn run(mut self) -> Result<Outcome> {
        let output = self.command.output()?;
        let mut console = String::from_utf8_lossy(&output.stdout).into_owned();
        console.push_str(&String::from_utf8_lossy(&output.stderr));
        Ok(Outcome { status: output.status.code().unwrap_or(-1), console })
    }
}
