//! What the gateway has done so far, in numbers.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counters since the gateway was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GatewayMetrics {
    /// Connections accepted.
    pub connections: u64,
    /// Connections open now.
    pub connections_open: u64,
    /// Connections refused because a limit was reached.
    pub connections_refused: u64,
    /// Connections closed because they were too slow or silent for too long.
    pub connections_expired: u64,
    /// Requests handed to the API.
    pub api_requests: u64,
    /// Requests for sandboxes.
    pub sandbox_requests: u64,
    /// Of those, answered by the gateway itself with an error.
    pub errors: u64,
    /// Answers that broke off in the middle.
    pub broken: u64,
    /// Tunnels (WebSocket and other upgrades) opened.
    pub tunnels: u64,
    /// Connections opened to sandboxes.
    pub upstream_connections: u64,
    /// Bytes received from clients, TLS and heads included.
    pub bytes_received: u64,
    /// Bytes sent to clients, TLS and heads included.
    pub bytes_sent: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) connections: AtomicU64,
    pub(crate) connections_open: AtomicU64,
    pub(crate) connections_refused: AtomicU64,
    pub(crate) connections_expired: AtomicU64,
    pub(crate) api_requests: AtomicU64,
    pub(crate) sandbox_requests: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) broken: AtomicU64,
    pub(crate) tunnels: AtomicU64,
    pub(crate) upstream_connections: AtomicU64,
    pub(crate) bytes_received: AtomicU64,
    pub(crate) bytes_sent: AtomicU64,
}

/// Adds one.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

impl Counters {
    pub(crate) fn read(&self) -> GatewayMetrics {
        GatewayMetrics {
            connections: self.connections.load(Relaxed),
            connections_open: self.connections_open.load(Relaxed),
            connections_refused: self.connections_refused.load(Relaxed),
            connections_expired: self.connections_expired.load(Relaxed),
            api_requests: self.api_requests.load(Relaxed),
            sandbox_requests: self.sandbox_requests.load(Relaxed),
            errors: self.errors.load(Relaxed),
            broken: self.broken.load(Relaxed),
            tunnels: self.tunnels.load(Relaxed),
            upstream_connections: self.upstream_connections.load(Relaxed),
            bytes_received: self.bytes_received.load(Relaxed),
            bytes_sent: self.bytes_sent.load(Relaxed),
        }
    }
}
