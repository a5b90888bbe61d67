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
    // Nor does anything say how it is suspended.
    let refused = power("suspend");
    assert!(!refused.status.success(), "{refused:?}");
    let status: serde_json::Value = serde_json::from_slice(&power("status").stdout).unwrap();
    assert_eq!(status["controllers"][0]["says"], "on");
    assert_eq!(status["last"]["outcome"], "carries_work");
}

/// An `atoll fleet serve` that ends with the test.
struct Serving {
    child: std::process::Child,
    lines: std::io::Lines<std::io::BufReader<std::process::ChildStderr>>,
}

impl Serving {
    fn start(config: &std::path::Path, data: &std::path::Path) -> Self {
        use std::io::BufRead;
        let mut child = Command::new(env!("CARGO_BIN_EXE_atoll"))
            .args(["fleet", "serve", "--listen", "127.0.0.1:0", "--config"])
            .arg(config)
            .arg("--data-dir")
            .arg(data)
            .env_clear()
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let lines = std::io::BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Reads what it says until a line has this in it.
    fn says(&mut self, words: &str) -> String {
        let found = self.lines.find(|line| {
            let line = line.as_ref().unwrap();
            line.contains(words)
        });
        found.unwrap().unwrap()
    }

    /// Its address, once it serves.
    fn url(&mut self) -> String {
        let line = self.says("serving http://");
        let start = line.find("http://").unwrap();
        line[start..].trim_end_matches("/v1/fleet").to_owned()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_fleet_is_served_killed_and_taken_over() {
    use std::{io::Read, net::TcpListener, sync::mpsc, time::Duration};
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    // Whatever is switched is told here.
    let told = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = told.local_addr().unwrap().port();
    let (sender, switched) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in told.incoming() {
            let mut text = String::new();
            stream.unwrap().read_to_string(&mut text).unwrap();
            if sender.send(text.trim().to_owned()).is_err() {
                return;
            }
        }
    });
    let base = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = base.local_addr().unwrap();
    // Where nothing listens until the machine is on.
    let process = std::process::id();
    let node = format!("127.77.{}.{}:2222", process % 250, process / 250 % 250);
    let text = format!(
        r#"
[demand]
source = "file"
path = "{here}/demand"

[[groups]]
name = "pool"
capacity = {{ cpu = 4, memory = "8GiB" }}

[[machines]]
name = "m1"
group = "pool"
role = "base"
node = {{ address = "{base}" }}

[[machines]]
name = "m2"
group = "pool"
node = {{ address = "{node}" }}

[machines.power]
driver = "command"
on = ["/bin/bash", "-c", "echo on > state; echo on > /dev/tcp/127.0.0.1/{port}"]
off = ["/bin/bash", "-c", "echo off > state; echo off > /dev/tcp/127.0.0.1/{port}"]
status = ["/bin/cat", "state"]
folder = "{here}"
"#,
        here = here.display()
    );
    let config = here.join("fleet.toml");
    std::fs::write(&config, text).unwrap();
    std::fs::write(here.join("state"), "off").unwrap();
    std::fs::write(here.join("demand"), "big,4000,1024\nbigger,4000,2048\n").unwrap();
    let data = here.join("data");

    let mut first = Serving::start(&config, &data);
    first.url();
    let patience = Duration::from_secs(60);
    assert_eq!(switched.recv_timeout(patience).unwrap(), "on");
    let mut second = Serving::start(&config, &data);
    second.says("standing by");
    let busy = fleet(&[
        "power",
        "m2",
        "off",
        "--config",
        config.to_str().unwrap(),
        "--journal",
        data.join("fleet.sqlite").to_str().unwrap(),
    ]);
    let said = String::from_utf8(busy.stderr).unwrap();
    assert!(said.contains("another process uses"), "{said}");
    // On Unix that is `kill -9`.
    first.child.kill().unwrap();
    drop(first);

    let _up = TcpListener::bind(&node).unwrap();
    let url = second.url();
    second.says("this instance acts");
    let ask = |arguments: &[&str]| -> serde_json::Value {
        let output = fleet(&[arguments, &["--url", &url, "--json"]].concat());
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let mut tries = 0;
    while ask(&["status"])["each"][1]["power"] != "on" {
        tries += 1;
        assert!(tries < 200, "{}", ask(&["status"]));
        // Meanwhile nothing is switched a second time.
        let again = switched.recv_timeout(Duration::from_millis(200));
        assert_eq!(again, Err(mpsc::RecvTimeoutError::Timeout));
    }
    let said = ask(&["explain", "m2"]);
    assert_eq!(
        (&said["power"], &said["action"]),
        (&"on".into(), &"keep".into())
    );
    let replayed = ask(&["replay", "--from", "1h", "--policy", "always-on"]);
    assert_eq!(replayed["rows"][0]["policy"], "recorded");
    assert_eq!(replayed["rows"][0]["requests"], 2);
    let table = fleet(&["status", "--url", &url]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(
        table.contains("MACHINE") && table.contains("NotAutoscaled"),
        "{table}"
    );
    let nobody = fleet(&["explain", "m9", "--url", &url]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(
        String::from_utf8(nobody.stderr)
            .unwrap()
            .contains("there is no machine `m9`")
    );
}

#[test]
fn a_fleet_is_served_only_as_it_is_safe() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fleet.toml");
    let group = "[[groups]]\nname = \"pool\"\n";
    let demand = "[demand]\nsource = \"file\"\npath = \"/no/such\"\n";
    let foreign = "[[groups]]\nname = \"pool\"\ncluster_autoscaler = true\n";
    let data = folder.path().join("data");
    let both = format!("{demand}{foreign}");
    let ours = format!("{demand}{group}");
    for (text, more, words) in [
        (group, &[][..], "does not say where demand is read"),
        (&both, &[], "has no address to ask"),
        (&ours, &["--grpc", "127.0.0.1:0"], "would find no group"),
        (&both, &["--grpc", "0.0.0.0:0"], "could switch machines"),
        (&ours, &["--listen", "0.0.0.0:0"], "there is no token"),
    ] {
        std::fs::write(&path, text).unwrap();
        let start = [
            "serve",
            "--config",
            path.to_str().unwrap(),
            "--data-dir",
            data.to_str().unwrap(),
        ];
        let output = fleet(&[&start[..], more].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(words) && said.contains("hint:"), "{said}");
    }
}
