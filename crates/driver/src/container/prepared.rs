//! A cell that is nobody's yet.

use super::{
    driver::limits,
    machine::{Cell, ContainerMachine},
    notes::Notes,
    process,
    protocol::{Answer, Request, Start},
    save::DISK,
};
use crate::{
    DriverError, Machine, NetworkSlot, Origin, Prepared, StartSpec, blocking::blocking, doing,
    layer::Layer, phases::Stopwatch,
};
use api::boot::CellClaim;
use std::{
    sync::{Arc, PoisonError},
    time::Instant,
};

/// A prepared cell. Dropping it ends it in the background.
pub(super) struct PreparedCell {
    /// None once it is somebody's.
    cell: Option<Cell>,
    slot: Arc<NetworkSlot>,
    phases: Option<Stopwatch>,
}

impl PreparedCell {
    pub(super) fn new(cell: Cell, slot: Arc<NetworkSlot>, phases: Stopwatch) -> Self {
        Self {
            cell: Some(cell),
            slot,
            phases: Some(phases),
        }
    }
}

#[async_trait::async_trait]
impl Prepared for PreparedCell {
    fn slot(&self) -> &Arc<NetworkSlot> {
        &self.slot
    }

    fn is_alive(&self) -> bool {
        self.cell
            .as_ref()
            .is_some_and(|cell| !process::has_ended(cell.process.get_ref()))
    }

    async fn start(mut self: Box<Self>, spec: StartSpec) -> Result<Box<dyn Machine>, DriverError> {
        let (Some(cell), Some(mut phases)) = (self.cell.take(), self.phases.take()) else {
            return Err(DriverError::Guest("it has been started already".into()));
        };
        phases.insert(Vec::new());
        match start(&cell, spec, &mut phases).await {
            Ok(()) => Ok(Box::new(ContainerMachine::new(cell, phases))),
            Err(error) => {
                if let Err(error) = cell.end().await {
                    tracing::warn!(%error, "a sandbox that did not start is not gone");
                }
                Err(error)
            }
        }
    }

    async fn discard(mut self: Box<Self>) {
        if let Some(cell) = self.cell.take()
            && let Err(error) = cell.end().await
        {
            tracing::warn!(%error, "a prepared sandbox is not gone");
        }
    }
}

impl Drop for PreparedCell {
    fn drop(&mut self) {
        if let Some(cell) = self.cell.take() {
            cell.end_in_background();
        }
    }
}

async fn start(cell: &Cell, spec: StartSpec, phases: &mut Stopwatch) -> Result<(), DriverError> {
    let begin = Instant::now();
    let Some(connection) = cell.connection.clone() else {
        return Err(DriverError::Guest("the keeper is gone".into()));
    };
    let StartSpec {
        origin,
        resources,
        identity,
        host_name,
        name_servers,
        search,
        deadline,
        // A cell is always new.
        renew: _,
    } = spec;

    let inner = Arc::clone(&cell.inner);
    let (slot, group) = (cell.slot, cell.group.clone());
    let layer = cell
        .layer
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    let name = host_name.clone();
    let root = origin.root().clone();
    let layers = root.layers.clone();
    let (layer, other_mount, no_new_privileges) = blocking(move || {
        let prepared = matches!(origin, Origin::Fresh(_))
            && layer
                .as_ref()
                .is_some_and(|layer| layer.size() == resources.disk);
        let layer = match layer {
            Some(layer) if prepared => layer,
            other => {
                if let Some(layer) = other {
                    layer.release();
                }
                match &origin {
                    Origin::Fresh(_) => inner.layers.create(slot, resources.disk)?,
                    Origin::Saved(state) => {
                        inner.layers.restore(slot, &state.directory.join(DISK))?
                    }
                }
            }
        };
        let outfit = || -> std::io::Result<_> {
            let restored = matches!(origin, Origin::Saved(_)).then_some(&layer);
            let no_new_privileges =
                inner
                    .privileges
                    .forbids(inner.options.set_user_id, &root.layers, restored);
            layer.write_names(&name, &name_servers, search.as_deref())?;
            group.limit(&limits(&resources, inner.options.processes))?;
            let mount = if prepared {
                None
            } else {
                inner.limit_io(&group, &layer)?;
                Some(layer.mount()?)
            };
            Notes { root, resources }.write(&inner, slot)?;
            Ok((mount, no_new_privileges))
        };
        match outfit() {
            Ok((mount, forbidden)) => Ok::<(Layer, _, _), DriverError>((layer, mount, forbidden)),
            Err(error) => {
                layer.discard();
                Err(doing(format!("outfit slot {slot}"))(error))
            }
        }
    })
    .await?;
    *cell.layer.lock().unwrap_or_else(PoisonError::into_inner) = Some(layer);
    phases.mark("names and limits");

    let claim = CellClaim {
        identity,
        host_name,
        no_new_privileges,
    };
    let request = Request::Start(Box::new(Start {
        pid: cell.pid,
        layers,
        claim,
    }));
    let descriptors: Vec<_> = other_mount.iter().collect();
    let left = deadline.saturating_sub(begin.elapsed());
    match connection.ask(request, &descriptors, left).await? {
        (Answer::Started { phases: steps }, _) => {
            phases.insert(steps);
            Ok(())
        }
        (other, _) => Err(DriverError::Guest(format!("unexpected answer: {other:?}"))),
    }
}
