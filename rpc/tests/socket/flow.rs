//! Clients that leave early, read late, or come in crowds.

use std::thread;
use std::time::Duration;

use rpc::{Listen, State};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::client::Client;
use crate::model::Rig;

const ECHO: &str = r#"{"id":1,"method":"test_echo"}"#;
const ECHOED: &str = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;
const HOLD: &str = r#"{"id":2,"method":"test_hold","params":{"name":"a"}}"#;
const HELD: &str = r#"{"jsonrpc":"2.0","id":2,"result":"a"}"#;

#[test]
fn half_closed_client_gets_the_reply_that_is_ready() {
    let rig = Rig::start();
    let mut client = rig.connect();
    client.send(ECHO);
    client.half_close();
    assert_eq!(client.rest(), format!("{ECHOED}\n"));
}

#[test]
fn half_closed_client_gets_the_reply_that_takes_its_time() {
    let rig = Rig::start();
    let mut client = rig.connect();
    client.send(format!("{HOLD}{ECHO}"));
    client.half_close();
    assert_eq!(client.reply(), ECHOED);
    // Longer than the interval in which the server asks whether the client is still there.
    thread::sleep(2 * rpc::limits::GONE_CHECK_INTERVAL);
    rig.release("a");
    assert_eq!(client.rest(), format!("{HELD}\n"));
}

#[test]
fn half_closed_client_gets_every_pipelined_reply() {
    let rig = Rig::start();
    let mut client = rig.connect();
    client.send(ECHO.repeat(1000));
    client.half_close();
    assert_eq!(client.rest(), format!("{ECHOED}\n").repeat(1000));
}

#[test]
fn half_closed_client_gets_a_reply_larger_than_the_socket_takes() {
    let rig = Rig::start();
    let mut client = rig.connect();
    client.send(r#"{"id":1,"method":"test_large","params":{"bytes":4000000}}"#);
    client.half_close();
    assert!(client.rest().len() > 4_000_000);
}

#[test]
fn client_that_sends_nothing_and_closes_gets_nothing() {
    let rig = Rig::start();
    let mut client = rig.connect();
    client.send(" \n");
    client.half_close();
    assert_eq!(client.rest(), "");
}

#[test]
fn handler_runs_to_its_end_without_its_client() {
    let rig = Rig::start();
    let mut client = rig.connect();
    client.send(HOLD);
    assert_eq!(client.call(ECHO), ECHOED);
    drop(client);
    rig.release("a");
    rig.until_held(1);
}

#[test]
fn client_that_gives_up_waiting_frees_its_slot() {
    let rig = Rig::with(State::Runtime, None, |listen: Listen| listen.connections_max(1));
    let mut client = rig.connect();
    client.send(HOLD);
    assert_eq!(client.call(ECHO), ECHOED);
    drop(client);
    // The reply of the first is never ready; the second is served all the same.
    assert_eq!(rig.connect().call(ECHO), ECHOED);
}

#[test]
fn client_that_reads_late_delays_only_itself() {
    let rig = Rig::start();
    let mut slow = rig.connect();
    slow.send(r#"{"id":1,"method":"test_large","params":{"bytes":8000000}}"#);
    let mut quick = rig.connect();
    for _ in 0..100 {
        assert_eq!(quick.call(ECHO), ECHOED);
    }
    assert!(slow.reply().len() > 8_000_000);
    assert_eq!(slow.call(ECHO), ECHOED);
}

#[test]
fn client_that_never_reads_is_cut_off_after_a_while() {
    let configure = |listen: Listen| listen.connections_max(1).unread_time_max(Duration::from_millis(100));
    let rig = Rig::with(State::Runtime, None, configure);
    let mut stuck = rig.connect();
    stuck.send(r#"{"id":1,"method":"test_large","params":{"bytes":4000000}}"#);
    // Its slot is free again, though what it was owed is below the bound in bytes.
    assert_eq!(rig.connect().call(ECHO), ECHOED);
    assert!(stuck.bytes_until_end() < 4_000_000);
}

#[test]
fn client_that_stops_in_the_middle_of_a_request_delays_only_itself() {
    let rig = Rig::start();
    let mut stuck = rig.connect();
    stuck.send(&ECHO[..10]);
    assert_eq!(rig.connect().call(ECHO), ECHOED);
    assert_eq!(stuck.call(&ECHO[10..]), ECHOED);
}

#[test]
fn client_that_floods_delays_others_by_turns_only() {
    let rig = Rig::start();
    let path = rig.path();
    let flood = thread::spawn(move || {
        let mut client = Client::connect(&path);
        for _ in 0..50 {
            client.send(ECHO.repeat(500));
            for _ in 0..500 {
                assert_eq!(client.reply(), ECHOED);
            }
        }
    });
    let mut other = rig.connect();
    for _ in 0..200 {
        assert_eq!(other.call(ECHO), ECHOED);
    }
    flood.join().unwrap();
}

#[test]
fn thousand_clients_at_once_are_all_served() {
    let rig = Rig::start();
    // Most systems allow 1024 files at first, and the other tests of this process have theirs.
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files).unwrap();
    // All are connected, far more than are served at once, before the first one hangs up.
    let mut clients: Vec<Client> = (0..1000).map(|_| rig.connect()).collect();
    for client in &mut clients {
        client.send(ECHO);
    }
    for mut client in clients {
        assert_eq!(client.reply(), ECHOED);
    }
}

#[test]
fn clients_on_many_threads_do_not_mix_their_replies() {
    let rig = Rig::start();
    let threads: Vec<_> = (0..32)
        .map(|number| {
            let path = rig.path();
            thread::spawn(move || {
                for round in 0..20 {
                    let mut client = Client::connect(&path);
                    let id = number * 1000 + round;
                    let request = format!(r#"{{"id":{id},"method":"test_echo","params":{{"value":{id}}}}}"#);
                    let expected = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"value":{id}}}}}"#);
                    assert_eq!(client.call(&request), expected);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}
