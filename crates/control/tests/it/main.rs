//! The control plane from outside, with a node in this process that does as it is told.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Helpers of tests too.

mod common;
mod create;
mod isolation;
mod keys;
mod mesh;
mod openapi;
mod sandboxes;
mod snapshots;
mod states;
mod templates;
