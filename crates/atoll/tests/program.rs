//! The whole program as root: `atoll up` and the commands against it. Everything is real.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may stop at what it did not expect"
)]

mod support;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::fs::PermissionsExt,
    process::Stdio,
};
use support::{Atoll, send, text, wait, wait_for};

#[test]
fn up_serves_keeps_its_key_private_and_leaves_nothing() {
    let atoll = Atoll::start(&[]);
    assert!(atoll.url.starts_with("http://127.0.0.1:"), "{}", atoll.url);
    let key = atoll.data_dir.path().join("api-key");
    assert_eq!(
        fs::metadata(&key).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let key = fs::read_to_string(key).unwrap();
    let log = fs::read_to_string(atoll.data_dir.path().with_extension("log")).unwrap();
    assert!(!log.contains(key.trim()), "the key is in the log");
    assert!(log.contains("driver container"), "{log}");
    assert_eq!(
        atoll
            .good(&["node", "ls", "--json"])
            .matches("\"driver\": \"container\"")
            .count(),
        1
    );
    atoll.stop_clean();
}

#[test]
fn a_second_start_is_refused_and_told_why() {
    let atoll = Atoll::start(&[]);
    let second = atoll.run(&["up", "--listen", "127.0.0.1:0"]);
    assert_eq!(second.status.code(), Some(1));
    let said = text(&second.stderr);
    assert!(
        said.contains("another Atoll uses the data directory"),
        "{said}"
    );
    assert!(said.contains(&atoll.url), "{said}");
    let elsewhere = tempfile::tempdir().unwrap();
    let address = atoll.url.strip_prefix("http://").unwrap();
    let third = atoll.run(&[
        "up",
        "--data-dir",
        elsewhere.path().to_str().unwrap(),
        "--listen",
        address,
    ]);
    assert_eq!(third.status.code(), Some(1));
    assert!(text(&third.stderr).contains("choose another --listen"));
    atoll.stop_clean();
}

#[test]
fn a_key_that_has_not_the_form_of_one_is_refused() {
    let atoll = Atoll::start(&[]);
    let elsewhere = tempfile::tempdir().unwrap();
    let output = atoll
        .command(&["up", "--listen", "127.0.0.1:0"])
        .env("ATOLL_DATA_DIR", elsewhere.path())
        .env("ATOLL_API_KEY", "hunter2")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(
        said.contains("40 hexadecimal digits") && !said.contains("hunter2"),
        "{said}"
    );
    atoll.stop_clean();
}

#[test]
fn run_passes_streams_and_status_through() {
    let atoll = Atoll::with_template();
    let output = atoll.run(&[
        "run",
        "small",
        "--",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 7",
    ]);
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(
        (text(&output.stdout), text(&output.stderr)),
        ("out\n".into(), "err\n".into())
    );

    let mut child = atoll
        .command(&["run", "small", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let sent: Vec<u8> = (0..1_000_000u32)
        .map(|number| (number % 251) as u8)
        .collect();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn({
        let sent = sent.clone();
        move || stdin.write_all(&sent).unwrap()
    });
    let mut received = Vec::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_end(&mut received)
        .unwrap();
    writer.join().unwrap();
    assert_eq!(wait(&mut child), Some(0));
    assert!(
        received == sent,
        "{} of {} bytes came back",
        received.len(),
        sent.len()
    );

    let output = atoll.run(&[
        "run",
        "small",
        "-e",
        "A=b c",
        "-w",
        "/tmp",
        "--",
        "sh",
        "-c",
        "echo $A $PWD",
    ]);
    assert_eq!(text(&output.stdout), "b c /tmp\n");
    let output = atoll.run(&["run", "small", "-u", "user", "--", "id", "-u"]);
    assert_eq!(text(&output.stdout), "1000\n", "{}", text(&output.stderr));
    let output = atoll.run(&["run", "small", "--", "sh", "-c", "kill -9 $$"]);
    assert_eq!(output.status.code(), Some(128 + 9));
    let output = atoll.run(&["run", "small", "--", "no-such-program"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).starts_with("error: cannot start `no-such-program`"));
    let output = atoll.run(&["run", "no-such-template", "--", "true"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("no-such-template"));

    assert_eq!(
        atoll.sandboxes(),
        Vec::<String>::new(),
        "each sandbox ended with its command"
    );
    atoll.stop_clean();
}

#[test]
fn ctrl_c_is_the_commands_and_the_second_one_ends_all() {
    let atoll = Atoll::with_template();
    let polite = "trap 'echo caught; exit 9' INT; echo begun; while :; do sleep 0.05; done";
    let deaf = "trap '' INT; echo begun; while :; do sleep 0.05; done";
    for (script, interrupts, status, printed) in
        [(polite, 1, Some(9), "caught\n"), (deaf, 2, Some(130), "")]
    {
        let mut child = atoll
            .command(&["run", "small", "--", "bash", "-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "begun\n");
        for count in 0..interrupts {
            if count > 0 {
                // Two signals that come together are one to the kernel.
                assert_eq!(atoll.sandboxes().len(), 1, "the first Ctrl-C ends nothing");
            }
            send(&child, libc::SIGINT);
        }
        assert_eq!(wait(&mut child), status);
        let mut rest = String::new();
        output.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, printed);
        assert_eq!(atoll.sandboxes(), Vec::<String>::new());
    }
    atoll.stop_clean();
}

#[test]
fn a_terminal_has_a_size_and_ends_with_its_shell() {
    let atoll = Atoll::with_template();
    let mut child = atoll
        .command(&["run", "small", "-t", "--", "bash", "--norc", "-i"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"stty size\nexit 3\n")
        .unwrap();
    let mut output = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut output)
        .unwrap();
    assert_eq!(wait(&mut child), Some(3), "{output}");
    assert!(output.contains("24 80"), "{output}");
    atoll.stop_clean();
}

#[test]
fn files_and_folders_come_back_as_they_went() {
    let atoll = Atoll::with_template();
    let id = atoll.good(&["create", "small"]);
    let short = &id[..8];
    let here = tempfile::tempdir().unwrap();
    let path = |name: &str| here.path().join(name).to_str().unwrap().to_owned();

    fs::create_dir_all(here.path().join("tree/deep")).unwrap();
    fs::write(here.path().join("tree/deep/file"), vec![7; 300_000]).unwrap();
    std::os::unix::fs::symlink("deep/file", here.path().join("tree/link")).unwrap();
    atoll.good(&["cp", &path("tree"), &format!("{short}:/tmp")]);
    assert_eq!(
        atoll.good(&["exec", short, "--", "ls", "/tmp/tree/deep"]),
        "file"
    );
    atoll.good(&["cp", &format!("{short}:/tmp/tree"), &path("back")]);
    assert_eq!(
        fs::read(here.path().join("back/deep/file")).unwrap(),
        vec![7; 300_000]
    );
    assert_eq!(
        fs::read_link(here.path().join("back/link"))
            .unwrap()
            .to_str(),
        Some("deep/file")
    );

    fs::write(here.path().join("one"), "single").unwrap();
    atoll.good(&["cp", &path("one"), &format!("{id}:/tmp/two")]);
    assert_eq!(
        atoll.good(&["cp", &format!("{id}:/tmp/two"), "-"]),
        "single"
    );
    let mut child = atoll
        .command(&["cp", "-", &format!("{id}:/tmp/three")])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"through standard input")
        .unwrap();
    assert_eq!(wait(&mut child), Some(0));
    assert_eq!(
        atoll.good(&["exec", &id, "--", "cat", "/tmp/three"]),
        "through standard input"
    );
    let missing = atoll.run(&["cp", &format!("{id}:/no/such"), &path("x")]);
    assert_eq!(missing.status.code(), Some(1));
    atoll.stop_clean();
}

#[test]
fn sandboxes_are_made_listed_logged_and_removed() {
    let atoll = Atoll::with_template();
    let id = atoll.good(&[
        "create",
        "small",
        "-m",
        "owner=ann",
        "--memory",
        "256MiB",
        "--cpus",
        "1",
    ]);
    let listed: serde_json::Value =
        serde_json::from_str(&atoll.good(&["ls", "--json", "-m", "owner=ann"])).unwrap();
    assert_eq!(listed[0]["sandboxID"], id.as_str());
    assert_eq!(
        (&listed[0]["memoryMB"], &listed[0]["cpuCount"]),
        (&256.into(), &1.into())
    );
    assert_eq!(atoll.good(&["ls", "--quiet", "-m", "owner=bob"]), "");
    assert!(atoll.good(&["ls"]).contains("owner=ann"));

    atoll.good(&["exec", &id, "--", "echo", "a line for the log"]);
    let logged = wait_for(|| {
        let logs = atoll.good(&["logs", &id]);
        logs.contains("a line for the log").then_some(logs)
    });
    assert!(
        logged.is_some(),
        "the log is: {}",
        atoll.good(&["logs", &id])
    );

    assert_eq!(atoll.good(&["rm", &id[..10]]), id);
    let again = atoll.run(&["rm", &id]);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("there is no sandbox"));
    atoll.stop_clean();
}

#[test]
fn templates_and_keys_are_managed() {
    let atoll = Atoll::with_template();
    atoll.good(&["template", "tag", "small", "stable"]);
    assert!(atoll.good(&["template", "ls"]).contains("stable"));
    assert_eq!(
        atoll.good(&["run", "small:stable", "--", "echo", "tagged"]),
        "tagged"
    );

    let key = atoll.good(&["key", "new", "guest", "--tenant", "new"]);
    let with = |arguments: &[&str]| {
        atoll
            .command(arguments)
            .env("ATOLL_API_KEY", &key)
            .output()
            .unwrap()
    };
    assert!(with(&["ls"]).status.success());
    let refused = with(&["key", "ls"]);
    assert_eq!(refused.status.code(), Some(1), "a member manages no keys");
    let keys: serde_json::Value =
        serde_json::from_str(&atoll.good(&["key", "ls", "--json"])).unwrap();
    let entry = keys
        .as_array()
        .unwrap()
        .iter()
        .find(|entry| entry["name"] == "guest")
        .unwrap();
    atoll.good(&["key", "rm", entry["id"].as_str().unwrap()]);
    let gone = with(&["ls"]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(text(&gone.stderr).contains("hint: "));

    atoll.good(&["template", "rm", "small"]);
    let missing = atoll.run(&["create", "small"]);
    assert_eq!(missing.status.code(), Some(1));
    atoll.stop_clean();
}

#[test]
fn a_stop_ends_sandboxes_that_run() {
    let atoll = Atoll::with_template();
    let id = atoll.good(&["create", "small"]);
    let mut child = atoll
        .command(&["exec", &id, "--", "sleep", "1000"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let listed = wait_for(|| {
        atoll
            .good(&["exec", &id, "--", "sh", "-c", "cat /proc/*/cmdline"])
            .contains("1000")
            .then_some(())
    });
    assert!(listed.is_some());
    atoll.stop_clean();
    assert_eq!(
        wait(&mut child),
        Some(125),
        "what ran inside did not end by itself"
    );
}

#[test]
fn sandboxes_that_are_kept_are_found_again() {
    let atoll = Atoll::start(&["--on-exit", "keep"]);
    atoll.build_template();
    let id = atoll.good(&["create", "small"]);
    atoll.good(&["exec", &id, "--", "sh", "-c", "echo kept > /tmp/mark"]);
    let (status, data_dir) = atoll.stop();
    assert_eq!(status, Some(0));
    let atoll = Atoll::start_in(data_dir, &[]);
    assert_eq!(atoll.sandboxes(), std::slice::from_ref(&id));
    assert_eq!(atoll.good(&["exec", &id, "--", "cat", "/tmp/mark"]), "kept");
    atoll.stop_clean();
}
