//! The agent from outside: machines come, go, pause, and outlive it; a lab for its networks.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Helpers of tests too.

mod capacity;
mod common;
mod life;
mod logs;
mod machines;
mod membership;
mod network;
mod pause;
mod pause_restart;
mod restart;
mod upgrade;

/// Not a test: what the driver under test starts as its keeper.
#[test]
fn keeper_process() {
    driver::container::keeper::run_if_asked();
}
