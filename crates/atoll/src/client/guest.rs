//! The guest of one sandbox, reached through the gateway.

use crate::client::{
    Client, REQUEST_DEADLINE,
    connect::{Messages, RpcError, envelope},
    refusal,
    sandboxes::Opened,
};
use anyhow::Context;
use base64::{Engine, prelude::BASE64_STANDARD};
use reqwest::{Method, RequestBuilder, Response};
use serde::{Serialize, de::DeserializeOwned};

/// The port that every guest serves on.
const GUEST_PORT: u16 = 49983;

/// One sandbox's guest.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    client: Client,
    sandbox: Opened,
    /// Who commands run as and files belong to; the template's default if none.
    user: Option<String>,
}

impl Guest {
    /// The guest of `sandbox`, acting as `user`.
    pub(crate) fn new(client: Client, sandbox: Opened, user: Option<String>) -> Self {
        Self {
            client,
            sandbox,
            user,
        }
    }

    /// Who commands run as, if not the template's default.
    pub(crate) fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// A request to the guest. `path` begins with a slash and is already encoded.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let base = self.client.sandbox_url.as_str().trim_end_matches('/');
        let mut request = self
            .client
            .http
            .request(method, format!("{base}{path}"))
            .header("E2b-Sandbox-Id", self.sandbox.id.as_str())
            .header("E2b-Sandbox-Port", GUEST_PORT);
        if let Some(token) = &self.sandbox.envd_access_token {
            request = request.header("X-Access-Token", token.expose());
        }
        if let Some(user) = &self.user {
            let basic = BASE64_STANDARD.encode(format!("{user}:"));
            request = request.header("Authorization", format!("Basic {basic}"));
        }
        request
    }

    /// Sends a request; an answer that is no success becomes an error.
    ///
    /// # Errors
    /// [`RpcError`] if the guest refused in its protocol's words, else [`api::Problem`].
    pub(crate) async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let response = request
            .send()
            .await
            .map_err(|error| self.client.explain(error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        if response.status().as_u16() == 502 {
            return Err(refusal(response).await);
        }
        let status = response.status();
        let body = response.bytes().await.unwrap_or_default();
        Err(match serde_json::from_slice::<RpcError>(&body) {
            Ok(error) => error.into(),
            Err(_) => super::to_problem(status, &body).into(),
        })
    }

    /// Calls a method that answers once, such as `process.Process/SendInput`.
    ///
    /// # Errors
    /// [`RpcError`] when the guest refuses.
    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        message: &impl Serialize,
    ) -> anyhow::Result<T> {
        let request = self
            .request(Method::POST, &format!("/{method}"))
            .header("Connect-Protocol-Version", "1")
            .timeout(REQUEST_DEADLINE)
            .json(message);
        let body = self
            .send(request)
            .await?
            .bytes()
            .await
            .context("the answer broke off")?;
        serde_json::from_slice(&body).context("the sandbox sent something that is not understood")
    }

    /// Calls a method that answers with a stream, such as `process.Process/Start`.
    ///
    /// # Errors
    /// [`RpcError`] when the guest refuses.
    pub(crate) async fn stream(
        &self,
        method: &str,
        message: &impl Serialize,
    ) -> anyhow::Result<Messages> {
        let request = self
            .request(Method::POST, &format!("/{method}"))
            .header("Connect-Protocol-Version", "1")
            .header("Content-Type", "application/connect+json")
            .header("Keepalive-Ping-Interval", "50")
            .body(envelope(&serde_json::to_vec(message)?));
        Ok(Messages::new(self.send(request).await?))
    }
}
