//! Every method by SPDK's own client: it succeeds, and what it prints has the shape of SPDK's result; it is refused, with
//! SPDK's code and text.
//!
//! `calls.txt` holds the command lines and the errors, `spdk_results.json` the shapes of SPDK 26.09's results: the types
//! of values; `?` behind a key that may be missing, `*` for keys of any name, `any` for what a module says of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use ringside_tests::{Target, root};
use serde_json::{Value, json};

use crate::clients::spdk;

/// A command line, and the error that is to come of it.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) line: String,
    pub(crate) error: Option<String>,
}

impl Call {
    pub(crate) fn method(&self) -> &str {
        self.line.split(' ').next().unwrap()
    }
}

/// The calls of a section.
pub(crate) fn calls(section: &str) -> Vec<Call> {
    let text = fs::read_to_string(root().join("tests/control/calls.txt")).unwrap();
    let (_, section) = text.split_once(&format!("[{section}]\n")).unwrap();
    let lines = section.lines().take_while(|line| !line.starts_with('[')).filter(|line| !line.is_empty());
    let call = |line: &str| {
        let (line, error) = line.split_once(" => ").map_or((line, None), |(line, error)| (line, Some(error)));
        Call { line: line.to_owned(), error: error.map(str::to_owned) }
    };
    lines.map(call).collect()
}

/// SPDK's client as a coprocess: a process for all lines, a connection for each.
struct Client {
    child: Child,
    lines: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Client {
    fn start() -> Client {
        let mut command = Command::new(spdk("spdk-rpc"));
        command.arg("--server").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let (lines, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Client { child, lines, output }
    }

    /// What it prints for a line, or the code and the text of the error.
    fn call(&mut self, target: &Target, line: &str) -> Result<String, String> {
        let line = line.replace("{dir}", &target.dir().display().to_string());
        writeln!(self.lines, "-s {} {line}", target.rpc_socket().display()).unwrap();
        let mut printed = String::new();
        loop {
            let mut row = String::new();
            assert!(self.output.read_line(&mut row).unwrap() > 0, "{line}: the client has ended: {printed}");
            match row.trim_end() {
                "**STATUS=0" => return Ok(printed),
                "**STATUS=1" => return Err(error_in(&printed)),
                _ => printed.push_str(&row),
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The error object that the client prints last.
fn error_in(printed: &str) -> String {
    let object = printed.split("response:\n").last().unwrap_or_default();
    let error: Value = serde_json::from_str(object).unwrap_or(Value::Null);
    error["message"]
        .as_str()
        .map_or_else(|| printed.to_owned(), |message| format!("{} {message}", error["code"]))
}

/// A target with what the calls speak of.
fn target(args: &[&str]) -> Target {
    let target = Target::spawn_with(&[]).unwrap();
    let dir = target.dir().to_owned();
    let mut target = target;
    let locks = dir.display().to_string();
    target.restart_with(&[&["-m", "0x1", "--core-lock-dir", &locks], args].concat()).unwrap();
    for file in ["aio.img", "uring.img"] {
        fs::File::create(dir.join(file)).unwrap().set_len(16 << 20).unwrap();
    }
    fs::create_dir(dir.join("nvme")).unwrap();
    target
}

/// Where a value is not of a shape.
fn misfit(shape: &Value, value: &Value, at: &str) -> Option<String> {
    let wrong = || Some(format!("{at}: {value} is not {shape}"));
    match shape {
        Value::String(kind) => {
            let fits = match kind.as_str() {
                "any" => true,
                "bool" => value.is_boolean(),
                "float" => value.is_number(),
                "int" => value.is_i64() || value.is_u64(),
                "string" => value.is_string(),
                other => panic!("{other} is no type"),
            };
            if fits { None } else { wrong() }
        }
        Value::Array(of) => {
            let Some(elements) = value.as_array() else { return wrong() };
            elements.iter().find_map(|element| misfit(&of[0], element, &format!("{at}[]")))
        }
        Value::Object(members) => {
            let Some(object) = value.as_object() else { return wrong() };
            let names: Vec<&str> = members.keys().map(|name| name.trim_end_matches('?')).collect();
            let mut next = 0;
            for (name, value) in object {
                let place = names.iter().position(|known| known == name);
                let Some(place) = place.or_else(|| names.iter().position(|known| *known == "*")) else {
                    return Some(format!("{at}.{name} is not known"));
                };
                if place < next {
                    return Some(format!("{at}.{name} comes too late"));
                }
                next = place;
                let shape = members.values().nth(place).unwrap();
                if let Some(found) = misfit(shape, value, &format!("{at}.{name}")) {
                    return Some(found);
                }
            }
            let missing = members
                .keys()
                .find(|name| !name.ends_with('?') && *name != "*" && !object.contains_key(*name));
            missing.map(|name| format!("{at}.{name} is missing"))
        }
        _ => panic!("{shape} is no shape"),
    }
}

/// Runs a section; the methods that succeeded.
fn run(section: &str, args: &[&str]) -> BTreeSet<String> {
    let shapes: Value =
        serde_json::from_str(&fs::read_to_string(root().join("tests/control/spdk_results.json")).unwrap())
            .unwrap();
    let target = target(args);
    let mut client = Client::start();
    let mut succeeded = BTreeSet::new();
    let mut wrong = Vec::new();
    for call in calls(section) {
        let answer = client.call(&target, &call.line);
        match (&answer, &call.error) {
            (Ok(printed), None) => {
                succeeded.insert(call.method().to_owned());
                // Bare words are not JSON, and `true` is not printed at all.
                let result = serde_json::from_str(printed).unwrap_or(Value::Null);
                let shape = &shapes[call.method()];
                let is_plain = result.is_null() || shape.is_string();
                wrong.extend(misfit(shape, &result, &call.line).filter(|_| !is_plain));
            }
            (Err(error), Some(expected)) if error == expected => {}
            _ => wrong.push(format!("{}: {answer:?}, not {:?}", call.line, call.error)),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    succeeded
}

/// A line for each method, the first that is to succeed.
fn first_lines() -> BTreeMap<String, String> {
    let all = calls("startup").into_iter().chain(calls("running")).filter(|call| call.error.is_none());
    all.map(|call| (call.method().to_owned(), call.line)).collect()
}

/// The methods of the target that SPDK has too, with their states.
fn methods() -> BTreeMap<String, Value> {
    let list = |path: &str| -> Vec<Value> {
        let value: Value = serde_json::from_str(&fs::read_to_string(root().join(path)).unwrap()).unwrap();
        value.get("methods").unwrap_or(&value).as_array().unwrap().clone()
    };
    let theirs: BTreeSet<String> = list("tests/control/spdk_methods.json")
        .iter()
        .map(|method| method["name"].as_str().unwrap().to_owned())
        .collect();
    let ours = list("scripts/rpc_methods.json").into_iter();
    let named = ours.map(|method| (method["name"].as_str().unwrap().to_owned(), method["states"].clone()));
    named.filter(|(name, _)| theirs.contains(name)).collect()
}

#[test]
fn every_method_succeeds_and_is_refused_by_spdks_client_as_with_spdk() {
    let mut succeeded = run("running", &[]);
    succeeded.append(&mut run("startup", &["--wait-for-rpc"]));
    let missing: Vec<String> = methods().into_keys().filter(|name| !succeeded.contains(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_method_is_refused_where_it_is_not_allowed_or_comes_too_early() {
    let lines = first_lines();
    let forbidding = target(&["--rpcs-allowed", "bdev_no_such_method"]);
    let waiting = target(&["--wait-for-rpc"]);
    let mut client = Client::start();
    for (name, states) in methods() {
        let line = &lines[&name];
        assert_eq!(client.call(&forbidding, line), Err("-32601 Method not found".to_owned()), "{line}");
        if states == json!(["runtime"]) {
            let expected =
                "-1 Method may only be called after framework is initialized using framework_start_init RPC.";
            assert_eq!(client.call(&waiting, line), Err(expected.to_owned()), "{line}");
        }
    }
}
