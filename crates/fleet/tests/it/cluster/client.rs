//! A gRPC client by hand: HTTP/2 by hyper, the rest as gRPC's protocol says.

use bytes::{BufMut, Bytes, BytesMut};
use fleet::externalgrpc::Call;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};

/// A connection; it ends when it is dropped.
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How a call ended: gRPC's status code, with the words or the message.
pub type Answer = Result<Bytes, (i32, String)>;

impl Client {
    pub async fn new(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> hyper::Result<Self> {
        let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        let task = tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Self { sender, task })
    }

    pub async fn call(&mut self, call: Call, message: &[u8]) -> hyper::Result<Answer> {
        self.call_within(&call.path(), message, "5S").await
    }

    pub async fn call_within(
        &mut self,
        path: &str,
        message: &[u8],
        timeout: &str,
    ) -> hyper::Result<Answer> {
        let mut body = BytesMut::with_capacity(message.len() + 5);
        body.put_u8(0);
        body.put_u32(message.len() as u32);
        body.put_slice(message);
        let request = http::Request::post(format!("http://fleet{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("grpc-timeout", timeout)
            .body(Full::new(body.freeze()))
            .unwrap();
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let headers = response.headers().clone();
        let collected = response.into_body().collect().await?;
        let trailers = collected.trailers().cloned().unwrap_or(headers);
        let said = |name: &str| {
            let value = trailers.get(name).and_then(|one| one.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let code = said("grpc-status").parse().unwrap_or(-1);
        let mut bytes = collected.to_bytes();
        if code != 0 {
            return Ok(Err((code, said("grpc-message"))));
        }
        let head = bytes.split_to(5);
        assert_eq!(head[0], 0, "not compressed");
        assert_eq!(head[1..], (bytes.len() as u32).to_be_bytes());
        Ok(Ok(bytes))
    }
}
