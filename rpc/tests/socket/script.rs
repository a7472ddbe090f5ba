//! `scripts/rpc.py` against the model, with the table that is written from the model's declarations.

use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use rpc::State;

use crate::model::{Rig, repository};

/// Runs the client with the server's socket, these words and this standard input.
fn run(rig: &Rig, words: &[&str], input: &str) -> Output {
    let socket = rig.path();
    let socket = ["-s", socket.to_str().unwrap()];
    run_plain(rig, &[&socket, words].concat(), input)
}

fn run_plain(rig: &Rig, words: &[&str], input: &str) -> Output {
    let script = rig.directory.path().join("rpc.py");
    fs::copy(repository("scripts/rpc.py"), &script).unwrap();
    fs::write(rig.directory.path().join("rpc_methods.json"), rig.dispatcher.client_table()).unwrap();
    let mut child = Command::new("python3")
        .arg(script)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn status(output: &Output) -> i32 {
    output.status.code().expect("no signal")
}

fn printed(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

/// What a command that works prints.
fn prints(rig: &Rig, words: &[&str]) -> String {
    let output = run(rig, words, "");
    assert_eq!((status(&output), output.stderr.len()), (0, 0), "{words:?} {output:?}");
    printed(&output).to_owned()
}

#[test]
fn results_print_as_each_method_declares() {
    let rig = Rig::start();
    assert_eq!(prints(&rig, &["bdev_malloc_create", "0.5", "512"]), "Malloc0\n");
    assert_eq!(prints(&rig, &["bdev_null_create", "N 1", "1", "4096"]), "N 1\n");
    assert_eq!(prints(&rig, &["vfu_tgt_set_base_path", "/x"]), "");
    assert!(prints(&rig, &["spdk_get_version"]).starts_with("{\n  \"version\": \"model\",\n"));
    assert!(prints(&rig, &["rpc_get_methods", "-c"]).starts_with("[\n  \"test_panic_later\",\n"));
}

#[test]
fn arguments_become_the_params_that_spdk_s_client_sends() {
    let rig = Rig::start();
    let uuid = "5f1b9c9e-0000-4000-8000-0123456789ab";
    let words = "bdev_malloc_create -b M -u UUID 1.5 512 -p 4096 -o 8 -m 8 -i -t 1 -d -f 2 -n -1";
    let words: Vec<&str> = words.split(' ').map(|word| if word == "UUID" { uuid } else { word }).collect();
    prints(&rig, &words);
    prints(&rig, &["bdev_null_create", "N", "2", "512"]);
    prints(&rig, &["vfu_virtio_create_blk_endpoint", "e", "--bdev-name", "N"]);
    let expected = serde_json::json!({"num_blocks": 3072, "block_size": 512, "physical_block_size": 4096,
        "name": "M", "uuid": uuid, "optimal_io_boundary": 8, "md_size": 8, "md_interleave": true, "dif_type": 1,
        "dif_is_head_of_md": true, "dif_pi_format": 2, "numa_id": -1});
    assert_eq!(serde_json::Value::from(rig.model.bdevs.lock().unwrap()["M"].clone()), expected);
    let expected =
        serde_json::json!({"name": "N", "num_blocks": 4096, "block_size": 512, "dif_is_head_of_md": false});
    assert_eq!(serde_json::Value::from(rig.model.bdevs.lock().unwrap()["N"].clone()), expected);
    let expected = serde_json::json!({"name": "e", "bdev_name": "N", "packed_ring": false});
    assert_eq!(serde_json::Value::from(rig.model.endpoints.lock().unwrap()["e"].clone()), expected);
}

#[test]
fn error_shows_the_request_and_the_reply() {
    let output = run(&Rig::start(), &["bdev_null_delete", "none"], "");
    let expected = "request:\n{\n  \"name\": \"none\",\n  \"method\": \"bdev_null_delete\",\n  \"req_id\": 1\n}\n\
                    Got JSON-RPC error response\nresponse:\n{\n  \"code\": -19,\n  \"message\": \"No such device\"\n}\n";
    assert_eq!((status(&output), printed(&output)), (1, expected));
}

#[test]
fn bad_command_line_is_status_two() {
    let rig = Rig::start();
    for words in [
        &["no_such_method"][..],
        &["bdev_null_create", "N", "1"],
        &["bdev_null_create", "N", "1.5", "512"],
        &["bdev_malloc_create", "1", "512", "-t", "7"],
        &["spdk_kill_instance", "15"],
        &["vfu_virtio_create_blk_endpoint", "e"],
    ] {
        let output = run(&rig, words, "");
        assert_eq!((status(&output), printed(&output)), (2, ""), "{words:?}");
        assert!(
            output.stderr.starts_with(b"usage: rpc.py [options]") || output.stderr.starts_with(b"usage: ")
        );
    }
}

#[test]
fn option_that_needs_another_is_refused_without_it() {
    let output = run(&Rig::start(), &["bdev_null_create", "N", "1", "512", "-t", "1"], "");
    assert_eq!(
        (status(&output), printed(&output)),
        (1, "ERROR: --md-size must be > 0 when --dif-type is > 0\n")
    );
}

#[test]
fn no_connection_is_said_in_spdk_s_words() {
    let rig = Rig::start();
    let output = run_plain(&rig, &["-s", "/nonexistent.sock", "-r", "1", "spdk_get_version"], "");
    let expected = "Error while connecting to /nonexistent.sock\nIs SPDK application running?\n\
                    Error details: Invalid or non-existing address: '/nonexistent.sock'\n";
    assert_eq!((status(&output), printed(&output)), (1, expected));
}

#[test]
fn timeout_is_said_and_is_status_one() {
    let rig = Rig::in_state(State::Startup);
    let output = run(&rig, &["-t", "0.1", "framework_wait_init"], "");
    assert_eq!((status(&output), printed(&output)), (1, "Timeout while waiting for response:\n\n\n"));
    let output = run(&rig, &["-t", "0", "framework_wait_init"], "");
    assert_eq!((status(&output), printed(&output)), (1, "Timeout value is invalid: 0.0\n\n"));
}

#[test]
fn dry_run_shows_the_request_and_sends_nothing() {
    let rig = Rig::start();
    let expected = "Request:\n{\n  \"jsonrpc\": \"2.0\",\n  \"method\": \"vfu_virtio_delete_endpoint\",\n  \"id\": 1,\n  \
                    \"params\": {\n    \"name\": \"e\"\n  }\n}\n";
    assert_eq!(prints(&rig, &["--dry-run", "vfu_virtio_delete_endpoint", "e"]), expected);
    let nowhere = run_plain(&rig, &["-s", "/nonexistent.sock", "--dry-run", "spdk_get_version"], "");
    assert_eq!(status(&nowhere), 0);
}

#[test]
fn script_runs_line_by_line_up_to_the_first_failure() {
    let rig = Rig::start();
    let script =
        "# a comment\n\nbdev_null_create 'N 1' 1 512\nbdev_null_delete none\nbdev_null_create N2 1 512\n";
    let output = run(&rig, &[], script);
    assert_eq!(status(&output), 1);
    let expected =
        "N 1\nException:\n# a comment\nbdev_null_create 'N 1' 1 512\nbdev_null_delete none <<<\nrequest:\n";
    assert!(printed(&output).starts_with(expected), "{}", printed(&output));
    let bdevs: Vec<String> = rig.model.bdevs.lock().unwrap().keys().cloned().collect();
    assert_eq!(bdevs, ["N 1"]);
}

#[test]
fn batch_sends_all_lines_at_once() {
    let rig = Rig::start();
    let script = "vfu_tgt_set_base_path /x\nbdev_null_delete none\nbdev_null_create N 1 512\n";
    let output = run(&rig, &["-b"], script);
    // The first `null` is what SPDK's client prints when the create is put into the batch.
    assert_eq!((status(&output), printed(&output)), (1, "null\ntrue\n\"N\"\n"));
    let errors = std::str::from_utf8(&output.stderr).unwrap();
    assert_eq!(errors, "{\n  \"code\": -19,\n  \"message\": \"No such device\"\n}\n");
}

#[test]
fn server_mode_ends_each_command_with_its_status() {
    let rig = Rig::start();
    let socket = rig.path();
    let socket = socket.to_str().unwrap();
    let input = format!(
        "-s {socket} bdev_null_create N 1 512\n-s {socket} bdev_null_create N 1 512\n-s {socket} nonsense\n\
         -s /nonexistent.sock spdk_get_version\n-s {socket} bdev_null_delete N\n"
    );
    let output = run_plain(&rig, &["--server"], &input);
    let statuses: Vec<&str> = printed(&output).lines().filter(|line| line.starts_with("**")).collect();
    assert_eq!(status(&output), 0);
    assert_eq!(statuses, ["**STATUS=0", "**STATUS=1", "**STATUS=1", "**STATUS=1", "**STATUS=0"]);
}

#[test]
fn large_reply_is_read_whole() {
    let rig = Rig::start();
    for number in 0..2000 {
        let created = serde_json::Map::from_iter([("note".to_owned(), "n".repeat(100).into())]);
        rig.model.bdevs.lock().unwrap().insert(format!("B{number}"), created);
    }
    let listed: Vec<serde_json::Value> = serde_json::from_str(&prints(&rig, &["bdev_get_bdevs"])).unwrap();
    assert_eq!(listed.len(), 2000);
}

#[test]
fn kill_that_ends_the_connection_is_a_success() {
    let mut rig = Rig::start();
    // A listener that closes every connection, in the place of a target that dies before it answers.
    drop(rig.server.take());
    let listener = std::os::unix::net::UnixListener::bind(rig.path()).unwrap();
    let closer = std::thread::spawn(move || {
        use std::io::Read;
        for stream in listener.incoming().take(2) {
            assert_ne!(stream.unwrap().read(&mut [0; 1024]).unwrap(), 0);
        }
    });
    assert_eq!(prints(&rig, &["spdk_kill_instance", "SIGTERM"]), "");
    let other = run(&rig, &["spdk_get_version"], "");
    assert_eq!(status(&other), 1);
    assert!(printed(&other).starts_with("Connection "), "{}", printed(&other));
    closer.join().unwrap();
}

#[test]
fn plugin_adds_methods() {
    let rig = Rig::start();
    let plugin = concat!(
        "def spdk_rpc_plugin_initialize(subparsers):\n",
        "    parser = subparsers.add_parser('echo')\n",
        "    parser.add_argument('value')\n",
        "    parser.set_defaults(func=lambda args: print(args.client.test_echo(value=args.value)['value']))\n"
    );
    fs::write(rig.directory.path().join("echo_plugin.py"), plugin).unwrap();
    assert_eq!(prints(&rig, &["--plugin", "echo_plugin", "echo", "hello"]), "hello\n");
    let missing = run(&rig, &["--plugin", "no_plugin", "spdk_get_version"], "");
    assert!(printed(&missing).starts_with("Module no_plugin not found\n"));
}
