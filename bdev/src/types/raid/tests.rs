//! Tests of arrays whose bases come and go.

use std::sync::{Arc, Barrier};

use serde_json::{Value, json};

use super::{RaidParams, State, add_base, array, create, list, remove_base};
use crate::Registry;
use crate::types::{MallocParams, malloc};

/// Rounds of a race that one in a few dozen loses.
const RACES: usize = 1000;

fn make_base(registry: &Arc<Registry>, name: &str) {
    let params = MallocParams { name: Some(name.to_owned()), ..MallocParams::new(512, 2048) };
    malloc::create(registry, params).expect("a base");
}

fn raid_params(params: Value) -> RaidParams {
    serde_json::from_value(params).expect("params of the right types")
}

fn make_array(registry: &Arc<Registry>, bases: &[&str]) {
    let params = json!({"name": "array", "strip_size_kb": 4, "raid_level": "raid0", "base_bdevs": bases});
    create(registry, raid_params(params)).expect("an array");
}

fn written(registry: &Registry) -> Value {
    let all = registry.virtuals();
    let (method, params) = all[0].config().expect("an array is configured");
    assert_eq!(method, "bdev_raid_create");
    params
}

fn described(registry: &Registry) -> Value {
    list(registry, "all").remove(0).1
}

#[test]
fn an_array_without_one_of_its_bases_is_written_with_its_place() {
    let registry = Registry::new();
    ["a", "b", "c"].iter().for_each(|name| make_base(&registry, name));
    make_array(&registry, &["a", "b", "c"]);
    remove_base(&registry, "b").unwrap();

    let params = written(&registry);

    assert_eq!(params["base_bdevs"], json!(["a", "removed_base_1", "c"]));
}

#[test]
fn an_array_written_without_a_base_waits_for_one_in_its_place() {
    let registry = Registry::new();
    ["a", "c", "d"].iter().for_each(|name| make_base(&registry, name));

    make_array(&registry, &["a", "removed_base_1", "c"]);

    let before = described(&registry);
    assert_eq!((&before["state"], &before["num_base_bdevs"]), (&json!("configuring"), &json!(3)));
    assert_eq!(before["base_bdevs_list"][1]["name"], Value::Null);
    assert!(registry.get("array").is_err());
    add_base(&registry, "array", "d").unwrap();
    assert_eq!(described(&registry)["state"], "online");
    assert_eq!(written(&registry)["base_bdevs"], json!(["a", "d", "c"]));
}

#[test]
fn a_name_like_that_of_an_empty_place_elsewhere_is_a_name() {
    let registry = Registry::new();
    ["a", "removed_base_0"].iter().for_each(|name| make_base(&registry, name));

    make_array(&registry, &["a", "removed_base_0"]);

    assert_eq!(described(&registry)["state"], "online");
}

#[test]
fn an_array_that_is_started_by_two_at_once_is_online_once() {
    let registry = Registry::new();
    make_array(&registry, &["a", "b"]);
    ["a", "b"].iter().for_each(|name| make_base(&registry, name));
    let array = array(&registry, "array").unwrap();
    for _ in 0..RACES {
        // All bases are there, and nobody has started it.
        registry.delete("array", || ()).unwrap();
        array.members().state = State::Configuring;
        let together = Barrier::new(2);

        let start = || {
            together.wait();
            array.start(&registry)
        };
        let started = std::thread::scope(|scope| {
            let other = scope.spawn(start);
            [start(), other.join().unwrap()]
        });

        assert!(started.iter().all(Result::is_ok), "{started:?}");
        assert_eq!(described(&registry)["state"], "online");
    }
}
