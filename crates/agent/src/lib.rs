//! The node: it runs sandboxes and remembers them.
//!
//! What it is: the owner of all sandboxes of one machine. It keeps sandboxes prepared ahead
//! (`pool`), starts and ends them (`sandbox`), journals what it must not forget (`journal`) so that
//! it can be killed and started again while they go on (`adoption`), saves them on the disk while
//! they are paused, and what others start from (`states`, `templates`), samples what they use
//! (`metrics`), keeps what they print (`logs`), and gives each a network of its own ([`network`]).
//!
//! What it is not: it knows no tenants' rights, no templates' names and no public API; it does what
//! the control plane asks through [`api::node::Node`] and tells the gateway where sandboxes are
//! through [`api::route::Locate`]. How a sandbox is run is the driver's affair.
//!
//! Start reading at [`Agent`], then the drawing in `sandbox`, then `journal`.

mod admission;
mod adoption;
mod agent;
mod background;
mod clock;
mod create;
mod facts;
#[doc(hidden)]
pub mod fuzzing;
mod guest_call;
mod images;
mod journal;
mod locate;
mod logs;
mod mesh;
mod metrics;
pub mod network;
mod node;
mod options;
mod parts;
mod phases;
mod pool;
mod problems;
mod renewal;
mod sandbox;
mod saving;
pub mod simulation;
mod slots;
mod source;
mod states;
mod templates;

pub use agent::Agent;
pub use images::{Images, Root};
#[doc(hidden)]
pub use logs::count_guest_lines;
pub use mesh::{Attached, Members};
pub use options::{AgentOptions, GUEST_PORT, Limits, OnExit, PoolOptions};
pub use phases::{Phase, PhaseSummary};
pub use slots::Slots;
