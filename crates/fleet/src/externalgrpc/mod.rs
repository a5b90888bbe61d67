//! The server that a stock Kubernetes Cluster Autoscaler (1.26 to 1.36) asks: externalgrpc's 15
//! calls, and the expander's.
//!
//! Every call is answered from the memory of [`Targets`](crate::targets::Targets); the three that
//! change something write to the store and return. No call ever reaches for a machine, as Cluster
//! Autoscaler makes its calls one after the other, thousands in each loop.
//!
//! [`Service`] is what is said, [`wire`] how it looks, [`serve`] how it is carried: HTTP/2, with
//! mutual TLS by [`Tls`].

mod call;
mod expander;
pub mod kubernetes;
mod metrics;
mod options;
mod price;
mod refusal;
mod router;
mod server;
mod service;
mod template;
mod tls;
pub mod wire;

pub use call::Call;
pub use metrics::Metrics;
pub use options::GroupOptions;
pub use router::Raw;
pub use server::serve;
pub use service::{Clock, FAKE_NODE_REASON, Service, Settings};
pub use tls::{Tls, TlsError, TlsFiles};
