//! Making one prepared sandbox, and taking it down again.

use crate::{
    journal::{Journal, Record},
    problems,
    slots::Slots,
};
use api::Problem;
use driver::{Driver, NetworkSlot, Plan, Prepared};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// What preparing needs.
pub(crate) struct Preparer {
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) network: Arc<dyn Slots>,
    pub(crate) journal: Arc<Journal>,
    /// Where something is being prepared.
    unfinished: Mutex<BTreeMap<u32, Arc<NetworkSlot>>>,
}

impl Preparer {
    pub(crate) fn new(
        driver: Arc<dyn Driver>,
        network: Arc<dyn Slots>,
        journal: Arc<Journal>,
    ) -> Self {
        Self {
            driver,
            network,
            journal,
            unfinished: Mutex::default(),
        }
    }

    fn unfinished(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<NetworkSlot>>> {
        self.unfinished
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Prepares a sandbox in a slot of its own. On failure nothing is left. If it is dropped before
    /// it is done, what it had begun stays until [`Preparer::give_up`].
    pub(crate) async fn prepare(&self, plan: &Plan) -> Result<Box<dyn Prepared>, Problem> {
        let slot = self.network.claim().await?;
        let number = slot.number;
        if let Err(error) = self.journal.append(Record::Reserved { slot: number }).await {
            self.network.release(slot).await;
            return Err(error.problem());
        }
        self.unfinished().insert(number, slot.clone());
        let prepared = self.driver.prepare(slot.clone(), plan).await;
        self.unfinished().remove(&number);
        match prepared {
            Ok(prepared) => Ok(prepared),
            Err(error) => {
                self.release(slot).await;
                Err(problems::from_driver(&error))
            }
        }
    }

    /// Takes down what preparations had begun that were dropped.
    pub(crate) async fn give_up(&self) {
        let unfinished = std::mem::take(&mut *self.unfinished());
        for (number, slot) in unfinished {
            match self.driver.clear(number).await {
                Ok(()) => self.release(slot).await,
                Err(error) => {
                    let error = problems::chain(&error);
                    tracing::warn!(
                        "the next start takes down what is left in slot {number}: {error}"
                    );
                }
            }
        }
    }

    /// The same for one that will wait to be needed, in which the shell of `shell_of` is run first.
    pub(crate) async fn prepare_warm(
        &self,
        plan: &Plan,
        shell_of: Option<&str>,
    ) -> Result<Box<dyn Prepared>, Problem> {
        let mut prepared = self.prepare(plan).await?;
        if let Some(user) = shell_of
            && let Err(error) = prepared.warm_up(user).await
        {
            self.discard(prepared).await;
            return Err(problems::from_driver(&error));
        }
        Ok(prepared)
    }

    /// Takes a prepared sandbox down.
    pub(crate) async fn discard(&self, prepared: Box<dyn Prepared>) {
        let slot = prepared.slot().clone();
        prepared.discard().await;
        self.release(slot).await;
    }

    /// Gives back a slot in which nothing is left.
    pub(crate) async fn release(&self, slot: Arc<NetworkSlot>) {
        let number = slot.number;
        self.network.release(slot).await;
        if let Err(error) = self.journal.append(Record::Released { slot: number }).await {
            tracing::warn!("slot {number} is free, but the journal does not say so: {error}");
        }
    }
}
