//! Writes replies: `{"jsonrpc":"2.0","id":…,"result"|"error":…}` in that order, compact, in ASCII. A character that
//! is not printable ASCII leaves as `\uXXXX` with upper-case digits, as SPDK writes it.

use jsonrpsee::MethodResponse;
use jsonrpsee_types::Id;

use crate::error::RpcError;

/// What jsonrpsee writes before the payload when it is called with a null id.
const PLACEHOLDER: &str = r#"{"jsonrpc":"2.0","id":null,"#;

/// Appends one reply without its newline. `id` is the JSON text to echo. A reply that would take `out` past
/// `bytes_max` is replaced by an error with the same id.
pub(crate) fn append(out: &mut Vec<u8>, id: Option<&str>, response: &MethodResponse, bytes_max: usize) {
    let start = out.len();
    append_payload(out, id, response);
    if out.len() > bytes_max {
        out.truncate(start);
        append_payload(out, id, &error(too_large()));
    }
}

fn append_payload(out: &mut Vec<u8>, id: Option<&str>, response: &MethodResponse) {
    let json: &str = response.as_ref();
    let payload = json.strip_prefix(PLACEHOLDER).expect("every response was made with a null id");
    out.extend_from_slice(br#"{"jsonrpc":"2.0","id":"#);
    append_ascii(out, id.unwrap_or("null"));
    out.push(b',');
    append_ascii(out, payload);
}

/// The answer in place of a result that does not fit.
pub(crate) fn too_large() -> RpcError {
    RpcError::internal("Reply is too large")
}

/// An error as a response of the method table.
pub(crate) fn error(error: RpcError) -> MethodResponse {
    MethodResponse::error(Id::Null, jsonrpsee_types::ErrorObjectOwned::from(error))
}

/// Copies JSON text. Outside of strings JSON is ASCII, so what is to be escaped is always inside of one.
fn append_ascii(out: &mut Vec<u8>, json: &str) {
    let mut rest = json;
    loop {
        // A backslash is looked at because of `\u00xx`: serde_json writes control characters with lower-case digits.
        let plain = rest.bytes().take_while(|byte| (0x20..0x7F).contains(byte) && *byte != b'\\').count();
        out.extend_from_slice(&rest.as_bytes()[..plain]);
        rest = &rest[plain..];
        let mut characters = rest.chars();
        match characters.next() {
            None => return,
            Some('\\') if rest.as_bytes().get(1) == Some(&b'u') => {
                out.extend_from_slice(b"\\u");
                out.extend(rest.as_bytes()[2..6].iter().map(u8::to_ascii_uppercase));
                rest = &rest[6..];
            }
            Some('\\') => {
                out.extend_from_slice(&rest.as_bytes()[..2]);
                rest = &rest[2..];
            }
            Some(character) => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    append_escape(out, *unit);
                }
                rest = characters.as_str();
            }
        }
    }
}

fn append_escape(out: &mut Vec<u8>, unit: u16) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.extend_from_slice(b"\\u");
    out.extend([12, 8, 4, 0].map(|shift| DIGITS[usize::from(unit >> shift & 0xF)]));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::REPLY_BYTES_MAX;
    use jsonrpsee::ResponsePayload;
    use serde_json::{Value, json};

    fn reply(id: Option<&str>, result: Value) -> String {
        let response = MethodResponse::response(Id::Null, ResponsePayload::success(result), usize::MAX);
        let mut out = Vec::new();
        append(&mut out, id, &response, REPLY_BYTES_MAX);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn keys_stand_in_order_and_the_id_is_verbatim() {
        assert_eq!(reply(Some("1.50e1"), json!(true)), r#"{"jsonrpc":"2.0","id":1.50e1,"result":true}"#);
        assert_eq!(
            reply(None, json!({"b": 1, "a": 2})),
            r#"{"jsonrpc":"2.0","id":null,"result":{"b":1,"a":2}}"#
        );
    }

    #[test]
    fn error_has_a_code_and_a_message_and_no_data() {
        let mut out = Vec::new();
        append(&mut out, Some("\"x\""), &error(RpcError::errno(19)), REPLY_BYTES_MAX);
        let expected = r#"{"jsonrpc":"2.0","id":"x","error":{"code":-19,"message":"No such device"}}"#;
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn predefined_codes_keep_the_text_they_are_given() {
        let mut out = Vec::new();
        let bad_params = error(RpcError::new(-32700, "spdk_json_decode_object failed"));
        append(&mut out, None, &bad_params, REPLY_BYTES_MAX);
        let expected = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"spdk_json_decode_object failed"}}"#;
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn all_but_printable_ascii_is_escaped_in_upper_case() {
        let text = "é\u{1F600}\u{7f}\u{1f}\n\"\\/";
        let expected = r#"{"jsonrpc":"2.0","id":1,"result":"\u00E9\uD83D\uDE00\u007F\u001F\n\"\\/"}"#;
        assert_eq!(reply(Some("1"), json!(text)), expected);
    }

    #[test]
    fn id_is_escaped_too() {
        assert_eq!(
            reply(Some("\"ü\\u00fc\""), json!(1)),
            r#"{"jsonrpc":"2.0","id":"\u00FC\u00FC","result":1}"#
        );
    }

    #[test]
    fn reply_of_the_largest_size_passes_and_a_larger_one_becomes_an_error() {
        let envelope = reply(Some("1"), json!("")).len();
        let largest = reply(Some("1"), json!("x".repeat(REPLY_BYTES_MAX - envelope)));
        let larger = reply(Some("1"), json!("x".repeat(REPLY_BYTES_MAX - envelope + 1)));
        assert_eq!(largest.len(), REPLY_BYTES_MAX);
        assert_eq!(
            larger,
            r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32603,"message":"Reply is too large"}}"#
        );
    }
}
