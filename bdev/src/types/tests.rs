//! Tests of making bdevs from the params of their RPC methods: defaults, results, and the errors clients match on.

use std::sync::{Arc, mpsc};

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{MallocParams, malloc, null, split};
use crate::{Access, Error, OpKind, Registered, Registry};

fn params<T: DeserializeOwned>(params: Value) -> T {
    serde_json::from_value(params).expect("params of the right types")
}

fn make_malloc(registry: &Arc<Registry>, p: Value) -> Result<String, Error> {
    malloc::create(registry, params(p)).map(|bdev| bdev.name().to_owned())
}

fn make_null(registry: &Arc<Registry>, p: Value) -> Result<String, Error> {
    null::create(registry, params(p)).map(|bdev| bdev.name().to_owned())
}

#[test]
fn malloc_is_created_with_a_counted_name_and_all_it_was_given() {
    let registry = Registry::new();
    let uuid = "6aa4c6b2-7f7a-4f5e-9d8a-0d6c1a1f0b11";

    let first = make_malloc(&registry, json!({"block_size": 512, "num_blocks": 2048}));
    let second = make_malloc(
        &registry,
        json!({"name": "disk", "block_size": 4096, "num_blocks": 16, "uuid": uuid,
               "physical_block_size": 8192,
               "optimal_io_boundary": 8, "md_interleave": false, "dif_is_head_of_md": false, "numa_id": 0}),
    );

    assert_eq!((first.unwrap(), second.unwrap()), ("Malloc0".to_owned(), "disk".to_owned()));
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
    make_null(&registry, json!({"name": "n", "block_size": 512, "num_blocks": 8})).unwrap();

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
        let error = make_malloc(&registry, params.clone()).unwrap_err();
        assert_eq!((error.errno(), error.errno_text()), (22, "Invalid argument".to_owned()), "{params}");
    }
    let metadata = json!({"block_size": 512, "num_blocks": 8, "md_size": 8, "md_interleave": true});
    assert_eq!(make_malloc(&registry, metadata).unwrap_err().errno(), 95);
    let huge = json!({"block_size": 4096, "num_blocks": u64::MAX});
    assert_eq!(make_malloc(&registry, huge).unwrap_err().errno_text(), "Cannot allocate memory");
    assert!(registry.list().is_empty());
}

#[test]
fn a_taken_name_is_refused_by_every_type() {
    let registry = Registry::new();
    let params = json!({"name": "a", "block_size": 512, "num_blocks": 8});
    make_null(&registry, params.clone()).unwrap();

    assert!(matches!(make_malloc(&registry, params.clone()), Err(Error::Exists { .. })));
    assert!(matches!(make_null(&registry, params), Err(Error::Exists { .. })));
}

#[test]
fn null_refuses_with_spdks_texts() {
    let registry = Registry::new();
    let with = |extra: Value| {
        let mut params = json!({"name": "n", "block_size": 512, "num_blocks": 8});
        params.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let error = make_null(&registry, params).unwrap_err();
        (error.errno(), error.to_string())
    };
    let einval = |text: &str| (22, text.to_owned());

    assert_eq!(with(json!({"block_size": 100})), einval("Data block size 100 is not a multiple of 512"));
    assert_eq!(with(json!({"num_blocks": 0})), einval("Disk num_blocks must be greater than 0"));
    assert_eq!(with(json!({"uuid": "no"})), einval("Failed to parse bdev UUID"));
    assert_eq!(with(json!({"dif_type": 9})), einval("Invalid protection information type"));
    assert_eq!(with(json!({"dif_type": 1})), einval("Interleaved metadata size should be set for DIF"));
    assert_eq!(with(json!({"md_size": 7})), einval("metadata size 7 is not supported"));
    assert_eq!(with(json!({"md_size": 8})).0, 95);
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

    assert_eq!(make_null(&registry, params).unwrap(), "n");

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
    make_null(&registry, json!({"name": "n", "block_size": 4096, "num_blocks": 256})).unwrap();
    make_malloc(&registry, json!({"name": "m", "block_size": 4096, "num_blocks": 256})).unwrap();

    assert!(null::resize(&registry, "n", 3).is_ok());

    assert_eq!(registry.get("n").unwrap().info().num_blocks(), 768);
    for (name, new_size_mib, errno) in [("n", 2, 22), ("n", u64::MAX, 22), ("m", 9, 22), ("x", 9, 19)] {
        let refused = null::resize(&registry, name, new_size_mib).unwrap_err();
        assert_eq!(refused.errno(), errno, "{name} {new_size_mib}");
    }
}

#[test]
fn a_deletion_ends_when_the_last_open_is_closed() {
    let registry = Registry::new();
    malloc::create(&registry, MallocParams::new(512, 8)).unwrap();
    let descriptor = registry.open("Malloc0", Access::ReadWrite, |_| ()).unwrap();
    let (gone, when_gone) = mpsc::channel();

    registry.delete_of_type("malloc", "Malloc0", move || gone.send(()).unwrap()).unwrap();

    assert!(when_gone.try_recv().is_err());
    drop(descriptor);
    assert_eq!(when_gone.recv(), Ok(()));
}

#[test]
fn the_written_config_makes_the_same_bdev_again() {
    let registry = Registry::new();
    make_malloc(&registry, json!({"block_size": 512, "num_blocks": 64, "numa_id": 0})).unwrap();
    make_null(&registry, json!({"name": "n", "block_size": 512, "num_blocks": 8, "optimal_write_size": 4}))
        .unwrap();
    let config = |bdev: &Registered, method: &str| -> Value {
        let (written, params) = bdev.bdev().config().expect("these types are configured");
        assert_eq!(written, method);
        params
    };
    let before = registry.list();

    let again = Registry::new();
    make_malloc(&again, config(&before[0], "bdev_malloc_create")).unwrap();
    make_null(&again, config(&before[1], "bdev_null_create")).unwrap();

    let describe = |list: Vec<Arc<Registered>>| -> Vec<Value> {
        list.iter().map(|bdev| serde_json::to_value(bdev.describe()).unwrap()).collect()
    };
    assert_eq!(describe(again.list()), describe(before));
}

#[test]
fn the_parts_of_a_bdev_have_the_same_uuids_whenever_they_are_made() {
    let base = json!({"name": "m", "block_size": 512, "num_blocks": 64, "uuid": "6aa4c6b2-7f7a-4f5e-9d8a-0d6c1a1f0b11"});
    let parts = || {
        let registry = Registry::new();
        make_malloc(&registry, base.clone()).unwrap();
        split::create(&registry, params(json!({"base_bdev": "m", "split_count": 2}))).unwrap();
        ["mp0", "mp1"].map(|name| registry.get(name).unwrap().info().uuid.to_string())
    };

    let [first, second] = parts();

    assert_ne!(first, second);
    assert_eq!(parts(), [first.clone(), second.clone()]);
    // By Python's uuid.uuid5 from the namespace, and the base's UUID, first block and number of blocks in binary.
    assert_eq!(
        [first, second],
        ["bd26b71c-2889-5ca4-89b3-87a187707b50", "e55af02a-8cc9-5a17-b451-8d4037f718dd"]
    );
}
