//! The file as it is written: machines, groups and policy.
//!
//! It is TOML, as its parser keeps the place of every value, so that a mistake found late can
//! still be shown where it is, and as it has one way to write a thing. YAML has several, and no
//! parser for Rust that is kept and does the same.

use super::{demand::DemandEntry, secret::SecretSource};
use crate::{
    externalgrpc::GroupOptions,
    inventory::{Role, Taint, Watts},
    moment::Span,
    policy::Policy,
};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de};
use std::{collections::BTreeMap, fmt, net::SocketAddr, path::PathBuf};

/// A fleet: what `atoll fleet serve --config` reads.
#[derive(Debug, Clone, PartialEq, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// How decisions are made. What is left out has a default.
    #[serde(default)]
    pub policy: Policy,
    /// How many machines may be told to wake within a second, so that their power supplies do not
    /// draw their inrush currents together.
    #[serde(default = "one")]
    pub wakes_per_second: f64,
    /// Where one reads what is asked for. `atoll fleet serve` needs to know.
    pub demand: Option<DemandEntry>,
    /// Groups of machines that are alike.
    #[serde(default)]
    pub groups: Vec<GroupEntry>,
    /// All machines.
    #[serde(default)]
    pub machines: Vec<MachineEntry>,
}

const fn one() -> f64 {
    1.0
}

/// A group, with what its machines have in common.
#[derive(Debug, Clone, PartialEq, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupEntry {
    /// Its name.
    pub name: String,
    /// How many machines stay on at the least.
    #[serde(default)]
    pub min: u32,
    /// How many may be on at the most; all of them if left out.
    pub max: Option<u32>,
    /// Whether its machines are switched only all together.
    #[serde(default)]
    pub atomic: bool,
    /// Whether Kubernetes' Cluster Autoscaler plans it, and not Atoll's planner.
    #[serde(default)]
    pub cluster_autoscaler: bool,
    /// How Cluster Autoscaler scales it, where that differs from its own options.
    #[serde(default)]
    pub options: GroupOptions,
    /// What each of its machines has for workloads, unless the machine says otherwise.
    pub capacity: Option<Capacity>,
    /// Labels that workloads can ask for.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Taints that keep workloads away.
    #[serde(default)]
    pub taints: Vec<Taint>,
    /// What it draws; guessed from its processors if left out.
    pub watts: Option<Watts>,
    /// How long it usually takes to boot; 5 minutes if left out. The real times are learnt.
    pub boot: Option<Span>,
    /// How long it usually takes to resume from suspension; 20 seconds if left out.
    pub resume: Option<Span>,
    /// How long it takes to switch off; a minute if left out.
    pub shutdown: Option<Span>,
}

/// What a machine is like, as a group or the machine itself says it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Traits {
    /// What it has for workloads.
    pub capacity: Option<Capacity>,
    /// Labels that workloads can ask for.
    pub labels: BTreeMap<String, String>,
    /// Taints that keep workloads away.
    pub taints: Vec<Taint>,
    /// What it draws; guessed from its processors if left out.
    pub watts: Option<Watts>,
    /// How long it usually takes to boot; 5 minutes if left out. The real times are learnt.
    pub boot: Option<Span>,
    /// How long it usually takes to resume from suspension; 20 seconds if left out.
    pub resume: Option<Span>,
    /// How long it takes to switch off; a minute if left out.
    pub shutdown: Option<Span>,
}

impl GroupEntry {
    /// What its machines are like.
    pub fn traits(&self) -> Traits {
        Traits {
            capacity: self.capacity,
            labels: self.labels.clone(),
            taints: self.taints.clone(),
            watts: self.watts,
            boot: self.boot,
            resume: self.resume,
            shutdown: self.shutdown,
        }
    }
}

impl MachineEntry {
    /// What it says of itself.
    pub fn traits(&self) -> Traits {
        Traits {
            capacity: self.capacity,
            labels: self.labels.clone(),
            taints: self.taints.clone(),
            watts: self.watts,
            boot: self.boot,
            resume: self.resume,
            shutdown: self.shutdown,
        }
    }
}

/// A machine.
#[derive(Debug, Clone, PartialEq, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineEntry {
    /// Its name: what its node is called.
    pub name: String,
    /// The group that it belongs to.
    pub group: String,
    /// `base` is never switched off, `auto` may be.
    #[serde(default)]
    pub role: Role,
    /// What Kubernetes has as its node's `spec.providerID`; `atoll://NAME` if left out.
    pub provider_id: Option<String>,
    /// How it is switched. An `auto` machine must say.
    pub power: Option<PowerEntry>,
    /// How it is switched if that fails.
    pub fallback: Option<PowerEntry>,
    /// How its node is looked at: what a management controller says is not enough.
    pub node: Option<NodeEntry>,
    /// What it has for workloads, if that differs from its group; so with all that follows.
    pub capacity: Option<Capacity>,
    /// Labels that workloads can ask for.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Taints that keep workloads away.
    #[serde(default)]
    pub taints: Vec<Taint>,
    /// What it draws; guessed from its processors if left out.
    pub watts: Option<Watts>,
    /// How long it usually takes to boot; 5 minutes if left out. The real times are learnt.
    pub boot: Option<Span>,
    /// How long it usually takes to resume from suspension; 20 seconds if left out.
    pub resume: Option<Span>,
    /// How long it takes to switch off; a minute if left out.
    pub shutdown: Option<Span>,
}

/// How a machine's node is looked at.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeEntry {
    /// Where something listens while the node is up: `HOST:PORT`.
    pub address: String,
    /// A command that ends with status 0 if the node carries no work. Without it, the node counts
    /// as carrying work, and is not switched off.
    pub idle: Option<Vec<String>>,
    /// A command that prints which boot of its system the node is in, such as one of `ssh` that prints
    /// `/proc/sys/kernel/random/boot_id`: a machine that was suspended comes back with the same one.
    pub boot_id: Option<Vec<String>>,
}

/// How a machine is switched.
#[derive(Debug, Clone, PartialEq, JsonSchema, Deserialize)]
#[serde(tag = "driver", rename_all = "kebab-case", deny_unknown_fields)]
pub enum PowerEntry {
    /// A management controller that speaks Redfish.
    Redfish {
        /// Its address: `https://10.0.0.7`.
        address: String,
        /// The system's path; the only one there is if left out.
        system: Option<String>,
        /// The user.
        user: String,
        /// Where the password is.
        password: SecretSource,
        /// SHA-256 of its certificate, in hexadecimal: nothing else is accepted then. Without it,
        /// the certificate must be signed by somebody whom this machine trusts.
        certificate_sha256: Option<String>,
        /// How long it may take to answer; 10 seconds if left out, which is the most.
        timeout: Option<Span>,
    },
    /// A management controller that speaks IPMI 2.0 over LAN+; switched by `ipmitool`.
    Ipmi {
        /// Its host name or address.
        address: String,
        /// Its port; 623 if left out.
        port: Option<u16>,
        /// The user.
        user: String,
        /// Where the password is.
        password: SecretSource,
    },
    /// A network card that wakes its machine; switching off is done by a command.
    WakeOnLan {
        /// The card's address: `00:11:22:33:44:55`.
        mac: String,
        /// Where the packet is sent; `255.255.255.255:9` if left out.
        broadcast: Option<SocketAddr>,
        /// The command that switches the machine off, such as one of `ssh`.
        off: Vec<String>,
        /// The command that suspends it, if it can: it ends before the machine sleeps. Packets wake it.
        suspend: Option<Vec<String>>,
    },
    /// Commands, for whatever else there is, such as a cloud's instances.
    Command {
        /// The command that switches the machine on.
        on: Vec<String>,
        /// The command that switches it off.
        off: Vec<String>,
        /// The command that prints `on`, `off`, `changing` or, if it can be suspended, `suspended`.
        status: Vec<String>,
        /// The command that suspends it, if it can; `on` wakes it.
        suspend: Option<Vec<String>>,
        /// The folder that commands start in.
        folder: Option<PathBuf>,
    },
}

/// What a machine has for workloads.
#[derive(Debug, Clone, Copy, PartialEq, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capacity {
    /// Processors.
    pub cpu: f64,
    /// Memory, such as `256GiB`.
    pub memory: Memory,
    /// Accelerators.
    #[serde(default)]
    pub gpus: u64,
    /// How many workloads it takes at once; 110 if left out.
    #[serde(default = "places")]
    pub places: u64,
}

const fn places() -> u64 {
    110
}

/// An amount of memory, as it is written: `256GiB`, or a number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String")]
pub struct Memory(pub api::Bytes);

impl<'de> Deserialize<'de> for Memory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Memory;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an amount of memory such as \"256GiB\"")
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Memory, E> {
                value.parse().map(Memory).map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Memory, E> {
                match u64::try_from(value) {
                    Ok(bytes) => Ok(Memory(api::Bytes(bytes))),
                    Err(_) => Err(E::custom("memory cannot be negative")),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
