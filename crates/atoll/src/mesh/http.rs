//! The way to the coordinator: HTTP. Nothing that comes over it is trusted: what matters is signed, and no answer may be endless.

use crate::{client::connection::is_local, style};
use anyhow::Context;
use mesh::{
    coordination::{JoinAnswer, JoinRequest, NodeRecord, Signed, WatchRequest},
    node::{Heard, Link, LinkError},
    workload::{Certificate, CertifyRequest},
};
use reqwest::{Response, StatusCode, Url};
use serde::{Serialize, de::DeserializeOwned};
use std::time::Duration;

/// Longer than a coordinator waits for something new.
const DEADLINE: Duration = Duration::from_secs(40);
const CONNECT: Duration = Duration::from_secs(5);
/// The longest answer: a whole map.
const LONGEST: usize = 40 << 20;
/// The longest refusal that is read and shown.
const LONGEST_REFUSAL: usize = 16 << 10;

/// A coordinator behind HTTP.
pub(super) struct Http {
    client: reqwest::Client,
    base: String,
}

impl Http {
    /// The one at this address; nothing is sent yet.
    pub(super) fn new(url: &Url) -> anyhow::Result<Self> {
        let mut builder = reqwest::Client::builder()
            .timeout(DEADLINE)
            .connect_timeout(CONNECT)
            .redirect(reqwest::redirect::Policy::none());
        if is_local(url) {
            builder = builder.no_proxy();
        }
        if url.scheme() == "http" {
            builder = builder.tls_built_in_root_certs(false);
        }
        Ok(Self {
            client: builder.build().context("cannot set up the HTTP client")?,
            base: url.as_str().trim_end_matches('/').to_owned(),
        })
    }

    async fn post(&self, path: &str, body: &impl Serialize) -> Result<Response, LinkError> {
        let request = self.client.post(format!("{}{path}", self.base)).json(body);
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        if status.is_success() || status == StatusCode::GONE {
            return Ok(response);
        }
        let body = read(response, LONGEST_REFUSAL).await.unwrap_or_default();
        let said: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
        let why = said
            .as_ref()
            .and_then(|said| said.get("message")?.as_str())
            .map_or_else(|| format!("it answers {status}"), style::harmless);
        let later = status.is_server_error()
            || matches!(
                status,
                StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
            );
        Err(if later {
            LinkError::Unreachable(why)
        } else {
            LinkError::Refused(why)
        })
    }
}

fn unreachable(error: reqwest::Error) -> LinkError {
    let kind = if error.is_connect() {
        "no connection"
    } else if error.is_timeout() {
        "no answer in time"
    } else {
        "the answer broke off"
    };
    LinkError::Unreachable(kind.to_owned())
}

/// The body, if it is not longer than that.
async fn read(mut response: Response, longest: usize) -> Result<Vec<u8>, LinkError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if body.len() + chunk.len() > longest {
            return Err(LinkError::Unreachable("the answer is too long".to_owned()));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

async fn understand<T: DeserializeOwned>(response: Response) -> Result<T, LinkError> {
    let body = read(response, LONGEST).await?;
    serde_json::from_slice(&body)
        .map_err(|_| LinkError::Unreachable("the answer is not understood".to_owned()))
}

impl Link for Http {
    async fn join(&self, request: &JoinRequest) -> Result<JoinAnswer, LinkError> {
        understand(self.post("/v1/mesh/join", request).await?).await
    }

    async fn update(&self, record: &Signed<NodeRecord>) -> Result<(), LinkError> {
        self.post("/v1/mesh/record", record).await.map(drop)
    }

    async fn watch(&self, request: &Signed<WatchRequest>) -> Result<Heard, LinkError> {
        let answer = self.post("/v1/mesh/watch", request).await?;
        Ok(match answer.status() {
            StatusCode::NO_CONTENT => Heard::Nothing,
            StatusCode::GONE => Heard::Farewell(understand(answer).await?),
            _ => Heard::Frame(Box::new(understand(answer).await?)),
        })
    }

    async fn certify(
        &self,
        request: &Signed<CertifyRequest>,
    ) -> Result<Signed<Certificate>, LinkError> {
        understand(self.post("/v1/mesh/certificate", request).await?).await
    }
}
