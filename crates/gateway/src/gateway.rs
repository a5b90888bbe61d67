//! The gateway itself: accepts connections, keeps the clock, and shuts down in order.

use crate::{
    connection,
    door::Door,
    metrics::{Counters, GatewayMetrics},
    options::GatewayOptions,
    registry::Registry,
    sandbox::Sandboxes,
    search::Searches,
    tls::{Certificates, TlsError},
    wake::Wakes,
};
use std::{sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How often the certificate's files are looked at.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(2);

/// How long tasks may take to notice that they were ended.
const LAST_WAIT: Duration = Duration::from_secs(5);

/// How long accepting rests when the process has no file descriptors left.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// The public door to the API and to sandboxes.
pub struct Gateway {
    door: Arc<Door>,
    tasks: TaskTracker,
    /// Breaks everything towards sandboxes.
    stop: CancellationToken,
}

impl Gateway {
    /// A gateway that does not serve yet. Reads the certificate, if there is one.
    pub fn new(options: GatewayOptions) -> Result<Self, TlsError> {
        let GatewayOptions {
            locate,
            api,
            domain,
            tls,
            limits,
        } = options;
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let certificates = tls.map(Certificates::load).transpose()?;
        let registry = Arc::new(Registry::new(limits.clone(), Arc::new(Counters::default())));
        let sandboxes = Sandboxes::new(locate.clone(), limits.clone(), tasks.clone(), stop.clone());
        let door = Arc::new(Door {
            wakes: Wakes::new(locate.clone(), &limits),
            locate,
            api,
            domain,
            searches: Searches::new(&limits),
            limits,
            certificates,
            registry,
            sandboxes: Arc::new(sandboxes),
            tasks: tasks.clone(),
        });
        Ok(Self { door, tasks, stop })
    }

    /// What the gateway has done so far.
    pub fn metrics(&self) -> GatewayMetrics {
        self.door.registry.counters.read()
    }

    /// Serves a listener until `shutdown` is cancelled, then lets requests finish until
    /// [`crate::Limits::shutdown`] has passed, and breaks the rest. Returns when nothing is left.
    ///
    /// A gateway serves once: all it has is gone afterwards.
    pub async fn serve(&self, listener: TcpListener, shutdown: CancellationToken) {
        let limits = &self.door.limits;
        let tick =
            (limits.head_timeout / 4).clamp(Duration::from_millis(20), Duration::from_secs(1));
        let mut ticks = tokio::time::interval(tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut checked = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                _ = ticks.tick() => {
                    self.expire();
                    if checked.elapsed() >= CERTIFICATE_CHECK {
                        checked = Instant::now();
                        self.refresh_certificates();
                    }
                }
                accepted = listener.accept() => match accepted {
                    Ok((tcp, peer)) => self.admit(tcp, peer),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_REST).await;
                    }
                },
            }
        }
        drop(listener);
        self.tasks.close();
        self.door.registry.drain();
        let deadline = Instant::now() + limits.shutdown;
        while self.metrics().connections_open > 0 && Instant::now() < deadline {
            ticks.tick().await;
            self.expire();
            // A connection may have come too late to be told.
            self.door.registry.drain();
        }
        self.stop.cancel();
        self.door.registry.kill();
        if tokio::time::timeout(LAST_WAIT, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!(tasks = self.tasks.len(), "tasks outlived the gateway");
        }
    }

    fn admit(&self, tcp: TcpStream, peer: std::net::SocketAddr) {
        let secure = self.door.certificates.is_some();
        let Some((connection, ticket)) = self.door.registry.admit(peer, secure) else {
            return;
        };
        if let Err(error) = tcp.set_nodelay(true) {
            tracing::debug!(%error, %peer, "a connection was gone before it was served");
            return;
        }
        self.tasks.spawn(connection::serve(
            self.door.clone(),
            tcp,
            connection,
            ticket,
        ));
    }

    fn expire(&self) {
        self.door.registry.expire();
        self.door.sandboxes.expire();
    }

    fn refresh_certificates(&self) {
        if self.door.certificates.is_some() {
            let door = self.door.clone();
            self.tasks.spawn_blocking(move || {
                if let Some(certificates) = &door.certificates {
                    certificates.refresh();
                }
            });
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop.cancel();
        self.door.registry.kill();
    }
}
