//! The client of Atoll's public API, used by every command but `up` and `doctor`.
//!
//! It speaks only what any other client could speak: the REST API ([`sandboxes`], [`states`], [`templates`])
//! and the guest's protocol ([`guest`], [`process`], [`files`]) through the gateway.

pub(crate) mod connect;
pub(crate) mod connection;
pub(crate) mod files;
pub(crate) mod guest;
pub(crate) mod process;
pub(crate) mod sandboxes;
pub(crate) mod states;
pub(crate) mod templates;

use crate::failure::Failure;
use anyhow::Context;
use api::{ErrorCode, Problem, Secret, error::ProblemBody};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::{Serialize, de::DeserializeOwned};
use std::time::Duration;

/// How long one request and its answer may take; streams have no such limit.
const REQUEST_DEADLINE: Duration = Duration::from_secs(60);
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// A connection to one Atoll.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    url: Url,
    sandbox_url: Url,
    key: Option<Secret>,
}

impl Client {
    /// A client of the API at `url` that reaches sandboxes at `sandbox_url`.
    ///
    /// # Errors
    /// When the HTTP client cannot be set up.
    pub(crate) fn new(url: Url, sandbox_url: Url, key: Option<Secret>) -> anyhow::Result<Self> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("atoll/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_DEADLINE)
            .tcp_nodelay(true);
        if connection::is_local(&url) {
            builder = builder.no_proxy();
        }
        if url.scheme() == "http" && sandbox_url.scheme() == "http" {
            // Reading the system's certificates takes longer than creating a sandbox.
            builder = builder.tls_built_in_root_certs(false);
        }
        let http = builder.build().context("cannot set up the HTTP client")?;
        Ok(Self {
            http,
            url,
            sandbox_url,
            key,
        })
    }

    /// Where the API is.
    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    /// A request to the REST API. `path` begins with a slash and is already encoded.
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let base = self.url.as_str().trim_end_matches('/');
        let request = self.http.request(method, format!("{base}{path}"));
        match &self.key {
            Some(key) => request.header("X-API-KEY", key.expose()),
            None => request,
        }
    }

    /// Sends a request; an answer that is no success becomes an [`api::Problem`].
    async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let response = request.send().await.map_err(|error| self.explain(error))?;
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(refusal(response).await)
        }
    }

    /// Why nothing was answered.
    fn explain(&self, error: reqwest::Error) -> anyhow::Error {
        if error.is_connect() {
            let hint = if connection::is_local(&self.url) {
                "start Atoll with `atoll up`, or name another address with --url or ATOLL_URL"
            } else {
                "check the address given with --url, ATOLL_URL or E2B_API_URL"
            };
            return Failure::new(format!("nothing answers at {}", self.url), hint).into();
        }
        if error.is_timeout() {
            return Failure::new(
                format!("{} did not answer in time", self.url),
                "see what `atoll up` prints, and try again",
            )
            .into();
        }
        anyhow::Error::from(error.without_url()).context(format!("cannot reach {}", self.url))
    }

    /// Asks for something and reads the JSON answer.
    ///
    /// # Errors
    /// [`api::Problem`] when it is refused.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let request = self.request(Method::GET, path).timeout(REQUEST_DEADLINE);
        read(self.send(request).await?).await
    }

    /// Sends JSON and reads the JSON answer.
    ///
    /// # Errors
    /// [`api::Problem`] when it is refused.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        self.post_patiently(path, body, REQUEST_DEADLINE).await
    }

    /// The same for what takes longer.
    ///
    /// # Errors
    /// [`api::Problem`] when it is refused.
    pub(crate) async fn post_patiently<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        deadline: Duration,
    ) -> anyhow::Result<T> {
        let request = self
            .request(Method::POST, path)
            .timeout(deadline)
            .json(body);
        read(self.send(request).await?).await
    }

    /// Sends JSON; the answer has no body that matters.
    ///
    /// # Errors
    /// [`api::Problem`] when it is refused.
    pub(crate) async fn tell(&self, path: &str, body: &impl Serialize) -> anyhow::Result<()> {
        self.tell_patiently(path, body, REQUEST_DEADLINE).await
    }

    /// The same for what takes longer.
    ///
    /// # Errors
    /// [`api::Problem`] when it is refused.
    pub(crate) async fn tell_patiently(
        &self,
        path: &str,
        body: &impl Serialize,
        deadline: Duration,
    ) -> anyhow::Result<()> {
        let request = self
            .request(Method::POST, path)
            .timeout(deadline)
            .json(body);
        self.send(request).await.map(drop)
    }

    /// Sends JSON and hands back the answer while it is still being written.
    ///
    /// # Errors
    /// [`api::Problem`] when it is refused.
    pub(crate) async fn post_streamed(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<Response> {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    /// Puts JSON in the place of what was there; the answer has no body that matters.
    ///
    /// # Errors
    /// [`api::Problem`] when it is refused.
    pub(crate) async fn put(&self, path: &str, body: &impl Serialize) -> anyhow::Result<()> {
        let request = self.request(Method::PUT, path).timeout(REQUEST_DEADLINE);
        self.send(request.json(body)).await.map(drop)
    }

    /// Removes something.
    ///
    /// # Errors
    /// [`api::Problem`] when it is refused.
    pub(crate) async fn delete(&self, path: &str) -> anyhow::Result<()> {
        let request = self.request(Method::DELETE, path).timeout(REQUEST_DEADLINE);
        self.send(request).await.map(drop)
    }

    /// Removes what the body names.
    ///
    /// # Errors
    /// [`api::Problem`] when it is refused.
    pub(crate) async fn delete_with(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<()> {
        let request = self
            .request(Method::DELETE, path)
            .timeout(REQUEST_DEADLINE)
            .json(body);
        self.send(request).await.map(drop)
    }

    /// Asks for a page of a list: its items, and the token of the next page if there is one.
    async fn page<T: DeserializeOwned>(
        &self,
        path: &str,
    ) -> anyhow::Result<(Vec<T>, Option<String>)> {
        let request = self.request(Method::GET, path).timeout(REQUEST_DEADLINE);
        let response = self.send(request).await?;
        let token = response
            .headers()
            .get("x-next-token")
            .and_then(|value| value.to_str().ok())
            .map(String::from);
        Ok((read(response).await?, token))
    }
}

async fn read<T: DeserializeOwned>(response: Response) -> anyhow::Result<T> {
    let body = response.bytes().await.context("the answer broke off")?;
    serde_json::from_slice(&body).context("the answer is not understood: is this an Atoll?")
}

/// The error that a refused request stands for.
pub(crate) async fn refusal(response: Response) -> anyhow::Error {
    let status = response.status();
    let body = response.bytes().await.unwrap_or_default();
    to_problem(status, &body).into()
}

fn to_problem(status: StatusCode, body: &[u8]) -> Problem {
    let body: Option<ProblemBody> = serde_json::from_slice(body).ok().or_else(|| {
        // A code from a newer Atoll must not hide the message.
        let value: serde_json::Value = serde_json::from_slice(body).ok()?;
        Some(ProblemBody {
            code: status.as_u16(),
            message: value.get("message")?.as_str()?.to_owned(),
            error_code: None,
            remedy: value
                .get("remedy")
                .and_then(|text| text.as_str())
                .map(String::from),
        })
    });
    let code = body
        .as_ref()
        .and_then(|body| body.error_code)
        .unwrap_or_else(|| match status.as_u16() {
            401 => ErrorCode::Unauthenticated,
            403 => ErrorCode::PermissionDenied,
            404 => ErrorCode::NotFound,
            409 => ErrorCode::Conflict,
            429 => ErrorCode::LimitReached,
            400..=499 => ErrorCode::InvalidArgument,
            502..=504 => ErrorCode::Unavailable,
            507 => ErrorCode::OutOfDisk,
            _ => ErrorCode::Internal,
        });
    let (cause, remedy) = match body {
        Some(body) => (body.message, body.remedy.unwrap_or_default()),
        None => (format!("the server answered {status}"), String::new()),
    };
    let remedy = match code {
        ErrorCode::Unauthenticated if remedy.is_empty() => {
            "give the key with --api-key-file, ATOLL_API_KEY or E2B_API_KEY; \
             `atoll up` prints where it keeps its own"
                .to_owned()
        }
        _ => remedy,
    };
    Problem::new(
        code,
        crate::style::harmless(&cause),
        crate::style::harmless(&remedy),
    )
}

/// One part of a path or query, percent-encoded.
pub(crate) fn encode(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_keep_message_and_remedy() {
        let body = br#"{"code":404,"message":"no such thing","error_code":"not_found","remedy":"make one"}"#;
        let problem = to_problem(StatusCode::NOT_FOUND, body);
        assert_eq!(
            (
                problem.code,
                problem.cause.as_str(),
                problem.remedy.as_str()
            ),
            (ErrorCode::NotFound, "no such thing", "make one")
        );
        let newer = br#"{"code":409,"message":"busy","error_code":"a_word_of_tomorrow"}"#;
        assert_eq!(to_problem(StatusCode::CONFLICT, newer).cause, "busy");
        assert_eq!(
            to_problem(StatusCode::BAD_GATEWAY, b"<html>").cause,
            "the server answered 502 Bad Gateway"
        );
    }
}
