//! The fleet from outside: plans, power, the calls of Cluster Autoscaler, and what carries plans out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Helpers of tests too.

mod cluster;
mod externalgrpc;
mod externalgrpc_model;
mod externalgrpc_tls;
mod history;
mod invariants;
mod planner;
mod power;
mod rack;
mod reasons;
mod redfish;
mod serve;
mod simulation;
mod support;
mod suspension;
