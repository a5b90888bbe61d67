//! All sandboxes that the node knows, running and ended.

use super::handle::{EndedSandbox, Sandbox};
use crate::journal::{HISTORY_COUNT, HISTORY_TIME, ended_at};
use api::{SandboxId, node::SandboxStatus};
use jiff::Timestamp;
use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

/// A sandbox by its name.
#[derive(Clone)]
pub(crate) enum Found {
    /// It has not ended.
    Live(Arc<Sandbox>),
    /// It has.
    Ended(Arc<EndedSandbox>),
}

impl Found {
    pub(crate) fn status(&self) -> SandboxStatus {
        match self {
            Self::Live(sandbox) => sandbox.status(),
            Self::Ended(ended) => (*ended.status).clone(),
        }
    }
}

#[derive(Default)]
struct Maps {
    live: HashMap<SandboxId, Arc<Sandbox>>,
    ended: HashMap<SandboxId, Arc<EndedSandbox>>,
}

/// Looked up for every connection that the gateway makes, so no lock is held across a wait, and
/// live sandboxes are apart from the many that ended.
#[derive(Default)]
pub(crate) struct Registry(RwLock<Maps>);

impl Registry {
    fn read(&self) -> RwLockReadGuard<'_, Maps> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Maps> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn find(&self, id: &SandboxId) -> Option<Found> {
        let maps = self.read();
        match maps.live.get(id) {
            Some(sandbox) => Some(Found::Live(sandbox.clone())),
            None => maps.ended.get(id).cloned().map(Found::Ended),
        }
    }

    pub(crate) fn live(&self, id: &SandboxId) -> Option<Arc<Sandbox>> {
        self.read().live.get(id).cloned()
    }

    pub(crate) fn all_live(&self) -> Vec<Arc<Sandbox>> {
        self.read().live.values().cloned().collect()
    }

    pub(crate) fn all(&self) -> Vec<Found> {
        let maps = self.read();
        let live = maps.live.values().cloned().map(Found::Live);
        live.chain(maps.ended.values().cloned().map(Found::Ended))
            .collect()
    }

    /// Adds a sandbox; if its name is taken, returns who has it and adds nothing. `make` runs only
    /// if the name is free, and its failure is passed on.
    pub(crate) fn insert_new<Error>(
        &self,
        id: &SandboxId,
        make: impl FnOnce() -> Result<Arc<Sandbox>, Error>,
    ) -> Result<Option<Found>, Error> {
        let mut maps = self.write();
        if let Some(sandbox) = maps.live.get(id) {
            return Ok(Some(Found::Live(sandbox.clone())));
        }
        if let Some(ended) = maps.ended.get(id) {
            return Ok(Some(Found::Ended(ended.clone())));
        }
        let sandbox = make()?;
        maps.live.insert(id.clone(), sandbox);
        Ok(None)
    }

    /// Forgets a sandbox of which nothing ever existed.
    pub(crate) fn remove(&self, id: &SandboxId) {
        self.write().live.remove(id);
    }

    /// Adds what earlier runs remember.
    pub(crate) fn remember(&self, past: impl IntoIterator<Item = Arc<SandboxStatus>>) {
        let mut maps = self.write();
        for status in past {
            let ended = EndedSandbox {
                status: status.clone(),
                samples: Box::default(),
            };
            maps.ended.insert(status.id.clone(), Arc::new(ended));
        }
    }

    /// Turns a live sandbox into a memory.
    pub(crate) fn finish(&self, ended: EndedSandbox) {
        let id = ended.status.id.clone();
        let mut maps = self.write();
        maps.ended.insert(id.clone(), Arc::new(ended));
        maps.live.remove(&id);
    }

    /// Forgets sandboxes that ended too long ago, and the oldest of too many.
    pub(crate) fn prune(&self, now: Timestamp) {
        let mut maps = self.write();
        maps.ended
            .retain(|_, ended| crate::clock::until(ended_at(&ended.status), now) <= HISTORY_TIME);
        if maps.ended.len() > HISTORY_COUNT {
            let mut by_end: Vec<_> = maps
                .ended
                .values()
                .map(|ended| (ended_at(&ended.status), ended.status.id.clone()))
                .collect();
            by_end.sort();
            let surplus = by_end.len() - HISTORY_COUNT;
            for (_, id) in by_end.into_iter().take(surplus) {
                maps.ended.remove(&id);
            }
        }
    }
}
