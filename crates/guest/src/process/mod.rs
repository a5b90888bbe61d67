//! `process.Process`: starting, reattaching to, feeding and ending processes.
//!
//! ```text
//!            spawn                exit seen by the reaper       output drained
//!  (Start) ───────────▶ running ──────────────────────▶ exited ──────────────▶ ended ──▶ forgotten
//! ```
//!
//! - *running*: [`table::Table`] has it among those that run; [`output`] takes what it prints.
//! - *exited*: the [`reaper`] has its status, but there may be output still in its pipes.
//! - *ended*: the `end` event is there. It is kept for a while, with what nobody has seen of its
//!   output, so that a client that comes back gets `start`, the rest, and `end`.
//!
//! Everything here runs on one thread, and a process enters the table before control returns to
//! the runtime: so the reaper cannot miss one. Start reading at [`service`].

pub mod events;
pub mod input;
pub mod output;
pub mod reaper;
pub mod service;
pub mod spawn;
pub mod supervise;
pub mod table;
pub mod transcript;
