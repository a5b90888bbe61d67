//! What a gateway is told when it is made.

use crate::ApiHandler;
use api::route::Locate;
use std::{path::PathBuf, sync::Arc, time::Duration};

/// Everything a gateway needs.
pub struct GatewayOptions {
    /// Who knows where sandboxes are.
    pub locate: Arc<dyn Locate>,
    /// Who answers what is not for a sandbox.
    pub api: Arc<dyn ApiHandler>,
    /// The domain that `api.` and the sandboxes' names are under, without a leading dot. The bare
    /// name is an address of the API and takes routing headers, like `localhost`.
    pub domain: Option<String>,
    /// Certificate and key; the gateway speaks plain HTTP without them.
    pub tls: Option<TlsFiles>,
    /// What clients may use up.
    pub limits: Limits,
}

/// Where certificate and key are. Both are read again when one of the files changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM: the certificate, then those that lead to the root.
    pub certificate: PathBuf,
    /// PEM: the private key, in PKCS #8, PKCS #1 or SEC1.
    pub key: PathBuf,
}

/// What clients may use up before they are refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections in all.
    pub connections: usize,
    /// Connections from one IPv4 address or one IPv6 /64.
    pub connections_per_client: usize,
    /// Requests under way in one sandbox, tunnels included.
    pub requests_per_sandbox: usize,
    /// Signed URLs that name no sandbox and whose sandbox is being searched for, the waiting
    /// included; more are refused.
    pub searches: usize,
    /// The same of one client, as `connections_per_client` counts them.
    pub searches_per_client: usize,
    /// Paused sandboxes that are being woken at once; requests for more are refused.
    pub wakes: usize,
    /// Streams under way in one HTTP/2 connection.
    pub streams_per_connection: u32,
    /// Bytes of one request's head. At least 8 KiB.
    pub head_bytes: usize,
    /// Header fields of one request's head.
    pub head_fields: usize,
    /// From a head's first byte (or the connection's start) to its last, TLS handshake included.
    pub head_timeout: Duration,
    /// How long a connection may wait between requests.
    pub keep_alive: Duration,
    /// How long a request or a tunnel may stay without a byte in either direction.
    pub stream_idle: Duration,
    /// Idle connections kept open towards one sandbox.
    pub idle_upstreams_per_sandbox: usize,
    /// How long they are kept. Common servers close theirs after five seconds, so stay below.
    pub upstream_keep_alive: Duration,
    /// How long a request waits for its sandbox to be found, and woken if it is paused.
    pub locate_timeout: Duration,
    /// How long requests may go on after shutdown was asked for.
    pub shutdown: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            connections_per_client: 4_096,
            requests_per_sandbox: 2_048,
            searches: 512,
            searches_per_client: 64,
            wakes: 256,
            streams_per_connection: 256,
            head_bytes: 64 << 10,
            head_fields: 128,
            head_timeout: Duration::from_secs(15),
            keep_alive: Duration::from_secs(90),
            stream_idle: Duration::from_secs(3600),
            idle_upstreams_per_sandbox: 128,
            upstream_keep_alive: Duration::from_millis(4_000),
            locate_timeout: Duration::from_secs(15),
            shutdown: Duration::from_secs(10),
        }
    }
}
