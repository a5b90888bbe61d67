//! How a group is scaled: what Cluster Autoscaler has by default, but for what the operator changes.
//!
//! Until the operator changes something, the answer is "unimplemented": versions before fields 11
//! and 12 read them as zero from any other answer, and then count a node that registered and is
//! not ready yet as broken.

use super::wire;
use crate::moment::Span;
use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, decode_key, skip_field},
};
use schemars::JsonSchema;
use serde::Deserialize;

/// The last field that is known here.
const LAST: u32 = 12;

/// What the operator changes for a group; what is left out stays as Cluster Autoscaler has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GroupOptions {
    /// Below this utilisation (0 to 1) a node may be removed.
    pub utilization: Option<f64>,
    /// The same for nodes with accelerators.
    pub gpu_utilization: Option<f64>,
    /// For how long a node must have been unneeded before it is removed.
    pub unneeded: Option<Span>,
    /// The same for a node that is not ready.
    pub unready: Option<Span>,
    /// How long a node may take to come.
    pub provision: Option<Span>,
    /// How long a node may take from registering to being ready.
    pub startup: Option<Span>,
    /// Whether daemon sets do not count as utilisation.
    pub ignore_daemon_sets: Option<bool>,
}

/// What is answered.
pub(super) struct Answer {
    /// The options of the group, in both generations of the wire.
    pub(super) options: Vec<u8>,
    /// Whether this version reads any answer as "nodes have no time to become ready".
    pub(super) forgets_startup: bool,
}

/// The options of a group; `None` if the defaults are to stay.
///
/// # Errors
/// When the defaults cannot be read.
pub(super) fn answer(
    defaults: Option<&[u8]>,
    changes: &GroupOptions,
    atomic: bool,
) -> Result<Option<Answer>, DecodeError> {
    let Some(defaults) = defaults else {
        return Ok(None);
    };
    if !atomic && *changes == GroupOptions::default() {
        return Ok(None);
    }
    let mut options = wire::Options::decode(defaults)?;
    let forgets_startup = options.startup.is_none();
    options.zero_or_max |= atomic;
    set(&mut options.utilization, changes.utilization);
    set(&mut options.gpu_utilization, changes.gpu_utilization);
    set(&mut options.ignore_daemon_sets, changes.ignore_daemon_sets);
    let durations = [
        (
            &mut options.unneeded,
            &mut options.unneeded_legacy,
            changes.unneeded,
        ),
        (
            &mut options.unready,
            &mut options.unready_legacy,
            changes.unready,
        ),
        (
            &mut options.provision,
            &mut options.provision_legacy,
            changes.provision,
        ),
    ];
    for (modern, legacy, change) in durations {
        let given = modern.or_else(|| legacy.as_ref().map(wire::LegacyDuration::modern));
        *modern = change.map(wire::Duration::of).or(given);
        *legacy = modern.as_ref().map(wire::Duration::legacy);
    }
    if let Some(startup) = changes.startup {
        options.startup = Some(wire::Duration::of(startup));
    }
    let mut options = options.encode_to_vec();
    options.extend(unknown(defaults)?);
    Ok(Some(Answer {
        options,
        forgets_startup,
    }))
}

fn set<T>(field: &mut T, change: Option<T>) {
    if let Some(value) = change {
        *field = value;
    }
}

/// The fields that are not known here, as they came.
fn unknown(message: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let mut kept = Vec::new();
    let mut rest = message;
    while !rest.is_empty() {
        let start = rest;
        let (tag, kind) = decode_key(&mut rest)?;
        skip_field(kind, tag, &mut rest, DecodeContext::default())?;
        if tag > LAST {
            kept.extend_from_slice(&start[..start.len() - rest.len()]);
        }
    }
    Ok(kept)
}
