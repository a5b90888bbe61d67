//! The `container` driver: a shared kernel, divided by namespaces, control groups, a user range
//! of its own, capabilities and a system call filter.
//!
//! ```text
//!   this program ───── questions ─────▶ keeper ── clone3 ──▶ cell: atoll-guest, pid 1
//!   layers, groups      (descriptors)    mounts  ── claim ──▶   enters its root, serves
//! ```
//!
//! | file | what |
//! | --- | --- |
//! | `driver` | [`Container`]: prepare, adopt, sweep, shut down |
//! | `prepared`, `machine` | a cell before and after it is somebody's |
//! | `save`, `notes` | saving its disk, and what must be known for that |
//! | `privileges` | whether set-user-id programs gain privileges |
//! | `connection` | how this program finds, starts and asks the keeper |
//! | `protocol`, `packet` | what they say to each other |
//! | [`keeper`] | the process that is the parent of all cells |
//! | `crates/guest/src/cell` | what the guest does to become a sandbox |
//!
//! Why not libcontainer or runc: both fork, execute and migrate control groups on the path of
//! creating a sandbox, and neither can prepare one that is nobody's yet.

mod connection;
mod driver;
pub mod keeper;
mod machine;
mod notes;
pub(crate) mod packet;
mod prepared;
mod privileges;
pub(crate) mod process;
mod protocol;
mod save;

pub(crate) use driver::remove_group;
pub use driver::{Container, ContainerOptions};
pub use privileges::SetUserId;
