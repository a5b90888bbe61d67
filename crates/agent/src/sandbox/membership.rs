//! A sandbox's place in the mesh, if it is to have one. For all others nothing here does anything.

use super::handle::Sandbox;
use crate::{
    mesh::{Attached, Members},
    parts::Parts,
};
use api::{ErrorCode, Problem, node::MeshMembership};
use driver::NetworkSlot;
use std::{net::IpAddr, sync::Arc};

/// Refuses what this node cannot have in the mesh.
pub(crate) fn check(parts: &Parts, wanted: Option<&MeshMembership>) -> Result<(), Problem> {
    if wanted.is_none() || parts.members.is_some() {
        return Ok(());
    }
    Err(Problem::new(
        ErrorCode::Unsupported,
        "this node keeps no sandboxes in the mesh",
        "create the sandbox without `mesh`, or on another node",
    ))
}

fn wanted<'a>(
    parts: &'a Parts,
    sandbox: &'a Sandbox,
) -> Option<(&'a Arc<dyn Members>, &'a MeshMembership)> {
    parts.members.as_ref().zip(sandbox.request.mesh.as_ref())
}

/// Brings it in.
pub(super) async fn attach(
    parts: &Parts,
    sandbox: &Sandbox,
    slot: &NetworkSlot,
) -> Result<Option<Attached>, Problem> {
    let Some((members, membership)) = wanted(parts, sandbox) else {
        return Ok(None);
    };
    let name_servers = parts.network.name_servers();
    let attached = members
        .attach(sandbox.id(), membership, slot, &name_servers)
        .await?;
    if let Some(attached) = attached.as_ref().filter(|_| slot.tap.is_some()) {
        for address in &attached.place.addresses {
            if let IpAddr::V4(address) = *address {
                let joined = parts.network.join(slot, attached.devices, address);
                joined.await?;
            }
        }
    }
    let place = attached.as_ref().map(|attached| attached.place.clone());
    sandbox.change(|view| view.mesh = place);
    Ok(attached)
}

/// Brings one back in that went on while nobody looked. It goes on whatever comes of it.
pub(super) async fn attach_again(parts: &Parts, sandbox: &Sandbox, slot: &NetworkSlot) {
    if let Err(problem) = attach(parts, sandbox, slot).await {
        tracing::error!(sandbox = %sandbox.id(), "it is not back in the mesh yet: {problem}");
    }
}

/// Says where it was, for as long as it is not back.
pub(super) async fn recall(parts: &Parts, sandbox: &Sandbox) {
    if let Some((members, _)) = wanted(parts, sandbox) {
        let place = members.place(sandbox.id()).await;
        sandbox.change(|view| view.mesh = place);
    }
}

/// Takes it out for a while.
pub(super) async fn detach(parts: &Parts, sandbox: &Sandbox) {
    if let Some((members, _)) = wanted(parts, sandbox) {
        members.detach(sandbox.id()).await;
    }
}

/// Takes it out for good.
pub(super) async fn release(parts: &Parts, sandbox: &Sandbox) {
    if let Some((members, _)) = wanted(parts, sandbox) {
        members.release(sandbox.id()).await;
    }
}
