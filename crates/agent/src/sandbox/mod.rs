//! The life of one sandbox.
//!
//! One task ([`task`]) owns each sandbox's state. Everybody else holds a [`Sandbox`], through which
//! they read the state as it was last published and send requests to a bounded queue.
//!
//! ```text
//!            ┌──────────┐  the guest serves   ┌─────────┐
//!  create ──▶│ Starting ├────────────────────▶│ Running │
//!            └─┬──────┬─┘                     └─┬─────┬─┘
//!   it did not │      │ killed while            │     │ found gone when the
//!   come up    │      │ it starts               │     │ agent started again
//!              │      │       killed, time up,  │     │
//!              │      │       out of memory,    │     │
//!              │      │       crashed           │     │
//!              │      ▼                         ▼     │
//!              │     ┌────────────────────────────┐   │
//!              │     │          Stopping          │   │
//!              │     └──────────────┬─────────────┘   │
//!              │                    │ nothing is left │
//!              ▼                    ▼                 ▼
//!            ┌──────────────────────────────────────────┐
//!            │                  Ended                   │
//!            └──────────────────────────────────────────┘
//! ```
//!
//! - *Starting → Running*: the machine is journaled before the sandbox is handed out. Its time
//!   counts from here.
//! - *Starting → Ended*: whatever there was of it has been taken down again by whoever failed.
//! - *Starting → Stopping*: somebody ended it before it was usable. Starting is let finish, which
//!   has a deadline, and what came of it is taken down.
//! - *Running → Stopping*: published before anything is taken down, so that the gateway breaks open
//!   connections at once.
//! - *Stopping → Ended*: the machine is destroyed and its slot given back. What fails is tried
//!   again for as long as it takes; the sandbox's share of the machine stays counted until then.
//! - *Running → Ended*: the machine ended while the agent did not run to see it.
//!
//! A paused state is part of the interface, but no driver that this agent knows can pause, so
//! nothing leads there.

mod handle;
mod registry;
mod stage;
mod start;
mod task;

pub(crate) use handle::{Request, Sandbox};
pub(crate) use registry::{Found, Registry};
pub(crate) use stage::{IllegalTransition, Stage, not_running};
pub(crate) use task::{Adopted, spawn_adopted, spawn_new};
