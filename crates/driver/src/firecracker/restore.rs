//! Brings a machine to where another one was saved.

use super::{
    hold::Hold,
    messages::{Backend, How, Load},
    version::Version,
};
use crate::{
    DriverError, NetworkSlot,
    microvm::{notes::Notes, unsupported},
    slot::machine::TAP,
};
use std::time::Duration;

/// Loads a machine's state and lets it go.
pub(super) async fn load(
    hold: &Hold,
    backend: Backend,
    slot: &NetworkSlot,
    notes: &Notes,
    patience: Duration,
) -> Result<(), DriverError> {
    let version = hold.inner.version;
    let how = How {
        backend,
        track: notes.base.is_some(),
        advance_clock: hold.inner.options.advance_clock,
        other_tap: other_tap(slot, version)?,
    };
    let load = Load::new(version, how);
    hold.unless_ended(hold.client.put("/snapshot/load", &load, patience))
        .await
}

/// The slot's tap, if it is not the one that every snapshot was made with.
fn other_tap(slot: &NetworkSlot, version: Version) -> Result<Option<&str>, DriverError> {
    let other = slot.tap.as_deref().filter(|tap| *tap != TAP);
    match other {
        Some(tap) if !version.overrides_network() => Err(unsupported(
            format!("Firecracker {version} cannot load a machine onto the tap {tap}"),
            format!("Name the tap {TAP}, or install Firecracker 1.12 or newer"),
        )),
        other => Ok(other),
    }
}
