//! The check of params against their declaration, as strict as SPDK's decoders: unknown key, duplicate key, missing
//! key, wrong type, null or a number out of range all make the params bad. What passes is normalised: numbers become
//! plain integers, keys and strings are unescaped. Called by `table` before every handler.

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::envelope::Members;
use crate::method::{Accepts, Kind, MethodSpec, Param};
use crate::number::integer;
use crate::params::Params;

/// The checked params, or none if they are bad. `raw` is the JSON text of `params`, none if absent.
pub(crate) fn check(spec: &MethodSpec, raw: Option<&str>) -> Option<Params> {
    let raw = raw.filter(|text| *text != "null");
    let members = match (spec.accepts, raw) {
        (Accepts::Ignored, _) | (Accepts::Nothing, None) => Some(Map::new()),
        (Accepts::Nothing, Some(_)) => None,
        (Accepts::Strict(params), raw) => object(params, raw.unwrap_or("{}"), true),
        (Accepts::Relaxed(params), raw) => object(params, raw.unwrap_or("{}"), false),
    };
    members.map(|members| Params::new(*spec, members, raw.is_some()))
}

fn object(params: &[Param], text: &str, strict: bool) -> Option<Map<String, Value>> {
    let given: Members<'_> = serde_json::from_str(text).ok()?;
    let mut checked = Map::new();
    for (key, value) in given.0 {
        let Some(param) = params.iter().find(|param| param.name == key) else {
            if strict {
                return None;
            }
            continue;
        };
        let duplicate = checked.insert(key, self::value(param.kind, value.get())?).is_some();
        if duplicate {
            return None;
        }
    }
    let complete = params.iter().all(|param| !param.required || checked.contains_key(param.name));
    complete.then_some(checked)
}

fn value(kind: Kind, text: &str) -> Option<Value> {
    match kind {
        Kind::String => string(text).map(Value::String),
        Kind::Bool => serde_json::from_str::<bool>(text).ok().map(Value::Bool),
        Kind::U8 => unsigned(text, u8::MAX.into()),
        Kind::U16 => unsigned(text, u16::MAX.into()),
        Kind::U32 => unsigned(text, u32::MAX.into()),
        Kind::U64 => unsigned(text, u64::MAX),
        Kind::I32 => {
            let value = i32::try_from(number(text)?).ok()?;
            Some(value.into())
        }
        Kind::Uuid => string(text).filter(|text| is_uuid(text)).map(Value::String),
        Kind::Enum(words) => string(text).filter(|text| words.contains(&text.as_str())).map(Value::String),
        Kind::Object(params) => object(params, text, true).map(Value::Object),
        Kind::Array(kind, length_max) => {
            let elements: Vec<&RawValue> = serde_json::from_str(text).ok()?;
            if elements.len() > length_max {
                return None;
            }
            elements.iter().map(|element| value(*kind, element.get())).collect()
        }
        Kind::Any => serde_json::from_str(text).ok().filter(|value: &Value| !value.is_null()),
    }
}

/// SPDK's strings are C strings: one with a NUL inside is not accepted anywhere.
fn string(text: &str) -> Option<String> {
    serde_json::from_str(text).ok().filter(|string: &String| !string.contains('\0'))
}

fn number(text: &str) -> Option<i128> {
    let is_number = text.starts_with(|first: char| first == '-' || first.is_ascii_digit());
    if is_number { integer(text) } else { None }
}

fn unsigned(text: &str, value_max: u64) -> Option<Value> {
    let value = u64::try_from(number(text)?).ok()?;
    (value <= value_max && !text.starts_with('-')).then(|| value.into())
}

/// Five groups of 8, 4, 4, 4 and 12 hexadecimal digits, as libuuid's `uuid_parse` reads them.
fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const INNER: &[Param] = &[Param::required("tag", Kind::I32, "")];

    const PARAMS: &[Param] = &[
        Param::required("name", Kind::String, ""),
        Param::optional("count", Kind::U16, "", ""),
        Param::optional("size", Kind::U64, "", ""),
        Param::optional("node", Kind::I32, "", ""),
        Param::optional("flag", Kind::Bool, "", ""),
        Param::optional("uuid", Kind::Uuid, "", ""),
        Param::optional("mode", Kind::Enum(&["wb", "wt"]), "", ""),
        Param::optional("inner", Kind::Object(INNER), "", ""),
        Param::optional("names", Kind::Array(&Kind::String, 2), "", ""),
        Param::optional("any", Kind::Any, "", ""),
    ];

    fn spec(accepts: Accepts) -> MethodSpec {
        MethodSpec { accepts, ..MethodSpec::with_defaults("m", "g") }
    }

    fn strict(text: &str) -> Option<Value> {
        check(&spec(Accepts::Strict(PARAMS)), Some(text)).map(|params| json!(params.members()))
    }

    #[test]
    fn every_kind_passes_and_is_normalised() {
        let text = r#"{"n\u0061me":"\u004d0","count":1e3,"size":8192.0,"node":-1,"flag":true,
            "uuid":"5f1b9c9e-0000-4000-8000-0123456789AB","mode":"wb","inner":{"tag":7},
            "names":["a","b"],"any":[{"x":1.5}]}"#;
        let expected = json!({"name": "M0", "count": 1000, "size": 8192, "node": -1, "flag": true,
            "uuid": "5f1b9c9e-0000-4000-8000-0123456789AB", "mode": "wb", "inner": {"tag": 7},
            "names": ["a", "b"], "any": [{"x": 1.5}]});
        assert_eq!(strict(text), Some(expected));
    }

    #[test]
    fn unknown_duplicate_missing_and_null_are_bad() {
        assert_eq!(strict(r#"{"name":"a","other":1}"#), None);
        assert_eq!(strict(r#"{"name":"a","name":"a"}"#), None);
        assert_eq!(strict(r#"{"count":1}"#), None);
        assert_eq!(strict(r#"{"name":null}"#), None);
        assert_eq!(strict(r#"{"name":"a","any":null}"#), None);
        assert_eq!(strict("[]"), None);
        assert_eq!(strict(r#"["a"]"#), None);
    }

    #[test]
    fn values_of_another_type_are_bad() {
        assert_eq!(strict(r#"{"name":1}"#), None);
        assert_eq!(strict(r#"{"name":"a\u0000b"}"#), None);
        assert_eq!(strict(r#"{"name":"a","count":"1"}"#), None);
        assert_eq!(strict(r#"{"name":"a","count":1.5}"#), None);
        assert_eq!(strict(r#"{"name":"a","flag":1}"#), None);
        assert_eq!(strict(r#"{"name":"a","flag":"true"}"#), None);
        assert_eq!(strict(r#"{"name":"a","mode":"WB"}"#), None);
        assert_eq!(strict(r#"{"name":"a","uuid":"5f1b9c9e"}"#), None);
        assert_eq!(strict(r#"{"name":"a","inner":[]}"#), None);
        assert_eq!(strict(r#"{"name":"a","names":"a"}"#), None);
    }

    #[test]
    fn numbers_at_their_range_pass_and_one_past_do_not() {
        assert_eq!(strict(r#"{"name":"a","count":65535}"#), Some(json!({"name": "a", "count": 65535})));
        assert_eq!(strict(r#"{"name":"a","count":65536}"#), None);
        assert_eq!(strict(r#"{"name":"a","count":-1}"#), None);
        assert_eq!(strict(r#"{"name":"a","count":-0}"#), None);
        assert!(strict(r#"{"name":"a","size":18446744073709551615}"#).is_some());
        assert_eq!(strict(r#"{"name":"a","size":18446744073709551616}"#), None);
        assert!(strict(r#"{"name":"a","node":-2147483648}"#).is_some());
        assert_eq!(strict(r#"{"name":"a","node":2147483648}"#), None);
    }

    #[test]
    fn arrays_are_bounded_and_inner_objects_strict() {
        assert_eq!(strict(r#"{"name":"a","names":["a","b","c"]}"#), None);
        assert_eq!(strict(r#"{"name":"a","names":["a",1]}"#), None);
        assert_eq!(strict(r#"{"name":"a","inner":{"tag":1,"more":1}}"#), None);
        assert_eq!(strict(r#"{"name":"a","inner":{}}"#), None);
    }

    #[test]
    fn relaxed_ignores_unknown_keys_only() {
        let relaxed = spec(Accepts::Relaxed(PARAMS));
        let params = check(&relaxed, Some(r#"{"name":"a","other":null,"other":1}"#));
        assert_eq!(params.map(|params| json!(params.members())), Some(json!({"name": "a"})));
        assert!(check(&relaxed, Some(r#"{"other":1}"#)).is_none());
        assert!(check(&relaxed, Some(r#"{"name":"a","name":"a"}"#)).is_none());
    }

    #[test]
    fn absent_params_are_an_empty_object() {
        const OPTIONAL: &[Param] = &[Param::optional("name", Kind::String, "", "")];
        let optional = spec(Accepts::Strict(OPTIONAL));
        assert!(check(&optional, None).is_some());
        assert!(check(&optional, Some("null")).is_some());
        assert!(check(&spec(Accepts::Strict(PARAMS)), None).is_none());
    }

    #[test]
    fn method_without_params_refuses_all_but_null() {
        let nothing = spec(Accepts::Nothing);
        assert!(check(&nothing, None).is_some());
        assert!(check(&nothing, Some("null")).is_some());
        assert!(check(&nothing, Some("{}")).is_none());
        assert!(check(&nothing, Some("[]")).is_none());
    }

    #[test]
    fn method_that_ignores_params_takes_anything() {
        let ignored = spec(Accepts::Ignored);
        assert!(check(&ignored, Some("[1,null]")).is_some());
        assert!(check(&ignored, Some(r#"{"x":1}"#)).is_some());
    }
}
