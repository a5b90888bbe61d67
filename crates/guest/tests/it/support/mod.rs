//! Starts the real guest on a free port and speaks to it over HTTP.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test program uses a part of it"
)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail as tests do"
)]

use api::envd::{
    connect::{EndOfStream, Envelope, EnvelopeReader, seal},
    process::{EndEvent, EventResponse, Output, ProcessEvent},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};
use tokio::net::TcpStream;

pub const TOKEN: &str = "the sandbox's token";
pub const CONTROL: &str = "the node's token";

/// A guest that runs until this is dropped, with all that it started.
pub struct Guest {
    child: Child,
    pub port: u16,
    pub folder: tempfile::TempDir,
}

impl Guest {
    pub fn start() -> Self {
        Self::with(&[])
    }

    pub fn with(options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_atoll-guest"))
            .args(["serve", "--port", "0"])
            .args(options)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let port = line.trim().strip_prefix("ready ").unwrap().parse().unwrap();
        Self {
            child,
            port,
            folder,
        }
    }

    /// A guest that wants a token, and has one for the node.
    pub fn secured() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let (token, control) = (write("token", TOKEN), write("control", CONTROL));
        Self::with(&["--token-file", &token, "--control-token-file", &control])
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A path in a folder of this test's own.
    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// The most memory that the guest ever had, in KiB.
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmHWM:"))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    pub async fn send(&self, request: Request<Full<Bytes>>) -> http::Response<Incoming> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    }

    pub async fn request(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> (StatusCode, HeaderMap, Bytes) {
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .header("host", "test");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self
            .send(request.body(Full::new(body.into())).unwrap())
            .await;
        let (head, body) = response.into_parts();
        (
            head.status,
            head.headers,
            body.collect().await.unwrap().to_bytes(),
        )
    }

    /// Makes a unary call.
    pub async fn call(&self, path: &str, message: Value) -> Result<Value, Refused> {
        self.call_with(path, message, &[]).await
    }

    pub async fn call_with(
        &self,
        path: &str,
        message: Value,
        headers: &[(&str, &str)],
    ) -> Result<Value, Refused> {
        let mut all = vec![("content-type", "application/json")];
        all.extend_from_slice(headers);
        let (status, headers, body) = self.request("POST", path, &all, message.to_string()).await;
        assert_eq!(headers[header::CONTENT_TYPE], "application/json");
        let body: Value = serde_json::from_slice(&body).unwrap();
        if status == StatusCode::OK {
            return Ok(body);
        }
        let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        Err(Refused {
            status: status.as_u16(),
            code: text("code"),
            message: text("message"),
        })
    }

    /// Makes a call that streams its answer.
    pub async fn stream(&self, path: &str, message: Value, headers: &[(&str, &str)]) -> Messages {
        let mut request = Request::post(path)
            .header("host", "test")
            .header("content-type", "application/connect+json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = Full::new(seal(0, message.to_string().as_bytes()));
        let response = self.send(request.body(body).unwrap()).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(
            response.headers()[header::CONTENT_TYPE],
            "application/connect+json"
        );
        Messages {
            body: response.into_body(),
            reader: EnvelopeReader::new(16 << 20),
        }
    }

    /// Starts a command.
    pub async fn start_process(&self, request: Value, headers: &[(&str, &str)]) -> Events {
        Events(
            self.stream("/process.Process/Start", request, headers)
                .await,
        )
    }

    /// Starts `bash -c` and returns what came of it.
    pub async fn run(&self, script: &str) -> Outcome {
        self.start_process(bash(script), &[]).await.outcome().await
    }

    /// Reattaches.
    pub async fn connect(&self, pid: u32) -> Events {
        let message = json!({"process": {"pid": pid}});
        Events(self.stream("/process.Process/Connect", message, &[]).await)
    }

    /// Waits until a process is gone, reaped and all.
    pub async fn wait_until_gone(&self, pid: &str) {
        let path = std::path::Path::new("/proc").join(pid);
        let gone = async {
            while path.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let gone = tokio::time::timeout(Duration::from_secs(10), gone).await;
        gone.expect("the process is still there");
    }

    /// Waits until no process runs.
    pub async fn wait_until_idle(&self) {
        let idle = async {
            while self.call("/process.Process/List", json!({})).await.unwrap() != json!({}) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), idle)
            .await
            .expect("processes still run");
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // What the guest started would outlive it: here it is not the first process.
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let fields: Vec<&str> = stat
                .rsplit_once(')')
                .map_or("", |(_, rest)| rest)
                .split_whitespace()
                .collect();
            if fields.get(1) == Some(&self.pid().to_string().as_str()) {
                let pid = entry.file_name().to_str().unwrap().parse().unwrap();
                let pid = rustix::process::Pid::from_raw(pid).unwrap();
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

pub fn bash(script: &str) -> Value {
    json!({"process": {"cmd": "/bin/bash", "args": ["-c", script]}, "stdin": false})
}

pub fn basic(user: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:")))
}

/// A unary call that failed.
#[derive(Debug, PartialEq)]
pub struct Refused {
    pub status: u16,
    pub code: String,
    pub message: String,
}

/// A stream of messages.
pub struct Messages {
    body: Incoming,
    reader: EnvelopeReader,
}

impl Messages {
    pub async fn next(&mut self) -> Option<Envelope> {
        let next = async {
            loop {
                if let Some(envelope) = self.reader.take().unwrap() {
                    return Some(envelope);
                }
                match self.body.frame().await {
                    Some(frame) => self.reader.push(&frame.unwrap().into_data().unwrap()),
                    None => return None,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), next)
            .await
            .expect("no message came")
    }

    /// The next message, or the error that the stream ends with.
    pub async fn message(&mut self) -> Result<Value, String> {
        let envelope = self.next().await.expect("the stream broke off");
        if envelope.is_end() {
            let end: EndOfStream = serde_json::from_slice(&envelope.message).unwrap();
            return Err(end.error.map_or_else(String::new, |error| {
                format!("{}: {}", json!(error.code).as_str().unwrap(), error.message)
            }));
        }
        Ok(serde_json::from_slice(&envelope.message).unwrap())
    }
}

/// The events of a process.
pub struct Events(pub Messages);

/// All that came of a process.
#[derive(Debug, Default)]
pub struct Outcome {
    pub pid: u32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub pty: Vec<u8>,
    pub end: Option<EndEvent>,
    /// What the stream ended with.
    pub error: String,
}

impl Outcome {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    pub fn code(&self) -> i32 {
        self.end
            .as_ref()
            .expect("the process did not end")
            .exit_code
    }
}

impl Events {
    pub async fn next(&mut self) -> Result<ProcessEvent, String> {
        let message = self.0.message().await?;
        Ok(serde_json::from_value::<EventResponse>(message)
            .unwrap()
            .event)
    }

    /// Reads the event that has to be the first.
    pub async fn pid(&mut self) -> u32 {
        match self.next().await {
            Ok(ProcessEvent::Start { pid }) => pid,
            other => panic!("expected start, got {other:?}"),
        }
    }

    /// Reads output until it holds `text`.
    pub async fn until(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains(text) {
            match self.next().await {
                Ok(ProcessEvent::Data(
                    Output::Stdout(data) | Output::Stderr(data) | Output::Pty(data),
                )) => seen.extend_from_slice(&data.0),
                Ok(ProcessEvent::Start { .. } | ProcessEvent::Keepalive {}) => {}
                other => panic!("{other:?} came before {text:?}; seen {seen:?}"),
            }
        }
        String::from_utf8_lossy(&seen).into_owned()
    }

    /// Reads to the end of the stream.
    pub async fn outcome(mut self) -> Outcome {
        let mut outcome = Outcome::default();
        loop {
            match self.next().await {
                Ok(ProcessEvent::Start { pid }) => outcome.pid = pid,
                Ok(ProcessEvent::Data(Output::Stdout(data))) => outcome.stdout.extend(&data.0),
                Ok(ProcessEvent::Data(Output::Stderr(data))) => outcome.stderr.extend(&data.0),
                Ok(ProcessEvent::Data(Output::Pty(data))) => outcome.pty.extend(&data.0),
                Ok(ProcessEvent::End(end)) => outcome.end = Some(end),
                Ok(ProcessEvent::Keepalive {}) => {}
                Err(error) => {
                    outcome.error = error;
                    return outcome;
                }
            }
        }
    }
}
