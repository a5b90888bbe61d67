//! A store that loses answers, or keeps them back.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use store::{
    Entry, LeaseId, Outcome, Page, Range, Revision, Store, StoreError, Transaction, Watch,
};
use tokio::sync::watch;

/// What becomes of the next transaction. Those after it pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The process dies before it is written.
    Before,
    /// The process dies after it was written, and before anybody knows.
    After,
}

/// A store in front of another.
pub struct Faulty {
    store: Arc<dyn Store>,
    next: Mutex<Option<Fault>>,
    held: watch::Sender<bool>,
    waiting: watch::Sender<usize>,
}

impl Faulty {
    pub fn new(store: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self {
            store,
            next: Mutex::default(),
            held: watch::Sender::new(false),
            waiting: watch::Sender::new(0),
        })
    }

    pub fn strike(&self, fault: Fault) {
        *self.next.lock().unwrap() = Some(fault);
    }

    /// Whether a fault still waits for a transaction; it does no longer.
    pub fn calm(&self) -> bool {
        self.next.lock().unwrap().take().is_some()
    }

    /// Keeps all transactions back, or lets them through.
    pub fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }

    /// Returns when so many transactions are kept back.
    pub async fn wait_until_held(&self, count: usize) {
        let mut waiting = self.waiting.subscribe();
        let enough = waiting.wait_for(|found| *found >= count);
        let enough = tokio::time::timeout(Duration::from_secs(10), enough);
        drop(enough.await.unwrap().unwrap());
    }

    async fn suffer(
        &self,
        transaction: impl Future<Output = Result<Outcome, StoreError>>,
    ) -> Result<Outcome, StoreError> {
        let mut held = self.held.subscribe();
        self.waiting.send_modify(|count| *count += 1);
        let _ = held.wait_for(|held| !held).await;
        self.waiting.send_modify(|count| *count -= 1);
        let fault = self.next.lock().unwrap().take();
        if fault == Some(Fault::Before) {
            return Err(StoreError::Closed);
        }
        let outcome = transaction.await;
        if fault == Some(Fault::After) {
            return Err(StoreError::Closed);
        }
        outcome
    }
}

#[async_trait::async_trait]
impl Store for Faulty {
    async fn transact(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        self.suffer(self.store.transact(transaction)).await
    }

    async fn transact_soon(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        self.suffer(self.store.transact_soon(transaction)).await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.store.get(key).await
    }

    async fn range(&self, range: Range) -> Result<Page, StoreError> {
        self.store.range(range).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        self.store.watch(prefix, from).await
    }

    async fn grant(&self, time_to_live: Duration) -> Result<LeaseId, StoreError> {
        self.store.grant(time_to_live).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.revoke(lease).await
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        self.store.revision().await
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.store.compact(revision).await
    }
}
