//! The guest's port: HTTP/1.1 connections, and which route is whose.

pub mod access;
pub mod body;
mod calls;
pub mod connections;
pub mod reply;
pub mod rpc;

use crate::{
    accounts::User,
    files,
    filesystem::watchers::Watchers,
    logs::Logs,
    machine::{self, Machine},
    metrics,
    process::table::Table,
    role::Role,
};
use access::FilesQuery;
use api::boot::{IDENTITY_PATH, SETTLE_PATH};
use body::ReplyBody;
use bytes::Bytes;
use connections::Connections;
use http::{HeaderValue, Method, Request, StatusCode, header};
use hyper::{
    body::{Body, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use reply::{Failure, Reply, empty, json};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    convert::Infallible,
    ffi::CString,
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::net::{TcpListener, TcpStream};

/// Connections at once; more wait in the kernel's queue.
const CONNECTION_LIMIT: usize = 1024;
/// How long a connection may wait for the next request and its head: longer than any client or
/// gateway keeps an idle connection, so that it is never we who close one that is about to be used.
const HEAD_TIMEOUT: Duration = Duration::from_secs(640);
const HEADER_LIMIT: usize = 100;
/// Buffers of a connection, each way.
const BUFFER_LIMIT: usize = 128 << 10;

/// Where programs are looked for if the environment does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// All that the guest knows.
#[derive(Debug)]
pub struct Guest {
    /// Who it is; see [`Guest::role`].
    pub role: RefCell<Rc<Role>>,
    /// What it keeps as the first process of a microVM.
    pub machine: Option<Machine>,
    /// Connections that are open.
    pub connections: Rc<Connections>,
    /// Processes that were started here.
    pub processes: Rc<Table>,
    /// What happened.
    pub logs: Rc<Logs>,
    /// Watchers that clients poll.
    pub watchers: Watchers,
    /// Processor time at the last call for metrics.
    pub cpu_sample: Cell<metrics::CpuSample>,
    /// Whether processes can run as other users.
    pub can_change_user: bool,
    /// For children: the kernel ends them before the guest when memory is short.
    pub child_oom_score: CString,
}

impl Guest {
    /// Who it is now. Not to be kept across a wait: it may be somebody else afterwards.
    pub fn role(&self) -> Rc<Role> {
        Rc::clone(&self.role.borrow())
    }

    /// The variables of a user's process.
    pub fn environment_of(&self, user: &User) -> BTreeMap<String, String> {
        let path = std::env::var("PATH").ok().filter(|path| !path.is_empty());
        let mut environment = BTreeMap::from([
            (
                "PATH".to_owned(),
                path.unwrap_or_else(|| DEFAULT_PATH.to_owned()),
            ),
            ("HOME".to_owned(), user.home.to_string_lossy().into_owned()),
            ("USER".to_owned(), user.name.clone()),
            ("LOGNAME".to_owned(), user.name.clone()),
        ]);
        environment.extend(self.role().environment.clone());
        environment
    }
}

/// Serves for ever.
pub async fn serve(guest: Rc<Guest>, listener: TcpListener) {
    let connections = std::sync::Arc::new(tokio::sync::Semaphore::new(CONNECTION_LIMIT));
    loop {
        let Ok(permit) = std::sync::Arc::clone(&connections).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let guest = Rc::clone(&guest);
                tokio::task::spawn_local(async move {
                    serve_connection(guest, stream).await;
                    drop(permit);
                });
            }
            Err(error) => {
                let message = format!("cannot accept a connection: {error}");
                guest.logs.add(api::node::LogLevel::Error, message, &[]);
                // Out of descriptors, most likely: they come back when connections end.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve_connection(guest: Rc<Guest>, stream: TcpStream) {
    // Events are small and must not wait for each other.
    let _ = stream.set_nodelay(true);
    let entry = guest.connections.enter();
    let id = entry.id;
    let service = service_fn(move |mut request: Request<Incoming>| {
        let guest = Rc::clone(&guest);
        request.extensions_mut().insert(id);
        async move { Ok::<_, Infallible>(answer(&guest, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(HEADER_LIMIT)
        .max_buf_size(BUFFER_LIMIT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // Fails when the client goes away or talks nonsense: nothing to be done here.
        _ = connection => {}
        () = entry.closing() => {}
    }
}

async fn answer(guest: &Rc<Guest>, request: Request<Incoming>) -> Reply {
    let cross_origin = request.headers().contains_key(header::ORIGIN);
    let mut reply = if cross_origin && request.method() == Method::OPTIONS {
        preflight(&request)
    } else {
        route(guest, request).await
    };
    if cross_origin {
        let headers = reply.headers_mut();
        let any = HeaderValue::from_static("*");
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, any.clone());
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, any);
    }
    reply
}

/// Pages of any origin may call: what protects a sandbox is its token, not the browser's rules.
fn preflight(request: &Request<Incoming>) -> Reply {
    let mut reply = empty(StatusCode::NO_CONTENT);
    let headers = reply.headers_mut();
    let methods = HeaderValue::from_static("GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS");
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
    let wanted = request
        .headers()
        .get(header::ACCESS_CONTROL_REQUEST_HEADERS);
    let allowed = wanted
        .cloned()
        .unwrap_or_else(|| HeaderValue::from_static("*"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
    headers.insert(
        header::ACCESS_CONTROL_MAX_AGE,
        HeaderValue::from_static("7200"),
    );
    headers.insert(header::VARY, HeaderValue::from_static("Origin"));
    reply
}

async fn route(guest: &Rc<Guest>, request: Request<Incoming>) -> Reply {
    let query = request.uri().query().unwrap_or_default();
    match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/health") => return empty(StatusCode::NO_CONTENT),
        (&Method::PUT, IDENTITY_PATH) | (&Method::POST, SETTLE_PATH)
            if guest.machine.is_some() && access::has_control_token(guest, request.headers()) =>
        {
            let outcome = machine::answer(guest, request).await;
            return outcome.unwrap_or_else(Failure::reply);
        }
        _ if !guest.role().claimed => {
            let message = "this machine is nobody's yet";
            return Failure::new(StatusCode::SERVICE_UNAVAILABLE, message).reply();
        }
        (&Method::GET, "/files") => {
            let query = FilesQuery::parse(query);
            let outcome = files::download::download(guest, &request, &query).await;
            return outcome.unwrap_or_else(Failure::reply);
        }
        (&Method::POST, "/files") => {
            let query = FilesQuery::parse(query);
            let outcome = files::upload::upload(guest, request, &query).await;
            return outcome.unwrap_or_else(Failure::reply);
        }
        (&Method::GET, "/_atoll/logs") if access::has_control_token(guest, request.headers()) => {
            return logs(guest, query);
        }
        _ => {}
    }
    if !access::has_token(guest, request.headers()) {
        let message = "unauthorized access, please provide a valid access token or method signing \
                       if supported";
        return Failure::unauthorized(message).reply();
    }
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => {
            let sample = metrics::measure(&guest.cpu_sample);
            sample.map_or_else(Failure::reply, |metrics| json(&metrics))
        }
        (&Method::GET, "/envs") => json(&guest.role().environment),
        (&Method::POST, "/files/compose") => {
            let outcome = files::compose::compose(guest, request).await;
            outcome.unwrap_or_else(Failure::reply)
        }
        (_, "/health" | "/files" | "/metrics" | "/envs" | "/files/compose") => {
            Failure::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed").reply()
        }
        _ => {
            let answer = calls::answer(guest, request).await;
            answer.unwrap_or_else(|| {
                Failure::new(StatusCode::NOT_FOUND, "404 page not found").reply()
            })
        }
    }
}

/// `GET /_atoll/logs?after=SEQ&follow=1`: lines of JSON, for the node alone.
fn logs(guest: &Rc<Guest>, query: &str) -> Reply {
    let parameter = |wanted: &str| {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs
            .filter(|(name, _)| *name == wanted)
            .map(|(_, value)| value)
            .next()
    };
    let after = parameter("after")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let follow = matches!(parameter("follow"), Some("1" | "true"));
    let body = LogBody {
        logs: Rc::clone(&guest.logs),
        after,
        follow,
        waiting: None,
    };
    let mut reply = http::Response::new(ReplyBody::stream(body));
    let lines = HeaderValue::from_static("application/x-ndjson");
    reply.headers_mut().insert(header::CONTENT_TYPE, lines);
    reply
}

struct LogBody {
    logs: Rc<Logs>,
    after: u64,
    follow: bool,
    waiting: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

impl Body for LogBody {
    type Data = Bytes;
    type Error = body::BrokenBody;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, body::BrokenBody>>> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                std::task::ready!(waiting.as_mut().poll(context));
                self.waiting = None;
            }
            let (text, last) = self.logs.read(self.after);
            if !text.is_empty() {
                self.after = last;
                return Poll::Ready(Some(Ok(Frame::data(text))));
            }
            if !self.follow {
                return Poll::Ready(None);
            }
            let (logs, after) = (Rc::clone(&self.logs), self.after);
            self.waiting = Some(Box::pin(async move { logs.wait(after).await }));
        }
    }
}
