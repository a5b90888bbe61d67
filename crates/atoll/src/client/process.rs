//! Processes in a sandbox, as the guest's protocol has them (`process.Process`).

use crate::client::{
    connect::{Messages, RpcError},
    guest::Guest,
};
use anyhow::Context;
use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What to run.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Command {
    #[serde(rename = "cmd")]
    pub(crate) program: String,
    #[serde(rename = "args")]
    pub(crate) arguments: Vec<String>,
    #[serde(rename = "envs")]
    pub(crate) environment: BTreeMap<String, String>,
    #[serde(rename = "cwd", skip_serializing_if = "Option::is_none")]
    pub(crate) working_directory: Option<String>,
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Size {
    #[serde(rename = "cols")]
    pub(crate) columns: u16,
    pub(crate) rows: u16,
}

/// What a signal does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Ctrl-C.
    Interrupt,
    /// Asks to end.
    Terminate,
    /// Ends at once.
    Kill,
}

/// What a process does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// It printed; a terminal's output counts as such.
    Output(Vec<u8>),
    /// It printed to its standard error.
    ErrorOutput(Vec<u8>),
    /// It ended.
    End(End),
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct End {
    /// Its exit code; below zero if a signal ended it.
    pub(crate) exit_code: i32,
    /// Whether it ended by itself.
    pub(crate) exited: bool,
    /// In words: `exit status 2`, `signal: killed`.
    pub(crate) status: String,
    /// What went wrong, if something did.
    pub(crate) error: Option<String>,
}

impl End {
    /// The exit status as shells have it: the code, or 128 and the signal's number.
    pub(crate) fn shell_status(&self) -> u8 {
        if self.exited || self.exit_code > 0 {
            return (self.exit_code & 0xff) as u8;
        }
        let signal = self.status.strip_prefix("signal: ").unwrap_or_default();
        let word = signal.split(" (").next().unwrap_or_default();
        let number = match word {
            "hangup" => 1,
            "interrupt" => 2,
            "quit" => 3,
            "illegal instruction" => 4,
            "trace/breakpoint trap" => 5,
            "aborted" => 6,
            "bus error" => 7,
            "floating point exception" => 8,
            "killed" => 9,
            "segmentation fault" => 11,
            "broken pipe" => 13,
            "alarm clock" => 14,
            "terminated" => 15,
            other => other
                .strip_prefix("signal ")
                .and_then(|number| number.parse().ok())
                .filter(|number| (1..=64).contains(number))
                .unwrap_or(0),
        };
        128 + number
    }
}

#[derive(Debug, Deserialize)]
struct Envelope {
    event: WireEvent,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WireEvent {
    start: Option<WireStart>,
    data: Option<WireData>,
    end: Option<End>,
}

#[derive(Debug, Deserialize)]
struct WireStart {
    pid: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WireData {
    #[serde(deserialize_with = "from_base64")]
    stdout: Option<Vec<u8>>,
    #[serde(deserialize_with = "from_base64")]
    stderr: Option<Vec<u8>>,
    #[serde(deserialize_with = "from_base64")]
    pty: Option<Vec<u8>>,
}

fn from_base64<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Vec<u8>>, D::Error> {
    let Some(text) = Option::<String>::deserialize(input)? else {
        return Ok(None);
    };
    BASE64_STANDARD
        .decode(text)
        .map(Some)
        .map_err(serde::de::Error::custom)
}

/// A process that was started, and what it does.
#[derive(Debug)]
pub(crate) struct Process {
    /// Number inside the sandbox.
    pub(crate) pid: u32,
    messages: Messages,
}

impl Process {
    /// The next event; `None` when the stream ended after the process did.
    ///
    /// # Errors
    /// When the connection broke or the sandbox ended.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Event>> {
        while let Some(message) = self.messages.next::<Envelope>().await? {
            if let Some(event) = to_event(message.event) {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }
}

/// The event; `None` for those that say nothing, such as `keepalive`.
fn to_event(event: WireEvent) -> Option<Event> {
    if let Some(end) = event.end {
        return Some(Event::End(end));
    }
    let data = event.data?;
    match (data.stdout.or(data.pty), data.stderr) {
        (Some(bytes), _) => Some(Event::Output(bytes)),
        (None, Some(bytes)) => Some(Event::ErrorOutput(bytes)),
        (None, None) => None,
    }
}

impl Guest {
    /// Starts a process: on a terminal of `terminal`'s size, or with pipes; `input` says whether
    /// its standard input will be written to.
    ///
    /// # Errors
    /// When it cannot be started: no such program, folder or user.
    pub(crate) async fn start(
        &self,
        command: &Command,
        terminal: Option<Size>,
        input: bool,
    ) -> anyhow::Result<Process> {
        let mut request = json!({ "process": command, "stdin": input });
        if let Some(size) = terminal {
            request["pty"] = json!({ "size": size });
        }
        let starting = || format!("cannot start `{}`", command.program);
        let mut messages = self
            .stream("process.Process/Start", &request)
            .await
            .with_context(starting)?;
        match messages.next::<Envelope>().await.with_context(starting)? {
            Some(Envelope {
                event: WireEvent {
                    start: Some(start), ..
                },
            }) => Ok(Process {
                pid: start.pid,
                messages,
            }),
            _ => {
                Err(anyhow::anyhow!("the sandbox did not say that it started").context(starting()))
            }
        }
    }

    /// Writes to the process's standard input, or to its terminal.
    ///
    /// # Errors
    /// When it has ended or has closed its input.
    pub(crate) async fn write(&self, pid: u32, bytes: &[u8], pty: bool) -> anyhow::Result<()> {
        let kind = if pty { "pty" } else { "stdin" };
        let request = json!({
            "process": { "pid": pid },
            "input": { kind: BASE64_STANDARD.encode(bytes) },
        });
        self.call::<Value>("process.Process/SendInput", &request)
            .await
            .map(drop)
    }

    /// Ends the process's standard input.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) async fn close_input(&self, pid: u32) -> anyhow::Result<()> {
        let request = json!({ "process": { "pid": pid } });
        self.call::<Value>("process.Process/CloseStdin", &request)
            .await
            .map(drop)
    }

    /// Tells the process that its terminal has another size.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) async fn resize(&self, pid: u32, size: Size) -> anyhow::Result<()> {
        let request = json!({ "process": { "pid": pid }, "pty": { "size": size } });
        self.call::<Value>("process.Process/Update", &request)
            .await
            .map(drop)
    }

    /// Sends a signal to the process.
    ///
    /// The protocol knows two signals; the one of Ctrl-C is sent by a `kill` inside the sandbox,
    /// to the process's group, as a terminal would.
    ///
    /// # Errors
    /// When the process has ended, or nothing in the sandbox can send the signal.
    pub(crate) async fn signal(&self, pid: u32, signal: Signal) -> anyhow::Result<()> {
        let name = match signal {
            Signal::Interrupt => return self.interrupt(pid).await,
            Signal::Terminate => "SIGNAL_SIGTERM",
            Signal::Kill => "SIGNAL_SIGKILL",
        };
        let request = json!({ "process": { "pid": pid }, "signal": name });
        self.call::<Value>("process.Process/SendSignal", &request)
            .await
            .map(drop)
    }

    async fn interrupt(&self, pid: u32) -> anyhow::Result<()> {
        let script = format!("kill -INT -- -{pid} 2>/dev/null || kill -INT {pid}");
        let command = Command {
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script],
            ..Command::default()
        };
        let mut process = self.start(&command, None, false).await?;
        while let Some(event) = process.next().await? {
            if let Event::End(end) = event {
                anyhow::ensure!(end.shell_status() == 0, "the signal was not delivered");
            }
        }
        Ok(())
    }
}

/// Whether the error says that the process is not there any more.
pub(crate) fn is_gone(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<RpcError>()
        .is_some_and(|error| error.code == "not_found")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(text: &str) -> Option<Event> {
        to_event(serde_json::from_str::<Envelope>(text).unwrap().event)
    }

    #[test]
    fn recorded_events_are_understood() {
        assert_eq!(
            event(r#"{"event":{"data":{"stdout":"aGkK"}}}"#),
            Some(Event::Output(b"hi\n".to_vec()))
        );
        assert_eq!(
            event(r#"{"event":{"data":{"pty":"JCA="}}}"#),
            Some(Event::Output(b"$ ".to_vec()))
        );
        assert_eq!(
            event(r#"{"event":{"data":{"stderr":"bm8="}}}"#),
            Some(Event::ErrorOutput(b"no".to_vec()))
        );
        assert_eq!(event(r#"{"event":{"keepalive":{}}}"#), None);
        // ProtoJSON leaves out what is zero.
        let Some(Event::End(end)) = event(r#"{"event":{"end":{"exited":true}}}"#) else {
            panic!("no end")
        };
        assert_eq!(end.shell_status(), 0);
    }

    #[test]
    fn signals_become_shell_statuses() {
        let end = |text: &str| serde_json::from_str::<End>(text).unwrap().shell_status();
        assert_eq!(
            end(r#"{"exitCode":3,"exited":true,"status":"exit status 3"}"#),
            3
        );
        assert_eq!(end(r#"{"exitCode":-1,"status":"signal: killed"}"#), 137);
        assert_eq!(end(r#"{"exitCode":-1,"status":"signal: interrupt"}"#), 130);
        assert_eq!(
            end(r#"{"exitCode":-1,"status":"signal: aborted (core dumped)"}"#),
            134
        );
        assert_eq!(end(r#"{"exitCode":-1,"status":"signal: signal 34"}"#), 162);
    }

    #[test]
    fn bad_base64_is_an_error_and_not_a_crash() {
        assert!(serde_json::from_str::<Envelope>(r#"{"event":{"data":{"stdout":"%"}}}"#).is_err());
    }
}
