//! What commands and the node on this machine say to each other: lines of JSON over a socket in the node's state directory, which nobody else
//! may enter.

use super::http::Http;
use crate::failure::Failure;
use anyhow::Context;
use api::Secret;
use mesh::{
    node::{FlowsCursor, FlowsStatus, Node, NodeStatus, ServiceSummary},
    userspace::Refusal,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinSet,
};

/// The socket's name.
pub(super) const SOCKET: &str = "node.sock";
/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// The longest question.
const LONGEST_QUESTION: u64 = 64 << 10;
/// The longest answer: a status of 100,000 peers.
const LONGEST_ANSWER: u64 = 64 << 20;
/// Conversations at once.
const CONVERSATIONS: usize = 64;

/// What a node is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Question {
    /// What it sees.
    Status,
    /// To make a new key for its tunnels.
    Rotate,
    /// To measure the way to another.
    Probe {
        /// Its name.
        node: String,
    },
    /// Who talks to whom, after a cursor.
    Flows {
        /// The cursor.
        since: FlowsCursor,
    },
    /// The services as it sees them.
    Services,
    /// To say of a service whether it is ready here. It is not any more once the conversation ends.
    Serve {
        /// Its name.
        service: String,
        /// Its TCP port.
        port: u16,
        /// Whether it is ready.
        ready: bool,
    },
    /// For a certificate of a program on this machine.
    Certify {
        /// The service that it gives; the node itself, if absent.
        service: Option<String>,
    },
}

/// A certificate with its key.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Certified {
    /// The SPIFFE id.
    pub(super) id: String,
    /// The certificate, in PEM.
    pub(super) certificate: String,
    /// The private key, in PEM.
    pub(super) key: Secret,
    /// What others are checked against, in PEM.
    pub(super) bundle: String,
    /// When it ends, in milliseconds since 1970.
    pub(super) ends_ms: u64,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// What it sees.
    Status(Box<NodeStatus>),
    /// Who talks to whom.
    Flows(Box<FlowsStatus>),
    /// A certificate.
    Certified(Box<Certified>),
    /// The services.
    Services(Vec<ServiceSummary>),
    /// It is done.
    Done,
    /// A round trip took so long.
    Measured {
        /// In microseconds.
        round_trip_us: u64,
    },
    /// The other node did not answer.
    Silent,
    /// It cannot be done.
    Refused(String),
}

/// A conversation with the node on this machine.
pub(super) struct Talk(BufReader<UnixStream>);

impl Talk {
    /// Begins one.
    ///
    /// # Errors
    /// No node runs with this state.
    pub(super) async fn open(state: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(state.join(SOCKET)).await;
        let stream = stream.map_err(|_| {
            Failure::new(
                format!("no node runs with the state in {}", state.display()),
                "start one with `atoll mesh up`, or name its directory with --state",
            )
        })?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// The node is gone, or refuses.
    pub(super) async fn ask(&mut self, question: &Question) -> anyhow::Result<Answer> {
        let talk = async {
            let mut line = serde_json::to_string(question)?;
            line.push('\n');
            self.0.write_all(line.as_bytes()).await?;
            let mut answer = String::new();
            (&mut self.0)
                .take(LONGEST_ANSWER)
                .read_line(&mut answer)
                .await?;
            anyhow::Ok(serde_json::from_str(&answer)?)
        };
        let answer = tokio::time::timeout(DEADLINE, talk).await;
        let answer = answer.context("the node does not answer in time")?;
        match answer.context("the node broke off, or is of another version")? {
            Answer::Refused(why) => Err(Failure::new(why, "").into()),
            answer => Ok(answer),
        }
    }

    /// What the node sees.
    ///
    /// # Errors
    /// As [`Talk::ask`].
    pub(super) async fn status(&mut self) -> anyhow::Result<NodeStatus> {
        match self.ask(&Question::Status).await? {
            Answer::Status(status) => Ok(*status),
            _ => anyhow::bail!("the node answers something else"),
        }
    }

    /// The services as the node sees them.
    ///
    /// # Errors
    /// As [`Talk::ask`].
    pub(super) async fn services(&mut self) -> anyhow::Result<Vec<ServiceSummary>> {
        match self.ask(&Question::Services).await? {
            Answer::Services(services) => Ok(services),
            _ => anyhow::bail!("the node answers something else"),
        }
    }

    /// Who talks to whom: what began or ended after a cursor, or with zeros all.
    ///
    /// # Errors
    /// As [`Talk::ask`].
    pub(super) async fn flows(&mut self, since: FlowsCursor) -> anyhow::Result<FlowsStatus> {
        match self.ask(&Question::Flows { since }).await? {
            Answer::Flows(flows) => Ok(*flows),
            _ => anyhow::bail!("the node answers something else"),
        }
    }
}

/// Listens where commands ask; removes what a node that was killed left there, as the directory is this one's alone.
pub(super) fn listen(state: &Path) -> anyhow::Result<UnixListener> {
    let path = state.join(SOCKET);
    let _ = std::fs::remove_file(&path);
    UnixListener::bind(&path).with_context(|| format!("cannot listen at {}", path.display()))
}

/// Answers until it is dropped.
pub(super) async fn serve(listener: UnixListener, node: Arc<Node>, link: Arc<Http>) {
    let turns = Arc::new(Semaphore::new(CONVERSATIONS));
    let mut conversations = JoinSet::new();
    loop {
        while conversations.try_join_next().is_some() {}
        let Ok(turn) = Arc::clone(&turns).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (node, link) = (Arc::clone(&node), Arc::clone(&link));
        conversations.spawn(async move {
            let mut offered = BTreeMap::new();
            converse(stream, &node, &link, &mut offered).await;
            // Who said that they are there is not there to say so any more.
            for (service, port) in offered {
                if let Err(error) = node.set_ready(&service, port, false) {
                    tracing::warn!("a service that is gone cannot be taken back: {error}");
                }
            }
            drop(turn);
        });
    }
}

async fn converse(
    stream: UnixStream,
    node: &Node,
    link: &Http,
    offered: &mut BTreeMap<String, u16>,
) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        let mut bounded = (&mut stream).take(LONGEST_QUESTION);
        if bounded.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let answer = match serde_json::from_str(&line) {
            Ok(Question::Status) => Answer::Status(Box::new(node.status())),
            Ok(Question::Services) => Answer::Services(node.services()),
            Ok(Question::Rotate) => {
                node.rotate();
                Answer::Done
            }
            Ok(Question::Flows { since }) => Answer::Flows(Box::new(node.flows(since))),
            Ok(Question::Probe { node: name }) => match node.probe(&name).await {
                Ok(None) => Answer::Done,
                Ok(Some(time)) => Answer::Measured {
                    round_trip_us: u64::try_from(time.as_micros()).unwrap_or(u64::MAX),
                },
                Err(Refusal::Denied | Refusal::Unknown) => Answer::Refused(format!(
                    "there is no way to {name:?}: no such node, or policy lets nothing pass"
                )),
                Err(_) => Answer::Silent,
            },
            Ok(Question::Serve {
                service,
                port,
                ready,
            }) => match node
                .may_serve(&service, port)
                .and_then(|()| node.set_ready(&service, port, ready))
            {
                Ok(()) => {
                    offered.insert(service, port);
                    Answer::Done
                }
                Err(error) => Answer::Refused(error.to_string()),
            },
            Ok(Question::Certify { service }) => certify(node, link, service.as_deref()).await,
            Err(_) => Answer::Refused("the question is not understood".to_owned()),
        };
        let mut text = serde_json::to_vec(&answer).ok()?;
        text.push(b'\n');
        let write = stream.write_all(&text);
        // Who does not read is not waited for.
        tokio::time::timeout(DEADLINE, write).await.ok()?.ok()?;
    }
}

async fn certify(node: &Node, link: &Http, service: Option<&str>) -> Answer {
    match node.certify(service, link).await {
        Ok(certified) => Answer::Certified(Box::new(Certified {
            id: certified.certificate.id,
            certificate: certified.certificate.certificate,
            key: Secret::new(certified.key.as_str()),
            bundle: certified.certificate.bundle,
            ends_ms: certified.certificate.ends_ms,
        })),
        Err(error) => Answer::Refused(error.to_string()),
    }
}
