//! The params of one call after the check, as handlers receive them.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::RpcError;
use crate::method::MethodSpec;

/// Checked params: every required key is there, every value has its declared type, numbers are plain integers.
#[derive(Clone, Debug)]
pub struct Params {
    spec: MethodSpec,
    members: Map<String, Value>,
    given: bool,
}

impl Params {
    pub(crate) fn new(spec: MethodSpec, members: Map<String, Value>, given: bool) -> Params {
        Params { spec, members, given }
    }

    /// Reads the params into the handler's own type. Optional ones are `Option` fields or have `#[serde(default)]`.
    ///
    /// # Errors
    /// The method's answer to bad params, should the type ask for more than was declared.
    pub fn parse<T: DeserializeOwned>(self) -> Result<T, RpcError> {
        let bad_params = self.spec.bad_params_error();
        serde_json::from_value(Value::Object(self.members)).map_err(|error| {
            tracing::debug!(method = self.spec.name, %error, "params do not fit the handler's type");
            bad_params
        })
    }

    /// Whether the call had params at all: some methods tell an empty object from none.
    pub fn was_given(&self) -> bool {
        self.given
    }

    /// The method that was called, for a handler that serves several.
    pub fn method(&self) -> &'static str {
        self.spec.name
    }

    /// The answer of this method to bad params, for a handler that checks more than types.
    pub fn bad_params(&self) -> RpcError {
        self.spec.bad_params_error()
    }

    /// The value of a key, if it was given.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.members.get(name)
    }

    /// All that was given, as it would be written into a configuration file.
    pub fn members(&self) -> &Map<String, Value> {
        &self.members
    }
}
