//! JSON-RPC 2.0 as the clients of SPDK speak it: a server on a Unix socket with a thread of its own.
//!
//! The program that wires the target together declares its methods as tables of [`Method`], registers them in a
//! [`MethodTable`], and serves the resulting [`Dispatcher`] with [`RpcThread::serve`]. The same dispatcher runs the
//! entries of a configuration file, so both ways meet the same checks. This crate knows no bdev and no device: it
//! depends on no other crate of the workspace, and the target is to it an opaque context `C`.
//!
//! A request passes these files: [`mod@server`] (accept) -> `conn` (one connection) -> `frame`/`scan` (bytes to
//! values) -> `envelope` (value to request) -> `exec` (single or batch) -> [`mod@table`] (name, state, params) ->
//! handler -> `reply` (bytes).
//!
//! ```
//! use std::sync::Arc;
//! use rpc::{Cli, Kind, Method, MethodTable, Outcome, Param, Params, Prints, RpcError, Stage, State};
//!
//! struct Target;
//!
//! #[derive(serde::Deserialize)]
//! struct Delete {
//!     name: String,
//! }
//!
//! fn delete(_target: &Arc<Target>, params: Params) -> Outcome {
//!     let Delete { name } = params.parse()?;
//!     if name != "Null0" {
//!         return Err(RpcError::errno(19));
//!     }
//!     Ok(true.into())
//! }
//!
//! static METHODS: &[Method<Target>] = &[Method::sync("bdev_null_delete", "bdev_null", delete)
//!     .help("Delete a null bdev")
//!     .params(&[Param::required("name", Kind::String, "null bdev name").cli(Cli::Positional)])
//!     .bad_params(-32603, "spdk_json_decode_object failed")
//!     .prints(Prints::Nothing)];
//!
//! let mut table = MethodTable::new(Arc::new(Target), Stage::new(State::Runtime));
//! table.register(METHODS)?;
//! let dispatcher = table.finish();
//! # Ok::<(), rpc::TableError>(())
//! ```

pub mod error;
pub mod limits;
pub mod method;
pub mod params;
pub mod server;
pub mod stage;
pub mod table;

mod check;
mod conn;
mod describe;
mod envelope;
mod exec;
mod frame;
mod lock;
mod number;
mod offline;
mod reply;
mod scan;

pub use error::RpcError;
pub use method::{Accepts, Cli, Handler, Kind, Method, MethodSpec, Outcome, Param, Pending, Prints, States};
pub use params::Params;
pub use server::{Listen, RpcThread, Server, ServerError};
pub use stage::{Stage, State};
pub use table::{Dispatcher, Journal, Kept, MethodTable, TableError};
