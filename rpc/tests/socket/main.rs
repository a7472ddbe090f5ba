//! The server as its clients see it: everything here goes through a real Unix socket. `model` is a small target to
//! serve, `client` a client that sees raw bytes.
#![expect(clippy::unwrap_used, reason = "a test, helpers included, that cannot go on fails")]

mod client;
mod flow;
mod keeping;
mod life;
mod limits;
mod methods;
mod model;
mod random;
mod script;
mod stages;
mod wire;
