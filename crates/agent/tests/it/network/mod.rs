//! Network slots as sandboxes, the host and the outside see them. To be run as root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod attacks;
mod lab;
mod life;
mod machines;
