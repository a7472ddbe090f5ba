//! The methods against SPDK's: declarations, answers to bad params, command lines, wrong states.
//!
//! `spdk_methods.json` holds what SPDK 26.09 declares and answers; docs/conformance.md is the table that comes of the
//! comparison, written by `scripts/generate`. A difference without a reason in [`EXPLAINED`] fails the test.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use ringside_tests::{Target, root};
use serde_json::{Value, json};

use crate::clients::{both, spdk};

/// Differences that are meant: method, how what differs begins, why. A param that is added, or a method, explains itself by its
/// help.
const EXPLAINED: &[(&str, &str, &str)] = &[(
    "nvmf_create_transport",
    "lacks ",
    "an option of the transports over TCP and RDMA, which are not here; keys that are not known are ignored, as in SPDK",
)];

fn methods(path: &str) -> BTreeMap<String, Value> {
    let text = fs::read_to_string(root().join(path)).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    let list = value.get("methods").unwrap_or(&value).as_array().unwrap().clone();
    list.into_iter().map(|method| (method["name"].as_str().unwrap().to_owned(), method)).collect()
}

fn ours() -> BTreeMap<String, Value> {
    methods("scripts/rpc_methods.json")
}

fn theirs() -> BTreeMap<String, Value> {
    methods("tests/control/spdk_methods.json")
}

fn params(method: &Value) -> BTreeMap<&str, &Value> {
    let params = method["params"].as_array().unwrap().iter();
    params.map(|param| (param["name"].as_str().unwrap(), param)).collect()
}

/// A type without what only one of the two tables says: the name of an object, the bound of an array.
fn spelled(value: &Value) -> Value {
    let Some(text) = value.as_str() else { return value.clone() };
    let text = text.split("[max ").next().unwrap_or(text);
    if text == "any" || text.starts_with("object") {
        return "object".into();
    }
    // The words of an enum have no order.
    let mut words: Vec<&str> = text.split([':', '|', '<', '>']).collect();
    words.sort_unstable();
    words.into()
}

/// What a declaration says otherwise than SPDK's.
fn differences(our: &Value, their: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let sorted = |states: &Value| {
        let mut states: Vec<String> =
            states.as_array().unwrap().iter().map(|state| state.as_str().unwrap().to_owned()).collect();
        states.sort();
        states.join(", ")
    };
    let (our_states, their_states) = (sorted(&our["states"]), sorted(&their["state"]));
    if our_states != their_states {
        found.push(format!("states {our_states} instead of {their_states}"));
    }
    let (our_params, their_params) = (params(our), params(their));
    found.extend(
        our_params.keys().filter(|name| !their_params.contains_key(*name)).map(|name| format!("adds {name}")),
    );
    for (name, their_param) in their_params {
        let Some(our_param) = our_params.get(name) else {
            found.push(format!("lacks {name}"));
            continue;
        };
        for key in ["type", "required"] {
            if spelled(&our_param[key]) != spelled(&their_param[key]) {
                found.push(format!("{name}: {key} {} instead of {}", our_param[key], their_param[key]));
            }
        }
    }
    found
}

/// Params that no method takes; alone they lack what is required, too.
fn bad_params() -> Value {
    json!({"no_such_param": 1})
}

/// What bad params are answered with otherwise than by SPDK.
fn bad_params_difference(targets: &[Target; 2], name: &str, their: &Value) -> Option<String> {
    let expected = their.get("bad_params").filter(|_| their.get("unknown_params").is_none())?;
    let is_startup = their["state"] == json!(["startup"]);
    let answer = targets[usize::from(is_startup)].call(name, bad_params());
    let answer =
        answer.map_or_else(|error| json!([error.code, error.message]), |result| json!({ "result": result }));
    (answer != *expected).then(|| format!("bad params: {answer} instead of {expected}"))
}

/// All differences, by method.
fn compare() -> BTreeMap<String, Vec<String>> {
    let targets = [Target::start().unwrap(), Target::start_with(&["--wait-for-rpc"]).unwrap()];
    let theirs = theirs();
    let mut found = BTreeMap::new();
    for (name, our) in ours() {
        if let Some(their) = theirs.get(&name) {
            let mut differences = differences(&our, their);
            differences.extend(bad_params_difference(&targets, &name, their));
            found.insert(name, differences);
        }
    }
    found
}

/// The help of an optional param that SPDK does not have: without it all is as with SPDK.
fn help_of_added(method: &Value, difference: &str) -> Option<String> {
    let params = params(method);
    let param = params.get(difference.strip_prefix("adds ")?)?;
    (param["required"] == false).then(|| format!("ours: {}", param["help"].as_str().unwrap_or_default()))
}

#[test]
fn every_difference_from_spdk_is_explained_in_the_table() {
    let (ours, theirs) = (ours(), theirs());
    let mut table = String::from(
        "# Conformance\n\nWritten by `scripts/generate`; do not edit. Every method of the target against SPDK 26.09: \
         state, params with their types, and the answer to bad params; the tests compare the command lines of both \
         clients too.\n\n| method | | why |\n|---|---|---|\n",
    );
    let mut unexplained = Vec::new();
    for (name, differences) in compare() {
        if differences.is_empty() {
            writeln!(table, "| {name} | same | |").unwrap();
        }
        for difference in differences {
            let reason =
                EXPLAINED.iter().find(|(method, what, _)| *method == name && difference.starts_with(what));
            let why = reason
                .map(|(_, _, why)| (*why).to_owned())
                .or_else(|| help_of_added(&ours[&name], &difference));
            match why {
                Some(why) => writeln!(table, "| {name} | {difference} | {why} |").unwrap(),
                None => unexplained.push(format!("{name}: {difference}")),
            }
        }
    }
    for (name, method) in ours.iter().filter(|(name, _)| !theirs.contains_key(*name)) {
        writeln!(table, "| {name} | not in SPDK | {} |", method["help"].as_str().unwrap()).unwrap();
    }
    assert!(unexplained.is_empty(), "{unexplained:#?}");
    let path = root().join("docs/conformance.md");
    if std::env::var_os("RINGSIDE_GENERATE").is_some() {
        fs::write(&path, &table).unwrap();
    }
    assert!(
        fs::read_to_string(&path).unwrap_or_default() == table,
        "docs/conformance.md is stale: run scripts/generate"
    );
}

/// A value for a param on the command line.
fn value(param: &Value) -> String {
    let choice = param.get("choices").and_then(|choices| choices.as_array()?.last());
    if let Some(choice) = choice {
        return choice.as_str().map_or_else(|| choice.to_string(), str::to_owned);
    }
    match param["type"].as_str().unwrap() {
        "string" | "any" => "word".to_owned(),
        "boolean" => "true".to_owned(),
        "uuid" => "5f1b9c9e-0000-4000-8000-0123456789ab".to_owned(),
        _ if param["name"] == "block_size" => "512".to_owned(),
        _ => "1".to_owned(),
    }
}

/// The command line of a method: with what it requires, or with all that it takes and SPDK has too.
fn line(method: &Value, theirs: &BTreeMap<&str, &Value>, all: bool) -> Option<String> {
    let mut words = vec![method["name"].as_str()?.to_owned()];
    // SPDK's script mode takes a param called like its own option `timeout` for that.
    let wanted = method["params"]
        .as_array()?
        .iter()
        .filter(|param| theirs.contains_key(param["name"].as_str().unwrap()) && param["name"] != "timeout");
    for param in wanted {
        let required = param["required"] == true;
        match param["cli"].as_str()? {
            "mib" | "mib_fraction" => words.push("1".to_owned()),
            "positional" if required || all => words.push(value(param)),
            "flag" | "switch" if required || all => {
                words.push(param["spelling"].as_array()?.last()?.as_str()?.to_owned());
            }
            // Lists and numbers in other bases are spelled by each method in its own way.
            "option" if required || all => {
                words.push(param["spelling"].as_array()?.last()?.as_str()?.to_owned());
                words.push(value(param));
            }
            "list" | "hidden" if required => return None,
            _ => {}
        }
    }
    Some(words.join(" "))
}

/// The requests that a client makes of these lines, without sending them.
fn requests(client: &PathBuf, lines: &str) -> Vec<Value> {
    use std::io::Write as _;
    let mut command = Command::new(client);
    command.arg("--dry-run").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}: {printed}\n{complaint}", client.display());
    printed.split("Request:\n").skip(1).map(|text| serde_json::from_str(text).unwrap()).collect()
}

#[test]
fn both_clients_make_the_same_requests_of_the_same_command_lines() {
    let theirs = theirs();
    let known = |name: &str| theirs.get(name).map(params);
    let methods = ours();
    let both_lines = methods.iter().filter_map(|(name, method)| {
        // It sends what the transports over TCP and RDMA have besides.
        let known = known(name).filter(|_| name != "nvmf_create_transport")?;
        // SPDK's command line has not all of what its nvmf methods take.
        let whole = line(method, &known, true).filter(|_| method["group"] != "nvmf");
        Some([line(method, &known, false), whole])
    });
    let lines: Vec<String> = both_lines.flatten().flatten().collect();
    let script = lines.join("\n");
    let [their_client, our_client] = both();
    let (their_requests, mut our_requests) =
        (requests(&their_client, &script), requests(&our_client, &script));
    for request in &mut our_requests {
        let known = params(&theirs[request["method"].as_str().unwrap()]);
        // Flags of our own are sent as false.
        if let Some(sent) = request.get_mut("params").and_then(Value::as_object_mut) {
            sent.retain(|name, value| known.contains_key(name.as_str()) || *value != json!(false));
        }
    }
    let pairs = lines.iter().zip(their_requests.iter().zip(&our_requests));
    let differ: Vec<_> = pairs.filter(|(_, (their, our))| their != our).collect();
    assert!(differ.is_empty(), "{differ:#?}");
    assert_eq!(their_requests.len(), lines.len());
    assert_eq!(our_requests.len(), lines.len());
}

#[test]
fn methods_of_the_other_state_are_refused_with_the_words_of_spdk() {
    let startup = Target::start_with(&["--wait-for-rpc"]).unwrap();
    let runtime = Target::start().unwrap();
    for (name, method) in ours() {
        if method["states"] == json!(["runtime"]) {
            let refused = startup.call(&name, Value::Null).unwrap_err();
            assert_eq!(refused.code, -1, "{name}");
            let words =
                "Method may only be called after framework is initialized using framework_start_init RPC.";
            assert_eq!(refused.message, words, "{name}");
        }
        if method["states"] == json!(["startup"]) {
            let refused = runtime.call(&name, Value::Null).unwrap_err();
            assert_eq!(refused.code, -1, "{name}");
            assert!(
                refused.message.starts_with("Method may only be called before framework is initialized."),
                "{name}"
            );
        }
    }
    let current = startup.call("rpc_get_methods", json!({"current": true})).unwrap();
    assert!(current.as_array().unwrap().contains(&json!("framework_start_init")));
    assert!(!current.as_array().unwrap().contains(&json!("bdev_get_bdevs")));
}

#[test]
fn methods_that_need_no_params_succeed_by_spdks_client() {
    let locks = tempfile::tempdir().unwrap();
    let args = ["-m", "0x1", "--core-lock-dir", &locks.path().display().to_string()];
    let target = Target::start_with(&args).unwrap();
    let theirs = theirs();
    let lines: Vec<String> = ours()
        .values()
        .filter(|method| method["params"].as_array().unwrap().is_empty())
        .filter(|method| method["states"].as_array().unwrap().contains(&json!("runtime")))
        .map(|method| method["name"].as_str().unwrap().to_owned())
        .filter(|name| theirs.contains_key(name))
        .collect();
    assert!(lines.len() > 10, "{lines:?}");
    crate::clients::succeed(&spdk("spdk-rpc"), &target, "", &lines.join("\n"));
}
