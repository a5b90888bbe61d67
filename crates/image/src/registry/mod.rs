//! Pulling from registries (OCI distribution specification 1.1, Docker registry API v2).
//!
//! Start reading at [`client`]; the parsers beside it are pure.

pub mod challenge;
pub(crate) mod client;
pub mod credentials;
pub(crate) mod download;
mod reach;
pub mod reference;
