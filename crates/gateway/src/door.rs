//! Every request comes through here and is sent to the API or to a sandbox.

use crate::{
    GUEST_PORT,
    body::Body,
    connection::Active,
    cors,
    handler::{ApiHandler, ClientAddress},
    headers,
    host::{self, Clues, Destination, Target},
    metrics::count,
    options::Limits,
    proxy,
    refusal::{self, Refusal},
    registry::{Registry, client_of},
    sandbox::Sandboxes,
    search::Searches,
    signature::{self, SignedUrl},
    tls::Certificates,
    wake::Wakes,
};
use api::{
    SandboxId,
    route::{Locate, Route},
};
use http::{
    HeaderValue, Method, Request, Response,
    header::{CONTENT_SECURITY_POLICY, HOST, SET_COOKIE, X_CONTENT_TYPE_OPTIONS},
};
use hyper::body::Incoming;
use std::sync::Arc;
use tokio_util::task::TaskTracker;

/// What all connections share.
pub(crate) struct Door {
    pub(crate) locate: Arc<dyn Locate>,
    pub(crate) api: Arc<dyn ApiHandler>,
    pub(crate) domain: Option<String>,
    pub(crate) limits: Limits,
    pub(crate) certificates: Option<Certificates>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) sandboxes: Arc<Sandboxes>,
    pub(crate) tasks: TaskTracker,
    pub(crate) searches: Searches,
    pub(crate) wakes: Wakes,
}

impl Door {
    /// Answers one request.
    pub(crate) async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        active: Active,
    ) -> Response<Body> {
        let navigates = refusal::is_navigation(request.headers());
        let response = match self.route(request, &active).await {
            Ok(response) => response,
            Err(refusal) => {
                count(&self.registry.counters.errors);
                tracing::debug!(%refusal, peer = %active.0.peer, "refused");
                refusal.response(navigates)
            }
        };
        response.map(|body| body.with_active(active))
    }

    async fn route(
        self: &Arc<Self>,
        mut request: Request<Incoming>,
        active: &Active,
    ) -> Result<Response<Body>, Refusal> {
        if request.method() == Method::CONNECT {
            return Err(Refusal::Connect);
        }
        let host = host_of(&request)?;
        let query = request.uri().query().unwrap_or("");
        let clues = Clues {
            host: host.to_str().unwrap_or(""),
            sandbox_id: request
                .headers()
                .get(headers::SANDBOX_ID)
                .map(HeaderValue::as_bytes),
            sandbox_port: request
                .headers()
                .get(headers::SANDBOX_PORT)
                .map(HeaderValue::as_bytes),
            signed: request.uri().path() == "/files" && signature::is_signed(query),
        };
        match host::decide(clues, self.domain.as_deref())? {
            Destination::Api => {
                count(&self.registry.counters.api_requests);
                if cors::is_preflight(&request) {
                    return Ok(cors::allow_preflight(request.headers()));
                }
                request
                    .extensions_mut()
                    .insert(ClientAddress(active.0.peer));
                let mut response = self.api.call(request).await.map(Body::api);
                cors::allow_reading(response.headers_mut());
                Ok(response)
            }
            Destination::Sandbox(target) => {
                count(&self.registry.counters.sandbox_requests);
                let head = Some((request.headers(), request.uri()));
                let (id, route) = proxy::find(self, &target, head).await?;
                proxy::forward(self, active, &target, (&id, &route), host, request).await
            }
            Destination::Signed => {
                count(&self.registry.counters.sandbox_requests);
                if cors::is_preflight(&request) {
                    return Ok(cors::allow_preflight(request.headers()));
                }
                let (id, route) = self.find_signed(active, request.method(), query).await?;
                let target = Target {
                    sandbox: id.to_string(),
                    port: GUEST_PORT,
                };
                let forwarded =
                    proxy::forward(self, active, &target, (&id, &route), host, request).await;
                forwarded.map(isolate)
            }
        }
    }

    async fn find_signed(
        &self,
        active: &Active,
        method: &Method,
        query: &str,
    ) -> Result<(SandboxId, Route), Refusal> {
        let url = SignedUrl::parse(query).ok_or(Refusal::UnknownSignature)?;
        let _turn = self.searches.wait(client_of(active.0.peer.ip())).await?;
        let mut routes = self.locate.routes().await;
        match url.find(method, routes.iter().map(|(_, route)| route)) {
            Some(index) if index < routes.len() => Ok(routes.swap_remove(index)),
            _ => Err(Refusal::UnknownSignature),
        }
    }
}

/// The host that a request is for: its target's if it names one, else the Host header.
fn host_of(request: &Request<Incoming>) -> Result<HeaderValue, Refusal> {
    let mut fields = request.headers().get_all(HOST).iter();
    let field = fields.next();
    if fields.next().is_some() {
        return Err(Refusal::AmbiguousHost);
    }
    if let Some(authority) = request.uri().authority() {
        return HeaderValue::try_from(authority.as_str())
            .map_err(|_| host::DecideError::InvalidHost.into());
    }
    field
        .cloned()
        .ok_or_else(|| host::DecideError::InvalidHost.into())
}

/// Keeps what a sandbox answers on the API's own address from acting as a page of the API's.
fn isolate(mut response: Response<Body>) -> Response<Body> {
    let headers = response.headers_mut();
    headers.remove(SET_COOKIE);
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
