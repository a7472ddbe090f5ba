//! The two command line clients: SPDK's own (`spdk-rpc`, installed by `scripts/test`) and `scripts/rpc.py`.

use std::{
    io::Write,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use ringside_tests::{Target, root};

/// A program of SPDK's package.
pub(crate) fn spdk(program: &str) -> PathBuf {
    let rpc = std::env::var_os("SPDK_RPC").map(PathBuf::from);
    let bin = rpc.and_then(|rpc| rpc.parent().map(PathBuf::from));
    bin.unwrap_or_else(|| root().join(".cache/spdk-26.9/bin")).join(program)
}

/// Both clients, theirs first.
pub(crate) fn both() -> [PathBuf; 2] {
    [spdk("spdk-rpc"), root().join("scripts/rpc.py")]
}

/// Runs a client with this line and this standard input.
pub(crate) fn run(client: &PathBuf, target: &Target, line: &str, input: &str) -> Output {
    let mut command = Command::new(client);
    command.arg("-s").arg(target.rpc_socket()).args(line.split_whitespace());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// As [`run`]; what it printed, which must be without an error.
pub(crate) fn succeed(client: &PathBuf, target: &Target, line: &str, input: &str) -> String {
    let output = run(client, target, line, input);
    let printed = String::from_utf8(output.stdout).unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{} {line}: {printed}{complaint}", client.display());
    printed
}
