//! A management controller for tests: a Redfish service over TLS with machines behind it, which take
//! their time to boot and to stop, draw watts as they do, and have the faults that real ones have.
//!
//! What it is: what Atoll's Redfish driver is held against where no real controller can be made to
//! misbehave. DMTF's service validator accepts it, so that it is wrong only where it is told to be.
//!
//! What it is not: part of the program for users; nothing but tests may depend on it.
//!
//! Start reading at [`Bmc`], then [`Fault`].

#![forbid(unsafe_code)]

mod door;
mod fault;
mod machine;
mod rack;
mod requests;
mod resources;

pub use door::{Bmc, Pause, StartError};
pub use fault::{Fault, UnknownFault};
pub use machine::{Machine, Power};
pub use rack::{Event, Point};
