//! The drivers from outside: one conformance suite, and what each promises beyond it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Helpers of tests too.

mod conformance;
mod container;
mod container_limits;
mod container_state;
mod firecracker;
mod firecracker_api;
mod firecracker_host;
mod firecracker_pages;
mod machine_guest;
mod support;

/// Not a test: what the `container` driver starts as its keeper.
#[test]
fn keeper_process() {
    driver::container::keeper::run_if_asked();
}

/// Not a test: what the `qemu` driver starts as a jail.
#[test]
fn jail_process() {
    driver::qemu::jail::run_if_asked();
}

/// Not a test: what stands in for the jailer, and for Firecracker.
#[test]
fn jailer_process() {
    firecracker_api::run_if_asked();
}

/// Not a test: what brings pages.
#[test]
fn pages_process() {
    driver::firecracker::pages::run_if_asked();
}
