//! Whatever bytes come, the server neither panics nor hangs, and where they are cut does not matter.

use proptest::prelude::*;

use crate::model::Rig;

/// Requests, near-requests and noise.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => prop::sample::select(vec![
            r#"{"id":1,"method":"test_echo"}"#,
            r#"{"method":"test_echo"}"#,
            r#"{"id":"a","method":"test_echo","params":{"value":[1,{"x":null}]}}"#,
            r#"{"id":2,"method":"test_echo","params":{"value":null}}"#,
            r#"{"id":3,"method":"bdev_null_delete","params":["x"]}"#,
            r#"[{"id":4,"method":"no"},{"method":"test_fail"},5]"#,
            r#"{"id":{},"method":"test_echo"}"#,
            "[]", "{}", "7 ", "null", "\"é\"", " ", "\n",
        ]).prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::sample::select(vec!["{", "}", "[", ":", ",", "\"", "\\", "id"]).prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..4),
    ];
    prop::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
}

fn answers(rig: &Rig, pieces: &[&[u8]]) -> String {
    let mut client = rig.connect();
    for piece in pieces {
        client.send_to_closing(piece);
    }
    client.half_close();
    client.rest()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_stream_is_answered_and_cuts_do_not_matter(bytes in stream(), cut in any::<prop::sample::Index>()) {
        let rig = Rig::start();
        let (before, after) = bytes.split_at(cut.index(bytes.len() + 1));
        let whole = answers(&rig, &[&bytes]);
        prop_assert_eq!(answers(&rig, &[before, after]), &*whole);
        prop_assert!(whole.is_ascii() && (whole.is_empty() || whole.ends_with('\n')));
        prop_assert_eq!(rig.connect().call(r#"{"id":1,"method":"test_echo"}"#), r#"{"jsonrpc":"2.0","id":1,"result":{}}"#);
    }
}
