//! Every bound of this crate, by name. The values that SPDK has too are SPDK's; each says what happens one past it.

use std::time::Duration;

/// Bytes of one request, from its first to its last byte. A longer one ends the connection without a reply.
pub const REQUEST_BYTES_MAX: usize = 256 * 1024;

/// JSON tokens of one request: each scalar, each member name, each opening and each closing bracket is one.
/// One more ends the connection without a reply.
pub const REQUEST_TOKENS_MAX: usize = 8192;

/// Containers open at once in one request, the outermost counted. One more ends the connection without a reply.
pub const REQUEST_DEPTH_MAX: usize = 64;

/// Bytes of one reply, the newline not counted. A larger result is answered with an error instead.
pub const REPLY_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Connections served at once by one server. Further clients can connect, but wait until one of these closes.
pub const CONNECTIONS_MAX: usize = 64;

/// Clients that the kernel lets wait before `accept` (cut to net.core.somaxconn). SPDK asks for 512, too few for a
/// thousand clients that connect at the same moment without blocking.
pub const LISTEN_BACKLOG: i32 = 4096;

/// Requests of one connection whose handlers have not finished. At the bound the connection is not read until one
/// of them answers.
pub const IN_FLIGHT_MAX: usize = 1024;

/// Reply bytes that may wait in memory for one connection to read them. A reply that finds more than this waiting
/// ends the connection, so what waits for one client is at most this and one reply of the largest size.
pub const UNSENT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How long a client may leave a full socket unread before its connection is closed and its slot is freed.
pub const UNREAD_TIME_MAX: Duration = Duration::from_secs(60);

/// Requests of one connection that run before the other connections get their turn.
pub const REQUESTS_PER_TURN: usize = 32;

/// Bytes asked for by one read.
pub const READ_BYTES: usize = 16 * 1024;

/// Bytes thrown away, after the last reply of a connection that is being closed for a fault of its client, so that
/// the client sees an orderly end of file after the reply and not a reset.
pub const LINGER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How long that takes at most.
pub const LINGER_TIME_MAX: Duration = Duration::from_secs(1);

/// How often a connection whose client has closed its sending side, and still waits for replies, is asked whether
/// the client has gone altogether.
pub const GONE_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// How long a server that stops waits for its connections to take the replies that are ready.
pub const STOP_TIME_MAX: Duration = Duration::from_secs(1);

const _: () = assert!(REQUEST_DEPTH_MAX <= 64, "the scanner keeps its open containers in one u64");
const _: () = assert!(READ_BYTES <= REQUEST_BYTES_MAX);
const _: () = assert!(REQUEST_TOKENS_MAX < REQUEST_BYTES_MAX);
