//! Simulated machines, for tests of scale and of faults only: nothing here isolates or runs
//! anything, and no configuration of Atoll can choose it.
//!
//! A [`World`] stands for the host: what it holds survives an agent that dies, so that a test can
//! start another agent in the same world. [`SimulatedDriver`], [`SimulatedNetwork`] and
//! [`SimulatedImages`] act on it, with the delays and the faults that the test asks for.

mod machine;
mod network;
mod world;

pub use machine::SimulatedDriver;
pub use network::{SimulatedImages, SimulatedNetwork};
pub use world::{Faults, World};
