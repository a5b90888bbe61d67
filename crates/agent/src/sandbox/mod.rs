//! The life of one sandbox.
//!
//! One task ([`task`]) owns each sandbox's state. Everybody else holds a [`Sandbox`], through which
//! they read the state as it was last published and send requests to a bounded queue.
//!
//! ```text
//!            ┌──────────┐  the guest serves   ┌─────────┐  pause, or    ┌─────────┐
//!  create ──▶│ Starting ├────────────────────▶│ Running ├──time is up──▶│ Pausing │
//!            └─┬──────┬─┘                     └┬──┬─┬─▲─┘◀──failed──────└┬───┬────┘
//!   it did not │      │ killed while           │  │ │ │                  │   │ the state is whole,
//!   come up    │      │ it starts              │  │ │ │ the guest serves │   │ or it is frozen
//!              │      │                        │  │ │┌┴─────────┐ resume │ ┌─▼──────┐
//!              │      │      killed, time up,  │  │ ││ Resuming │◀───────┼─┤ Paused │
//!              │      │      out of memory,    │  │ │└┬─────────┘ failed │ └─┬──▲───┘
//!              │      │      crashed           │  │ │ └──────────────────┼───┼──┘
//!              │      ▼                        ▼  │ │  killed            ▼   ▼
//!              │     ┌────────────────────────────┴─┴─────────────────────────┐
//!              │     │                        Stopping                        │
//!              │     └──────────────┬─────────────────────────────────────────┘
//!              │                    │ nothing is left
//!              ▼                    ▼
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
//! - *Running → Pausing*: journaled with the directory that its state is saved in. From the moment
//!   when that is sealed, it counts as paused, whoever dies; before, it runs on.
//! - *Pausing → Paused*: the machine is taken down and its slot given back; or it is frozen in
//!   place, where the driver saves no memory. Its time does not count while it is paused.
//! - *Paused → Resuming → Running*: the state is kept until the machine is journaled, and then for
//!   as long as the machine runs on its files.
//! - *→ Stopping*: published before anything is taken down, so that the gateway breaks open
//!   connections at once. Pausing and resuming are let finish, and what came of them goes too.
//! - *Stopping → Ended*: the machine is destroyed and its slot given back. What fails is tried
//!   again for as long as it takes; the sandbox's share of the machine stays counted until then.
//! - From any state *→ Ended*: its machine had ended when the agent was started again.

mod handle;
mod membership;
mod registry;
mod rest;
mod stage;
mod start;
mod task;

pub(crate) use handle::{Request, Sandbox, SaveTo, Saved};
pub(crate) use membership::check as check_membership;
pub(crate) use registry::{Found, Registry};
pub(crate) use stage::{IllegalTransition, Stage, not_running};
pub(crate) use task::{Adopted, AdoptedAs, spawn_adopted, spawn_new};
