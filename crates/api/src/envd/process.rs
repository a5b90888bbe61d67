//! Messages of `process.Process`.

use super::{
    connect::ENVELOPE_HEADER,
    scalar::{Base64, is_default, optional_uint32, or_default, uint32},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A command.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessConfig {
    /// The program: a path, or a name that is looked up in `PATH`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub cmd: String,
    /// Its arguments, without the program's name.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub args: Vec<String>,
    /// Variables besides those that every process has.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub envs: BTreeMap<String, String>,
    /// Where it runs; the default directory if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
}

/// A terminal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pty {
    /// Its size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<PtySize>,
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PtySize {
    /// Columns.
    #[serde(deserialize_with = "uint32", skip_serializing_if = "is_default")]
    pub cols: u32,
    /// Rows.
    #[serde(deserialize_with = "uint32", skip_serializing_if = "is_default")]
    pub rows: u32,
}

/// Which process: one of the two.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessSelector {
    /// By number.
    #[serde(
        deserialize_with = "optional_uint32",
        skip_serializing_if = "Option::is_none"
    )]
    pub pid: Option<u32>,
    /// By the tag that it was started with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
}

impl ProcessSelector {
    /// Selects by number.
    pub fn pid(pid: u32) -> Self {
        Self {
            pid: Some(pid),
            tag: None,
        }
    }
}

/// `Start`: runs a command and streams its events.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StartRequest {
    /// What to run.
    #[serde(deserialize_with = "or_default")]
    pub process: ProcessConfig,
    /// If present, it gets a terminal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pty: Option<Pty>,
    /// A name to find it by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Whether it gets an open standard input; true if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdin: Option<bool>,
}

/// A request that names only a process: `Connect`, `CloseStdin`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SelectRequest {
    /// Which.
    #[serde(deserialize_with = "or_default")]
    pub process: ProcessSelector,
}

/// A message of `Start`'s and `Connect`'s streams.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventResponse {
    /// What happened.
    pub event: ProcessEvent,
}

/// What happened to a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProcessEvent {
    /// It runs, or ran: always the first event.
    Start {
        /// Its number.
        #[serde(default)]
        pid: u32,
    },
    /// It printed something.
    Data(Output),
    /// It ended: always the last event.
    End(EndEvent),
    /// Nothing, for a while.
    Keepalive {},
}

/// Something that a process printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Output {
    /// To its standard output.
    Stdout(Base64),
    /// To its standard error.
    Stderr(Base64),
    /// To its terminal.
    Pty(Base64),
}

/// Where a process prints to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OutputStream {
    /// Its standard output.
    Stdout,
    /// Its standard error.
    Stderr,
    /// Its terminal.
    Pty,
}

impl OutputStream {
    /// The field's name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Pty => "pty",
        }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndEvent {
    /// Its exit code; -1 if a signal ended it.
    #[serde(skip_serializing_if = "is_default")]
    pub exit_code: i32,
    /// Whether it ended by itself.
    #[serde(skip_serializing_if = "is_default")]
    pub exited: bool,
    /// `exit status 1`, `signal: killed`.
    pub status: String,
    /// The same, if it did not end with 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl EndEvent {
    /// How a process ended that called exit.
    pub fn exited(code: i32) -> Self {
        let status = format!("exit status {code}");
        let error = (code != 0).then(|| status.clone());
        Self {
            exit_code: code,
            exited: true,
            status,
            error,
        }
    }

    /// How a process ended that a signal killed.
    pub fn signaled(signal: i32, core_dumped: bool) -> Self {
        let mut status = format!("signal: {}", signal_name(signal));
        if core_dumped {
            status.push_str(" (core dumped)");
        }
        Self {
            exit_code: -1,
            exited: false,
            error: Some(status.clone()),
            status,
        }
    }
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        1 => "hangup",
        2 => "interrupt",
        3 => "quit",
        4 => "illegal instruction",
        5 => "trace/breakpoint trap",
        6 => "aborted",
        7 => "bus error",
        8 => "floating point exception",
        9 => "killed",
        10 => "user defined signal 1",
        11 => "segmentation fault",
        12 => "user defined signal 2",
        13 => "broken pipe",
        14 => "alarm clock",
        15 => "terminated",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}

/// A whole envelope that says what a process printed: the same bytes as [`EventResponse`] in an
/// envelope, without the copies on the way.
pub fn seal_output(stream: OutputStream, data: &[u8]) -> Bytes {
    const HEAD: &str = "{\"event\":{\"data\":{\"";
    const TAIL: &str = "\"}}}";
    let name = stream.name();
    let length = HEAD.len() + name.len() + 3 + data.len().div_ceil(3) * 4 + TAIL.len();
    let mut sealed = String::with_capacity(ENVELOPE_HEADER + length);
    // The header is filled in below: it is not text.
    sealed.push_str("\0\0\0\0\0");
    sealed.push_str(HEAD);
    sealed.push_str(name);
    sealed.push_str("\":\"");
    STANDARD.encode_string(data, &mut sealed);
    sealed.push_str(TAIL);
    let mut sealed = sealed.into_bytes();
    let message = u32::try_from(sealed.len() - ENVELOPE_HEADER).unwrap_or(u32::MAX);
    sealed[1..ENVELOPE_HEADER].copy_from_slice(&message.to_be_bytes());
    sealed.into()
}

/// `List`'s answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ListResponse {
    /// Those that run.
    #[serde(skip_serializing_if = "is_default")]
    pub processes: Vec<ProcessInfo>,
}

/// A running process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessInfo {
    /// What it was started with.
    pub config: ProcessConfig,
    /// Its number.
    #[serde(deserialize_with = "uint32")]
    pub pid: u32,
    /// Its tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
}

/// Input for a process: one of the two.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessInput {
    /// For its standard input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdin: Option<Base64>,
    /// For its terminal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pty: Option<Base64>,
}

/// `SendInput`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SendInputRequest {
    /// To which process.
    #[serde(deserialize_with = "or_default")]
    pub process: ProcessSelector,
    /// What.
    #[serde(deserialize_with = "or_default")]
    pub input: ProcessInput,
}

/// A message of `StreamInput`'s stream: one of the three, `start` first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamInputRequest {
    /// To which process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<SelectRequest>,
    /// What.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<InputData>,
    /// Nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keepalive: Option<Empty>,
}

/// The `data` of [`StreamInputRequest`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InputData {
    /// What.
    #[serde(deserialize_with = "or_default")]
    pub input: ProcessInput,
}

/// A message without fields.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// `Update`: changes the size of a terminal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpdateRequest {
    /// Whose.
    #[serde(deserialize_with = "or_default")]
    pub process: ProcessSelector,
    /// The new size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pty: Option<Pty>,
}

/// `SendSignal`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SendSignalRequest {
    /// To which process.
    #[serde(deserialize_with = "or_default")]
    pub process: ProcessSelector,
    /// Which.
    #[serde(deserialize_with = "or_default")]
    pub signal: Signal,
}

/// A signal, by name or number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub enum Signal {
    /// None was named.
    #[default]
    #[serde(rename = "SIGNAL_UNSPECIFIED")]
    Unspecified,
    /// Please end.
    #[serde(rename = "SIGNAL_SIGTERM")]
    Sigterm,
    /// End.
    #[serde(rename = "SIGNAL_SIGKILL")]
    Sigkill,
}

impl<'de> Deserialize<'de> for Signal {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(i64),
            Name(String),
        }
        Ok(match Either::deserialize(deserializer)? {
            Either::Number(15) => Self::Sigterm,
            Either::Number(9) => Self::Sigkill,
            Either::Name(name) if name == "SIGNAL_SIGTERM" => Self::Sigterm,
            Either::Name(name) if name == "SIGNAL_SIGKILL" => Self::Sigkill,
            Either::Number(_) | Either::Name(_) => Self::Unspecified,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envd::connect::seal;

    #[test]
    fn events_look_as_clients_expect() {
        let check = |event: ProcessEvent, text: &str| {
            let response = EventResponse { event };
            assert_eq!(serde_json::to_string(&response).unwrap(), text);
            assert_eq!(
                serde_json::from_str::<EventResponse>(text).unwrap(),
                response
            );
        };
        check(
            ProcessEvent::Start { pid: 7 },
            r#"{"event":{"start":{"pid":7}}}"#,
        );
        check(ProcessEvent::Keepalive {}, r#"{"event":{"keepalive":{}}}"#);
        check(
            ProcessEvent::End(EndEvent::exited(0)),
            r#"{"event":{"end":{"exited":true,"status":"exit status 0"}}}"#,
        );
        check(
            ProcessEvent::End(EndEvent::signaled(9, false)),
            r#"{"event":{"end":{"exitCode":-1,"status":"signal: killed","error":"signal: killed"}}}"#,
        );
    }

    #[test]
    fn output_is_sealed_as_the_slow_way_would() {
        for data in [&b""[..], b"x", b"hello\n", &[0xff; 100]] {
            let slow = EventResponse {
                event: ProcessEvent::Data(Output::Stderr(Base64(Bytes::copy_from_slice(data)))),
            };
            assert_eq!(
                seal_output(OutputStream::Stderr, data),
                seal(0, &serde_json::to_vec(&slow).unwrap())
            );
        }
    }

    #[test]
    fn requests_follow_protojson() {
        let request: StartRequest = serde_json::from_str(
            r#"{"process":{"cmd":"/bin/bash","args":["-l"],"envs":null,"later":1},"stdin":false,"pty":null}"#,
        )
        .unwrap();
        assert_eq!(request.process.cmd, "/bin/bash");
        assert_eq!((request.stdin, request.pty), (Some(false), None));
        let signal = |text: &str| {
            serde_json::from_str::<SendSignalRequest>(text)
                .unwrap()
                .signal
        };
        assert_eq!(signal(r#"{"signal":"SIGNAL_SIGKILL"}"#), Signal::Sigkill);
        assert_eq!(signal(r#"{"signal":15}"#), Signal::Sigterm);
        assert_eq!(signal(r#"{"signal":"SIGNAL_SIGHUP"}"#), Signal::Unspecified);
    }
}
