//! What a guest is told when it becomes a sandbox, and what it answers.
//!
//! A guest may be started long before it is needed; only [`Identity`] makes it somebody's. In a
//! container both travel as JSON datagrams over the socket that the guest inherits; in a microVM
//! over its network slot.

use crate::{SandboxId, Secret, TemplateId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The number of the language that a guest in a microVM and its node speak: all of [`MachineClaim`],
/// [`IDENTITY_PATH`], [`SETTLE_PATH`], and what the node asks of [`crate::envd`].
///
/// A guest in a saved memory is as old as the memory, and is spoken to by whatever Atoll resumes it.
/// Raise this when a node could no longer make itself understood to guests of the number before, or
/// they to it: a field of theirs that a guest must know and may not ignore, another path, header or
/// answer. States of another number are then refused, and templates made again. What is added so
/// that old guests do without it needs no new number.
pub const GUEST_PROTOCOL: u32 = 1;

/// Who a guest is. It holds secrets of this sandbox alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// What it started from.
    pub template: TemplateId,
    /// The token that opens the guest's API to users; none means open.
    pub access_token: Option<Secret>,
    /// The token by which the node reads logs and asks for control; never given to users.
    pub control_token: Secret,
    /// Variables for every process.
    pub environment: BTreeMap<String, String>,
    /// The user whom commands run as by default.
    pub default_user: String,
    /// Where they run by default; the user's home if empty.
    pub working_directory: String,
    /// Started once the guest serves.
    pub start_command: Option<String>,
    /// The port that the guest serves on: 49983, but for tests.
    pub port: u16,
}

/// What a guest says to whoever started it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum GuestEvent {
    /// It is set up and waits to become somebody.
    Waiting,
    /// It serves.
    Ready,
    /// It could not become what it was told to be.
    Failed {
        /// Why.
        message: String,
    },
}

/// The first datagram to a guest that waits in a container. With it travels, as a descriptor, a
/// detached mount of `/sys` for its network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellSetup {
    /// The control group hierarchies to show read-only under `/sys/fs/cgroup`.
    pub cgroups: CgroupView,
}

/// How a container shows control groups inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum CgroupView {
    /// Not at all.
    Hidden,
    /// The one hierarchy of version 2.
    Unified,
    /// Hierarchies of version 1, each by its mount options, such as `cpu,cpuacct`.
    Legacy {
        /// One entry a hierarchy.
        hierarchies: Vec<String>,
    },
}

/// The second datagram: the guest is now somebody's. With it travels the root file system, as a
/// descriptor of a detached mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellClaim {
    /// Who it is.
    pub identity: Identity,
    /// Its name inside.
    pub host_name: String,
    /// Whether set-user-id programs such as sudo must not gain privileges.
    pub no_new_privileges: bool,
}

/// What a guest in a microVM is told when it becomes a sandbox: `PUT /_atoll/identity` with JSON,
/// and the control token that is in force in `x-atoll-control`. The answer is 204 once all of it
/// holds and the guest serves under its new identity; the former tokens are then worthless.
///
/// The same call makes a guest that was resumed from a snapshot somebody else (a fork, a sandbox of
/// a template) or the same again (a resume).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineClaim {
    /// Who it is.
    pub identity: Identity,
    /// Its name inside.
    pub host_name: String,
    /// Name servers, written to `/etc/resolv.conf` inside.
    pub name_servers: Vec<std::net::IpAddr>,
    /// The domain that short names are looked up in, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<String>,
    /// The time now, in nanoseconds since 1970: a machine's clock stands still while it is saved.
    pub unix_time_ns: u64,
    /// 64 random bytes in base64, mixed into the kernel's pool before it is asked for any.
    pub entropy: Secret,
    /// Whether it becomes somebody new: then logs, environment and processes' output that was kept
    /// belong to somebody else and are forgotten, and the start command is run if it has not been.
    pub renew: bool,
}

/// The path of [`MachineClaim`].
pub const IDENTITY_PATH: &str = "/_atoll/identity";

/// The path that, with POST and the control token, makes the guest write back what it holds for
/// the disk, drop its page cache and give free memory back to the host, and run a shell once so
/// that what every command reads first is kept; 204 when done. With `?keep-cache=1` it only writes
/// back.
pub const SETTLE_PATH: &str = "/_atoll/settle";

/// The line on a microVM's serial console that says that the guest waits for its identity.
pub const SERIAL_WAITING: &str = "atoll-guest: waiting";

/// The line's beginning that says that the guest cannot start; the cause follows.
pub const SERIAL_FAILED: &str = "atoll-guest: failed: ";

#[cfg(test)]
mod tests {
    use super::*;

    /// Guests that were saved are told this for years. What changes here may want another
    /// [`GUEST_PROTOCOL`].
    #[test]
    fn guests_of_this_protocol_understand_what_they_are_told() {
        let told = r#"{
            "identity": {
                "sandbox": "iclunode0000000000001",
                "template": "00000000000000000000",
                "access_token": "a",
                "control_token": "c",
                "environment": { "A": "1" },
                "default_user": "user",
                "working_directory": "",
                "start_command": null,
                "port": 49983
            },
            "host_name": "name",
            "name_servers": ["192.0.2.1"],
            "unix_time_ns": 1,
            "entropy": "AA==",
            "renew": true
        }"#;
        let claim: MachineClaim = serde_json::from_str(told).unwrap();
        let now = serde_json::to_value(&claim).unwrap();
        let then: serde_json::Value = serde_json::from_str(told).unwrap();
        assert_eq!((GUEST_PROTOCOL, now), (1, then));
        assert_eq!(IDENTITY_PATH, "/_atoll/identity");
        assert_eq!(SETTLE_PATH, "/_atoll/settle");
    }
}
