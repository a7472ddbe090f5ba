//! `--state-dir`: the configuration survives crashes, at any moment, and full disks.

use std::{path::Path, process::Command};

use ringside_tests::Target;
use serde_json::{Value, json};

fn config(target: &Target) -> Value {
    let section = |name: &str| target.call("framework_get_config", json!({"name": name})).unwrap();
    json!([section("bdev"), section("vfio_user_target")])
}

fn disk(name: &str) -> Value {
    json!({"name": name, "num_blocks": 2048, "block_size": 512})
}

#[test]
fn state_survives_a_crash_and_goes_before_the_file() {
    let mut target = Target::start().unwrap();
    let state = target.dir().join("state");
    let file = target.dir().join("first.json");
    let first = json!({"subsystems": [{"subsystem": "bdev", "config": [
        {"method": "bdev_null_create", "params": disk("First")}]}]});
    std::fs::write(&file, first.to_string()).unwrap();
    let args = ["--state-dir", state.to_str().unwrap(), "-c", file.to_str().unwrap()];
    target.restart_with(&args).unwrap();
    target.call("bdev_malloc_create", json!({"num_blocks": 2048, "block_size": 512})).unwrap();
    target.call("vfu_virtio_create_blk_endpoint", json!({"name": "e", "bdev_name": "Malloc0"})).unwrap();
    target.call("bdev_null_delete", json!({"name": "First"})).unwrap();
    let before = config(&target);

    target.crash().unwrap();
    target.restart_with(&args).unwrap();

    assert_eq!(config(&target), before);
    assert!(target.endpoint("e").exists());
    target.restart_with(&args).unwrap();
    assert_eq!(config(&target), before, "an orderly end deletes nothing");
}

/// A disk that is missing once, and a start that is told to go on without it.
#[test]
fn what_was_kept_stays_beside_what_a_start_has_made_of_it() {
    let mut target = Target::start().unwrap();
    let (state, image) = (target.dir().join("state"), target.dir().join("disk.img"));
    let args = ["--state-dir", state.to_str().unwrap(), "--json-ignore-init-errors"];
    std::fs::File::create(&image).unwrap().set_len(1 << 20).unwrap();
    target.restart_with(&args).unwrap();
    let file = json!({"filename": image, "name": "File", "block_size": 512});
    target.call("bdev_aio_create", file).unwrap();
    target.call("vfu_virtio_create_blk_endpoint", json!({"name": "e", "bdev_name": "File"})).unwrap();
    let before = config(&target);
    target.restart_with(&args).unwrap();
    let old = state.join("state.journal.old");
    assert!(config(&target) == before && !old.exists(), "nothing was lost");

    std::fs::rename(&image, target.dir().join("elsewhere.img")).unwrap();
    target.restart_with(&args).unwrap();
    assert!(config(&target) != before && old.exists());
    std::fs::rename(target.dir().join("elsewhere.img"), &image).unwrap();
    // A start later it is still there.
    target.restart_with(&args).unwrap();
    target.crash().unwrap();
    std::fs::rename(&old, state.join("state.journal")).unwrap();
    target.restart_with(&args).unwrap();

    assert_eq!(config(&target), before);
}

/// Every call is either whole or not there: the names that a crash left are those of the calls that were answered, and
/// perhaps of the one that was not.
#[test]
fn killed_hundreds_of_times_the_state_is_the_one_before_or_after_a_call() {
    /// How often the target is killed; each life has a few calls.
    const KILLS: u32 = 300;
    let mut target = Target::start().unwrap();
    let state = target.dir().join("state");
    let args = ["--state-dir", state.to_str().unwrap()];
    target.restart_with(&args).unwrap();
    let mut known: Vec<String> = Vec::new();
    for kill in 0..KILLS {
        let socket = target.rpc_socket();
        let pid = rustix::process::Pid::from_raw(i32::try_from(target.pid()).unwrap()).unwrap();
        // The moment differs from life to life: from before the first call to after the last.
        let delay = std::time::Duration::from_micros(u64::from(kill % 50) * 150);
        let killer = std::thread::spawn(move || {
            std::thread::sleep(delay);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        });
        let (sure, open) = live(&socket, kill, &known);
        killer.join().unwrap();
        target.crash().unwrap();
        target.restart_with(&args).unwrap();
        let bdevs = target.call("bdev_get_bdevs", Value::Null).unwrap();
        let names = bdevs.as_array().unwrap().iter().map(|bdev| bdev["name"].as_str().unwrap().to_owned());
        known = names.collect();
        assert!(
            known == sure || known == open,
            "after kill {kill}: {known:?} is neither {sure:?} nor {open:?}"
        );
    }
}

/// Calls until the target dies. The names after the calls that were answered, and after the one that was not too.
fn live(socket: &Path, life: u32, known: &[String]) -> (Vec<String>, Vec<String>) {
    use std::io::{BufRead, Write};
    let mut sure = known.to_vec();
    let Ok(stream) = std::os::unix::net::UnixStream::connect(socket) else { return (sure.clone(), sure) };
    let mut replies = std::io::BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    for call in 0..12 {
        let mut after = sure.clone();
        // The older half goes when there are many, the rest are new.
        let (method, params) = if after.len() > 8 {
            let name = after.remove(0);
            ("bdev_null_delete", json!({"name": name}))
        } else {
            let name = format!("N{life}_{call}");
            after.push(name.clone());
            ("bdev_null_create", disk(&name))
        };
        let request = json!({"jsonrpc": "2.0", "id": call, "method": method, "params": params}).to_string();
        let mut reply = String::new();
        let answered = stream.write_all(request.as_bytes()).is_ok()
            && replies.read_line(&mut reply).is_ok_and(|length| length > 0)
            && reply.ends_with('\n');
        if !answered {
            return (sure, after);
        }
        assert!(reply.contains("result"), "{reply}");
        sure = after;
    }
    (sure.clone(), sure)
}

#[test]
fn full_disk_refuses_calls_and_loses_none() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    // A disk of 3 MiB of its own; the kernel lets root, or whoever may have user namespaces, mount one.
    let script = format!(
        "mount -t tmpfs -o size=3m tmpfs {0} && exec {1} --exact journal::inside_a_small_disk --nocapture",
        disk.display(),
        std::env::current_exe().unwrap().display()
    );
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
        .env("RINGSIDE_SMALL_DISK", &disk)
        .output()
        .unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    assert!(said.contains("refused when full"), "{said}");
}

/// The inside of the test above, which runs it where there is a small disk; alone it has nothing to show.
#[test]
fn inside_a_small_disk() {
    let Some(small) = std::env::var_os("RINGSIDE_SMALL_DISK") else { return };
    let small = Path::new(&small);
    let mut target = Target::start().unwrap();
    let state = small.join("state");
    let args = ["--state-dir", state.to_str().unwrap()];
    target.restart_with(&args).unwrap();
    target.call("bdev_null_create", disk("Before")).unwrap();
    // Eats what is left.
    let _ = std::fs::write(small.join("ballast"), vec![1; 4 << 20]);
    let mut made = Vec::new();
    let refused = loop {
        let name = format!("N{}", made.len());
        match target.call("bdev_null_create", disk(&name)) {
            Ok(_) => made.push(name),
            Err(error) => break error,
        }
        assert!(made.len() < 100_000, "the disk never fills");
    };
    assert_eq!((refused.code, refused.message.as_str()), (-28, "No space left on device"));
    println!("refused when full, after {} calls", made.len());
    let before = config(&target);
    let disks = before[0].as_array().unwrap().iter().filter(|entry| entry["method"] == "bdev_null_create");
    assert_eq!(disks.count(), made.len() + 1, "a refused call did nothing");
    target.crash().unwrap();
    std::fs::remove_file(small.join("ballast")).unwrap();
    target.restart_with(&args).unwrap();
    assert_eq!(config(&target), before);
    target.call("bdev_null_create", disk("After")).unwrap();
}
