//! The request object of JSON-RPC 2.0 as SPDK reads it: `method` is required; `jsonrpc` may be absent but must be
//! "2.0" if it is there; `id` is a string, a number or null; `params` an object, an array or null; nothing else may
//! be there, and nothing twice. Called by `exec` with one well-formed JSON value.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// One request. Text borrowed from the value is JSON as the client wrote it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Envelope<'a> {
    pub(crate) method: String,
    /// To be echoed as it is; none for a notification.
    pub(crate) id: Option<&'a str>,
    pub(crate) params: Option<&'a str>,
}

/// Not a request; the answer carries this id, or null.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotARequest<'a> {
    pub(crate) id: Option<&'a str>,
}

impl<'a> Envelope<'a> {
    pub(crate) fn decode(value: &'a str) -> Result<Envelope<'a>, NotARequest<'a>> {
        let keys: Members<'a> = serde_json::from_str(value).map_err(|_reason| NotARequest { id: None })?;

        let mut method = None;
        let mut id = None;
        let mut params = None;
        let mut valid = true;
        let mut version = "\"2.0\"";
        let mut seen = [false; 4];
        for (key, value) in &keys.0 {
            let text = value.get();
            let slot = match key.as_str() {
                "jsonrpc" => {
                    version = text;
                    0
                }
                "method" => {
                    method = serde_json::from_str::<String>(text).ok();
                    1
                }
                "params" => {
                    params = (text != "null").then_some(text);
                    2
                }
                "id" => {
                    id = (text != "null").then_some(text);
                    3
                }
                _ => return Err(NotARequest { id: None }),
            };
            if std::mem::replace(&mut seen[slot], true) {
                return Err(NotARequest { id: None });
            }
        }
        if id.is_some_and(|id| !is_string_or_number(id)) {
            id = None;
            valid = false;
        }
        valid &= serde_json::from_str::<String>(version).is_ok_and(|version| version == "2.0");
        valid &= params.is_none_or(is_object_or_array);
        match method {
            Some(method) if valid => Ok(Envelope { method, id, params }),
            _ => Err(NotARequest { id }),
        }
    }
}

fn is_string_or_number(text: &str) -> bool {
    text.starts_with(|first: char| first == '"' || first == '-' || first.is_ascii_digit())
}

fn is_object_or_array(text: &str) -> bool {
    text.starts_with(['{', '['])
}

/// The members of an object in their order, each value as its text. Duplicates are kept for the caller to judge.
pub(crate) struct Members<'a>(pub(crate) Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    members.push((key, map.next_value::<&'de RawValue>()?));
                }
                Ok(Members(members))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, _seq: A) -> Result<Self::Value, A::Error> {
                Err(de::Error::invalid_type(de::Unexpected::Seq, &self))
            }
        }

        deserializer.deserialize_map(Collect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id_of_refusal(value: &str) -> Option<&str> {
        Envelope::decode(value).expect_err("not a request").id
    }

    #[test]
    fn full_request_is_read() {
        let request = Envelope::decode(r#"{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":1}}"#);
        let expected = Envelope { method: "m".into(), id: Some("1"), params: Some(r#"{"a":1}"#) };
        assert_eq!(request, Ok(expected));
    }

    #[test]
    fn version_id_and_params_may_be_absent_or_null() {
        let bare = Envelope { method: "m".into(), id: None, params: None };
        assert_eq!(Envelope::decode(r#"{"method":"m"}"#), Ok(bare));
        let bare = Envelope { method: "m".into(), id: None, params: None };
        assert_eq!(Envelope::decode(r#"{"method":"m","id":null,"params":null}"#), Ok(bare));
    }

    #[test]
    fn escaped_spelling_of_a_key_and_a_version_counts() {
        let request = Envelope::decode(r#"{"\u006dethod":"m","jsonrpc":"2\u002e0"}"#);
        assert_eq!(request.map(|request| request.method), Ok("m".into()));
    }

    #[test]
    fn ids_keep_their_spelling() {
        for id in ["1.50e1", "123456789012345678901234567890", "-0", r#""a\/bA""#] {
            let text = format!(r#"{{"method":"m","id":{id}}}"#);
            assert_eq!(Envelope::decode(&text).map(|request| request.id), Ok(Some(id)));
        }
    }

    #[test]
    fn unknown_and_duplicate_keys_lose_the_id() {
        assert_eq!(id_of_refusal(r#"{"id":7,"method":"m","more":1}"#), None);
        assert_eq!(id_of_refusal(r#"{"id":7,"method":"m","method":"m"}"#), None);
        assert_eq!(id_of_refusal(r#"{"id":7,"id":7,"method":"m"}"#), None);
    }

    #[test]
    fn other_refusals_keep_the_id() {
        assert_eq!(id_of_refusal(r#"{"id":7}"#), Some("7"));
        assert_eq!(id_of_refusal(r#"{"id":7,"method":1}"#), Some("7"));
        assert_eq!(id_of_refusal(r#"{"id":7,"method":"m","jsonrpc":"1.0"}"#), Some("7"));
        assert_eq!(id_of_refusal(r#"{"id":7,"method":"m","jsonrpc":2.0}"#), Some("7"));
        assert_eq!(id_of_refusal(r#"{"id":7,"method":"m","params":"p"}"#), Some("7"));
    }

    #[test]
    fn id_of_another_type_is_refused_and_not_echoed() {
        assert_eq!(id_of_refusal(r#"{"id":true,"method":"m"}"#), None);
        assert_eq!(id_of_refusal(r#"{"id":{},"method":"m"}"#), None);
        assert_eq!(id_of_refusal(r#"{"id":[1],"method":"m"}"#), None);
    }
}
