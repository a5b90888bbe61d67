//! A small client of the public API and of the guest's protocol: one kept-alive connection, so
//! that what is measured is Atoll and not the client.

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::net::SocketAddr;
use tokio::net::TcpStream;

/// A kept-alive connection to Atoll.
pub(crate) struct Client {
    sender: SendRequest<Full<Bytes>>,
    address: SocketAddr,
    key: String,
}

/// A sandbox as its creator knows it.
pub(crate) struct Sandbox {
    pub(crate) id: String,
    token: String,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr, key: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            // An error here shows as a failed request, where it is reported.
            let _closed = connection.await;
        });
        Ok(Self {
            sender,
            address,
            key: key.to_owned(),
        })
    }

    async fn send(
        &mut self,
        request: http::request::Builder,
        body: Vec<u8>,
    ) -> Result<(u16, Bytes)> {
        let request = request
            .header(header::HOST, self.address.to_string())
            .header(header::CONTENT_LENGTH, body.len())
            .body(Full::new(Bytes::from(body)))?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let status = response.status().as_u16();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    }

    /// A call to the API; the body of a 2xx answer.
    pub(crate) async fn call(&mut self, method: Method, path: &str, body: &Value) -> Result<Value> {
        let request = Request::builder()
            .method(method.clone())
            .uri(path)
            .header("x-api-key", &self.key)
            .header(header::CONTENT_TYPE, "application/json");
        let body = if body.is_null() {
            Vec::new()
        } else {
            serde_json::to_vec(body)?
        };
        let (status, answer) = self.send(request, body).await?;
        ensure!(
            (200..300).contains(&status),
            "{method} {path}: {status} {}",
            String::from_utf8_lossy(&answer)
        );
        Ok(if answer.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&answer)?
        })
    }

    pub(crate) async fn create(&mut self) -> Result<Sandbox> {
        let body = json!({"templateID": "base", "timeout": 600});
        let answer = self.call(Method::POST, "/v2/sandboxes", &body).await?;
        let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
        Ok(Sandbox {
            id: text("sandboxID"),
            token: text("envdAccessToken"),
        })
    }

    pub(crate) async fn delete(&mut self, sandbox: &Sandbox) -> Result<()> {
        let path = format!("/sandboxes/{}", sandbox.id);
        self.call(Method::DELETE, &path, &Value::Null)
            .await
            .map(drop)
    }

    /// Runs `/bin/bash -l -c COMMAND`, as the SDKs do, and returns when its end is known.
    pub(crate) async fn run(&mut self, sandbox: &Sandbox, command: &str) -> Result<()> {
        let message = serde_json::to_vec(&json!({
            "process": {"cmd": "/bin/bash", "args": ["-l", "-c", command]}, "stdin": false
        }))?;
        let mut body = vec![0];
        body.extend(u32::try_from(message.len())?.to_be_bytes());
        body.extend(message);
        let request = Request::builder()
            .method(Method::POST)
            .uri("/process.Process/Start")
            .header("e2b-sandbox-id", &sandbox.id)
            .header("e2b-sandbox-port", "49983")
            .header("x-access-token", &sandbox.token)
            .header("connect-protocol-version", "1")
            .header(header::CONTENT_TYPE, "application/connect+json");
        let (status, answer) = self.send(request, body).await?;
        let text = String::from_utf8_lossy(&answer);
        ensure!(status == 200, "starting a process: {status} {text}");
        if !text.contains("\"end\"")
            || !text.contains("exit status 0") && !text.contains("\"exited\":true")
        {
            bail!("the command did not end well: {text}");
        }
        Ok(())
    }
}

/// `http://HOST:PORT` to an address.
pub(crate) fn address_of(url: &str) -> Result<SocketAddr> {
    url.strip_prefix("http://")
        .context("the ready line has no http:// address")?
        .parse()
        .with_context(|| format!("`{url}` is no address"))
}
