//! The gateway from outside, with guests in this process behind it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Helpers of tests too.

mod hostile;
mod routing;
mod streaming;
mod support;
mod tls;
mod waking;
