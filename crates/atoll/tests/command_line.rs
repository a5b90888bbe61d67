//! The command line as users meet it: help, refusals, exit statuses. No Atoll runs here.

#![allow(
    clippy::unwrap_used,
    reason = "a test may stop at what it did not expect"
)]

use std::process::{Command, Output};

/// The program with nothing of this test's environment but what it needs.
fn atoll(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_atoll"))
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/nonexistent")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What the commands say of themselves is read by people: changes to it are looked at.
#[test]
fn help() {
    for words in [
        &[][..],
        &["up"],
        &["run"],
        &["create"],
        &["ls"],
        &["exec"],
        &["cp"],
        &["logs"],
        &["rm"],
        &["pause"],
        &["resume"],
        &["fork"],
        &["snapshot"],
        &["snapshot", "ls"],
        &["snapshot", "rm"],
        &["gc"],
        &["template"],
        &["template", "build"],
        &["template", "ls"],
        &["template", "rm"],
        &["template", "tag"],
        &["doctor"],
        &["key"],
        &["key", "new"],
        &["key", "ls"],
        &["key", "rm"],
        &["node"],
        &["node", "ls"],
        &["fleet"],
        &["fleet", "serve"],
        &["fleet", "status"],
        &["fleet", "explain"],
        &["fleet", "replay"],
        &["fleet", "simulate"],
        &["fleet", "check"],
        &["fleet", "power"],
        &["fleet", "schema"],
        &["mesh"],
        &["mesh", "up"],
        &["mesh", "serve"],
        &["mesh", "status"],
        &["mesh", "peers"],
        &["mesh", "ping"],
        &["mesh", "flows"],
        &["mesh", "services"],
        &["mesh", "map"],
        &["mesh", "netcheck"],
        &["mesh", "check"],
        &["mesh", "rotate"],
        &["mesh", "token"],
        &["mesh", "token", "create"],
        &["mesh", "token", "ls"],
        &["mesh", "token", "rm"],
        &["mesh", "policy"],
        &["mesh", "policy", "test"],
        &["mesh", "policy", "set"],
        &["mesh", "policy", "show"],
        &["mesh", "nodes"],
        &["mesh", "revoke"],
        &["mesh", "peer"],
        &["mesh", "peer", "add"],
        &["mesh", "peer", "config"],
        &["completions"],
        &["version"],
    ] {
        let output = atoll(&[words, &["--help"]].concat());
        assert!(output.status.success());
        assert!(output.stderr.is_empty());
        insta::assert_snapshot!(["help", &words.join("-")].join("-"), text(&output.stdout));
    }
}

/// The command fails with this status and says these words on standard error, and nothing on
/// standard output.
fn check_refusal(arguments: &[&str], status: i32, words: &[&str]) {
    let output = atoll(arguments);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{said}");
    assert!(output.stdout.is_empty());
    for word in words {
        assert!(said.contains(word), "`{word}` is missing in: {said}");
    }
}

#[test]
fn a_wrong_command_line_is_status_2() {
    check_refusal(&["frobnicate"], 2, &["unrecognized subcommand"]);
    check_refusal(&["run", "base"], 2, &["COMMAND"]);
    check_refusal(&["rm"], 2, &["SANDBOX"]);
    check_refusal(&["create", "--timeout", "soon"], 2, &["number of seconds"]);
    check_refusal(
        &["template", "build", "x", "nonsense"],
        2,
        &["docker://IMAGE"],
    );
    check_refusal(&["snapshot"], 2, &["SANDBOX"]);
    check_refusal(&["fork", "i0ab", "--count", "101"], 2, &["1..=100"]);
    check_refusal(&["create", "--auto-resume"], 2, &["--auto-pause"]);
    check_refusal(&["up", "--tls-cert", "a.pem"], 2, &["--tls-key"]);
}

#[test]
fn an_error_is_followed_by_a_hint() {
    // Port 1 is where nothing answers.
    let url = ["--url", "http://127.0.0.1:1"];
    check_refusal(
        &[&["ls"][..], &url].concat(),
        1,
        &[
            "error: nothing answers at http://127.0.0.1:1/\n",
            "hint: start Atoll with `atoll up`",
        ],
    );
    check_refusal(
        &["ls", "--url", "gopher://x"],
        1,
        &["hint: write http://HOST:PORT"],
    );
    check_refusal(&["cp", "a", "b"], 1, &["neither end is in a sandbox"]);
}

#[test]
fn a_failure_of_atoll_is_told_apart_from_one_of_the_command() {
    check_refusal(
        &["run", "base", "--url", "http://127.0.0.1:1", "--", "true"],
        125,
        &["nothing answers"],
    );
}

#[test]
fn a_key_is_never_an_argument() {
    check_refusal(&["ls", "--api-key", "e2b_0"], 2, &["unexpected argument"]);
}

#[test]
fn a_driver_that_is_not_installed_is_refused() {
    let installed = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/bin"]
        .iter()
        .any(|folder| std::path::Path::new(folder).join("firecracker").exists());
    if installed {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    let output = atoll(&[
        "up",
        "--data-dir",
        dir,
        "--listen",
        "127.0.0.1:0",
        "--driver",
        "firecracker",
    ]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("`firecracker` is not installed"), "{said}");
    assert!(said.contains("hint: "), "{said}");
}

#[test]
fn data_is_on_standard_output_and_in_json_if_asked_for() {
    let output = atoll(&["version", "--json"]);
    let version: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));

    let output = atoll(&["doctor", "--json"]);
    let doctor: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        output.status.success(),
        doctor["sandboxes"].as_bool().unwrap()
    );
    assert!(doctor["findings"].as_array().unwrap().len() > 10);
}

#[test]
fn completions_and_manual_pages_come_from_the_same_definitions() {
    for shell in ["bash", "zsh", "fish"] {
        let output = atoll(&["completions", shell]);
        assert!(output.status.success());
        assert!(text(&output.stdout).contains("template"));
    }
    let dir = tempfile::tempdir().unwrap();
    assert!(
        atoll(&["man", dir.path().to_str().unwrap()])
            .status
            .success()
    );
    let page = std::fs::read_to_string(dir.path().join("atoll-run.1")).unwrap();
    assert!(page.contains("Run a command in a new sandbox"));
}
