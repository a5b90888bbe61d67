//! The fleet: machines that sleep when nobody needs them, and can say why.
//!
//! What it is: a [planner](planner) that is a pure function of [inventory], [forecast],
//! [policy] and clock; a [simulation](mod@simulate) that runs it, and the policies of others, over
//! weeks; a test of each [counterfactual] that it states.
//!
//! What it is not: nothing here decides where workloads run in the end; it decides which machines
//! are there to run them.
//!
//! Start reading at [`planner::plan`], then [`inventory::Inventory`].

#![forbid(unsafe_code)]

pub mod amount;
pub mod boot;
pub mod config;
pub mod counterfactual;
pub mod explain;
pub mod externalgrpc;
pub mod forecast;
pub mod inventory;
pub mod kubernetes;
pub mod moment;
pub mod planner;
pub mod policy;
pub mod power;
pub mod replay;
pub mod serve;
pub mod simulate;
pub mod targets;
pub mod tariff;
