//! How many sandboxes each tenant has, for its limit.
//!
//! The nodes know; here is an upper bound of what they know, so that a creation costs no
//! question. Sandboxes that end by themselves are noticed when a tenant seems to have reached its
//! limit: then the nodes are asked, at most one question at a time.
//!
//! Paused sandboxes do not count: they take nothing but disk. Resuming one takes a place again. Of
//! one that traffic wakes the nodes tell when they are asked next: it may put a tenant above its
//! limit, and then nothing of the tenant's is created until it is below it.

use crate::nodes::Nodes;
use api::{
    ErrorCode, Problem, SandboxId, TenantId,
    node::{SandboxState, SandboxStatus},
};
use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
};

#[derive(Default)]
struct Counts {
    /// Created, and not known to have ended.
    known: HashMap<TenantId, HashSet<SandboxId>>,
    /// Being created.
    pending: HashMap<TenantId, usize>,
    /// Created while a question to the nodes was under way, whose answer may lack them.
    recent: HashSet<SandboxId>,
}

impl Counts {
    fn of(&self, tenant: &TenantId) -> usize {
        self.known.get(tenant).map_or(0, HashSet::len)
            + self.pending.get(tenant).copied().unwrap_or(0)
    }
}

/// How many sandboxes each tenant has.
#[derive(Default)]
pub(crate) struct Usage {
    counts: Mutex<Counts>,
    asking: tokio::sync::Mutex<()>,
}

/// A sandbox that is being created counts as one. Dropped, it counts no more.
pub(crate) struct Reservation<'a> {
    usage: &'a Usage,
    tenant: TenantId,
}

impl Reservation<'_> {
    /// The sandbox was created.
    pub(crate) fn keep(self, id: SandboxId) {
        let mut counts = self.usage.lock();
        counts.recent.insert(id.clone());
        counts
            .known
            .entry(self.tenant.clone())
            .or_default()
            .insert(id);
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut counts = self.usage.lock();
        if let Some(pending) = counts.pending.get_mut(&self.tenant) {
            *pending = pending.saturating_sub(1);
            if *pending == 0 {
                counts.pending.remove(&self.tenant);
            }
        }
    }
}

/// Whether a sandbox has not ended and is not being taken down.
pub(crate) fn is_live(status: &SandboxStatus) -> bool {
    !matches!(
        status.state,
        SandboxState::Stopping { .. } | SandboxState::Ended { .. }
    )
}

/// Whether a sandbox counts for its tenant's limit, and takes a place on its node.
pub(crate) fn takes_a_place(status: &SandboxStatus) -> bool {
    is_live(status) && status.state != SandboxState::Paused
}

impl Usage {
    fn lock(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more sandbox, or says that the tenant has as many as it may.
    pub(crate) async fn reserve(
        &self,
        nodes: &Nodes,
        tenant: &TenantId,
        limit: usize,
    ) -> Result<Reservation<'_>, Problem> {
        if let Some(reservation) = self.try_reserve(tenant, limit) {
            return Ok(reservation);
        }
        let turn = self.asking.lock().await;
        // Somebody else may have asked while this one waited.
        if let Some(reservation) = self.try_reserve(tenant, limit) {
            return Ok(reservation);
        }
        self.renew(nodes).await?;
        drop(turn);
        self.try_reserve(tenant, limit).ok_or_else(|| {
            Problem::new(
                ErrorCode::LimitReached,
                format!("You have reached the maximum number of concurrent sandboxes ({limit})"),
                "kill or pause sandboxes that are no longer needed, or ask the administrator for more",
            )
        })
    }

    fn try_reserve(&self, tenant: &TenantId, limit: usize) -> Option<Reservation<'_>> {
        let mut counts = self.lock();
        if counts.of(tenant) >= limit {
            return None;
        }
        *counts.pending.entry(tenant.clone()).or_default() += 1;
        Some(Reservation {
            usage: self,
            tenant: tenant.clone(),
        })
    }

    /// Asks the nodes what there really is.
    pub(crate) async fn renew(&self, nodes: &Nodes) -> Result<(), Problem> {
        self.lock().recent.clear();
        let all = nodes.sandboxes().await?;
        let mut known: HashMap<TenantId, HashSet<SandboxId>> = HashMap::new();
        for status in all.iter().filter(|status| takes_a_place(status)) {
            known
                .entry(status.tenant.clone())
                .or_default()
                .insert(status.id.clone());
        }
        let mut counts = self.lock();
        let Counts {
            known: before,
            recent,
            ..
        } = &mut *counts;
        for (tenant, ids) in before.drain() {
            let ids = ids.into_iter().filter(|id| recent.contains(id));
            known.entry(tenant).or_default().extend(ids);
        }
        known.retain(|_, ids| !ids.is_empty());
        counts.known = known;
        Ok(())
    }

    /// A sandbox is known to have ended, or to be paused.
    pub(crate) fn forget(&self, tenant: &TenantId, id: &SandboxId) {
        let mut counts = self.lock();
        if let Some(ids) = counts.known.get_mut(tenant) {
            ids.remove(id);
            if ids.is_empty() {
                counts.known.remove(tenant);
            }
        }
        counts.recent.remove(id);
    }
}
