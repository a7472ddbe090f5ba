//! Each limit from both sides. One past it SPDK drops the connection without a word, and so do we; but replies owed
//! for earlier requests arrive first.

use rpc::Listen;
use rpc::State;
use rpc::limits::{CONNECTIONS_MAX, IN_FLIGHT_MAX, REPLY_BYTES_MAX, REQUEST_BYTES_MAX, UNSENT_BYTES_MAX};
use rpc::limits::{REQUEST_DEPTH_MAX, REQUEST_TOKENS_MAX};

use crate::client::Client;
use crate::model::Rig;

const ECHO: &str = r#"{"id":1,"method":"test_echo"}"#;
const ECHOED: &str = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;

fn echo_of(value: &str) -> String {
    format!(r#"{{"id":1,"method":"test_echo","params":{{"value":{value}}}}}"#)
}

/// What comes back for one good request and then this one.
fn rest_after_echo_and(request: &str) -> String {
    let rig = Rig::start();
    let mut client = rig.connect();
    client.send(ECHO);
    assert_eq!(client.reply(), ECHOED);
    client.send_to_closing(request);
    client.rest()
}

fn is_answered(request: &str) -> bool {
    Rig::start().connect().call(request).starts_with(r#"{"jsonrpc":"2.0","id":1,"result":"#)
}

#[test]
fn longest_request_is_answered_and_one_byte_more_drops_the_connection() {
    let with_length = |length: usize| echo_of(&format!("\"{}\"", "a".repeat(length - echo_of("\"\"").len())));
    assert!(is_answered(&with_length(REQUEST_BYTES_MAX)));
    assert_eq!(rest_after_echo_and(&with_length(REQUEST_BYTES_MAX + 1)), "");
}

#[test]
fn request_without_end_is_dropped_at_the_limit() {
    let endless = format!("{{\"{}", "a".repeat(2 * REQUEST_BYTES_MAX));
    assert_eq!(rest_after_echo_and(&endless), "");
}

#[test]
fn white_space_is_not_part_of_a_request() {
    let padded = format!("{}{ECHO}", " ".repeat(4 * REQUEST_BYTES_MAX));
    assert!(is_answered(&padded));
}

#[test]
fn most_tokens_are_answered_and_one_more_drops_the_connection() {
    // Outside of the array's elements: three members, their names and two values, the params' object and member, and
    // six brackets, which makes 12.
    let outside = 12;
    let with_tokens = |tokens: usize| echo_of(&format!("[{}0]", "0,".repeat(tokens - outside - 1)));
    assert!(is_answered(&with_tokens(REQUEST_TOKENS_MAX)));
    assert_eq!(rest_after_echo_and(&with_tokens(REQUEST_TOKENS_MAX + 1)), "");
}

#[test]
fn deepest_request_is_answered_and_one_deeper_drops_the_connection() {
    // The request and its params are the first two.
    let with_depth = |depth: usize| echo_of(&format!("{}{}", "[".repeat(depth - 2), "]".repeat(depth - 2)));
    assert!(is_answered(&with_depth(REQUEST_DEPTH_MAX)));
    assert_eq!(rest_after_echo_and(&with_depth(REQUEST_DEPTH_MAX + 1)), "");
}

#[test]
fn earlier_requests_are_answered_before_the_connection_is_dropped() {
    let rig = Rig::start();
    let mut client = rig.connect();
    client.send(r#"{"id":1,"method":"test_hold","params":{"name":"a"}}"#);
    client.send(format!("{ECHO}{}", "[".repeat(REQUEST_DEPTH_MAX + 1)));
    assert_eq!(client.reply(), ECHOED);
    rig.release("a");
    assert_eq!(client.rest(), "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":\"a\"}\n");
}

#[test]
fn largest_reply_arrives_and_a_larger_one_is_an_error() {
    let rig = Rig::start();
    let mut client = rig.connect();
    let envelope = r#"{"jsonrpc":"2.0","id":1,"result":""}"#.len();
    let request = |bytes: usize| format!(r#"{{"id":1,"method":"test_large","params":{{"bytes":{bytes}}}}}"#);
    assert_eq!(client.call(&request(REPLY_BYTES_MAX - envelope)).len(), REPLY_BYTES_MAX);
    let larger = client.call(&request(REPLY_BYTES_MAX - envelope + 1));
    assert_eq!(larger, r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32603,"message":"Reply is too large"}}"#);
    assert_eq!(client.call(ECHO), ECHOED);
}

#[test]
fn reply_of_a_batch_has_the_limit_of_one_reply() {
    let rig = Rig::start();
    let half = format!(r#"{{"id":1,"method":"test_large","params":{{"bytes":{}}}}}"#, REPLY_BYTES_MAX / 2);
    let reply = rig.connect().call(&format!("[{half},{half},{ECHO}]"));
    assert!(reply.len() <= REPLY_BYTES_MAX);
    let replies: Vec<serde_json::Value> = serde_json::from_str(&reply).unwrap();
    assert!(replies[0]["result"].is_string());
    assert_eq!(replies[1]["error"]["message"], "Reply is too large");
    assert!(replies[2]["result"].is_object());
}

#[test]
fn connection_beyond_the_limit_waits_until_one_closes() {
    let rig = Rig::start();
    let mut served: Vec<Client> = (0..CONNECTIONS_MAX).map(|_| rig.connect()).collect();
    for client in &mut served {
        assert_eq!(client.call(ECHO), ECHOED);
    }
    let mut waiting = rig.connect();
    waiting.send(ECHO);
    assert!(waiting.is_silent());
    drop(served.pop());
    assert_eq!(waiting.reply(), ECHOED);
}

#[test]
fn limit_of_connections_is_the_server_s() {
    let rig = Rig::with(State::Runtime, None, |listen: Listen| listen.connections_max(1));
    let mut first = rig.connect();
    assert_eq!(first.call(ECHO), ECHOED);
    let mut second = rig.connect();
    second.send(ECHO);
    assert!(second.is_silent());
    drop(first);
    assert_eq!(second.reply(), ECHOED);
}

#[test]
fn requests_beyond_those_in_flight_wait_their_turn() {
    let rig = Rig::start();
    let mut client = rig.connect();
    let hold = r#"{"id":1,"method":"test_hold","params":{"name":"a"}}"#;
    client.send(hold.repeat(IN_FLIGHT_MAX));
    client.send(ECHO);
    rig.until_begun(IN_FLIGHT_MAX);
    assert!(client.is_silent());
    rig.release("a");
    let replies: Vec<String> = (0..=IN_FLIGHT_MAX).map(|_| client.reply()).collect();
    assert_eq!(replies.iter().filter(|reply| *reply == ECHOED).count(), 1);
    assert!(replies[0].contains(r#""result":"a""#), "{}", replies[0]);
}

#[test]
fn client_that_never_reads_is_cut_off_at_the_bound() {
    let rig = Rig::start();
    let mut client = rig.connect();
    let large = format!(r#"{{"id":1,"method":"test_large","params":{{"bytes":{}}}}}"#, UNSENT_BYTES_MAX / 4);
    client.send_to_closing(large.repeat(100));
    // What was in the socket when the server closed it, and not the 200 MiB that were asked for.
    assert!(client.bytes_until_end() < 2 * UNSENT_BYTES_MAX);
    assert_eq!(rig.connect().call(ECHO), ECHOED);
}
