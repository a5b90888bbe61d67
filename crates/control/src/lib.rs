//! The control plane: the public API, tenants and their keys, templates, the scheduler.
//!
//! What it is: an [`axum::Router`] that speaks E2B's REST API and Atoll's own under `/v1`, over a
//! [`store::Store`] that holds intent and [`api::node::Node`]s that hold what is. It also runs the
//! reconciler that builds the template that Atoll comes with, and removes what nobody needs.
//!
//! What it is not: it does not run sandboxes (nodes do) and does not carry their traffic (the
//! gateway does). Creating a sandbox writes nothing to the store and asks no node but the one
//! that starts it.
//!
//! Start reading at [`Control`], then `routes`. Isolation between tenants rests on `caller`:
//! handlers reach sandboxes and templates only through its views of one tenant.

#![forbid(unsafe_code)]

mod caller;
mod catalogue;
mod control;
mod error;
mod extract;
mod idempotency;
mod keys;
mod mesh;
mod names;
mod nodes;
mod plane;
mod records;
mod routes;
mod sandboxes;
pub mod schedule;
mod templates;
mod tokens;
mod usage;

pub use control::{Control, ControlOptions, Limits};
pub use keys::FirstKey;
pub use mesh::MeshLink;
pub use routes::openapi;
