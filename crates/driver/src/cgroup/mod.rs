//! Control groups: what a sandbox may use, what it uses, and an end to all of it.
//!
//! Each sandbox has the group `atoll-<instance>/<slot>`, directly below the root of each hierarchy
//! that is used: the one of version 2, those of version 1, or both where controllers are divided
//! among them (hybrid). Groups sit at the top and not below the program's own group because a
//! service manager removes that one when the program ends, and sandboxes may outlive it.
//!
//! Start reading at [`Group`].

mod freezer;
mod group;
mod hierarchy;

pub use group::{Group, IoLimits, Limits, Weight};
pub use hierarchy::{Hierarchies, Legacy, Unified};

/// Controllers that are used if they are there.
const CONTROLLERS: [&str; 5] = ["memory", "cpu", "cpuacct", "pids", "blkio"];

/// The controller of version 1 that stops processes where they stand. Version 2 can without one,
/// even where it has no controllers, and better (its frozen processes can be killed); so this is
/// used only where version 2 is not mounted.
const FREEZER: &str = "freezer";

/// Controllers without which no sandbox is started, as version 2 names them.
pub const NEEDED: [&str; 3] = ["memory", "cpu", "pids"];
