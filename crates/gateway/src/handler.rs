//! What answers the requests that are not for a sandbox.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use std::{convert::Infallible, error::Error, net::SocketAddr};
use tower_service::Service;

/// A body of the API's.
pub type ApiBody = UnsyncBoxBody<Bytes, Box<dyn Error + Send + Sync>>;

/// Where a request came from; an extension of every request that the API gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientAddress(pub SocketAddr);

/// The API behind the door.
#[async_trait::async_trait]
pub trait ApiHandler: Send + Sync + 'static {
    /// Answers one request. Dropped when the client goes away.
    async fn call(&self, request: Request<Incoming>) -> Response<ApiBody>;
}

/// Makes an [`ApiHandler`] of a tower service that is cheap to clone, such as an `axum::Router`.
#[derive(Debug, Clone)]
pub struct TowerApi<S>(pub S);

#[async_trait::async_trait]
impl<S, B> ApiHandler for TowerApi<S>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    async fn call(&self, request: Request<Incoming>) -> Response<ApiBody> {
        let mut service = self.0.clone();
        let ready = std::future::poll_fn(|context| service.poll_ready(context)).await;
        let Ok(response) = match ready {
            Ok(()) => service.call(request).await,
            Err(never) => match never {},
        };
        response.map(|body| body.map_err(Into::into).boxed_unsync())
    }
}
