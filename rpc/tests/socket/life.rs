//! A server's beginning and end: its socket, its lock, its errors.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};

use rpc::{Listen, Server, ServerError, State};

use crate::client::Client;
use crate::model::Rig;

const ECHO: &str = r#"{"id":1,"method":"test_echo"}"#;
const ECHOED: &str = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;

fn serve(rig: &Rig, name: &str) -> Result<Server, ServerError> {
    rig.thread.serve(Listen::on(rig.directory.path().join(name)), rig.dispatcher.clone())
}

#[test]
fn socket_and_lock_are_for_their_owner_only() {
    let rig = Rig::start();
    let mode =
        |name: &str| fs::metadata(rig.directory.path().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("rpc.sock"), 0o600);
    assert_eq!(mode("rpc.sock.lock"), 0o600);
}

#[test]
fn socket_has_the_mode_it_was_given() {
    let rig = Rig::with(State::Runtime, None, |listen| listen.mode(0o660));
    assert_eq!(fs::metadata(rig.path()).unwrap().mode() & 0o777, 0o660);
}

#[test]
fn socket_in_use_is_refused_with_spdk_s_text() {
    let rig = Rig::start();
    let error = serve(&rig, "rpc.sock").expect_err("in use").to_string();
    let path = rig.path();
    assert_eq!(error, format!("RPC Unix domain socket path {} in use. Specify another.", path.display()));
    // The server that was there is still there.
    assert_eq!(rig.connect().call(ECHO), ECHOED);
    assert!(rig.directory.path().join("rpc.sock.lock").exists());
}

#[test]
fn stop_removes_socket_and_lock_and_the_path_can_be_used_again() {
    let mut rig = Rig::start();
    rig.server.take().unwrap().stop();
    assert_eq!(fs::read_dir(rig.directory.path()).unwrap().count(), 0);
    let _again = serve(&rig, "rpc.sock").unwrap();
    assert_eq!(rig.connect().call(ECHO), ECHOED);
}

#[test]
fn stale_socket_is_taken_over() {
    let rig = Rig::start();
    let path = rig.directory.path().join("stale.sock");
    // A process that died leaves both files, unlocked.
    drop(UnixListener::bind(&path).unwrap());
    fs::write(rig.directory.path().join("stale.sock.lock"), "").unwrap();
    let _server = serve(&rig, "stale.sock").unwrap();
    assert_eq!(Client::connect(&path).call(ECHO), ECHOED);
}

#[test]
fn file_that_is_no_socket_is_left_alone() {
    let rig = Rig::start();
    let path = rig.directory.path().join("precious");
    fs::write(&path, "data").unwrap();
    let error = serve(&rig, "precious").expect_err("not a socket").to_string();
    assert_eq!(error, format!("RPC Unix domain socket path {} exists and is not a socket", path.display()));
    assert_eq!(fs::read_to_string(&path).unwrap(), "data");
    assert!(!rig.directory.path().join("precious.lock").exists());
}

#[test]
fn path_too_long_for_an_address_is_refused_before_a_file_is_made() {
    let rig = Rig::start();
    let name = "n".repeat(200);
    let error = serve(&rig, &name).expect_err("too long");
    assert!(matches!(error, ServerError::PathTooLong { .. }), "{error}");
    assert!(!rig.directory.path().join(format!("{name}.lock")).exists());
}

#[test]
fn longest_path_works_and_one_byte_more_does_not() {
    let rig = Rig::start();
    let length = 107 - rig.directory.path().as_os_str().len() - 1;
    drop(serve(&rig, &"n".repeat(length)).unwrap());
    let error = serve(&rig, &"n".repeat(length + 1)).expect_err("too long").to_string();
    assert!(error.ends_with("is too long (107 bytes at most)"), "{error}");
}

#[test]
fn empty_path_is_refused() {
    let rig = Rig::start();
    let error = rig.thread.serve(Listen::on(""), rig.dispatcher.clone()).expect_err("empty");
    assert_eq!(error.to_string(), "RPC Unix domain socket path is empty");
}

#[test]
fn directory_that_is_not_there_is_named() {
    let rig = Rig::start();
    let error = serve(&rig, "none/rpc.sock").expect_err("no directory").to_string();
    let lock = rig.directory.path().join("none/rpc.sock.lock");
    assert_eq!(error, format!("Cannot open lock file {}: No such file or directory", lock.display()));
}

#[test]
fn several_servers_share_a_thread_and_a_target() {
    let rig = Rig::start();
    let second = serve(&rig, "second.sock").unwrap();
    let create =
        r#"{"id":1,"method":"bdev_null_create","params":{"name":"N","num_blocks":1,"block_size":512}}"#;
    Client::connect(second.path()).call(create);
    second.stop();
    let listed = rig.connect().call(r#"{"id":1,"method":"bdev_get_bdevs"}"#);
    assert!(listed.contains(r#""name":"N""#), "{listed}");
}

#[test]
fn stop_closes_idle_connections_in_order() {
    let mut rig = Rig::start();
    let mut client = rig.connect();
    assert_eq!(client.call(ECHO), ECHOED);
    rig.server.take().unwrap().stop();
    assert_eq!(client.rest(), "");
    assert!(UnixStream::connect(rig.path()).is_err());
}

#[test]
fn stop_does_not_wait_for_calls_that_do_not_end() {
    let mut rig = Rig::start();
    let mut client = rig.connect();
    client.send(r#"{"id":1,"method":"test_hold","params":{"name":"never"}}"#);
    assert_eq!(client.call(ECHO), ECHOED);
    rig.server.take().unwrap().stop();
    assert_eq!(client.bytes_until_end(), 0);
}

#[test]
fn stop_lets_a_call_under_way_answer() {
    let mut rig = Rig::start();
    let mut client = rig.connect();
    client.send(r#"{"id":2,"method":"test_hold","params":{"name":"a"}}"#);
    assert_eq!(client.call(ECHO), ECHOED);
    rig.release("a");
    rig.server.take().unwrap().stop();
    assert_eq!(client.rest(), "{\"jsonrpc\":\"2.0\",\"id\":2,\"result\":\"a\"}\n");
}

#[test]
fn thread_that_is_dropped_before_its_server_ends_both() {
    let Rig { server, thread, .. } = Rig::start();
    drop(thread);
    drop(server);
}

#[test]
fn name_declared_twice_is_refused() {
    let stage = rpc::Stage::new(State::Runtime);
    let rig = Rig::start();
    let mut table = rpc::MethodTable::new(rig.model.clone(), stage);
    table.register(crate::methods::SPDK).unwrap();
    let error = table.register(crate::methods::SPDK).unwrap_err();
    assert_eq!(error.to_string(), "RPC method spdk_get_version is declared twice");
}
