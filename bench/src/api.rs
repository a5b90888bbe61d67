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

impl Sandbox {
    fn of(answer: &Value) -> Self {
        let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
        Self {
            id: text("sandboxID"),
            token: text("envdAccessToken"),
        }
    }
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr, key: &str) -> Result<Self> {
        Self::over(TcpStream::connect(address).await?, key).await
    }

    /// Over a connection that is there.
    pub(crate) async fn over(stream: TcpStream, key: &str) -> Result<Self> {
        let address = stream.peer_addr()?;
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
        Ok(Sandbox::of(&answer))
    }

    /// Pauses a sandbox, and returns when it is paused.
    pub(crate) async fn pause(&mut self, sandbox: &Sandbox, memory: bool) -> Result<()> {
        let path = format!("/sandboxes/{}/pause", sandbox.id);
        let body = json!({ "memory": memory });
        self.call(Method::POST, &path, &body).await.map(drop)
    }

    /// Resumes a paused sandbox.
    pub(crate) async fn resume(&mut self, sandbox: &Sandbox) -> Result<()> {
        let path = format!("/sandboxes/{}/resume", sandbox.id);
        let body = json!({ "timeout": 600 });
        self.call(Method::POST, &path, &body).await.map(drop)
    }

    /// Forks a sandbox; all children must start.
    pub(crate) async fn fork(&mut self, sandbox: &Sandbox, count: usize) -> Result<Vec<Sandbox>> {
        let path = format!("/sandboxes/{}/fork", sandbox.id);
        let body = json!({ "count": count, "timeout": 600 });
        let answer = self.call(Method::POST, &path, &body).await?;
        let children = answer.as_array().context("no children")?.iter();
        children
            .map(|child| {
                ensure!(child["error"].is_null(), "a child failed: {child}");
                Ok(Sandbox::of(&child["sandbox"]))
            })
            .collect()
    }

    pub(crate) async fn delete(&mut self, sandbox: &Sandbox) -> Result<()> {
        let path = format!("/sandboxes/{}", sandbox.id);
        self.call(Method::DELETE, &path, &Value::Null)
            .await
            .map(drop)
    }

    /// Runs `/bin/bash -l -c COMMAND`, as the SDKs do, and returns when its end is known.
    pub(crate) async fn run(&mut self, sandbox: &Sandbox, command: &str) -> Result<()> {
        let (request, body) = start_process(command)?;
        let request = request
            .header("e2b-sandbox-id", &sandbox.id)
            .header("e2b-sandbox-port", "49983")
            .header("x-access-token", &sandbox.token);
        let (status, answer) = self.send(request, body).await?;
        ended_well(status, &answer)
    }

    /// A PUT to a guest that is no sandbox yet; it answers 204.
    pub(crate) async fn put(&mut self, path: &str, control: &str, body: &Value) -> Result<()> {
        let request = Request::builder()
            .method(Method::PUT)
            .uri(path)
            .header("x-atoll-control", control)
            .header(header::CONTENT_TYPE, "application/json");
        let (status, answer) = self.send(request, serde_json::to_vec(body)?).await?;
        let text = String::from_utf8_lossy(&answer);
        ensure!(status == 204, "PUT {path}: {status} {text}");
        Ok(())
    }

    /// The same command, asked of a guest itself.
    pub(crate) async fn run_inside(&mut self, token: &str, command: &str) -> Result<()> {
        let (request, body) = start_process(command)?;
        let request = request.header("x-access-token", token);
        let (status, answer) = self.send(request, body).await?;
        ended_well(status, &answer)
    }
}

fn start_process(command: &str) -> Result<(http::request::Builder, Vec<u8>)> {
    let message = serde_json::to_vec(&json!({
        "process": {"cmd": "/bin/bash", "args": ["-l", "-c", command]}, "stdin": false
    }))?;
    let mut body = vec![0];
    body.extend(u32::try_from(message.len())?.to_be_bytes());
    body.extend(message);
    let request = Request::builder()
        .method(Method::POST)
        .uri("/process.Process/Start")
        .header("connect-protocol-version", "1")
        .header(header::CONTENT_TYPE, "application/connect+json");
    Ok((request, body))
}

fn ended_well(status: u16, answer: &[u8]) -> Result<()> {
    let text = String::from_utf8_lossy(answer);
    ensure!(status == 200, "starting a process: {status} {text}");
    if !text.contains("\"end\"")
        || !text.contains("exit status 0") && !text.contains("\"exited\":true")
    {
        bail!("the command did not end well: {text}");
    }
    Ok(())
}

/// `http://HOST:PORT` to an address.
pub(crate) fn address_of(url: &str) -> Result<SocketAddr> {
    url.strip_prefix("http://")
        .context("the ready line has no http:// address")?
        .parse()
        .with_context(|| format!("`{url}` is no address"))
}
