//! The connection over which a guest's lines come.

use super::{
    line::{LineSplitter, NumberedLine},
    store::LogStore,
};
use api::{SandboxId, Secret};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{net::TcpStream, time::timeout};
use tokio_util::sync::CancellationToken;

/// A young sandbox has better things to do than to serve its log. The guest keeps the lines.
const FIRST_PAUSE: Duration = Duration::from_millis(400);

/// The pause between connections doubles from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// How long connecting and the head of the answer may take.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// A longer line, as it travels, is dropped.
pub(super) const LINE_MAX: usize = 128 << 10;

/// What is taken of one sandbox's log: so many bytes a second, after a first burst.
const RATE: f64 = 64.0 * 1024.0;
const BURST: f64 = 1024.0 * 1024.0;

/// The most memory of one connection's read buffer.
const BUFFER: usize = 16 << 10;

/// Why a connection ended; for the log.
type Broken = Box<dyn std::error::Error + Send + Sync>;

impl LogStore {
    /// Follows a guest's log until `cancel`.
    pub(crate) fn follow(
        &self,
        id: SandboxId,
        address: SocketAddr,
        token: Secret,
        cancel: CancellationToken,
    ) -> impl Future<Output = ()> + Send + 'static {
        let store = self.clone();
        async move {
            let follower = Follower {
                store,
                id: Arc::new(id),
                address,
                token,
                last: 0,
                budget: Budget::new(),
            };
            cancel.run_until_cancelled(follower.run()).await;
        }
    }
}

struct Follower {
    store: LogStore,
    id: Arc<SandboxId>,
    address: SocketAddr,
    token: Secret,
    /// The number of the last line that was taken.
    last: u64,
    budget: Budget,
}

impl Follower {
    async fn run(mut self) {
        tokio::time::sleep(FIRST_PAUSE).await;
        let (store, id) = (self.store.clone(), self.id.clone());
        self.last = tokio::task::spawn_blocking(move || store.last_number(&id))
            .await
            .unwrap_or(0);
        let mut pause = RETRY.0;
        loop {
            let before = self.last;
            // Boxed, so that what a connection needs is held only while there is one.
            if let Err(error) = Box::pin(self.connect()).await {
                tracing::trace!(sandbox = %self.id, "the connection for its log broke: {error}");
            }
            // A guest that sends lines may be asked again soon; one that only accepts
            // connections may not.
            pause = if self.last > before {
                RETRY.0
            } else {
                (pause * 2).min(RETRY.1)
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn connect(&mut self) -> Result<(), Broken> {
        let stream = timeout(ANSWER_DEADLINE, TcpStream::connect(self.address)).await??;
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(BUFFER)
            .max_headers(32)
            .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
            .await?;
        let request = http::Request::get(format!("/_atoll/logs?after={}&follow=1", self.last))
            .header("host", self.address.to_string())
            .header("x-atoll-control", self.token.expose())
            .body(Empty::new())?;
        let exchange = async move {
            let response = timeout(ANSWER_DEADLINE, sender.send_request(request)).await??;
            if response.status() != http::StatusCode::OK {
                return Err(Broken::from(format!(
                    "the guest answered {}",
                    response.status()
                )));
            }
            let mut body = response.into_body();
            let mut lines = LineSplitter::new(LINE_MAX);
            while let Some(frame) = body.frame().await {
                if let Ok(data) = frame?.into_data() {
                    self.take(&data, &mut lines).await?;
                }
            }
            drop(sender);
            Ok(())
        };
        // The connection does its reading and writing when it is polled, here and not in a task
        // of its own. It ends after the exchange does, or before if the guest breaks it.
        let mut exchange = std::pin::pin!(exchange);
        let mut connection = std::pin::pin!(connection);
        let mut connected = true;
        loop {
            tokio::select! {
                result = &mut exchange => return result,
                result = &mut connection, if connected => {
                    result?;
                    connected = false;
                }
            }
        }
    }

    /// Keeps the lines of one chunk, at the rate that a sandbox is allowed.
    async fn take(&mut self, data: &[u8], lines: &mut LineSplitter) -> Result<(), Broken> {
        let now = Timestamp::now();
        let mut taken = Vec::new();
        let last = &mut self.last;
        lines.push(data, |text| {
            if let Some(line) = NumberedLine::from_guest(text, now)
                && line.seq > *last
            {
                *last = line.seq;
                taken.push(line);
            }
        });
        if !taken.is_empty() {
            let (store, id) = (self.store.clone(), self.id.clone());
            tokio::task::spawn_blocking(move || store.append(&id, &taken)).await??;
        }
        tokio::time::sleep(self.budget.spend(data.len())).await;
        Ok(())
    }
}

/// A token bucket over bytes.
struct Budget {
    left: f64,
    at: std::time::Instant,
}

impl Budget {
    fn new() -> Self {
        Self {
            left: BURST,
            at: std::time::Instant::now(),
        }
    }

    /// Takes bytes out, and returns how long to wait before taking more.
    fn spend(&mut self, bytes: usize) -> Duration {
        let now = std::time::Instant::now();
        let earned = now.duration_since(self.at).as_secs_f64() * RATE;
        self.left = (self.left + earned).min(BURST) - bytes as f64;
        self.at = now;
        if self.left >= 0.0 {
            Duration::ZERO
        } else {
            Duration::from_secs_f64(-self.left / RATE)
        }
    }
}
