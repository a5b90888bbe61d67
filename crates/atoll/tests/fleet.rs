//! `atoll fleet` as its users meet it. Nothing is switched here.

#![allow(
    clippy::unwrap_used,
    reason = "a test may stop at what it did not expect"
)]

use std::process::{Command, Output};

fn fleet(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_atoll"))
        .arg("fleet")
        .args(arguments)
        .env_clear()
        .output()
        .unwrap()
}

#[test]
fn policies_are_compared_in_a_table_and_in_json() {
    let folder = tempfile::tempdir().unwrap();
    let plot = folder.path().join("week.svg");
    let arguments = [
        "simulate",
        "--machines",
        "10",
        "--generate",
        "diurnal",
        "--days",
        "1",
        "--policy",
        "atoll",
        "--policy",
        "always-on",
    ];
    let table = fleet(&[&arguments[..], &["--plot", plot.to_str().unwrap()]].concat());
    assert!(table.status.success(), "{table:?}");
    let text = String::from_utf8(table.stdout).unwrap();
    for word in ["POLICY", "atoll", "always-on", "oracle", "kWh"] {
        assert!(text.contains(word), "{text}");
    }
    assert!(std::fs::read_to_string(&plot).unwrap().starts_with("<svg"));
    let json = fleet(&[&arguments[..], &["--json"]].concat());
    let value: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    let energy = |at: usize| value["rows"][at]["energy_kwh"].as_f64().unwrap();
    assert!(energy(0) < energy(1));
    assert!(energy(0) >= value["bound_kwh"].as_f64().unwrap());
}

#[test]
fn mistakes_in_a_configuration_name_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fleet.toml");
    std::fs::write(&path, "[[machines]]\nname = \"m1\"\ngroup = \"pool\"\n").unwrap();
    let output = fleet(&["check", "--config", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("fleet.toml:3: there is no group `pool`"),
        "{said}"
    );
    assert!(said.contains("hint:"), "{said}");
}

#[test]
fn the_schema_is_json() {
    let output = fleet(&["schema"]);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(value["properties"]["groups"].is_object());
}

#[test]
fn a_machine_is_switched_by_commands_and_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let text = format!(
        r#"
[[groups]]
name = "pool"
capacity = {{ cpu = 4, memory = "8GiB" }}

[[machines]]
name = "m1"
group = "pool"
node = {{ address = "{address}" }}

[machines.power]
driver = "command"
on = ["/bin/sh", "-c", "echo on > state"]
off = ["/bin/sh", "-c", "echo off > state"]
status = ["/bin/sh", "-c", "cat state"]
folder = "{}"
"#,
        here.display()
    );
    let path = here.join("fleet.toml");
    std::fs::write(&path, text).unwrap();
    std::fs::write(here.join("state"), "on").unwrap();
    let power = |action: &str| {
        let journal = here.join("journal.sqlite");
        fleet(&[
            "power",
            "m1",
            action,
            "--config",
            path.to_str().unwrap(),
            "--journal",
            journal.to_str().unwrap(),
            "--json",
        ])
    };
    let on = power("on");
    assert!(on.status.success(), "{on:?}");
    // Nothing says that its node is idle, so it is left on.
    let off = power("off");
    assert_eq!(off.status.code(), Some(1), "{off:?}");
    assert_eq!(
        String::from_utf8(off.stdout).unwrap().trim(),
        "\"carries_work\""
    );
    assert_eq!(std::fs::read_to_string(here.join("state")).unwrap(), "on");
    let status: serde_json::Value = serde_json::from_slice(&power("status").stdout).unwrap();
    assert_eq!(status["controllers"][0]["says"], "on");
    assert_eq!(status["last"]["outcome"], "carries_work");
}
