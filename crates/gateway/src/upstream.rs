//! Connections to servers in sandboxes: opened, lent to one request at a time, kept for the next.
//!
//! A connection has no task of its own: whoever holds it drives it. So a request stays on one
//! thread from the client's socket to the server's and back, which is most of the gateway's speed.

use crate::{
    body::RequestBody,
    door::Door,
    metrics::count,
    sandbox::{EndSignal, InFlight},
};
use http::{Request, Response};
use hyper::{body::Incoming, client::conn::TrySendError, client::conn::http1};
use hyper_util::rt::TokioIo;
use std::{
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Acquire},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// A connection to a server in a sandbox. Dropping it closes it.
pub(crate) struct Upstream {
    sender: http1::SendRequest<RequestBody>,
    /// Moves bytes when polled; `None` once it is over.
    driver: Option<Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>>,
    end: EndSignal,
    /// How many requests it has served to the end.
    served: u32,
}

impl Upstream {
    /// Moves what can be moved. The task is woken when more can be.
    fn drive(&mut self, context: &mut Context<'_>) {
        if let Some(driver) = &mut self.driver
            && let Poll::Ready(end) = driver.as_mut().poll(context)
        {
            self.driver = None;
            if let Err(error) = end {
                tracing::debug!(%error, "connection to a sandbox broke");
            }
        }
    }

    /// Whether it can take a request now. Notices that the server closed it, or sent something
    /// that nobody asked for.
    fn is_usable(&mut self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        self.drive(&mut context);
        self.driver.is_some() && self.sender.is_ready() && !self.end.is_over()
    }
}

/// Waits between tries while nothing listens: a server that was just started needs a moment.
const RETRY_AFTER: [Duration; 5] = [
    Duration::from_millis(10),
    Duration::from_millis(40),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
];

/// A connection that was used more than once and rested no longer is not about to be closed.
const PROVEN_FOR: Duration = Duration::from_secs(1);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Largest head of an answer, and how much is read at once.
const READ_BYTES: usize = 256 << 10;

/// A connection lent to one request. Dropping it closes the connection, which is how a server
/// learns that its client went away; [`Lease::give_back`] keeps it.
pub(crate) struct Lease {
    upstream: Upstream,
    /// Whether the server may be closing it just now, as it may whenever it was idle.
    pub(crate) doubtful: bool,
    port: u16,
    in_flight: InFlight,
    most_idle: usize,
    /// Set once the request's body has been sent; absent if it has none.
    pub(crate) body_sent: Option<Arc<AtomicBool>>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("the sandbox ended")]
    Ended,
    #[error("the port is not open")]
    Closed(#[source] io::Error),
}

impl Lease {
    /// Takes an idle connection, or opens one. Gives the request's count back on failure.
    pub(crate) async fn take(
        door: &Door,
        in_flight: InFlight,
        port: u16,
        fresh: bool,
    ) -> Result<Self, (ConnectError, InFlight)> {
        let oldest = door.limits.upstream_keep_alive;
        let mut found = None;
        while !fresh && let Some((mut idle, age)) = in_flight.0.take_idle(port, oldest) {
            if idle.is_usable() {
                let proven = idle.served > 1 && age < PROVEN_FOR;
                found = Some((idle, !proven));
                break;
            }
        }
        let (upstream, doubtful) = match found {
            Some(found) => found,
            None => match open(door, &in_flight, port).await {
                Ok(upstream) => (upstream, false),
                Err(error) => return Err((error, in_flight)),
            },
        };
        let most_idle = door.limits.idle_upstreams_per_sandbox;
        Ok(Self {
            upstream,
            doubtful,
            port,
            in_flight,
            most_idle,
            body_sent: None,
        })
    }

    /// Sends a request and waits for the answer's head. On failure the request comes back if the
    /// server cannot have seen it.
    pub(crate) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, Option<Request<RequestBody>>> {
        let mut sending = pin!(self.upstream.sender.try_send_request(request));
        let sent: Option<Result<_, TrySendError<_>>> = std::future::poll_fn(|context| {
            if self.upstream.end.poll(context) {
                return Poll::Ready(None);
            }
            self.upstream.drive(context);
            // Only driving changes what `sending` waits for, so it needs no waker of its own.
            let mut unwoken = Context::from_waker(Waker::noop());
            let polled = sending.as_mut().poll(&mut unwoken);
            if polled.is_ready() {
                // The body's reader drives again before it waits. Until then the connection must
                // not wake this task each time that the reader says that it wants more.
                self.upstream.drive(&mut unwoken);
            }
            polled.map(Some)
        })
        .await;
        match sent {
            Some(Ok(response)) => Ok(response),
            Some(Err(mut failed)) => {
                tracing::debug!(error = %failed.error(), port = self.port, "no answer");
                Err(failed.take_message())
            }
            None => Err(None),
        }
    }

    /// Moves what can be moved, for whoever reads the answer. Gives `true` if the sandbox ended.
    pub(crate) fn drive(&mut self, context: &mut Context<'_>) -> bool {
        let ended = self.upstream.end.poll(context);
        if !ended {
            self.upstream.drive(context);
        }
        ended
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.in_flight.0.has_ended()
    }

    /// Cancelled when the sandbox ends.
    pub(crate) fn ended(&self) -> CancellationToken {
        self.in_flight.0.ended.clone()
    }

    /// Closes the connection and gives the request's count back.
    pub(crate) fn close(self) -> InFlight {
        self.in_flight
    }

    /// Keeps the connection for the next request, if this one left it in a fit state.
    pub(crate) fn give_back(mut self) {
        let sent = self
            .body_sent
            .as_ref()
            .is_none_or(|sent| sent.load(Acquire));
        if sent && self.upstream.driver.is_some() {
            self.upstream.served = self.upstream.served.saturating_add(1);
            self.in_flight
                .0
                .keep_idle(self.port, self.upstream, self.most_idle);
        }
    }
}

async fn open(door: &Door, in_flight: &InFlight, port: u16) -> Result<Upstream, ConnectError> {
    let stay = &in_flight.0;
    let address = SocketAddr::new(stay.address, port);
    let tcp = tokio::select! {
        connected = connect(address) => connected.map_err(ConnectError::Closed)?,
        () = stay.ended.cancelled() => return Err(ConnectError::Ended),
    };
    // The address may have gone to another sandbox since it was looked up.
    let still = door
        .locate
        .locate(&stay.id)
        .await
        .is_some_and(|now| now.address == stay.address);
    if !still || stay.has_ended() {
        return Err(ConnectError::Ended);
    }
    count(&door.registry.counters.upstream_connections);
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(READ_BYTES)
        .max_headers(256)
        .handshake(TokioIo::new(tcp))
        .await
        .map_err(|error| ConnectError::Closed(io::Error::other(error)))?;
    let driver = Some(Box::pin(connection.with_upgrades()) as _);
    Ok(Upstream {
        sender,
        driver,
        end: stay.end_signal(),
        served: 0,
    })
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let mut waits = RETRY_AFTER.iter();
    loop {
        let timeout = || io::Error::from(io::ErrorKind::TimedOut);
        let tried = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
        match tried.unwrap_or_else(|_| Err(timeout())) {
            Ok(tcp) => {
                tcp.set_nodelay(true)?;
                return Ok(tcp);
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => match waits.next() {
                Some(wait) => tokio::time::sleep(*wait).await,
                None => return Err(error),
            },
            Err(error) => return Err(error),
        }
    }
}
