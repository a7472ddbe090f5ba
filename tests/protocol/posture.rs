//! What the process may do: in the sandbox, as an ordinary user without capabilities, with sockets for its owner only.

use std::{
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Child, Command},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ringside_tests::Target;
use serde_json::json;

use super::{
    Case, Kit, ours,
    virtio::{self, Disk},
};

pub(super) const CASES: &[Case] = &[
    ours("sockets_are_the_owners", "mode 0600, the endpoint's and the RPC server's", modes),
    ours("in_the_sandbox", "seccomp and Landlock on; disks work with and without shared memory", sandboxed),
    ours("out_of_reach_in_the_sandbox", "files of other folders", out_of_reach),
    ours("as_an_ordinary_user", "no capabilities, no hugepages", ordinary),
];

/// Somebody without rights: nobody's number on Debian.
const NOBODY: u32 = 65534;

fn modes(kit: &Kit) -> Result<()> {
    let mode = |path: &Path| -> Result<u32> { Ok(std::fs::metadata(path)?.permissions().mode() & 0o777) };
    ensure!(mode(&kit.socket)? == 0o600);
    ensure!(mode(&kit.target()?.rpc_socket())? == 0o600);
    Ok(())
}

fn sandbox() -> Result<Kit> {
    let target = Target::start_with(&["-m", "0x1", "--sandbox"])?;
    let fail = |error| anyhow::anyhow!("{error:?}");
    let disk = json!({"name": "Malloc0", "num_blocks": 2048, "block_size": 512});
    target.call("bdev_malloc_create", disk).map_err(fail)?;
    let endpoint = json!({"name": "vfu.0", "bdev_name": "Malloc0", "num_queues": 2, "qsize": 8});
    target.call("vfu_virtio_create_blk_endpoint", endpoint).map_err(fail)?;
    Ok(Kit { socket: target.endpoint("vfu.0"), target: Some(target) })
}

fn sandboxed(_kit: &Kit) -> Result<()> {
    let kit = sandbox()?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", kit.target()?.pid()))?;
    ensure!(status.contains("Seccomp:\t2") && status.contains("NoNewPrivs:\t1"), "{status}");
    for _ in 0..3 {
        Disk::start(&kit)?.request(virtio::OUT, 0, &[1; 4096])?;
    }
    super::dma_read_write::round_trip_twin(&kit)?;
    let fail = |error| anyhow::anyhow!("{error:?}");
    kit.target()?.call("vfu_virtio_delete_endpoint", json!({"name": "vfu.0"})).map_err(fail)?;
    let again = json!({"name": "vfu.0", "bdev_name": "Malloc0"});
    kit.target()?.call("vfu_virtio_create_blk_endpoint", again).map_err(fail)?;
    kit.open()?.is_in_step()
}

fn out_of_reach(_kit: &Kit) -> Result<()> {
    let kit = sandbox()?;
    let elsewhere = tempfile::tempdir()?;
    let fail = |error| anyhow::anyhow!("{error:?}");
    kit.target()?.call("vfu_tgt_set_base_path", json!({"path": elsewhere.path()})).map_err(fail)?;
    let outcome = kit
        .target()?
        .call("vfu_virtio_create_blk_endpoint", json!({"name": "vfu.1", "bdev_name": "Malloc0"}));
    let confined = !kit.target()?.log().contains("files are not confined");
    ensure!(outcome.is_err() == confined, "{outcome:?}");
    Ok(())
}

/// A target that ends with the value.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ordinary(_kit: &Kit) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut command = Command::new(ringside_tests::binary("ringside"));
    if rustix::process::getuid().is_root() {
        // Its own binary may be in a folder that nobody else may enter.
        let copy = dir.path().join("ringside");
        std::fs::copy(ringside_tests::binary("ringside"), &copy)?;
        std::os::unix::fs::chown(dir.path(), Some(NOBODY), Some(NOBODY))?;
        command = Command::new(copy);
        command.uid(NOBODY).gid(NOBODY);
    }
    let log = std::fs::File::create(dir.path().join("log"))?;
    command.args(["-m", "0x1", "--disable-cpumask-locks", "-r"]).arg(dir.path().join("rpc.sock"));
    command.arg("-S").arg(dir.path()).current_dir(dir.path()).stderr(log);
    let process = Process(command.spawn()?);
    let status = || std::fs::read_to_string(format!("/proc/{}/status", process.0.id()));
    let deadline = Instant::now() + Duration::from_secs(20);
    let call = |request: serde_json::Value| -> Result<String> {
        use std::io::{Read, Write};
        let mut rpc = std::os::unix::net::UnixStream::connect(dir.path().join("rpc.sock"))?;
        rpc.write_all(request.to_string().as_bytes())?;
        rpc.shutdown(std::net::Shutdown::Write)?;
        let mut text = String::new();
        rpc.read_to_string(&mut text)?;
        ensure!(text.contains("\"result\""), "{text}");
        Ok(text)
    };
    while call(json!({"jsonrpc": "2.0", "id": 1, "method": "spdk_get_version"})).is_err() {
        let log = || std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();
        ensure!(Instant::now() < deadline, "it does not start:\n{}", log());
        std::thread::sleep(Duration::from_millis(10));
    }
    let status = status().context("it has ended")?;
    ensure!(status.contains("CapEff:\t0000000000000000"), "{status}");
    let disk = json!({"name": "Malloc0", "num_blocks": 2048, "block_size": 512});
    call(json!({"jsonrpc": "2.0", "id": 1, "method": "bdev_malloc_create", "params": disk}))?;
    let endpoint = json!({"name": "vfu.0", "bdev_name": "Malloc0", "num_queues": 2, "qsize": 8});
    call(json!({"jsonrpc": "2.0", "id": 1, "method": "vfu_virtio_create_blk_endpoint", "params": endpoint}))?;
    let kit = Kit { socket: dir.path().join("vfu.0"), target: None };
    Disk::start(&kit)?.request(virtio::OUT, 0, &[1; 4096])
}
