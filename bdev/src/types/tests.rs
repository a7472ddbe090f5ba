//! Tests of the types' RPC methods: defaults, results, and the errors SPDK's clients match on.

use std::sync::{Arc, mpsc};

use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::TYPES;
use crate::method::MethodError;
use crate::{Access, OpKind, Registry};

fn call(registry: &Arc<Registry>, name: &str, params: Value) -> Result<Value, MethodError> {
    let method = TYPES.iter().flat_map(|t| t.methods).find(|m| m.name == name).expect("in the table");
    let params = RawValue::from_string(params.to_string()).unwrap();
    let (answer, answered) = mpsc::channel();
    (method.call)(registry, Some(&params), Box::new(move |result| answer.send(result).unwrap()));
    answered.recv().expect("an answer")
}

fn refusal(registry: &Arc<Registry>, name: &str, params: Value) -> (i32, String) {
    let error = call(registry, name, params).unwrap_err();
    (error.code, error.message)
}

#[test]
fn malloc_is_created_with_a_counted_name_and_all_it_was_given() {
    let registry = Registry::new();
    let uuid = "6aa4c6b2-7f7a-4f5e-9d8a-0d6c1a1f0b11";

    let first = call(&registry, "bdev_malloc_create", json!({"block_size": 512, "num_blocks": 2048}));
    let second = call(
        &registry,
        "bdev_malloc_create",
        json!({"name": "disk", "block_size": 4096, "num_blocks": 16, "uuid": uuid,
               "physical_block_size": 8192,
               "optimal_io_boundary": 8, "md_interleave": false, "dif_is_head_of_md": false, "numa_id": 0}),
    );

    assert_eq!((first, second), (Ok(json!("Malloc0")), Ok(json!("disk"))));
    let described = serde_json::to_value(registry.get(uuid).unwrap().describe()).unwrap();
    assert_eq!(described["name"], "disk");
    assert_eq!(described["aliases"], json!([uuid]));
    assert_eq!(described["product_name"], "Malloc disk");
    assert_eq!((&described["block_size"], &described["num_blocks"]), (&json!(4096), &json!(16)));
    assert_eq!((&described["numa_id"], &described["driver_specific"]), (&json!(0), &json!({})));
    assert_eq!(described["supported_io_types"].as_object().map(|o| o.len()), Some(22));
    assert_eq!(registry.get("disk").unwrap().info().physical_block_size, 8192);
}

#[test]
fn the_description_has_the_keys_in_the_order_clients_know() {
    let registry = Registry::new();
    call(&registry, "bdev_null_create", json!({"name": "n", "block_size": 512, "num_blocks": 8})).unwrap();

    let text = serde_json::to_string(&registry.get("n").unwrap().describe()).unwrap();

    let keys = [
        "name",
        "aliases",
        "product_name",
        "block_size",
        "num_blocks",
        "preferred_write_alignment",
        "preferred_write_granularity",
        "optimal_write_size",
        "preferred_unmap_alignment",
        "preferred_unmap_granularity",
        "uuid",
        "assigned_rate_limits",
        "claimed",
        "zoned",
        "supported_io_types",
        "driver_specific",
    ];
    let places: Vec<_> = keys.iter().map(|key| text.find(&format!("\"{key}\":"))).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{text}");
    assert!(!text.contains("claim_type") && !text.contains("numa_id"));
}

#[test]
fn malloc_refuses_what_spdk_refuses_with_einval() {
    let registry = Registry::new();
    let refused = [
        json!({"block_size": 512, "num_blocks": 0}),
        json!({"block_size": 0, "num_blocks": 8}),
        json!({"block_size": 511, "num_blocks": 8}),
        json!({"block_size": 512, "num_blocks": 8, "physical_block_size": 100}),
        json!({"block_size": 512, "num_blocks": 8, "physical_block_size": 1536}),
        json!({"block_size": 512, "num_blocks": 8, "md_size": 9}),
        json!({"block_size": 512, "num_blocks": 8, "dif_type": 1}),
        json!({"block_size": 512, "num_blocks": 8, "dif_type": 4, "md_size": 8}),
        json!({"block_size": 512, "num_blocks": 8, "numa_id": 1023}),
        json!({"block_size": 512, "num_blocks": 8, "numa_id": -2}),
    ];

    for params in refused {
        let answer = refusal(&registry, "bdev_malloc_create", params.clone());
        assert_eq!(answer, (-22, "Invalid argument".to_owned()), "{params}");
    }
    let metadata = json!({"block_size": 512, "num_blocks": 8, "md_size": 8, "md_interleave": true});
    assert_eq!(refusal(&registry, "bdev_malloc_create", metadata).0, -95);
    let huge = json!({"block_size": 4096, "num_blocks": u64::MAX});
    assert_eq!(refusal(&registry, "bdev_malloc_create", huge), (-12, "Cannot allocate memory".to_owned()));
    assert!(registry.list().is_empty());
}

#[test]
fn params_that_do_not_decode_are_an_internal_error_as_in_spdk() {
    let registry = Registry::new();
    let bad = (-32603, "spdk_json_decode_object failed".to_owned());

    assert_eq!(refusal(&registry, "bdev_malloc_create", json!({"block_size": 512})), bad);
    assert_eq!(
        refusal(&registry, "bdev_malloc_create", json!({"block_size": 512, "num_blocks": 8, "x": 1})),
        bad
    );
    assert_eq!(
        refusal(&registry, "bdev_malloc_create", json!({"block_size": 512, "num_blocks": 8, "uuid": "no"})),
        bad
    );
    assert_eq!(refusal(&registry, "bdev_malloc_delete", json!({})), bad);
    assert_eq!(refusal(&registry, "bdev_null_create", json!({"block_size": 512, "num_blocks": 8})), bad);
    assert_eq!(refusal(&registry, "bdev_null_resize", json!({"name": "n"})), bad);
}

#[test]
fn names_that_are_taken_or_missing_get_their_errno() {
    let registry = Registry::new();
    let params = json!({"name": "a", "block_size": 512, "num_blocks": 8});
    call(&registry, "bdev_null_create", params.clone()).unwrap();

    assert_eq!(refusal(&registry, "bdev_malloc_create", params), (-17, "File exists".to_owned()));
    let missing = (-19, "No such device".to_owned());
    assert_eq!(refusal(&registry, "bdev_malloc_delete", json!({"name": "a"})), missing);
    assert_eq!(refusal(&registry, "bdev_null_delete", json!({"name": "b"})), missing);
    assert_eq!(call(&registry, "bdev_null_delete", json!({"name": "a"})), Ok(json!(true)));
    assert_eq!(refusal(&registry, "bdev_null_delete", json!({"name": "a"})), missing);
}

#[test]
fn null_refuses_with_spdks_texts() {
    let registry = Registry::new();
    let with = |extra: Value| {
        let mut params = json!({"name": "n", "block_size": 512, "num_blocks": 8});
        params.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        refusal(&registry, "bdev_null_create", params)
    };
    let einval = |text: &str| (-22, text.to_owned());

    assert_eq!(with(json!({"block_size": 100})), einval("Data block size 100 is not a multiple of 512"));
    assert_eq!(with(json!({"num_blocks": 0})), einval("Disk num_blocks must be greater than 0"));
    assert_eq!(with(json!({"uuid": "no"})), einval("Failed to parse bdev UUID"));
    assert_eq!(with(json!({"dif_type": 9})), einval("Invalid protection information type"));
    assert_eq!(with(json!({"dif_type": 1})), einval("Interleaved metadata size should be set for DIF"));
    assert_eq!(with(json!({"md_size": 7})), einval("metadata size 7 is not supported"));
    assert_eq!(with(json!({"md_size": 8})).0, -95);
    assert_eq!(
        with(json!({"physical_block_size": 100})),
        einval("Physical block size 100 is not a multiple of 512")
    );
}

#[test]
fn null_carries_its_hints_and_denies_flush_and_unmap() {
    let registry = Registry::new();
    let params = json!({"name": "n", "block_size": 4096, "num_blocks": 256, "dif_is_head_of_md": false,
        "preferred_write_granularity": 1, "preferred_write_alignment": 2, "optimal_write_size": 3,
        "preferred_unmap_granularity": 4, "preferred_unmap_alignment": 5, "physical_block_size": 16384});

    assert_eq!(call(&registry, "bdev_null_create", params), Ok(json!("n")));

    let bdev = registry.get("n").unwrap();
    let d = bdev.describe();
    assert_eq!((d.preferred_write_granularity, d.preferred_write_alignment, d.optimal_write_size), (1, 2, 3));
    assert_eq!((d.preferred_unmap_granularity, d.preferred_unmap_alignment), (4, 5));
    assert_eq!(d.product_name, "Null disk");
    assert_eq!(bdev.info().physical_block_size, 16384);
    let supported = OpKind::ALL.map(|kind| bdev.bdev().supports(kind));
    assert_eq!(supported, [true, true, false, false, true]);
}

#[test]
fn null_grows_in_mebibytes_and_does_not_shrink() {
    let registry = Registry::new();
    call(&registry, "bdev_null_create", json!({"name": "n", "block_size": 4096, "num_blocks": 256})).unwrap();
    call(&registry, "bdev_malloc_create", json!({"name": "m", "block_size": 4096, "num_blocks": 256}))
        .unwrap();

    assert_eq!(call(&registry, "bdev_null_resize", json!({"name": "n", "new_size": 3})), Ok(json!(true)));

    assert_eq!(registry.get("n").unwrap().info().num_blocks(), 768);
    let einval = (-22, "Invalid argument".to_owned());
    assert_eq!(refusal(&registry, "bdev_null_resize", json!({"name": "n", "new_size": 2})), einval);
    assert_eq!(refusal(&registry, "bdev_null_resize", json!({"name": "n", "new_size": u64::MAX})), einval);
    assert_eq!(refusal(&registry, "bdev_null_resize", json!({"name": "m", "new_size": 9})), einval);
    assert_eq!(refusal(&registry, "bdev_null_resize", json!({"name": "x", "new_size": 9})).0, -19);
}

#[test]
fn a_deletion_is_answered_when_the_last_open_is_closed() {
    let registry = Registry::new();
    call(&registry, "bdev_malloc_create", json!({"block_size": 512, "num_blocks": 8})).unwrap();
    let descriptor = registry.open("Malloc0", Access::ReadWrite, |_| ()).unwrap();
    let (answer, answered) = mpsc::channel();
    let delete = TYPES[0].methods.iter().find(|m| m.name == "bdev_malloc_delete").unwrap();
    let params = RawValue::from_string(r#"{"name":"Malloc0"}"#.to_owned()).unwrap();

    (delete.call)(&registry, Some(&params), Box::new(move |result| answer.send(result).unwrap()));

    assert!(answered.try_recv().is_err());
    drop(descriptor);
    assert_eq!(answered.recv(), Ok(Ok(json!(true))));
}

#[test]
fn the_written_config_makes_the_same_bdev_again() {
    let registry = Registry::new();
    call(&registry, "bdev_malloc_create", json!({"block_size": 512, "num_blocks": 64, "numa_id": 0}))
        .unwrap();
    call(
        &registry,
        "bdev_null_create",
        json!({"name": "n", "block_size": 512, "num_blocks": 8, "optimal_write_size": 4}),
    )
    .unwrap();
    let before: Vec<_> = registry.list();

    let again = Registry::new();
    for bdev in &before {
        let (method, params) = bdev.bdev().config().expect("these types are configured");
        call(&again, method, params).unwrap();
    }

    let describe = |list: Vec<Arc<crate::Registered>>| -> Vec<Value> {
        list.iter().map(|bdev| serde_json::to_value(bdev.describe()).unwrap()).collect()
    };
    assert_eq!(describe(again.list()), describe(before));
}
