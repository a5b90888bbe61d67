//! Which of a service's endpoints is tried, as one consumer decides it for itself.
//!
//! An endpoint is a node at a port. What is known of it comes from three sides: its node says whether it is ready; how far it is was measured; and this
//! node saw itself whether connections and probes got through ([`Evidence`]). From that, [`order`] makes the order of the next connection's tries, with a
//! reason for each. All of it is pure: time and chance come in, nothing is sent.
//!
//! ```text
//! said: ready ───────────┐
//! measured: Class ───────┼─► order(…) ─► 1st try, 2nd try, …     ┌── a try succeeds ──► well
//! seen: Evidence ────────┘                                       │
//!    ▲                                                           │
//!    └────────────── connections and probes: succeeded, failed ◄─┴── twice in a row: put aside for 3 s, 6 s, … 60 s, then a probe or a trial
//! ```
//!
//! - *Nearest first*, in classes ([`Class`]), and spread by chance within one. When too few of a class are well, a part of the connections goes
//!   to the next, as Envoy's priorities with an overprovisioning factor of 1.4 do: nothing while five of seven are well, all when none is.
//! - *Evidence is bounded*: what this node saw puts at most half of a service's endpoints aside. When more than half look ill, it is
//!   more likely this node or its network that is ill, and what is left would be overrun: then evidence counts nothing and all are used (*panic*).
//! - *What a node says of itself* stands: who is not ready gets nothing, unless nobody is ready.
//!
//! On a machine with a device, [`Redirects`] lead what programs send to a service's address to the door for it.
//!
//! Absent: sockets ([`crate::userspace`]), a clock, the coordinator. Nothing here is told to others.

mod distance;
mod evidence;
mod order;
mod redirect;
#[cfg(test)]
mod tests;

pub use distance::Class;
pub use evidence::{Evidence, Failure, State};
pub use order::{Candidate, Choice, Order, Reason, order};
pub use redirect::Redirects;
