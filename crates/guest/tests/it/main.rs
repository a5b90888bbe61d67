//! The guest from outside: its program in a process of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Helpers of tests too.

mod access;
mod files;
mod filesystem;
mod process;
mod support;
