//! The error object of a reply: a code and a text, never `data`. Handlers return it, the dispatcher writes it.
//!
//! SPDK answers the same cause with different codes and texts in different methods (a missing bdev is -19 in
//! `bdev_*` and -32602 in `vfu_*`), so nothing here guesses: the handler picks the constructor.

use std::borrow::Cow;
use std::io;

use jsonrpsee_types::ErrorObjectOwned;

/// The bytes are not JSON.
pub const PARSE_ERROR: i32 = -32700;
/// JSON, but not a request.
pub const INVALID_REQUEST: i32 = -32600;
/// No such method, or not on the allow-list.
pub const METHOD_NOT_FOUND: i32 = -32601;
/// The usual answer to bad params, and in many methods to everything else that is wrong.
pub const INVALID_PARAMS: i32 = -32602;
/// The answer of most bdev methods to bad params.
pub const INTERNAL_ERROR: i32 = -32603;
/// The method exists but not in this state. The number is also -EPERM's.
pub const INVALID_STATE: i32 = -1;

/// What a failed call answers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({code})")]
pub struct RpcError {
    /// Code of the error object.
    pub code: i32,
    /// Message of the error object.
    pub message: Cow<'static, str>,
}

impl RpcError {
    /// An error with this code and text.
    pub fn new(code: i32, message: impl Into<Cow<'static, str>>) -> RpcError {
        RpcError { code, message: message.into() }
    }

    /// Code -32602 and a text of the method's own.
    pub fn invalid_params(message: impl Into<Cow<'static, str>>) -> RpcError {
        RpcError::new(INVALID_PARAMS, message)
    }

    /// Code -32603 and a text of the method's own.
    pub fn internal(message: impl Into<Cow<'static, str>>) -> RpcError {
        RpcError::new(INTERNAL_ERROR, message)
    }

    /// `-errno` with the C library's text, as the `bdev_*` methods answer (19 gives -19 `No such device`).
    pub fn errno(errno: i32) -> RpcError {
        RpcError::new(-errno, strerror(errno))
    }

    /// Code -32602 with the C library's text for `errno`, as the `vfu_*` and `vhost_*` methods answer.
    pub fn params_errno(errno: i32) -> RpcError {
        RpcError::new(INVALID_PARAMS, strerror(errno))
    }

    pub(crate) fn parse() -> RpcError {
        RpcError::new(PARSE_ERROR, "Parse error")
    }

    pub(crate) fn invalid_request() -> RpcError {
        RpcError::new(INVALID_REQUEST, "Invalid request")
    }

    pub(crate) fn method_not_found() -> RpcError {
        RpcError::new(METHOD_NOT_FOUND, "Method not found")
    }
}

impl From<RpcError> for ErrorObjectOwned {
    fn from(error: RpcError) -> ErrorObjectOwned {
        ErrorObjectOwned::owned(error.code, error.message, None::<()>)
    }
}

/// The C library's text for a (positive) errno, as SPDK puts it into its error messages.
pub fn strerror(errno: i32) -> String {
    let mut text = io::Error::from_raw_os_error(errno).to_string();
    // The standard library appends " (os error N)" to the C library's words and has no other safe way to them.
    if let Some(end) = text.rfind(" (os error ") {
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_gives_negative_code_and_the_c_text() {
        let error = RpcError::errno(19);
        assert_eq!((error.code, error.message.as_ref()), (-19, "No such device"));
    }

    #[test]
    fn params_errno_keeps_the_text_under_invalid_params() {
        let error = RpcError::params_errno(17);
        assert_eq!((error.code, error.message.as_ref()), (-32602, "File exists"));
    }

    #[test]
    fn errno_without_a_name_still_has_a_text() {
        assert_eq!(strerror(9999), "Unknown error 9999");
    }
}
