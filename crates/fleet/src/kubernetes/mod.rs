//! A Kubernetes cluster as a [`Source`](crate::serve::Source) of demand: pods that run and wait, nodes,
//! and disruption budgets are read; nodes are cordoned and emptied by eviction.
//!
//! It speaks to the API server with a few types of our own rather than through `kube`: three
//! resources are read and two written, and the crate with its generated types would double the time
//! that this one takes to build.
//!
//! [`demand::demand`] is a pure function from resources to demand, [`mirror`] keeps the resources by
//! list and watch, [`client`] carries it, [`source`] joins them.
//!
//! What is absent: binding pods. The cluster's own scheduler does that; what it cannot place yet is
//! what machines wake for.

mod client;
mod demand;
mod mirror;
mod quantity;
mod resources;
mod source;

pub use client::{Api, ApiError, Place};
pub use source::{CLOSED, KubernetesSource};
