//! What goes over the wire: framing, envelopes, ids, notifications, batches, params, errors, spelling of replies.

use crate::model::Rig;

const ECHO: &str = r#"{"jsonrpc":"2.0","id":1,"method":"test_echo"}"#;
const ECHOED: &str = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;

fn error(id: &str, code: i32, message: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":{code},"message":"{message}"}}}}"#)
}

fn answer_to(request: &str) -> String {
    Rig::start().connect().call(request)
}

#[test]
fn reply_is_one_compact_line_with_its_keys_in_order() {
    let rig = Rig::start();
    let mut client = rig.connect();
    client.send(r#"{ "jsonrpc" : "2.0", "id" : 1, "method" : "spdk_get_version" }"#);
    client.half_close();
    let expected = concat!(
        r#"{"jsonrpc":"2.0","id":1,"result":{"version":"model","#,
        r#""fields":{"major":26,"minor":9,"patch":0,"suffix":""}}}"#,
        "\n"
    );
    assert_eq!(client.rest(), expected);
}

#[test]
fn one_connection_serves_request_after_request() {
    let rig = Rig::start();
    let mut client = rig.connect();
    for _ in 0..100 {
        assert_eq!(client.call(ECHO), ECHOED);
    }
}

#[test]
fn request_sent_byte_by_byte_is_answered() {
    let rig = Rig::start();
    let mut client = rig.connect();
    for byte in ECHO.bytes() {
        client.send([byte]);
    }
    assert_eq!(client.reply(), ECHOED);
}

#[test]
fn requests_without_a_gap_and_with_white_space_are_all_answered() {
    let rig = Rig::start();
    let mut client = rig.connect();
    client.send(format!("{ECHO}{ECHO} \r\n\t {ECHO}\n\n"));
    assert_eq!([client.reply(), client.reply(), client.reply()], [ECHOED; 3]);
}

#[test]
fn thousands_of_pipelined_requests_are_answered_in_order() {
    let rig = Rig::start();
    let mut client = rig.connect();
    let request = |id: usize| format!(r#"{{"id":{id},"method":"test_echo"}}"#);
    client.send((0..5000).map(request).collect::<String>());
    for id in 0..5000 {
        assert_eq!(client.reply(), format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#));
    }
}

#[test]
fn ids_are_echoed_verbatim() {
    let rig = Rig::start();
    let mut client = rig.connect();
    let long = format!("\"{}\"", "i".repeat(300));
    for id in ["1.50e1", "-0", "123456789012345678901234567890", "\"\"", r#""a\/b""#, &long] {
        let request = format!(r#"{{"id":{id},"method":"test_echo"}}"#);
        assert_eq!(client.call(&request), format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#));
    }
}

#[test]
fn text_beyond_ascii_comes_as_utf8_and_leaves_as_escapes() {
    let request = r#"{"id":"ü","method":"test_echo","params":{"value":"é😀\u00e9"}}"#;
    let expected = r#"{"jsonrpc":"2.0","id":"\u00FC","result":{"value":"\u00E9\uD83D\uDE00\u00E9"}}"#;
    assert_eq!(answer_to(request), expected);
}

#[test]
fn version_may_be_absent_but_not_another() {
    assert_eq!(answer_to(r#"{"id":1,"method":"test_echo"}"#), ECHOED);
    let refused = error("1", -32600, "Invalid request");
    assert_eq!(answer_to(r#"{"jsonrpc":"1.0","id":1,"method":"test_echo"}"#), refused);
    assert_eq!(answer_to(r#"{"jsonrpc":2.0,"id":1,"method":"test_echo"}"#), refused);
}

#[test]
fn bad_envelopes_are_invalid_requests_and_the_connection_goes_on() {
    let rig = Rig::start();
    let mut client = rig.connect();
    let refused = error("null", -32600, "Invalid request");
    for request in [
        "{}",
        "1 ",
        "true",
        "null",
        "\"method\"",
        r#"{"id":1,"method":"test_echo","extra":1}"#,
        r#"{"id":1,"method":"test_echo","method":"test_echo"}"#,
        r#"{"id":true,"method":"test_echo"}"#,
        r#"{"id":{},"method":"test_echo"}"#,
        r#"{"method":null}"#,
        r#"{"method":"test_echo","params":"text"}"#,
        r#"{"method":"test_echo","params":7}"#,
    ] {
        assert_eq!(client.call(request), refused, "{request}");
    }
    assert_eq!(client.call(ECHO), ECHOED);
}

#[test]
fn method_names_are_exact() {
    let refused = error("1", -32601, "Method not found");
    assert_eq!(answer_to(r#"{"id":1,"method":"no_such_method"}"#), refused);
    assert_eq!(answer_to(r#"{"id":1,"method":"TEST_ECHO"}"#), refused);
    assert_eq!(answer_to(r#"{"id":1,"method":""}"#), refused);
}

#[test]
fn notification_is_answered_only_when_it_fails() {
    let rig = Rig::start();
    let mut client = rig.connect();
    client.send(r#"{"method":"test_echo"}{"method":"test_echo","id":null}"#);
    client.send(r#"{"method":"test_fail"}{"method":"no_such_method","id":null}"#);
    client.send(ECHO);
    assert_eq!(client.reply(), error("null", -19, "No such device"));
    assert_eq!(client.reply(), error("null", -32601, "Method not found"));
    assert_eq!(client.reply(), ECHOED);
}

#[test]
fn batch_is_answered_by_one_array() {
    let rig = Rig::start();
    let mut client = rig.connect();
    client.send(format!(r#"[{ECHO},7,{{"method":"test_echo"}},{{"method":"test_fail"}},[],{ECHO}]"#));
    client.half_close();
    let fail = error("null", -19, "No such device");
    let invalid = error("null", -32600, "Invalid request");
    assert_eq!(client.rest(), format!("[{ECHOED},{invalid},{fail},{invalid},{ECHOED}]\n"));
}

#[test]
fn empty_batch_is_one_invalid_request() {
    assert_eq!(answer_to("[ ]"), error("null", -32600, "Invalid request"));
}

#[test]
fn batch_of_notifications_is_not_answered() {
    let rig = Rig::start();
    let mut client = rig.connect();
    client.send(r#"[{"method":"test_echo"},{"method":"test_echo","id":null}]"#);
    assert_eq!(client.call(ECHO), ECHOED);
}

#[test]
fn replies_in_a_batch_stand_in_the_order_of_completion() {
    let rig = Rig::start();
    let mut client = rig.connect();
    client.send(concat!(
        r#"[{"id":1,"method":"test_hold","params":{"name":"a"}},"#,
        r#"{"id":2,"method":"test_hold","params":{"name":"b"}},{"id":3,"method":"test_echo"}]"#
    ));
    rig.until_begun(2);
    rig.release("b");
    assert!(client.is_silent());
    rig.release("a");
    let expected = concat!(
        r#"[{"jsonrpc":"2.0","id":3,"result":{}},{"jsonrpc":"2.0","id":2,"result":"b"},"#,
        r#"{"jsonrpc":"2.0","id":1,"result":"a"}]"#
    );
    assert_eq!(client.reply(), expected);
}

#[test]
fn largest_batch_is_answered_whole() {
    let rig = Rig::start();
    let element = r#"{"method":"no"}"#;
    // Four tokens each, and two for the array.
    let count = (rpc::limits::REQUEST_TOKENS_MAX - 2) / 4;
    let batch = format!("[{}]", vec![element; count].join(","));
    let reply: Vec<serde_json::Value> = serde_json::from_str(&rig.connect().call(&batch)).unwrap();
    assert_eq!(reply.len(), count);
    assert!(reply.iter().all(|reply| reply["error"]["code"] == -32601));
}

#[test]
fn replies_come_in_the_order_of_completion() {
    let rig = Rig::start();
    let mut client = rig.connect();
    client.send(r#"{"id":1,"method":"test_hold","params":{"name":"a"}}"#);
    assert_eq!(client.call(ECHO), ECHOED);
    rig.release("a");
    assert_eq!(client.reply(), r#"{"jsonrpc":"2.0","id":1,"result":"a"}"#);
}

#[test]
fn bad_params_are_answered_in_the_method_s_own_words() {
    let rig = Rig::start();
    let mut client = rig.connect();
    let refused = error("1", -32603, "spdk_json_decode_object failed");
    for params in
        ["{}", "[]", "null", r#"["N"]"#, r#"{"name":1}"#, r#"{"name":"N","x":1}"#, r#"{"name":null}"#]
    {
        let request = format!(r#"{{"id":1,"method":"bdev_null_delete","params":{params}}}"#);
        assert_eq!(client.call(&request), refused, "{params}");
    }
    let request = r#"{"id":1,"method":"vfu_tgt_set_base_path"}"#;
    assert_eq!(client.call(request), error("1", -32602, "Invalid argument"));
}

#[test]
fn method_without_params_refuses_even_an_empty_object() {
    let rig = Rig::start();
    let mut client = rig.connect();
    let refused = error("1", -32602, "spdk_get_version method requires no parameters");
    for params in ["{}", "[]", r#"{"a":1}"#] {
        let request = format!(r#"{{"id":1,"method":"spdk_get_version","params":{params}}}"#);
        assert_eq!(client.call(&request), refused, "{params}");
    }
    let null = client.call(r#"{"id":1,"method":"spdk_get_version","params":null}"#);
    assert!(null.contains(r#""result":{"version":"model""#), "{null}");
}

#[test]
fn method_that_ignores_params_takes_any() {
    let request = r#"{"id":1,"method":"framework_wait_init","params":[1,{"a":null}]}"#;
    assert_eq!(answer_to(request), r#"{"jsonrpc":"2.0","id":1,"result":true}"#);
}

#[test]
fn relaxed_method_ignores_unknown_keys() {
    let request = r#"{"id":1,"method":"test_relaxed","params":{"other":null,"value":2}}"#;
    assert_eq!(answer_to(request), r#"{"jsonrpc":"2.0","id":1,"result":{"value":2}}"#);
}

#[test]
fn numbers_may_be_integral_floats() {
    let request = concat!(
        r#"{"id":1,"method":"bdev_null_create","#,
        r#""params":{"name":"N","num_blocks":8192.0,"block_size":0.512e3}}"#
    );
    let rig = Rig::start();
    assert_eq!(rig.connect().call(request), r#"{"jsonrpc":"2.0","id":1,"result":"N"}"#);
    assert_eq!(rig.model.bdevs.lock().unwrap()["N"]["num_blocks"], 8192);
    assert_eq!(rig.model.bdevs.lock().unwrap()["N"]["block_size"], 512);
}

#[test]
fn domain_errors_keep_each_method_s_shape() {
    let rig = Rig::start();
    let mut client = rig.connect();
    let of_bdev = client.call(r#"{"id":1,"method":"bdev_get_bdevs","params":{"name":"none"}}"#);
    assert_eq!(of_bdev, error("1", -19, "No such device"));
    let of_vfu = client.call(
        r#"{"id":1,"method":"vfu_virtio_create_blk_endpoint","params":{"name":"e","bdev_name":"none"}}"#,
    );
    assert_eq!(of_vfu, error("1", -32602, "No such device"));
}

#[test]
fn bad_syntax_is_answered_and_then_the_connection_closes() {
    for input in
        ["hello", r#"{"id":1,}"#, r#"{"id":1,"method":"test_echo" /* why */}"#, "[1,]", "\u{1}", "\"\\x"]
    {
        let rig = Rig::start();
        let mut client = rig.connect();
        client.send(input);
        let expected = error("null", -32700, "Parse error") + "\n";
        assert_eq!(client.rest(), expected, "{input}");
    }
}

#[test]
fn bytes_that_are_not_utf8_are_bad_syntax() {
    let rig = Rig::start();
    let mut client = rig.connect();
    client.send(b"{\"method\":\"\xff\"}");
    assert_eq!(client.rest(), error("null", -32700, "Parse error") + "\n");
}

#[test]
fn requests_before_bad_syntax_are_answered_and_those_after_it_not() {
    let rig = Rig::start();
    let mut client = rig.connect();
    client.send(r#"{"id":1,"method":"test_hold","params":{"name":"a"}}"#);
    client.send(format!("{ECHO}]{ECHO}"));
    assert_eq!(client.reply(), ECHOED);
    assert_eq!(client.reply(), error("null", -32700, "Parse error"));
    rig.release("a");
    assert_eq!(client.rest(), "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":\"a\"}\n");
}

#[test]
fn request_cut_off_by_the_end_of_input_is_bad_syntax() {
    let rig = Rig::start();
    let mut client = rig.connect();
    client.send(&ECHO[..ECHO.len() - 1]);
    client.half_close();
    assert_eq!(client.rest(), error("null", -32700, "Parse error") + "\n");
}

#[test]
fn handler_that_panics_is_answered_and_harms_nobody() {
    let rig = Rig::start();
    let mut client = rig.connect();
    let internal = error("1", -32603, "Internal error");
    assert_eq!(client.call(r#"{"id":1,"method":"test_panic"}"#), internal);
    assert_eq!(client.call(r#"{"id":1,"method":"test_panic_later"}"#), internal);
    assert_eq!(client.call(ECHO), ECHOED);
}
