//! The methods against SPDK's: declarations, answers to bad params, command lines, wrong states.
//!
//! `spdk_methods.json` holds what SPDK 26.09 declares and answers; docs/conformance.md is the table that comes of the
//! comparison, written by `scripts/generate`. A difference without a reason in [`EXPLAINED`] fails the test.

use std::{collections::BTreeMap, fmt::Write as _, fs, process::Command};

use ringside_tests::{Target, root};
use serde_json::{Value, json};

use crate::{calls::calls, clients::spdk};

/// Differences that are meant: method, how what differs begins, why. A param that is added, or a method, explains itself by its
/// help.
const EXPLAINED: &[(&str, &str, &str)] = &[];

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

/// The errors of each method that SPDK's client is shown.
fn refusals() -> BTreeMap<String, String> {
    let mut refusals: BTreeMap<String, String> = BTreeMap::new();
    for call in calls("running").into_iter().chain(calls("startup")) {
        let Some(error) = call.error.as_deref().filter(|error| !error.starts_with("-1 ")) else { continue };
        let errors = refusals.entry(call.method().to_owned()).or_default();
        if !errors.contains(error) {
            let comma = if errors.is_empty() { "" } else { ", " };
            write!(errors, "{comma}`{error}`").unwrap();
        }
    }
    refusals
}

#[test]
fn every_difference_from_spdk_is_explained_in_the_table() {
    let (ours, theirs) = (ours(), theirs());
    let mut table = String::from(
        "# Conformance\n\nWritten by `scripts/generate`; do not edit. Every method of the target against SPDK 26.09: \
         state, params with their types, and the answer to bad params. The tests compare the command lines of both \
         clients too, and have SPDK's own client call each method, to succeed and to be refused \
         ([calls.txt](../tests/control/calls.txt)); what it is refused with, besides in the wrong state and where it \
         is not allowed, stands here too.\n\n| method | | why | refused with |\n|---|---|---|---|\n",
    );
    let refusals = refusals();
    let refused = |name: &str| refusals.get(name).map(String::as_str).unwrap_or_default();
    let mut unexplained = Vec::new();
    for (name, differences) in compare() {
        if differences.is_empty() {
            writeln!(table, "| {name} | same | | {} |", refused(&name)).unwrap();
        }
        for difference in differences {
            let reason =
                EXPLAINED.iter().find(|(method, what, _)| *method == name && difference.starts_with(what));
            let why = reason
                .map(|(_, _, why)| (*why).to_owned())
                .or_else(|| help_of_added(&ours[&name], &difference));
            match why {
                Some(why) => {
                    writeln!(table, "| {name} | {difference} | {why} | {} |", refused(&name)).unwrap();
                }
                None => unexplained.push(format!("{name}: {difference}")),
            }
        }
    }
    for (name, method) in ours.iter().filter(|(name, _)| !theirs.contains_key(*name)) {
        writeln!(table, "| {name} | not in SPDK | {} | |", method["help"].as_str().unwrap()).unwrap();
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

/// Lines that the two clients take differently, and why.
const LINES_EXPLAINED: &[(&str, &str)] =
    &[("framework_get_pci_devices --format-lspci", "there is never a device to print in that form")];

#[test]
fn both_clients_make_the_same_requests_of_the_same_command_lines() {
    let theirs = theirs();
    let mut command = Command::new(spdk("python3"));
    command.arg(root().join("tests/control/command_lines.py")).arg(root().join("scripts/rpc.py"));
    command.args(ours().into_keys().filter(|name| theirs.contains_key(name)));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let report: Value = serde_json::from_slice(&output.stdout).unwrap();

    assert!(report["compared"].as_u64().is_some_and(|lines| lines > 700), "{}", report["compared"]);
    let is_explained = |line: &Value| LINES_EXPLAINED.iter().any(|(explained, _)| line["line"] == *explained);
    let different = report["different"].as_array().unwrap();
    let unexplained: Vec<&Value> = different.iter().filter(|line| !is_explained(line)).collect();
    assert!(unexplained.is_empty(), "{unexplained:#?}");
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
