//! Every `nvmf_*` method by SPDK's own client, with a controller that a driver has enabled.

use std::process::{Command, Stdio};

use ringside_tests::{Target, binary};
use serde_json::{Value, json};

use crate::{run, spdk_rpc};

const NQN: &str = "nqn.2016-06.io.spdk:cnode1";

/// Runs a line by SPDK's client; what it prints, which may be nothing. `NQN` in it is the subsystem's name.
fn spdk(target: &Target, line: &str) -> Value {
    let output = run(spdk_rpc(), target, &line.replace("NQN", NQN));
    assert!(output.status.success(), "{line}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

/// Runs a line that must be refused; what the client says.
fn refused(target: &Target, line: &str) -> String {
    let output = run(spdk_rpc(), target, &line.replace("NQN", NQN));
    assert_eq!(output.status.code(), Some(1), "{line}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A target with a subsystem that has a namespace and a listener; the listener's folder.
fn furnished() -> (Target, String) {
    let target = Target::start().expect("the target starts");
    spdk(&target, "nvmf_create_transport -t VFIOUSER -q 128 -m 8 -i 65536 -M --masked-oncs nvmcmps");
    spdk(&target, "bdev_malloc_create -b M1 16 512");
    spdk(&target, "nvmf_create_subsystem NQN -s SERIAL0001 -d Model -m 4 -r -n");
    spdk(
        &target,
        "nvmf_subsystem_add_ns NQN M1 -n 1 -g 000102030405060708090A0B0C0D0E0F -e 0001020304050607",
    );
    let dir = target.dir().join("one");
    std::fs::create_dir(&dir).expect("a folder of the target's");
    let dir = dir.display().to_string();
    spdk(&target, &format!("nvmf_subsystem_add_listener NQN -t VFIOUSER -a {dir}"));
    (target, dir)
}

fn subsystem(target: &Target) -> Value {
    spdk(target, "nvmf_get_subsystems NQN")[0].take()
}

#[test]
fn transport_is_made_once_and_shown_as_it_was_asked_for() {
    let (target, _) = furnished();
    let shown = spdk(&target, "nvmf_get_transports --trtype VFIOUSER")[0].take();
    let of = |name: &str| shown[name].clone();
    assert_eq!(
        [of("trtype"), of("max_queue_depth"), of("max_io_qpairs_per_ctrlr"), of("max_io_size")],
        [json!("VFIOUSER"), json!(128), json!(8), json!(65536)]
    );
    let again = refused(&target, "nvmf_create_transport -t VFIOUSER");
    assert!(again.contains("-32603"), "{again}");
    refused(&target, "nvmf_create_transport -t RDMA");
}

#[test]
fn what_a_transport_takes_away_comes_back_with_the_configuration() {
    const OPTIONS: [&str; 4] =
        ["disable_mappable_bar0", "disable_adaptive_irq", "disable_shadow_doorbells", "disable_compare"];
    let saved = |target: &Target| {
        let calls = spdk(target, "framework_get_config nvmf");
        let call = calls.as_array().unwrap().iter().find(|call| call["method"] == "nvmf_create_transport");
        let params = call.expect("the transport is saved")["params"].clone();
        OPTIONS.map(|option| params[option].clone())
    };
    let target = Target::start().unwrap();
    spdk(&target, "nvmf_create_transport -t VFIOUSER");
    assert_eq!(saved(&target), OPTIONS.map(|_| json!(false)));

    let target = Target::start().unwrap();
    // The fourth is ours, and SPDK's client has no flag for it.
    let mut params = json!({ "trtype": "VFIOUSER" });
    OPTIONS.iter().for_each(|option| params[*option] = json!(true));
    target.call("nvmf_create_transport", params).unwrap();
    assert_eq!(saved(&target), OPTIONS.map(|_| json!(true)));
}

#[test]
fn settings_are_taken_before_the_start_and_refused_after_it() {
    let target = Target::start_with(&["-m", "0x1", "--wait-for-rpc"]).unwrap();
    // The third is the discovery subsystem.
    spdk(&target, "nvmf_set_max_subsystems -x 3");
    spdk(&target, "nvmf_set_config --discovery-filters transport");
    spdk(&target, "framework_start_init");
    refused(&target, "nvmf_set_max_subsystems -x 4");
    spdk(&target, "nvmf_create_transport -t VFIOUSER");
    spdk(&target, "nvmf_create_subsystem NQN");
    spdk(&target, "nvmf_create_subsystem nqn.2016-06.io.spdk:cnode2");
    refused(&target, "nvmf_create_subsystem nqn.2016-06.io.spdk:cnode3");
}

#[test]
fn namespaces_listeners_and_hosts_come_show_and_go() {
    let (target, dir) = furnished();
    let shown = subsystem(&target);
    assert_eq!((&shown["serial_number"], &shown["model_number"]), (&json!("SERIAL0001"), &json!("Model")));
    let namespace = &shown["namespaces"][0];
    assert_eq!(
        (&namespace["nsid"], &namespace["bdev_name"], &namespace["nguid"], &namespace["eui64"]),
        (&json!(1), &json!("M1"), &json!("000102030405060708090A0B0C0D0E0F"), &json!("0001020304050607"))
    );
    // A namespace has its bdev alone, and ANA groups are numbered as namespaces are.
    let again = refused(&target, "nvmf_subsystem_add_ns NQN M1");
    assert!(again.contains("-32602") && again.contains("Invalid parameters"), "{again}");
    let claimed = spdk(&target, "bdev_get_bdevs -b M1")[0].take();
    assert_eq!((&claimed["claimed"], &claimed["claim_type"]), (&json!(true), &json!("exclusive_write")));
    spdk(&target, "bdev_malloc_create -b M2 1 512");
    refused(&target, "nvmf_subsystem_add_ns NQN M2 --anagrpid 1000");
    spdk(&target, "nvmf_subsystem_set_ns_ana_group NQN 1 2");
    assert_eq!(subsystem(&target)["namespaces"][0]["anagrpid"], 2);

    let listener = spdk(&target, "nvmf_subsystem_get_listeners NQN")[0].take();
    assert_eq!(listener["address"]["traddr"], dir.as_str());
    assert_eq!(listener["ana_states"][1], json!({"ana_group": 2, "ana_state": "optimized"}));
    let line = format!("nvmf_subsystem_listener_set_ana_state NQN -n inaccessible -t VFIOUSER -a {dir} -g 2");
    spdk(&target, &line);
    let listener = spdk(&target, "nvmf_subsystem_get_listeners NQN")[0].take();
    assert_eq!(listener["ana_states"][1], json!({"ana_group": 2, "ana_state": "inaccessible"}));

    let host = "nqn.2014-08.org.example:host";
    spdk(&target, &format!("nvmf_subsystem_add_host NQN {host}"));
    assert_eq!(subsystem(&target)["hosts"], json!([{"nqn": host}]));
    spdk(&target, &format!("nvmf_subsystem_remove_host NQN {host}"));
    assert_eq!(subsystem(&target)["hosts"], json!([]));
    spdk(&target, "nvmf_subsystem_allow_any_host NQN --allow-any-host");
    assert_eq!(subsystem(&target)["allow_any_host"], true);

    spdk(&target, "nvmf_subsystem_remove_ns NQN 1");
    assert_eq!(subsystem(&target)["namespaces"], json!([]));
    spdk(&target, &format!("nvmf_subsystem_remove_listener NQN -t VFIOUSER -a {dir}"));
    assert_eq!(subsystem(&target)["listen_addresses"], json!([]));
    assert!(!std::path::Path::new(&dir).join("cntrl").exists());
    spdk(&target, "nvmf_delete_subsystem NQN");
    assert_eq!(spdk(&target, "nvmf_get_subsystems").as_array().unwrap().len(), 1, "discovery");
}

#[test]
fn controller_that_a_driver_enabled_is_shown_with_its_queues_and_counted() {
    let (target, dir) = furnished();
    let socket = std::path::Path::new(&dir).join("cntrl");
    assert_eq!(spdk(&target, "nvmf_subsystem_get_controllers NQN"), json!([]), "no driver yet");
    // It reads until it is stopped.
    let mut driver = Command::new(binary("ringside-bench"));
    driver.args(["load", "--nvme", "--queues", "3", "--depth", "4", "--seconds", "600", "--socket"]);
    let mut driver = driver.arg(socket).stdout(Stdio::null()).spawn().unwrap();
    let completed = |target: &Target| {
        let groups = spdk(target, "nvmf_get_stats")["poll_groups"].take();
        groups[0]["completed_nvme_io"].as_u64().unwrap()
    };
    // Admin commands are counted too; there are not so many of them.
    target.wait_until(|| completed(&target) > 1000).unwrap();

    let controller = spdk(&target, "nvmf_subsystem_get_controllers NQN")[0].take();
    assert_eq!((&controller["cntlid"], &controller["num_io_qpairs"]), (&json!(1), &json!(3)));
    let pairs = spdk(&target, "nvmf_subsystem_get_qpairs NQN");
    let qids: Vec<&Value> = pairs.as_array().unwrap().iter().map(|pair| &pair["qid"]).collect();
    assert_eq!(qids, [0, 1, 2, 3]);
    assert_eq!(pairs[1]["listen_address"]["traddr"], dir.as_str());
    let group = spdk(&target, "nvmf_get_stats")["poll_groups"][0].take();
    assert_eq!((&group["admin_qpairs"], &group["io_qpairs"]), (&json!(1), &json!(3)));
    // Under load, and with its driver there.
    spdk(&target, "nvmf_delete_subsystem NQN");
    assert!(!driver.wait().unwrap().success(), "its disk is gone");
}

#[test]
fn what_is_not_there_is_refused_with_the_codes_of_spdk() {
    let (target, dir) = furnished();
    for (line, code) in [
        ("nvmf_get_subsystems nqn.none", "-19"),
        ("nvmf_delete_subsystem nqn.none", "-32602"),
        ("nvmf_create_subsystem NQN", "-32603"),
        ("nvmf_subsystem_add_ns NQN none", "-32602"),
        ("nvmf_subsystem_remove_ns NQN 9", "-32602"),
        ("nvmf_subsystem_set_ns_ana_group NQN 9 1", "-32603"),
        ("nvmf_subsystem_add_listener NQN -t VFIOUSER -a /proc/none", "-32602"),
        ("nvmf_subsystem_add_listener NQN -t RDMA -a 10.0.0.1", "-32602"),
        ("nvmf_subsystem_remove_listener NQN -t VFIOUSER -a /none", "-32602"),
        ("nvmf_subsystem_get_listeners nqn.none", "-32602"),
        ("nvmf_subsystem_get_controllers nqn.none", "-32602"),
        ("nvmf_subsystem_get_qpairs nqn.none", "-32602"),
        ("nvmf_get_stats -t other", "-32603"),
    ] {
        let said = refused(&target, line);
        assert!(said.contains(&format!("\"code\": {code},")), "{line}: {said}");
    }
    let twice = refused(&target, &format!("nvmf_subsystem_add_listener NQN -t VFIOUSER -a {dir}"));
    assert!(twice.contains("-32602"), "{twice}");
}
