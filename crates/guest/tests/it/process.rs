//! `process.Process`, as clients see it.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use crate::support;

use api::envd::{
    connect::{seal, seal_end},
    process::{EndEvent, ProcessEvent},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};
use support::{Guest, bash, basic};

#[tokio::test]
async fn a_command_runs_and_all_its_output_comes_before_the_end() {
    let guest = Guest::start();
    let outcome = guest
        .run("echo out; echo err >&2; seq 100000 | tail -1; exit 3")
        .await;
    assert_eq!(outcome.text(), "out\n100000\n");
    assert_eq!(outcome.stderr, b"err\n");
    assert_eq!(outcome.end, Some(EndEvent::exited(3)));
    assert!(outcome.pid > 0);
    assert_eq!(outcome.error, "");
    let many = guest.run("seq 300000").await;
    assert_eq!(many.stdout.len(), 1_988_895);
}

#[tokio::test]
async fn the_environment_is_as_specified() {
    let guest = Guest::with(&[
        "--env",
        "TEMPLATE=t",
        "--env",
        "BOTH=template",
        "--user",
        "daemon",
    ]);
    let mut request = bash("env | sort; id; pwd; cat; umask");
    request["process"]["envs"] = json!({"BOTH": "request", "HOME": "/tmp"});
    request["process"]["cwd"] = json!("/usr");
    let outcome = guest.start_process(request, &[]).await.outcome().await;
    let text = outcome.text();
    for line in [
        "BOTH=request",
        "TEMPLATE=t",
        "HOME=/tmp",
        "USER=daemon",
        "LOGNAME=daemon",
        "E2B_SANDBOX=true",
        "E2B_SANDBOX_ID=i00000000000000000000",
        "/usr",
        "0022",
        "E2B_TEMPLATE_ID=00000000000000000000",
        "uid=1(daemon) gid=1(daemon) groups=1(daemon)",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} is not in {text}"
        );
    }
    assert!(text.contains("PATH=/"));
    let (_, _, body) = guest.request("GET", "/envs", &[], "").await;
    let variables: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        (&variables["TEMPLATE"], &variables["BOTH"]),
        (&json!("t"), &json!("template"))
    );
}

#[tokio::test]
async fn a_command_runs_as_who_is_named() {
    let guest = Guest::start();
    let user = basic("nobody");
    let request = bash("id -un; cat /proc/self/status | grep -E 'CapEff|Groups'; cat /etc/shadow");
    let outcome = guest
        .start_process(request, &[("authorization", &user)])
        .await
        .outcome()
        .await;
    assert!(outcome.text().starts_with("nobody\n"));
    assert!(outcome.text().contains("CapEff:\t0000000000000000"));
    assert_ne!(
        outcome.code(),
        0,
        "an ordinary user must not read /etc/shadow"
    );
}

#[tokio::test]
async fn requests_that_cannot_be_met_say_why() {
    let guest = Guest::start();
    let user = basic("root123");
    let outcome = guest
        .start_process(bash("true"), &[("authorization", &user)])
        .await
        .outcome()
        .await;
    assert_eq!(
        outcome.error,
        "unauthenticated: invalid username: 'root123'"
    );
    let mut request = bash("true");
    request["process"]["cwd"] = json!("/no/such");
    let outcome = guest.start_process(request, &[]).await.outcome().await;
    assert_eq!(
        outcome.error,
        "invalid_argument: cwd '/no/such' does not exist"
    );
    let request = json!({"process": {"cmd": "no-such-program"}});
    let outcome = guest.start_process(request, &[]).await.outcome().await;
    assert!(
        outcome
            .error
            .starts_with("invalid_argument: error starting process"),
        "{outcome:?}"
    );
    let outcome = guest.connect(4_000_000).await.outcome().await;
    assert_eq!(
        outcome.error,
        "not_found: process with pid 4000000 not found"
    );
    let refused = guest
        .call(
            "/process.Process/SendSignal",
            json!({"process": {"pid": 4_000_000}, "signal": "SIGNAL_SIGKILL"}),
        )
        .await
        .unwrap_err();
    assert_eq!((refused.status, refused.code.as_str()), (404, "not_found"));
    assert_eq!(refused.message, "process with pid 4000000 not found");
    let refused = guest
        .call("/process.Process/SendInput", json!({"process": {}}))
        .await;
    assert_eq!(refused.unwrap_err().status, 501);
    let refused = guest
        .call("/process.Process/List", json!("no object"))
        .await
        .unwrap_err();
    assert_eq!(
        (refused.status, refused.code.as_str()),
        (400, "invalid_argument")
    );
}

#[tokio::test]
async fn input_reaches_the_process_until_it_is_closed() {
    let guest = Guest::start();
    let mut request = bash("cat; echo done");
    request["stdin"] = json!(true);
    request["tag"] = json!("the cat");
    let mut events = guest.start_process(request, &[]).await;
    let pid = events.pid().await;
    let input =
        |text: &str| json!({"process": {"pid": pid}, "input": {"stdin": STANDARD.encode(text)}});
    guest
        .call("/process.Process/SendInput", input("hello\n"))
        .await
        .unwrap();
    events.until("hello\n").await;
    let list = guest
        .call("/process.Process/List", json!({}))
        .await
        .unwrap();
    assert_eq!(list["processes"][0]["pid"], json!(pid));
    assert_eq!(list["processes"][0]["tag"], json!("the cat"));
    assert_eq!(list["processes"][0]["config"]["cmd"], json!("/bin/bash"));
    // A stream of input, by tag, with a keepalive on the way.
    let message = |value: Value| seal(0, value.to_string().as_bytes());
    let body = [
        message(json!({"start": {"process": {"tag": "the cat"}}})),
        message(json!({"data": {"input": {"stdin": STANDARD.encode("one ")}}})),
        message(json!({"keepalive": {}})),
        message(json!({"data": {"input": {"stdin": STANDARD.encode("two\n")}}})),
    ]
    .concat();
    let stream = [("content-type", "application/connect+json")];
    let (status, headers, answer) = guest
        .request("POST", "/process.Process/StreamInput", &stream, body)
        .await;
    assert_eq!(
        (status.as_u16(), &headers["content-type"]),
        (200, &stream[0].1.parse().unwrap())
    );
    assert_eq!(answer, [seal(0, b"{}"), seal_end(None)].concat());
    events.until("one two\n").await;
    guest
        .call(
            "/process.Process/CloseStdin",
            json!({"process": {"pid": pid}}),
        )
        .await
        .unwrap();
    guest
        .call(
            "/process.Process/CloseStdin",
            json!({"process": {"pid": pid}}),
        )
        .await
        .ok();
    let outcome = events.outcome().await;
    assert_eq!((outcome.text(), outcome.code()), ("done\n", 0));
    let refused = guest
        .call("/process.Process/SendInput", input("late"))
        .await
        .unwrap_err();
    assert_eq!(refused.code, "not_found");
}

#[tokio::test]
async fn input_for_a_process_without_any_is_refused() {
    let guest = Guest::start();
    let mut events = guest.start_process(bash("exec sleep 30"), &[]).await;
    let pid = events.pid().await;
    for (input, message) in [
        (
            json!({"stdin": "eA=="}),
            "error writing to stdin: stdin not enabled or closed",
        ),
        (
            json!({"pty": "eA=="}),
            "error writing to tty: tty not assigned to process — input should be written to the \
             stdin, not the tty",
        ),
    ] {
        let request = json!({"process": {"pid": pid}, "input": input});
        let refused = guest
            .call("/process.Process/SendInput", request)
            .await
            .unwrap_err();
        assert_eq!(
            (refused.code.as_str(), refused.message.as_str()),
            ("failed_precondition", message)
        );
    }
}

#[tokio::test]
async fn a_blocked_writer_is_given_up_at_its_deadline() {
    let guest = Guest::start();
    let mut request = bash("exec sleep 30");
    request["stdin"] = json!(true);
    let mut events = guest.start_process(request, &[]).await;
    let pid = events.pid().await;
    let input = STANDARD.encode(vec![b'x'; 1 << 20]);
    let request = json!({"process": {"pid": pid}, "input": {"stdin": input}});
    let headers = [("connect-timeout-ms", "200")];
    let refused = guest
        .call_with("/process.Process/SendInput", request, &headers)
        .await;
    let refused = refused.unwrap_err();
    assert_eq!(
        (refused.status, refused.code.as_str()),
        (504, "deadline_exceeded")
    );
}

#[tokio::test]
async fn a_terminal_works_and_can_be_resized() {
    let guest = Guest::start();
    let request = json!({
        "process": {"cmd": "/bin/bash", "args": ["-i", "-l"], "envs": {"TERM": "xterm", "PS1": "$ "}},
        "pty": {"size": {"cols": 80, "rows": 24}},
    });
    let mut events = guest.start_process(request, &[]).await;
    let pid = events.pid().await;
    let input =
        |text: &str| json!({"process": {"pid": pid}, "input": {"pty": STANDARD.encode(text)}});
    guest
        .call("/process.Process/SendInput", input("stty size; tty\n"))
        .await
        .unwrap();
    let seen = events.until("/dev/pts/").await;
    assert!(seen.contains("24 80"), "{seen}");
    let size = json!({"process": {"pid": pid}, "pty": {"size": {"cols": 100, "rows": 30}}});
    guest.call("/process.Process/Update", size).await.unwrap();
    guest
        .call("/process.Process/SendInput", input("stty size\n"))
        .await
        .unwrap();
    events.until("30 100").await;
    let refused = guest
        .call(
            "/process.Process/CloseStdin",
            json!({"process": {"pid": pid}}),
        )
        .await;
    assert_eq!(refused.unwrap_err().code, "failed_precondition");
    // Job control: the interrupt reaches the job in the foreground alone. The job says itself that
    // it is there: what was typed is shown before anything runs.
    guest
        .call(
            "/process.Process/SendInput",
            input("bash -c 'echo job $((6 * 7)); exec sleep 100'\n"),
        )
        .await
        .unwrap();
    events.until("job 42").await;
    guest
        .call("/process.Process/SendInput", input("\x03"))
        .await
        .unwrap();
    guest
        .call(
            "/process.Process/SendInput",
            input("echo status $((100 + $?))\n"),
        )
        .await
        .unwrap();
    events.until("status 230").await;
    guest
        .call("/process.Process/SendInput", input("exit 7\n"))
        .await
        .unwrap();
    let outcome = events.outcome().await;
    assert_eq!(outcome.code(), 7);
}

#[tokio::test]
async fn signals_end_the_whole_session() {
    let guest = Guest::start();
    for (signal, end) in [
        ("SIGNAL_SIGKILL", EndEvent::signaled(9, false)),
        ("SIGNAL_SIGTERM", EndEvent::signaled(15, false)),
    ] {
        let mut events = guest
            .start_process(bash("sleep 1000 & echo $!; wait"), &[])
            .await;
        let pid = events.pid().await;
        let child = events.until("\n").await;
        let request = json!({"process": {"pid": pid}, "signal": signal});
        guest
            .call("/process.Process/SendSignal", request.clone())
            .await
            .unwrap();
        let outcome = events.outcome().await;
        assert_eq!(outcome.end, Some(end));
        guest.wait_until_gone(child.trim()).await;
        let refused = guest
            .call("/process.Process/SendSignal", request)
            .await
            .unwrap_err();
        assert_eq!(refused.code, "not_found");
    }
}

#[tokio::test]
async fn the_deadline_kills_the_process() {
    let guest = Guest::start();
    let begin = Instant::now();
    let headers = [("connect-timeout-ms", "300")];
    let mut events = guest
        .start_process(bash("echo begun; sleep 1000; echo never"), &headers)
        .await;
    let pid = events.pid().await;
    let outcome = events.outcome().await;
    assert_eq!(outcome.text(), "begun\n");
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert!(
        outcome.error.starts_with("deadline_exceeded") || outcome.end.is_some(),
        "{outcome:?}"
    );
    guest.wait_until_idle().await;
    let late = guest.connect(pid).await.outcome().await;
    assert_eq!(late.end, Some(EndEvent::signaled(9, false)));
}

#[tokio::test]
async fn a_client_that_comes_back_sees_what_it_missed() {
    let guest = Guest::start();
    let (one, two) = (guest.path("one"), guest.path("two"));
    let script = format!(
        "mkfifo {one} {two}; echo first; cat {one}; echo second; echo third >&2; cat {two}; exit 5"
    );
    // Spoken by hand, to know when the guest has noticed that the client left.
    let mut socket = TcpStream::connect(("127.0.0.1", guest.port)).unwrap();
    let message = seal(0, bash(&script).to_string().as_bytes());
    write!(
        socket,
        "POST /process.Process/Start HTTP/1.1\r\nhost: test\r\ncontent-type: \
         application/connect+json\r\ncontent-length: {}\r\n\r\n",
        message.len()
    )
    .unwrap();
    socket.write_all(&message).unwrap();
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(&STANDARD.encode("first\n")) {
        let mut buffer = [0; 4096];
        let count = socket.read(&mut buffer).unwrap();
        seen.extend_from_slice(&buffer[..count]);
    }
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    socket.read_to_end(&mut seen).unwrap();
    let list = guest
        .call("/process.Process/List", json!({}))
        .await
        .unwrap();
    let pid = list["processes"][0]["pid"].as_u64().unwrap() as u32;
    // The process goes on without a listener, until it waits at the second gate.
    std::fs::write(&one, "").unwrap();
    let gate = std::fs::File::options().write(true).open(&two).unwrap();
    let mut back = guest.connect(pid).await;
    assert_eq!(back.pid().await, pid);
    let seen = back.until("third\n").await;
    assert_eq!(seen, "second\nthird\n");
    drop(back);
    drop(gate);
    guest.wait_until_idle().await;
    // It has ended by now; the end is still told, more than once.
    for _ in 0..2 {
        let outcome = guest.connect(pid).await.outcome().await;
        assert_eq!((outcome.pid, outcome.code(), outcome.text()), (pid, 5, ""));
    }
}

#[tokio::test]
async fn several_clients_see_the_same() {
    let guest = Guest::start();
    let gate = guest.path("gate");
    let script = format!("mkfifo {gate}; echo ready; cat {gate}; seq 50000");
    let mut first = guest.start_process(bash(&script), &[]).await;
    let pid = first.pid().await;
    first.until("ready\n").await;
    let mut second = guest.connect(pid).await;
    second.pid().await;
    std::fs::write(&gate, "").unwrap();
    let (first, second) = tokio::join!(first.outcome(), second.outcome());
    assert_eq!(first.stdout.len(), 288_894);
    assert_eq!(first.stdout, second.stdout);
    assert_eq!((first.code(), second.code()), (0, 0));
}

#[tokio::test]
async fn a_flood_is_delivered_whole_in_bounded_memory() {
    let guest = Guest::start();
    let before = guest.peak_memory();
    let mut events = guest.start_process(bash("yes | head -c 20M"), &[]).await;
    let mut total = 0;
    loop {
        match events.next().await.unwrap() {
            ProcessEvent::Data(api::envd::process::Output::Stdout(data)) => total += data.0.len(),
            ProcessEvent::End(end) => {
                assert_eq!(end.exit_code, 0);
                break;
            }
            _ => {}
        }
    }
    assert_eq!(total, 20 << 20);
    let grown = guest.peak_memory() - before;
    assert!(grown < 16 << 10, "the guest grew by {grown} KiB");
}

#[tokio::test]
async fn a_flood_that_nobody_reads_neither_blocks_nor_fills_memory() {
    let guest = Guest::start();
    let before = guest.peak_memory();
    let mut events = guest
        .start_process(bash("yes | head -c 200M; echo the last line"), &[])
        .await;
    let pid = events.pid().await;
    drop(events);
    guest.wait_until_idle().await;
    let grown = guest.peak_memory() - before;
    assert!(grown < 16 << 10, "the guest grew by {grown} KiB");
    let outcome = guest.connect(pid).await.outcome().await;
    assert!(outcome.stdout.ends_with(b"y\nthe last line\n"));
    assert!(outcome.stdout.len() > 500_000 && outcome.stdout.len() < 2 << 20);
    assert_eq!(outcome.code(), 0);
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_the_process_back() {
    let guest = Guest::start();
    let before = guest.peak_memory();
    let mut events = guest
        .start_process(bash("yes | head -c 50M; echo end"), &[])
        .await;
    events.pid().await;
    // Others are served meanwhile.
    assert_eq!(guest.run("echo other").await.text(), "other\n");
    let outcome = events.outcome().await;
    assert_eq!(outcome.stdout.len(), (50 << 20) + 4);
    assert!(guest.peak_memory() - before < 16 << 10);
}

#[tokio::test]
async fn what_a_descendant_holds_open_does_not_delay_the_end() {
    let guest = Guest::start();
    let begin = Instant::now();
    let outcome = guest.run("sleep 20 & echo started").await;
    assert_eq!((outcome.text(), outcome.code()), ("started\n", 0));
    assert!(begin.elapsed() < Duration::from_secs(5));
    // What comes right after the end still belongs to it.
    let outcome = guest.run("(sleep 0.02; echo late) & echo early").await;
    assert_eq!(outcome.text(), "early\nlate\n");
}

#[tokio::test]
async fn silence_is_broken_by_keepalives() {
    let guest = Guest::start();
    let headers = [("keepalive-ping-interval", "1")];
    let mut events = guest.start_process(bash("sleep 2.5"), &headers).await;
    events.pid().await;
    assert_eq!(events.next().await, Ok(ProcessEvent::Keepalive {}));
    assert_eq!(events.next().await, Ok(ProcessEvent::Keepalive {}));
    assert_eq!(events.outcome().await.code(), 0);
}

#[tokio::test]
async fn orphans_are_reaped() {
    let guest = Guest::start();
    let outcome = guest.run("setsid bash -c 'sleep 0.1' & echo $!").await;
    let orphan = outcome.text().trim().to_owned();
    guest.wait_until_gone(&orphan).await;
}

#[tokio::test]
async fn many_commands_at_once_all_end_well() {
    let guest = std::sync::Arc::new(Guest::start());
    let tasks: Vec<_> = (0..100)
        .map(|number| {
            let guest = std::sync::Arc::clone(&guest);
            tokio::spawn(async move {
                let outcome = guest
                    .run(&format!("echo {number}; exit {}", number % 7))
                    .await;
                assert_eq!(outcome.text(), format!("{number}\n"));
                assert_eq!(outcome.code(), number % 7);
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn the_start_command_runs_and_is_logged() {
    let guest = Guest::with(&["--start-command", "echo from the start; sleep 30"]);
    let request = json!({"process": {"tag": "start-command"}});
    let messages = guest.stream("/process.Process/Connect", request, &[]).await;
    let mut events = support::Events(messages);
    events.pid().await;
    assert_eq!(events.until("start\n").await, "from the start\n");
}
