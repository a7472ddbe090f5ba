//! Before and after initialisation: which methods may be called, what waits, what is listed.

use rpc::State;
use serde_json::{Value, json};

use crate::model::Rig;

const ECHO: &str = r#"{"id":1,"method":"test_echo"}"#;
const ECHOED: &str = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;
const START: &str = r#"{"id":2,"method":"framework_start_init"}"#;
const WAIT: &str = r#"{"id":3,"method":"framework_wait_init"}"#;

fn methods(rig: &Rig, params: &str) -> Vec<String> {
    let request = format!(r#"{{"id":1,"method":"rpc_get_methods","params":{params}}}"#);
    let reply: Value = serde_json::from_str(&rig.connect().call(&request)).unwrap();
    serde_json::from_value(reply["result"].clone()).unwrap()
}

#[test]
fn wrong_state_has_its_texts() {
    let early = Rig::in_state(State::Startup).connect().call(ECHO);
    let expected = json!({"jsonrpc": "2.0", "id": 1, "error": {"code": -1, "message":
        "Method may only be called after framework is initialized using framework_start_init RPC."}});
    assert_eq!(serde_json::from_str::<Value>(&early).unwrap(), expected);

    let late = Rig::start().connect().call(START);
    let expected = json!({"jsonrpc": "2.0", "id": 2, "error": {"code": -1, "message":
        "Method may only be called before framework is initialized. Use --wait-for-rpc command line parameter \
         and then issue this RPC before the framework_start_init RPC."}});
    assert_eq!(serde_json::from_str::<Value>(&late).unwrap(), expected);
}

#[test]
fn state_is_judged_before_params() {
    let request = r#"{"id":1,"method":"test_echo","params":{"nonsense":1}}"#;
    let reply = Rig::in_state(State::Startup).connect().call(request);
    assert!(reply.contains(r#""code":-1,"#), "{reply}");
}

#[test]
fn requests_wait_while_the_target_initialises() {
    let rig = Rig::in_state(State::Startup);
    let mut waiter = rig.connect();
    waiter.send(WAIT);
    let mut starter = rig.connect();
    // The second request stands right behind the one that begins the pause.
    starter.send(format!("{START}{ECHO}"));
    let mut other = rig.connect();
    other.send(ECHO);
    assert!(starter.is_silent() && waiter.is_silent());
    rig.release("init");
    assert_eq!(waiter.reply(), r#"{"jsonrpc":"2.0","id":3,"result":true}"#);
    let mut replies = [starter.reply(), starter.reply()];
    replies.sort();
    assert_eq!(replies, [ECHOED, r#"{"jsonrpc":"2.0","id":2,"result":true}"#]);
    // Whether it came before the pause or after it is the race of two clients; it is answered in both cases.
    assert!(other.reply().starts_with(r#"{"jsonrpc":"2.0","id":1,"#));
}

#[test]
fn paused_server_accepts_and_answers_later() {
    let rig = Rig::start();
    let mut early = rig.connect();
    assert_eq!(early.call(ECHO), ECHOED);
    assert!(rig.model.stage.pause());
    assert!(!rig.model.stage.pause());
    early.send(ECHO);
    let mut late = rig.connect();
    late.send(ECHO.repeat(3));
    late.half_close();
    assert!(early.is_silent() && late.is_silent());
    rig.model.stage.resume();
    assert_eq!(early.reply(), ECHOED);
    assert_eq!(late.rest(), format!("{ECHOED}\n").repeat(3));
}

#[test]
fn calls_from_inside_pass_a_pause() {
    let rig = Rig::start();
    rig.model.stage.pause();
    let dispatcher = rig.dispatcher.clone();
    let version = rig.thread.run(async move { dispatcher.call("spdk_get_version", None).await }).unwrap();
    assert_eq!(version.unwrap()["version"], "model");
}

#[test]
fn calls_from_inside_meet_the_same_checks() {
    let rig = Rig::start();
    let call = |method: &'static str, params: &str| {
        let params = serde_json::value::RawValue::from_string(params.to_owned()).unwrap();
        let dispatcher = rig.dispatcher.clone();
        rig.thread.run(async move { dispatcher.call(method, Some(&params)).await }).unwrap()
    };
    let error = |method, params| call(method, params).unwrap_err();
    assert_eq!(error("none", "null").code, -32601);
    assert_eq!(error("framework_start_init", "null").code, -1);
    assert_eq!(error("bdev_null_delete", r#"{"name":"a","name":"a"}"#).code, -32603);
    assert_eq!(error("bdev_null_delete", r#"{"name":"a"}"#).message, "No such device");
    assert_eq!(call("test_echo", r#"{"value":"é"}"#).unwrap(), json!({"value": "é"}));
}

#[test]
fn dispatch_answers_as_the_socket_does() {
    let rig = Rig::start();
    let text = format!(r#"[{ECHO},{{"method":"test_echo"}},{{"id":3,"method":"framework_wait_init"}}]"#);
    let dispatcher = rig.dispatcher.clone();
    let batch = text.clone();
    let inside = rig.thread.run(async move { dispatcher.dispatch(&batch).await }).unwrap();
    assert_eq!(inside, rig.connect().call(&text) + "\n");
}

#[test]
fn methods_are_listed_in_reverse_order_of_registration() {
    let names = methods(&Rig::start(), "{}");
    let mut registered: Vec<&str> = vec!["rpc_get_methods"];
    registered.extend(crate::methods::SPDK.iter().chain(crate::methods::TEST).map(|method| method.spec.name));
    registered.reverse();
    assert_eq!(names, registered);
}

#[test]
fn current_lists_what_may_be_called_now() {
    let early = methods(&Rig::in_state(State::Startup), r#"{"current":true,"include_aliases":false}"#);
    assert_eq!(early, ["framework_wait_init", "framework_start_init", "spdk_get_version", "rpc_get_methods"]);
    let late = methods(&Rig::start(), r#"{"current":true}"#);
    assert!(late.iter().any(|name| name == "bdev_get_bdevs"));
    assert!(!late.iter().any(|name| name == "framework_start_init"));
}

#[test]
fn methods_off_the_allow_list_do_not_exist() {
    let allowed: &[&str] = &["rpc_get_methods", "spdk_get_version"];
    let rig = Rig::with(State::Runtime, Some(allowed), |listen| listen);
    assert_eq!(methods(&rig, "null"), ["spdk_get_version", "rpc_get_methods"]);
    let refused = r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"Method not found"}}"#;
    assert_eq!(rig.connect().call(ECHO), refused);
    let dispatcher = rig.dispatcher.clone();
    let inside = rig.thread.run(async move { dispatcher.call("test_echo", None).await }).unwrap();
    assert_eq!(inside.unwrap_err().code, -32601);
}
