//! The process that carries plans out by itself.
//!
//! ```text
//!            ┌────────────── every ten seconds ───────────────┐
//! look ─▶ read demand ─▶ learn ─▶ plan ─▶ write down why ─▶ write down what is wanted ─▶ switch
//!   nodes,   a Source     boots,   pure    the history       the journal                  drivers
//!   controllers           forecast
//! ```
//!
//! Everything that must outlive the process is in the store before it has an effect: what is wanted
//! of machines and what was sent ([`crate::power::journal`]), what Cluster Autoscaler was promised
//! ([`crate::targets`]), what was learnt, and who was kept free of work. So a [`Fleet`] may be
//! killed at any moment, and the next one goes on where it was.
//!
//! A [`Fleet`] has no clock: each call is told the time. [`run`] has one, and nothing else.
//!
//! What is absent: decisions. Which machine is switched is the [planner's](crate::planner) to say,
//! or Cluster Autoscaler's for groups that it plans; here is only what neither can know, that a
//! machine did not come up or would not stop.

mod acting;
mod assemble;
mod counts;
mod door;
mod file;
mod fleet;
mod hands;
mod known;
mod look;
mod metrics;
mod nodes;
pub mod record;
mod routes;
mod rules;
mod run;
mod source;
mod view;

pub use door::{Door, is_loopback};
pub use file::FileSource;
pub use fleet::{Fleet, Setup, TickError};
pub use nodes::AtollSource;
pub use routes::{Shared, router};
pub use run::run;
pub use source::{Asked, Demand, NoDemand, NodeFacts, Source, SourceError};
pub use view::{
    DemandStatus, Explanation, GroupStatus, MachineView, NoPlace, Place, PlanView, Recorded,
    Standing, Status, UnderWay,
};
