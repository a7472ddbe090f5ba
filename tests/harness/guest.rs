//! A real Linux guest under QEMU, by `scripts/guest/run`.

use std::{path::PathBuf, process::Command};

use anyhow::Result;

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
        let device = serde_json::json!({"driver": "vfio-user-pci", "addr": "4.0",
            "socket": {"type": "unix", "path": socket}});
        self.arg("--device").arg(&device.to_string())
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
