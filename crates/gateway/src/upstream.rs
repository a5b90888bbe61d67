//! Connections to servers in sandboxes: opened, lent to one request at a time, kept for the next.

use crate::{
    body::RequestBody,
    door::Door,
    metrics::count,
    sandbox::{Idle, InFlight, TaskGuard},
};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Acquire},
    },
    time::{Duration, Instant},
};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// Sends requests on one connection.
pub(crate) type Sender = http1::SendRequest<RequestBody>;

/// Waits between tries while nothing listens: a server that was just started needs a moment.
const RETRY_AFTER: [Duration; 5] = [
    Duration::from_millis(10),
    Duration::from_millis(40),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
];

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Largest head of an answer, and how much is read at once.
const READ_BYTES: usize = 256 << 10;

/// A connection lent to one request. Dropping it closes the connection, which is how a server
/// learns that its client went away; [`Lease::give_back`] keeps it.
pub(crate) struct Lease {
    pub(crate) sender: Sender,
    /// Whether it served a request before, and so may have been closed meanwhile.
    pub(crate) reused: bool,
    task: TaskGuard,
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
        let most_idle = door.limits.idle_upstreams_per_sandbox;
        while !fresh && let Some(mut idle) = in_flight.0.take_idle(port) {
            let young = idle.since.elapsed() < door.limits.upstream_keep_alive;
            // The connection may still be finishing what it did for the last request.
            if young && (idle.sender.is_ready() || idle.sender.ready().await.is_ok()) {
                let Idle { sender, task, .. } = idle;
                return Ok(Self {
                    sender,
                    reused: true,
                    task,
                    port,
                    in_flight,
                    most_idle,
                    body_sent: None,
                });
            }
        }
        match open(door, &in_flight, port).await {
            Ok((sender, task)) => Ok(Self {
                sender,
                reused: false,
                task,
                port,
                in_flight,
                most_idle,
                body_sent: None,
            }),
            Err(error) => Err((error, in_flight)),
        }
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
    pub(crate) fn give_back(self) {
        let sent = self
            .body_sent
            .as_ref()
            .is_none_or(|sent| sent.load(Acquire));
        if !sent || self.sender.is_closed() {
            return;
        }
        let Self {
            sender,
            task,
            port,
            in_flight,
            most_idle,
            ..
        } = self;
        let idle = Idle {
            port,
            sender,
            task,
            since: Instant::now(),
        };
        in_flight.0.keep_idle(idle, most_idle);
    }
}

async fn open(
    door: &Door,
    in_flight: &InFlight,
    port: u16,
) -> Result<(Sender, TaskGuard), ConnectError> {
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
    let connection = connection.with_upgrades();
    let task = stay.drive(&door.tasks, async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, %address, "connection to a sandbox broke");
        }
    });
    Ok((sender, task))
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
