//! The data plane with real devices, in network namespaces without names: they end with the test, however it ends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod clusters;
mod gate;
mod hostile;
mod hostile_relay;
mod internet;
mod interop;
mod lab;
mod life;
mod moving;
mod providers;
mod rotation;
mod services;
mod traffic;
