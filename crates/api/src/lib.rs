//! The wire of Atoll: the types that its parts, its clients and its guests exchange.
//!
//! What it is: ids, errors, the shapes of the public REST API ([`rest`]), of the guest's protocol
//! ([`envd`]), and the two interfaces through which the rooms of the house meet: [`node::Node`]
//! (control plane to node) and [`route::Locate`] (gateway to whoever knows where a sandbox is).
//!
//! What it is not: there is no logic here beyond parsing and printing, and no I/O.
//!
//! Start reading at [`id`], then [`node`].

#![forbid(unsafe_code)]

pub mod boot;
pub mod envd;
pub mod error;
pub mod finding;
pub mod id;
pub mod key;
pub mod node;
pub mod resources;
pub mod rest;
pub mod route;
pub mod secret;
pub mod template;

pub use error::{ErrorCode, Problem};
pub use id::{BuildId, ClusterId, ImageDigest, NodeId, SandboxId, TemplateId, TenantId};
pub use resources::{Bytes, Resources};
pub use secret::Secret;
