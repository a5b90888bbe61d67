//! What `atoll doctor` says of KVM, of this machine and of one that has none.

#![allow(clippy::unwrap_used, clippy::panic)]

use serde_json::Value;
use std::{path::Path, process::Command};

const ATOLL: &str = env!("CARGO_BIN_EXE_atoll");

fn doctor(command: &mut Command) -> Value {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text} {errors}"))
}

fn detail_of(doctor: &Value, name: &str) -> String {
    let findings = doctor["findings"].as_array().unwrap();
    let found = findings.iter().find(|finding| finding["name"] == name);
    let found = found.unwrap_or_else(|| panic!("no {name} in {doctor}"));
    found["detail"].as_str().unwrap().to_owned()
}

#[test]
fn this_machine() {
    let data = tempfile::tempdir().unwrap();
    let place = data.path().join("not-yet");
    let mut command = Command::new(ATOLL);
    command.args(["doctor", "--json", "--data-dir"]).arg(&place);
    let doctor = doctor(&mut command);
    println!("{doctor:#}");
    let state = doctor["kvm"]["state"].as_str().unwrap();
    let detail = detail_of(&doctor, "KVM");
    match (Path::new("/dev/kvm").exists(), state) {
        (true, "usable") => assert_eq!(detail, "runs 64-bit code"),
        (true, "unusable") => {
            let reason = doctor["kvm"]["reason"].as_str().unwrap();
            assert!(!reason.is_empty());
            assert_eq!(detail, format!("present but unusable: {reason}"));
        }
        (false, "absent") => assert!(detail.starts_with("absent"), "{detail}"),
        other => panic!("{other:?}: {detail}"),
    }
    let way = doctor["mesh"].as_str().unwrap();
    let mesh = detail_of(&doctor, "mesh");
    match way {
        "device" => assert_eq!(mesh, "as a node with a network device (tun)"),
        "namespace" => assert!(mesh.contains("user namespace"), "{mesh}"),
        "none" => assert!(mesh.contains("nor in a user namespace"), "{mesh}"),
        other => panic!("{other}"),
    }
    for name in [
        "SMT",
        "KSM",
        "swap",
        "CPU vulnerabilities",
        "kvm.nx_huge_pages",
        "open files",
        "control group version",
        "file system",
        "huge pages",
        "guest kernel",
        "qemu",
        "firecracker",
        "mkfs.erofs",
    ] {
        assert!(!detail_of(&doctor, name).is_empty());
    }
    assert!(doctor["driver"].is_string());
    assert!(!place.exists(), "it makes nothing");
}

#[test]
fn a_machine_without_kvm() {
    let script =
        format!("mount -t tmpfs tmpfs /dev && mknod /dev/null c 1 3 && exec {ATOLL} doctor --json");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]);
    let doctor = doctor(&mut command);
    assert_eq!(doctor["kvm"]["state"], "absent");
    assert!(
        detail_of(&doctor, "KVM").starts_with("absent: "),
        "{doctor}"
    );
}

#[test]
fn a_dry_run_changes_nothing_and_needs_the_wish_to_fix() {
    let read = || std::fs::read_to_string("/sys/module/kvm/parameters/nx_huge_pages").ok();
    let before = read();
    let mut command = Command::new(ATOLL);
    command.args(["doctor", "--fix", "--dry-run", "--json"]);
    let doctor = doctor(&mut command);
    for fix in doctor["fixes"].as_array().unwrap() {
        assert_eq!(fix["done"], false);
        assert!(!fix["commands"].as_array().unwrap().is_empty());
    }
    assert_eq!(read(), before);
    let alone = Command::new(ATOLL)
        .args(["doctor", "--dry-run"])
        .output()
        .unwrap();
    assert_eq!(alone.status.code(), Some(2));
}
