//! A machine that is nobody's yet.

use super::{hold::Hold, machine::FirecrackerMachine, messages::Load};
use crate::{
    DriverError, Machine, NetworkSlot, Prepared, StartSpec,
    phases::Stopwatch,
    qemu::{
        driver::blocking,
        notes::Notes,
        prepared::{describe, same_resources},
    },
    slot::machine::TAP,
};
use std::{sync::Arc, time::Instant};

/// A prepared machine. Dropping it ends it in the background.
pub(super) struct PreparedMachine {
    /// None once it is somebody's.
    parts: Option<Parts>,
    slot: Arc<NetworkSlot>,
}

/// What it consists of.
pub(super) struct Parts {
    pub(super) hold: Hold,
    pub(super) notes: Notes,
    /// Whether its guest waits; else its memory is yet to be loaded.
    pub(super) booted: bool,
    pub(super) phases: Stopwatch,
}

impl PreparedMachine {
    pub(super) fn new(parts: Parts, slot: Arc<NetworkSlot>) -> Self {
        Self {
            parts: Some(parts),
            slot,
        }
    }
}

#[async_trait::async_trait]
impl Prepared for PreparedMachine {
    fn slot(&self) -> &Arc<NetworkSlot> {
        &self.slot
    }

    fn is_alive(&self) -> bool {
        self.parts
            .as_ref()
            .is_some_and(|parts| parts.hold.is_alive())
    }

    async fn start(mut self: Box<Self>, spec: StartSpec) -> Result<Box<dyn Machine>, DriverError> {
        let Some(mut parts) = self.parts.take() else {
            return Err(DriverError::Guest("it has been started already".into()));
        };
        parts.phases.insert(Vec::new());
        match start(&mut parts, &self.slot, spec).await {
            Ok(()) => Ok(Box::new(FirecrackerMachine::new(
                parts.hold,
                parts.notes,
                parts.phases,
            ))),
            Err(error) => {
                if let Err(error) = parts.hold.end().await {
                    tracing::warn!(%error, "a machine that did not start is not gone");
                }
                Err(error)
            }
        }
    }

    async fn discard(mut self: Box<Self>) {
        if let Some(parts) = self.parts.take()
            && let Err(error) = parts.hold.end().await
        {
            tracing::warn!(%error, "a prepared machine is not gone");
        }
    }
}

impl Drop for PreparedMachine {
    fn drop(&mut self) {
        if let Some(parts) = self.parts.take() {
            parts.hold.end_in_background();
        }
    }
}

async fn start(parts: &mut Parts, slot: &NetworkSlot, spec: StartSpec) -> Result<(), DriverError> {
    let begin = Instant::now();
    let Parts {
        hold,
        notes,
        booted,
        phases,
    } = parts;
    let StartSpec {
        resources,
        identity,
        host_name,
        name_servers,
        renew,
        deadline,
        ..
    } = spec;
    same_resources(&notes.resources, &resources)?;
    if identity.port != api::envd::PORT {
        return Err(DriverError::Unsupported {
            cause: format!("a guest that serves on port {}", identity.port),
            remedy: format!("Guests of machines serve on port {}", api::envd::PORT),
        });
    }
    let former = std::mem::replace(&mut notes.control_token, identity.control_token.clone());
    // Before it runs: whoever finds it running must be able to open it.
    let (directory, noted) = (hold.jail.path().to_owned(), notes.clone());
    blocking(move || noted.write(&directory)).await?;
    if !*booted {
        let inner = &hold.inner;
        let track = notes.base.is_some();
        let load = Load::new(inner.version, track, other_tap(slot, inner.version)?);
        let left = deadline.saturating_sub(begin.elapsed());
        hold.unless_ended(hold.client.put("/snapshot/load", &load, left))
            .await?;
        phases.mark("load");
    }
    let claim = describe(identity, host_name, name_servers, renew)?;
    let left = deadline.saturating_sub(begin.elapsed());
    hold.unless_ended(hold.guest.claim(&claim, &former, left))
        .await?;
    phases.mark("identity");
    Ok(())
}

/// The slot's tap, if it is not the one that every snapshot was made with.
fn other_tap(slot: &NetworkSlot, version: super::Version) -> Result<Option<&str>, DriverError> {
    let other = slot.tap.as_deref().filter(|tap| *tap != TAP);
    match other {
        Some(tap) if !version.overrides_network() => Err(DriverError::Unsupported {
            cause: format!("Firecracker {version} cannot load a machine onto the tap {tap}"),
            remedy: format!("Name the tap {TAP}, or install Firecracker 1.12 or newer"),
        }),
        other => Ok(other),
    }
}
