//! Random sequences of calls against a model of what they should lead to; in between the target is restarted from its
//! journal, or from its saved configuration, and must be the same.

use std::collections::BTreeMap;

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use ringside_tests::{RpcError, Target};
use serde_json::{Value, json};

/// Names are few, so that calls meet.
fn name() -> impl Strategy<Value = String> {
    (0..4_u8).prop_map(|number| format!("d{number}"))
}

#[derive(Clone, Debug)]
enum Call {
    CreateNull(String),
    CreateMalloc(String),
    Delete(String),
    CreateEndpoint(String, String),
    DeleteEndpoint(String),
    Crash,
    Restart,
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        4 => name().prop_map(Call::CreateNull),
        4 => name().prop_map(Call::CreateMalloc),
        3 => name().prop_map(Call::Delete),
        4 => (name(), name()).prop_map(|(endpoint, bdev)| Call::CreateEndpoint(endpoint, bdev)),
        3 => name().prop_map(Call::DeleteEndpoint),
        1 => Just(Call::Crash),
        1 => Just(Call::Restart),
    ]
}

/// What there should be: bdevs by name and type, endpoints by name and bdev.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    bdevs: BTreeMap<String, &'static str>,
    endpoints: BTreeMap<String, String>,
}

const EEXIST: i64 = -17;
const ENODEV: i64 = -19;
const INVALID_PARAMS: i64 = -32602;

impl Model {
    fn create(&mut self, name: &str, kind: &'static str) -> Result<(), i64> {
        if self.bdevs.contains_key(name) {
            return Err(EEXIST);
        }
        self.bdevs.insert(name.to_owned(), kind);
        Ok(())
    }

    /// Deleting a bdev takes it from its endpoints, which stay.
    fn delete(&mut self, name: &str) -> Result<&'static str, i64> {
        self.bdevs.remove(name).ok_or(ENODEV)
    }

    fn create_endpoint(&mut self, name: &str, bdev: &str) -> Result<(), i64> {
        if self.endpoints.contains_key(name) || !self.bdevs.contains_key(bdev) {
            return Err(INVALID_PARAMS);
        }
        self.endpoints.insert(name.to_owned(), bdev.to_owned());
        Ok(())
    }

    /// A start makes no endpoint of a bdev that is gone; of another of its name it does.
    fn restart(&mut self) {
        let Self { bdevs, endpoints } = self;
        endpoints.retain(|_, bdev| bdevs.contains_key(bdev));
    }
}

fn code(reply: Result<Value, RpcError>) -> Result<(), i64> {
    reply.map(|_| ()).map_err(|error| error.code)
}

fn seen(target: &Target) -> Model {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let bdevs = target.call("bdev_get_bdevs", Value::Null).unwrap();
    let kind = |bdev: &Value| if bdev["product_name"] == "Null disk" { "null" } else { "malloc" };
    let endpoints = target.call("vfu_get_endpoints", Value::Null).unwrap();
    Model {
        bdevs: bdevs.as_array().unwrap().iter().map(|bdev| (text(&bdev["name"]), kind(bdev))).collect(),
        endpoints: endpoints
            .as_array()
            .unwrap()
            .iter()
            .map(|one| (text(&one["name"]), text(&one["bdev_name"])))
            .collect(),
    }
}

fn config(target: &Target) -> Vec<Value> {
    let get = |name: &str| target.call("framework_get_config", json!({"name": name})).unwrap();
    ["bdev", "vfio_user_target"].map(get).to_vec()
}

fn step(target: &mut Target, model: &mut Model, args: &[&str], call: &Call) -> Result<(), TestCaseError> {
    let size = |name: &str| json!({"name": name, "num_blocks": 64, "block_size": 512});
    match call {
        Call::CreateNull(name) => {
            prop_assert_eq!(code(target.call("bdev_null_create", size(name))), model.create(name, "null"));
        }
        Call::CreateMalloc(name) => {
            prop_assert_eq!(
                code(target.call("bdev_malloc_create", size(name))),
                model.create(name, "malloc")
            );
        }
        Call::Delete(name) => {
            let expected = model.delete(name);
            let method = format!("bdev_{}_delete", expected.unwrap_or("null"));
            prop_assert_eq!(code(target.call(&method, json!({"name": name}))), expected.map(|_| ()));
        }
        Call::CreateEndpoint(name, bdev) => {
            let params = json!({"name": name, "bdev_name": bdev, "num_queues": 1});
            let reply = target.call("vfu_virtio_create_blk_endpoint", params);
            prop_assert_eq!(code(reply), model.create_endpoint(name, bdev));
        }
        Call::DeleteEndpoint(name) => {
            let expected = model.endpoints.remove(name).map(|_| ()).ok_or(INVALID_PARAMS);
            prop_assert_eq!(code(target.call("vfu_virtio_delete_endpoint", json!({"name": name}))), expected);
        }
        Call::Crash | Call::Restart => {
            let before = config(target);
            if matches!(call, Call::Crash) {
                target.crash().unwrap();
            }
            target.restart_with(args).unwrap();
            model.restart();
            prop_assert_eq!(config(target), before);
        }
    }
    prop_assert_eq!(&seen(target), &*model);
    Ok(())
}

#[test]
fn random_calls_lead_where_the_model_says() {
    let mut runner = TestRunner::new(Config { cases: 24, failure_persistence: None, ..Config::default() });
    let sequences = proptest::collection::vec(call(), 1..40);
    let outcome = runner.run(&sequences, |calls| {
        let mut target = Target::start().unwrap();
        let state = target.dir().join("state");
        let args = ["--state-dir", state.to_str().unwrap()];
        target.restart_with(&args).unwrap();
        let mut model = Model::default();
        calls.iter().try_for_each(|call| step(&mut target, &mut model, &args, call))
    });
    outcome.unwrap();
}
