//! Logs of sandboxes, from guests that behave and from guests that do not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::common;

use agent::{Agent, AgentOptions, PoolOptions, simulation::World};
use api::node::{EndReason, LogLine, Node};
use common::{House, create, id};
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::broadcast,
};

/// A guest's end of the log connection, on the address of the first simulated slot.
struct Guest {
    /// What goes out, on every connection.
    out: broadcast::Sender<String>,
    /// The requests that came.
    requests: Arc<Mutex<Vec<String>>>,
    port: u16,
}

impl Guest {
    async fn start() -> Self {
        let address: SocketAddr = "127.64.0.1:0".parse().unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (out, _) = broadcast::channel::<String>(1000);
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let (sender, seen) = (out.clone(), requests.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, sender.subscribe(), seen.clone()));
            }
        });
        Self {
            out,
            requests,
            port,
        }
    }

    fn say(&self, text: impl Into<String>) {
        self.out.send(text.into()).unwrap();
    }

    fn say_line(&self, seq: u64, message: &str) {
        let at = jiff::Timestamp::now();
        let line = serde_json::json!({"seq": seq, "line": {"at": at, "level": "info", "message": message}});
        self.say(format!("{line}\n"));
    }
}

async fn serve(
    mut stream: TcpStream,
    mut out: broadcast::Receiver<String>,
    seen: Arc<Mutex<Vec<String>>>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    seen.lock().unwrap().push(String::from_utf8(head).unwrap());
    stream
        .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        .await
        .unwrap();
    while let Ok(text) = out.recv().await {
        if text == "hang up" {
            return;
        }
        let chunk = format!("{:x}\r\n{text}\r\n", text.len());
        if stream.write_all(chunk.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn logs_when(agent: &Agent, count: usize) -> Vec<LogLine> {
    let began = Instant::now();
    loop {
        let lines = agent.logs(&id(1), None, 1000).await.unwrap();
        if lines.len() >= count {
            return lines;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{lines:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn until_connected(guest: &Guest, count: usize) {
    common::wait_for("the connection", || {
        guest.requests.lock().unwrap().len() >= count
    })
    .await;
}

fn messages(lines: &[LogLine]) -> Vec<&str> {
    lines.iter().map(|line| line.message.as_str()).collect()
}

async fn agent_for(house: &House, guest: &Guest) -> Arc<Agent> {
    let pool = PoolOptions {
        min: 0,
        max: 0,
        ..PoolOptions::default()
    };
    let options = AgentOptions {
        guest_port: guest.port,
        pool,
        ..house.options()
    };
    Agent::start(options).await.unwrap()
}

#[tokio::test]
async fn lines_are_kept_in_order_across_breaks_and_after_the_end() {
    let (house, guest) = (House::new(World::new()), Guest::start().await);
    let agent = agent_for(&house, &guest).await;
    create(&agent, 1).await.unwrap();
    until_connected(&guest, 1).await;
    guest.say_line(1, "one");
    guest.say_line(2, "two");
    assert_eq!(messages(&logs_when(&agent, 2).await), ["one", "two"]);
    let first = guest.requests.lock().unwrap()[0].to_lowercase();
    assert!(
        first.starts_with("get /_atoll/logs?after=0&follow=1 http/1.1"),
        "{first}"
    );
    assert!(first.contains("x-atoll-control: "), "{first}");

    guest.say("hang up");
    until_connected(&guest, 2).await;
    assert!(guest.requests.lock().unwrap()[1].contains("after=2&"));
    // What was sent already is not taken twice.
    guest.say_line(2, "two again");
    guest.say_line(3, "three");
    assert_eq!(
        messages(&logs_when(&agent, 3).await),
        ["one", "two", "three"]
    );

    agent.kill(&id(1), EndReason::Killed).await.unwrap();
    let lines = agent.logs(&id(1), None, 1000).await.unwrap();
    assert_eq!(messages(&lines), ["one", "two", "three"]);
    assert_eq!(
        messages(&agent.logs(&id(1), Some(lines[1].at), 1).await.unwrap()),
        ["two"]
    );
    agent.stop().await;
    drop(agent);

    let agent = agent_for(&house, &guest).await;
    assert_eq!(agent.logs(&id(1), None, 1000).await.unwrap(), lines);
    assert!(agent.logs(&id(2), None, 1000).await.is_err());
    agent.stop().await;
}

#[tokio::test]
async fn an_adopted_sandbox_is_read_on() {
    let (house, guest) = (House::new(World::new()), Guest::start().await);
    let options = AgentOptions {
        guest_port: guest.port,
        pool: PoolOptions {
            min: 0,
            max: 0,
            ..PoolOptions::default()
        },
        on_exit: agent::OnExit::Keep,
        ..house.options()
    };
    let agent = Agent::start(options).await.unwrap();
    create(&agent, 1).await.unwrap();
    until_connected(&guest, 1).await;
    guest.say_line(7, "before");
    logs_when(&agent, 1).await;
    agent.stop().await;
    drop(agent);

    let agent = agent_for(&house, &guest).await;
    until_connected(&guest, 2).await;
    assert!(guest.requests.lock().unwrap()[1].contains("after=7&"));
    guest.say_line(8, "after");
    assert_eq!(messages(&logs_when(&agent, 2).await), ["before", "after"]);
    agent.stop().await;
    house.assert_empty();
}

#[tokio::test]
async fn a_hostile_guest_does_no_harm() {
    let (house, guest) = (House::new(World::new()), Guest::start().await);
    let agent = agent_for(&house, &guest).await;
    create(&agent, 1).await.unwrap();
    until_connected(&guest, 1).await;
    guest.say("not json\n{\"seq\":\"x\"}\n\n\0\n");
    guest.say("[".repeat(10_000) + "\n");
    for _ in 0..8 {
        guest.say("endless".repeat(10_000));
    }
    guest.say("\n");
    guest.say_line(1, &"long".repeat(20_000));
    guest.say_line(2, "sane");
    let lines = logs_when(&agent, 2).await;
    assert_eq!(lines[0].message.len(), 16 << 10);
    assert_eq!(lines[1].message, "sane");
    agent.stop().await;
}
