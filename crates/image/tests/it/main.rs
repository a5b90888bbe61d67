//! Images from outside: sources, registries, attacks, and a model of what layers mean.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Helpers of tests too.

mod attacks;
mod debian;
mod disk;
mod kill;
mod model;
mod registry;
mod sources;
mod support;
