//! What the agent asks of a guest over its network, when it starts a template.

use api::{
    Secret,
    boot::SETTLE_PATH,
    envd::{
        connect::{EndOfStream, EnvelopeReader, STREAM_JSON, seal},
        process::{EventResponse, ProcessConfig, ProcessEvent, StartRequest},
    },
};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http1::SendRequest};
use hyper_util::rt::TokioIo;
use std::{net::SocketAddr, time::Duration};
use tokio::{net::TcpStream, time::timeout};

/// How long connecting and the head of an answer may take.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// How long a guest may write back what it holds.
const SETTLE_DEADLINE: Duration = Duration::from_secs(60);

/// A longer message of the guest is a fault.
const MESSAGE_MAX: usize = 4 << 20;

/// Why a guest did not do what it was asked.
pub(crate) type CallError = Box<dyn std::error::Error + Send + Sync>;

/// A guest and what opens it.
pub(crate) struct GuestCall {
    pub(crate) address: SocketAddr,
    pub(crate) control_token: Secret,
    pub(crate) access_token: Secret,
}

impl GuestCall {
    /// Makes the guest write back what it holds for the disk and give back memory.
    pub(crate) async fn settle(&self) -> Result<(), CallError> {
        let request = self
            .request(Method::POST, SETTLE_PATH)
            .header("x-atoll-control", self.control_token.expose())
            .body(Full::default())?;
        let mut sender = self.connect().await?;
        let answer = timeout(SETTLE_DEADLINE, sender.send_request(request)).await??;
        match answer.status() {
            StatusCode::NO_CONTENT => Ok(()),
            status => Err(format!("it answered {status}").into()),
        }
    }

    /// Runs a command with a shell as the default user; its exit code.
    pub(crate) async fn run(&self, command: &str, deadline: Duration) -> Result<i32, CallError> {
        let start = StartRequest {
            process: ProcessConfig {
                cmd: "/bin/bash".into(),
                args: vec!["-l".into(), "-c".into(), command.into()],
                ..ProcessConfig::default()
            },
            stdin: Some(false),
            ..StartRequest::default()
        };
        let request = self
            .request(Method::POST, "/process.Process/Start")
            .header("content-type", STREAM_JSON)
            .header("connect-protocol-version", "1")
            .header("x-access-token", self.access_token.expose())
            .body(Full::new(seal(0, &serde_json::to_vec(&start)?)))?;
        let mut sender = self.connect().await?;
        let answer = timeout(ANSWER_DEADLINE, sender.send_request(request)).await??;
        if answer.status() != StatusCode::OK {
            return Err(format!("the guest answered {}", answer.status()).into());
        }
        timeout(deadline, exit_code(answer.into_body())).await?
    }

    fn request(&self, method: Method, path: &str) -> http::request::Builder {
        Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.address.to_string())
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, CallError> {
        let stream = timeout(ANSWER_DEADLINE, TcpStream::connect(self.address)).await??;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Ends when the sender and the answer's body are dropped.
        tokio::spawn(connection);
        Ok(sender)
    }
}

async fn exit_code(mut body: Incoming) -> Result<i32, CallError> {
    let mut envelopes = EnvelopeReader::new(MESSAGE_MAX);
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            envelopes.push(&data);
        }
        while let Some(envelope) = envelopes.take()? {
            if envelope.is_end() {
                let end: EndOfStream = serde_json::from_slice(&envelope.message)?;
                return Err(match end.error {
                    Some(error) => error.message.into(),
                    None => "the command's end is not told".into(),
                });
            }
            let response: EventResponse = serde_json::from_slice(&envelope.message)?;
            if let ProcessEvent::End(end) = response.event {
                return Ok(end.exit_code);
            }
        }
    }
    Err("the connection broke".into())
}
