//! One client's connection: what it is doing, and speaking HTTP with it.
//!
//! A connection has no timers of its own. It notes when it last did something, and the gateway's
//! clock tick ([`crate::registry::Registry::expire`]) ends those that have used up their time.

use crate::{
    door::Door,
    options::Limits,
    registry::{Registry, Ticket},
    socket::ClientSocket,
};
use futures::task::AtomicWaker;
use http::HeaderValue;
use hyper::{
    rt::Executor,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::*},
    },
    task::Poll,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_util::task::TaskTracker;

/// How every HTTP/2 connection starts (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const GO_ON: u8 = 0;
const DRAIN: u8 = 1;
const KILL: u8 = 2;

/// What is known about a client's connection.
pub(crate) struct Connection {
    pub(crate) peer: SocketAddr,
    /// The peer's address as a header's value.
    pub(crate) forwarded_for: HeaderValue,
    /// Whether the client uses TLS.
    pub(crate) secure: bool,
    pub(crate) registry: Arc<Registry>,
    multiplexed: AtomicBool,
    reset: AtomicBool,
    active: AtomicUsize,
    /// When the head that is being read began; 0 if none is.
    head_since: AtomicU64,
    /// When the last request ended.
    quiet_since: AtomicU64,
    /// When the last byte went through.
    touched: AtomicU64,
    command: AtomicU8,
    waker: AtomicWaker,
}

/// Whether a connection has used up its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expiry {
    Alive,
    Expired,
}

/// A request or tunnel under way. While there is one, the connection is not idle.
pub(crate) struct Active(pub(crate) Arc<Connection>);

impl Connection {
    pub(crate) fn new(peer: SocketAddr, secure: bool, registry: Arc<Registry>) -> Self {
        let now = registry.now();
        let address = peer.ip().to_canonical().to_string();
        Self {
            peer,
            forwarded_for: HeaderValue::try_from(address)
                .unwrap_or(HeaderValue::from_static("unknown")),
            secure,
            registry,
            multiplexed: AtomicBool::new(false),
            reset: AtomicBool::new(false),
            active: AtomicUsize::new(0),
            head_since: AtomicU64::new(now),
            quiet_since: AtomicU64::new(now),
            touched: AtomicU64::new(now),
            command: AtomicU8::new(GO_ON),
            waker: AtomicWaker::new(),
        }
    }

    /// Notes that bytes came.
    pub(crate) fn received(&self) {
        let now = self.registry.now();
        self.touched.store(now, Relaxed);
        if self.active.load(Relaxed) == 0
            && self.head_since.load(Relaxed) == 0
            && !self.multiplexed.load(Relaxed)
        {
            self.head_since.store(now, Relaxed);
        }
    }

    /// Notes that bytes went.
    pub(crate) fn sent(&self) {
        self.touched.store(self.registry.now(), Relaxed);
    }

    /// Notes that a request's head is complete.
    pub(crate) fn begin(self: &Arc<Self>) -> Active {
        self.active.fetch_add(1, Relaxed);
        self.head_since.store(0, Relaxed);
        Active(self.clone())
    }

    /// Makes the socket close with a reset, so that the client cannot take what it has got for
    /// the whole. With several streams on the connection only the one stream is broken.
    pub(crate) fn break_off(&self) {
        if !self.multiplexed.load(Relaxed) {
            self.reset.store(true, Release);
        }
    }

    /// Whether [`Self::break_off`] was asked for.
    pub(crate) fn is_broken(&self) -> bool {
        self.reset.load(Acquire)
    }

    pub(crate) fn expiry(&self, now: u64, limits: &Limits) -> Expiry {
        let since = |moment: u64| Duration::from_millis(now.saturating_sub(moment));
        let head = self.head_since.load(Relaxed);
        let expired = if self.active.load(Relaxed) > 0 {
            since(self.touched.load(Relaxed)) > limits.stream_idle
        } else if head > 0 {
            since(head) > limits.head_timeout
        } else {
            since(self.quiet_since.load(Relaxed)) > limits.keep_alive
        };
        if expired {
            Expiry::Expired
        } else {
            Expiry::Alive
        }
    }

    /// Ends the connection now.
    pub(crate) fn kill(&self) {
        self.command.store(KILL, Release);
        self.waker.wake();
    }

    /// Ends the connection once its requests are done.
    pub(crate) fn drain(&self) {
        let _ = self.command.compare_exchange(GO_ON, DRAIN, AcqRel, Acquire);
        self.waker.wake();
    }

    fn is_draining(&self) -> bool {
        self.command.load(Acquire) != GO_ON
    }

    /// Runs a future until it is done or the connection is killed, which gives `None`.
    pub(crate) async fn run<F: Future>(&self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        std::future::poll_fn(|context| {
            self.waker.register(context.waker());
            if self.command.load(Acquire) == KILL {
                return Poll::Ready(None);
            }
            future.as_mut().poll(context).map(Some)
        })
        .await
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.quiet_since.store(self.0.registry.now(), Relaxed);
        self.0.active.fetch_sub(1, Relaxed);
    }
}

/// Serves one connection from its first byte to its last.
pub(crate) async fn serve(
    door: Arc<Door>,
    tcp: TcpStream,
    connection: Arc<Connection>,
    ticket: Ticket,
) {
    let mut socket = ClientSocket::new(tcp, connection.clone(), ticket);
    let talk = async {
        match door.certificates.as_ref() {
            None => match socket.read_prefix(PREFACE).await {
                Ok(true) => speak_http2(&door, socket, &connection).await,
                Ok(false) => speak_http1(&door, socket, &connection).await,
                Err(error) => tracing::debug!(%error, peer = %connection.peer, "no request"),
            },
            Some(certificates) => {
                let acceptor = tokio_rustls::TlsAcceptor::from(certificates.current());
                match acceptor.accept(socket).await {
                    Ok(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                        speak_http2(&door, stream, &connection).await;
                    }
                    Ok(stream) => speak_http1(&door, stream, &connection).await,
                    Err(error) => {
                        tracing::debug!(%error, peer = %connection.peer, "no TLS handshake");
                    }
                }
            }
        }
    };
    connection.run(talk).await;
}

async fn speak_http1<S>(door: &Arc<Door>, stream: S, connection: &Arc<Connection>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = &door.limits;
    let mut builder = http1::Builder::new();
    builder
        .max_buf_size(limits.head_bytes.max(8 << 10))
        .max_headers(limits.head_fields)
        .header_read_timeout(None);
    let service = service_fn(|request| {
        let (door, active) = (door.clone(), connection.begin());
        async move { Ok::<_, Infallible>(door.answer(request, active).await) }
    });
    let talk = builder
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut talk = pin!(talk);
    let mut draining = false;
    let end = std::future::poll_fn(|context| {
        if !draining && connection.is_draining() {
            draining = true;
            talk.as_mut().graceful_shutdown();
        }
        talk.as_mut().poll(context)
    });
    log_end(end.await, connection);
}

async fn speak_http2<S>(door: &Arc<Door>, stream: S, connection: &Arc<Connection>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    connection.multiplexed.store(true, Relaxed);
    connection.head_since.store(0, Relaxed);
    let limits = &door.limits;
    let head_bytes = u32::try_from(limits.head_bytes.max(8 << 10)).unwrap_or(u32::MAX);
    let mut builder = http2::Builder::new(Tracked(door.tasks.clone()));
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams_per_connection)
        .max_header_list_size(head_bytes)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .max_send_buf_size(256 << 10)
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .keep_alive_timeout(Duration::from_secs(20));
    let service = service_fn(|request| {
        let (door, active) = (door.clone(), connection.begin());
        async move { Ok::<_, Infallible>(door.answer(request, active).await) }
    });
    let mut talk = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut draining = false;
    let end = std::future::poll_fn(|context| {
        if !draining && connection.is_draining() {
            draining = true;
            talk.as_mut().graceful_shutdown();
        }
        talk.as_mut().poll(context)
    });
    log_end(end.await, connection);
}

fn log_end(end: hyper::Result<()>, connection: &Connection) {
    if let Err(error) = end {
        tracing::debug!(%error, peer = %connection.peer, "connection broke");
    }
}

/// Runs the streams of HTTP/2 connections as tasks that shutdown waits for.
#[derive(Clone)]
struct Tracked(TaskTracker);

impl<F> Executor<F> for Tracked
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}
