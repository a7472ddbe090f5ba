//! Round trip of a trivial method over one connection of a real socket: `cargo bench -p rpc`. Prints percentiles; an
//! assertion would say more about the machine than about the code.
#![expect(clippy::print_stdout, reason = "its output is what it is for")]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rpc::{Listen, Method, MethodTable, Outcome, Params, RpcThread, Stage, State, States};

const WARM_UP: usize = 1_000;
const CALLS: usize = 20_000;

const REQUEST: &str = r#"{"jsonrpc":"2.0","id":1,"method":"spdk_get_version"}"#;

fn version(_: &Arc<()>, _: Params) -> Outcome {
    Ok(serde_json::json!({"version": "bench", "fields": {"major": 26, "minor": 9, "patch": 0, "suffix": ""}}))
}

static METHODS: &[Method<()>] =
    &[Method::sync("spdk_get_version", "app_framework", version).states(States::Both)];

fn main() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("rpc.sock");
    let start = Instant::now();
    let mut table = MethodTable::new(Arc::new(()), Stage::new(State::Runtime));
    table.register(METHODS).expect("one method");
    let thread = RpcThread::start().expect("a thread");
    let server = thread.serve(Listen::on(&path), table.finish()).expect("a server");
    let mut stream = UnixStream::connect(&path).expect("it listens");
    let mut replies = BufReader::new(stream.try_clone().expect("a descriptor"));
    let mut reply = String::new();
    let mut call = || {
        let start = Instant::now();
        stream.write_all(REQUEST.as_bytes()).expect("it reads");
        reply.clear();
        replies.read_line(&mut reply).expect("it answers");
        start.elapsed()
    };
    call();
    println!("table, thread, server and first reply: {:?}", start.elapsed());

    for _ in 0..WARM_UP {
        call();
    }
    let mut times: Vec<Duration> = (0..CALLS).map(|_| call()).collect();
    times.sort_unstable();
    let percentile = |percent: usize| times[(CALLS - 1) * percent / 100];
    println!(
        "{CALLS} round trips: median {:?}, p99 {:?}, max {:?}",
        percentile(50),
        percentile(99),
        percentile(100)
    );
    server.stop();
}
