//! The RPC methods of a bdev type, and how strictly their params are read.
//!
//! Each type brings its methods along (`bdev_malloc_create`, ...) in its entry of [`TYPES`](crate::TYPES), so
//! that the program's glue needs no line per type. Knows no transport: params come as JSON text, answers
//! leave by a callback.

use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::{Error, Registry, strerror};

/// Where the answer goes; called once, on any thread.
pub type Reply = Box<dyn FnOnce(Result<Value, MethodError>) + Send>;

/// One RPC method.
#[derive(Clone, Copy)]
pub struct Method {
    /// As called by clients.
    pub name: &'static str,
    /// Runs it on the thread of the RPC server; the answer may come later.
    pub call: fn(&Arc<Registry>, Option<&RawValue>, Reply),
}

impl fmt::Debug for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// A JSON-RPC error object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({code})")]
pub struct MethodError {
    /// Negative errno, or a code of JSON-RPC 2.0.
    pub code: i32,
    /// What SPDK's clients match on.
    pub message: String,
}

impl MethodError {
    /// JSON-RPC 2.0, "Internal error": what SPDK answers to params it cannot decode in most bdev methods.
    pub const INTERNAL_ERROR: i32 = -32603;

    /// The answer to params that do not decode.
    pub fn bad_params() -> MethodError {
        let message = "spdk_json_decode_object failed".to_owned();
        MethodError { code: MethodError::INTERNAL_ERROR, message }
    }

    /// A negative errno with a text of the method's own.
    pub fn errno(errno: rustix::io::Errno, message: impl Into<String>) -> MethodError {
        MethodError { code: -errno.raw_os_error(), message: message.into() }
    }
}

impl From<Error> for MethodError {
    /// The negative errno with the text of strerror; the details go to the log, where SPDK has them too.
    fn from(error: Error) -> MethodError {
        tracing::warn!(%error, "bdev method failed");
        MethodError { code: -error.errno(), message: strerror(error.errno()) }
    }
}

/// Reads the params of a method. Absent and `null` params read as an empty object. Unknown and duplicate
/// keys, `null` values, values of another type and params that are no object do not decode.
pub fn decode<T: DeserializeOwned>(params: Option<&RawValue>) -> Result<T, MethodError> {
    let text = match params.map(RawValue::get) {
        None | Some("null") => "{}",
        // serde would read an array as the fields in their order.
        Some(text) if !text.starts_with('{') => return Err(MethodError::bad_params()),
        Some(text) => text,
    };
    serde_json::from_str(text).map_err(|error| {
        tracing::debug!(%error, "params do not decode");
        MethodError::bad_params()
    })
}

/// An optional key that, if it is there, must have a value: SPDK's decoders take no `null`.
pub fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(d: D) -> Result<Option<T>, D::Error> {
    T::deserialize(d).map(Some)
}

/// An unsigned number as SPDK's decoder takes it: integral, in range, also written as `8192.0` or `1e3`.
pub fn number<'de, D: Deserializer<'de>, T: TryFrom<u64>>(d: D) -> Result<T, D::Error> {
    d.deserialize_any(Integral(PhantomData::<u64>))
        .and_then(|n| T::try_from(n).map_err(|_range| D::Error::custom("out of range")))
}

/// As [`number`], with a sign.
pub fn signed_number<'de, D: Deserializer<'de>>(d: D) -> Result<i32, D::Error> {
    d.deserialize_any(Integral(PhantomData::<i32>))
}

/// As [`number`], for an optional key.
pub fn present_number<'de, D: Deserializer<'de>, T: TryFrom<u64>>(d: D) -> Result<Option<T>, D::Error> {
    number(d).map(Some)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeleteParams {
    name: String,
}

/// What every `bdev_<type>_delete` does: answers `true` once the bdev is closed by everyone and gone.
pub(crate) fn delete_of_type(
    registry: &Arc<Registry>,
    type_name: &str,
    params: Option<&RawValue>,
    reply: Reply,
) {
    // Whoever gets there first answers: the refusal here, or the end of the removal.
    let reply = Arc::new(Mutex::new(Some(reply)));
    let answer = move |result| {
        let reply = reply.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(reply) = reply {
            reply(result);
        }
    };
    let on_gone = answer.clone();
    let started = decode(params).and_then(|p: DeleteParams| {
        Ok(registry.delete_of_type(type_name, &p.name, move || on_gone(Ok(Value::Bool(true))))?)
    });
    if let Err(error) = started {
        answer(Err(error));
    }
}

struct Integral<T>(PhantomData<T>);

impl<T: TryFrom<u64> + TryFrom<i64> + TryFrom<i128>> Visitor<'_> for Integral<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an integral number in range")
    }

    fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<T, E> {
        T::try_from(n).map_err(|_range| E::custom("out of range"))
    }

    fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<T, E> {
        T::try_from(n).map_err(|_range| E::custom("out of range"))
    }

    fn visit_f64<E: serde::de::Error>(self, n: f64) -> Result<T, E> {
        // A float in this range converts to i128 exactly when it has no fraction.
        const LIMIT: f64 = 1e30;
        if n.fract() != 0.0 || n.abs() > LIMIT {
            return Err(E::custom("not an integral number"));
        }
        T::try_from(n as i128).map_err(|_range| E::custom("out of range"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Params {
        #[serde(deserialize_with = "number")]
        size: u32,
        #[serde(default, deserialize_with = "present")]
        name: Option<String>,
        #[serde(default, deserialize_with = "signed_number")]
        node: i32,
    }

    fn read(text: &str) -> Result<Params, MethodError> {
        let raw = RawValue::from_string(text.to_owned()).unwrap();
        decode(Some(&raw))
    }

    #[test]
    fn numbers_may_be_integral_floats_and_exponents() {
        let expected = Params { size: 4096, name: None, node: -1 };

        assert_eq!(read(r#"{"size":4096,"node":-1}"#), Ok(expected));
        assert_eq!(read(r#"{"size":4096.0}"#).map(|p| p.size), Ok(4096));
        assert_eq!(read(r#"{"size":1e3}"#).map(|p| p.size), Ok(1000));
    }

    #[test]
    fn whatever_is_not_exactly_right_does_not_decode() {
        let refused = [
            r#"{"size":1.5}"#,
            r#"{"size":"1"}"#,
            r#"{"size":-1}"#,
            r#"{"size":4294967296}"#,
            r#"{"size":1e40}"#,
            r#"{"size":null}"#,
            r#"{"size":1,"name":null}"#,
            r#"{"size":1,"name":7}"#,
            r#"{"size":1,"size":1}"#,
            r#"{"size":1,"color":1}"#,
            r#"{"name":"x"}"#,
            r#"[1]"#,
            r#"null"#,
        ];

        let answers: Vec<_> = refused.iter().map(|text| read(text)).collect();

        assert_eq!(answers, vec![Err(MethodError::bad_params()); refused.len()]);
        assert_eq!(decode::<Params>(None), Err(MethodError::bad_params()));
    }
}
