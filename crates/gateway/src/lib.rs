//! The public door: one address that serves the API and the ports of all sandboxes.
//!
//! What it is: an HTTP reverse proxy that reads from the host name or from routing headers which
//! sandbox and port a request is for, and hands everything else to the API.
//!
//! What it is not: it knows no tenants and no templates, decides nothing about a sandbox's life,
//! and keeps nothing that is not also known to [`api::route::Locate`]. It never decodes, buffers
//! or rewrites bodies.
//!
//! # The path of a request
//!
//! 1. [`Gateway::serve`] accepts a connection, `connection` finds out which HTTP it speaks.
//! 2. `door` asks [`host::decide`] where the request goes.
//! 3. `proxy` asks `Locate` for the sandbox's route, has a paused one woken (`wake`), takes an idle connection from the sandbox's
//!    own pool (`upstream`) or opens one, rewrites `headers`, and relays the answer (`body`).
//! 4. When a sandbox ends, `sandbox` breaks its connections, and the clients that were reading
//!    from it see a reset instead of a clean end.
//!
//! Start reading at [`Gateway`], then [`host`].

#![forbid(unsafe_code)]

mod body;
mod connection;
mod cors;
mod door;
mod gateway;
mod handler;
pub mod headers;
pub mod host;
mod metrics;
mod options;
mod proxy;
mod refusal;
mod registry;
mod sandbox;
mod search;
pub mod signature;
mod socket;
mod tls;
mod tunnel;
mod upstream;
mod wake;

pub use gateway::Gateway;
pub use handler::{ApiBody, ApiHandler, ClientAddress, TowerApi};
pub use metrics::GatewayMetrics;
pub use options::{GatewayOptions, Limits, TlsFiles};
pub use tls::TlsError;

/// The port that the guest serves on.
pub const GUEST_PORT: u16 = 49983;
