//! A running target.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{binary, root};

/// Longest wait for anything that should take milliseconds; generous, as the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// An error object of JSON-RPC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RpcError {
    /// Its code.
    pub code: i64,
    /// Its text.
    pub message: String,
}

/// A target that runs in a folder of its own.
pub struct Target {
    child: Child,
    dir: TempDir,
}

impl Target {
    /// Starts one on core 0, and waits until it answers.
    ///
    /// # Errors
    /// It does not start.
    pub fn start() -> Result<Self> {
        Self::start_with(&["-m", "0x1"])
    }

    /// Starts one with these arguments besides its sockets.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_with(args: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let child = spawn(dir.path(), args)?;
        let mut target = Self { child, dir };
        target.wait_for_socket()?;
        Ok(target)
    }

    /// Starts one on core 0 whose folder has a file system in memory of that size, `small`, and in it a sparse file,
    /// `disk`. Only the target sees it.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_with_small_disk(size_bytes: u64, disk_bytes: u64) -> Result<Self> {
        const MOUNT: &str =
            "mount -t tmpfs -o size=$1 none \"$3\" && truncate -s $2 \"$3/disk\" && shift 3 && exec \"$@\"";
        let dir = tempfile::tempdir()?;
        let small = dir.path().join("small");
        std::fs::create_dir(&small)?;
        let inner = command(dir.path(), &["-m", "0x1"])?;
        let mut outer = Command::new("unshare");
        outer.args(["--user", "--map-root-user", "--mount", "sh", "-c", MOUNT, "sh"]);
        outer.args([size_bytes.to_string(), disk_bytes.to_string()]).arg(&small);
        outer.arg(inner.get_program()).args(inner.get_args()).current_dir(root());
        let child = outer.stderr(log_of(dir.path())?).spawn()?;
        let mut target = Self { child, dir };
        target.wait_for_socket()?;
        Ok(target)
    }

    /// Starts one with these arguments and does not wait for its socket.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn_with(args: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let child = spawn(dir.path(), args)?;
        Ok(Self { child, dir })
    }

    /// Waits for something that the target is to bring about.
    ///
    /// # Errors
    /// It does not happen.
    pub fn wait_until(&self, mut happened: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !happened() {
            if Instant::now() > deadline {
                bail!("it did not happen:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn wait_for_socket(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while std::os::unix::net::UnixStream::connect(self.rpc_socket()).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("the target ended with {status}:\n{}", self.log());
            }
            if Instant::now() > deadline {
                bail!("the target does not listen:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its RPC socket.
    #[must_use]
    pub fn rpc_socket(&self) -> PathBuf {
        self.dir.path().join("rpc.sock")
    }

    /// The socket of an endpoint.
    #[must_use]
    pub fn endpoint(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Calls a method.
    ///
    /// # Errors
    /// The error object of the reply.
    ///
    /// # Panics
    /// If there is no reply.
    pub fn call(&self, method: &str, params: Value) -> Result<Value, RpcError> {
        use std::io::{Read, Write};
        let mut socket =
            std::os::unix::net::UnixStream::connect(self.rpc_socket()).expect("the target listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        let mut request = json!({"jsonrpc": "2.0", "id": 1, "method": method});
        if !params.is_null() {
            request["params"] = params;
        }
        socket.write_all(request.to_string().as_bytes()).expect("the target reads");
        socket.shutdown(std::net::Shutdown::Write).expect("half of a socket can be closed");
        let mut text = String::new();
        socket.read_to_string(&mut text).expect("the target answers");
        let mut reply: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?}"));
        if let Some(error) = reply.get("error") {
            return Err(RpcError {
                code: error["code"].as_i64().unwrap_or(0),
                message: error["message"].as_str().unwrap_or("").to_owned(),
            });
        }
        Ok(reply["result"].take())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).context("the target is gone")
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It does not end.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("the target does not end:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts another one on the same sockets, waits for its end, and returns how it ended and what it said.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_rival(&self) -> Result<(ExitStatus, String)> {
        let output = command(self.dir.path(), &["-m", "0x1"])?.output()?;
        Ok((output.status, String::from_utf8_lossy(&output.stderr).into_owned()))
    }

    /// Kills it without a word, and starts it again in the same folder.
    ///
    /// # Errors
    /// It does not start.
    pub fn crash_and_restart(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.child = spawn(self.dir.path(), &["-m", "0x1"])?;
        self.wait_for_answer()
    }

    /// Kills it without a word, and waits for its end.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn crash(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Ends it in order if it runs, and starts it again in the same folder with these arguments.
    ///
    /// # Errors
    /// It does not end, or does not start.
    pub fn restart_with(&mut self, args: &[&str]) -> Result<()> {
        if self.child.try_wait()?.is_none() {
            self.signal(Signal::TERM)?;
            self.wait()?;
        }
        self.child = spawn(self.dir.path(), args)?;
        self.wait_for_answer()
    }

    /// Starts one that is expected to end by itself, waits for that, and returns how it ended and what it said.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run_to_end(dir: &Path, args: &[&str]) -> Result<(ExitStatus, String)> {
        let output = command(dir, args)?.output()?;
        Ok((output.status, String::from_utf8_lossy(&output.stderr).into_owned()))
    }

    fn wait_for_answer(&mut self) -> Result<()> {
        // The dead one's socket file is still there; only an answer tells that the new one is up.
        std::thread::sleep(Duration::from_millis(1));
        self.wait_for_socket()
    }
}

fn command(dir: &Path, args: &[&str]) -> Result<Command> {
    let mut command = Command::new(binary("ringside"));
    // Tests run beside each other on the same cores; those about the locks say where theirs are.
    if !args.contains(&"--core-lock-dir") {
        command.arg("--disable-cpumask-locks");
    }
    command.args(args).arg("-r").arg(dir.join("rpc.sock")).arg("-S").arg(dir).current_dir(root());
    Ok(command)
}

fn spawn(dir: &Path, args: &[&str]) -> Result<Child> {
    Ok(command(dir, args)?.stderr(log_of(dir)?).spawn()?)
}

fn log_of(dir: &Path) -> Result<File> {
    Ok(File::options().create(true).append(true).open(dir.join("log"))?)
}

impl Drop for Target {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.signal(Signal::TERM);
            if self.wait().is_err() {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
        if std::thread::panicking() {
            eprintln!("the target's log:\n{}", self.log());
        }
    }
}
