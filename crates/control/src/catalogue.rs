//! Intent in memory: tenants, keys and templates as the store has them.
//!
//! Filled from a range, kept current by a watch from the revision after it. So authentication
//! and the look-up of a template, which lie on the path of creating a sandbox, never touch the
//! store. Whoever writes waits with [`Catalogue::reached`] until he would read it here.

use crate::{
    names::Reference,
    records::{Instance, Key, Template, Tenant},
    tokens::{KeyDigest, parse_digest},
};
use api::{ErrorCode, Problem, TemplateId, TenantId};
use futures::StreamExt;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};
use store::{Batch, Collection, Revision, Store, StoreError};
use tokio::sync::watch;

/// The collections of the control plane.
#[derive(Clone)]
pub(crate) struct Collections {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) instance: Collection<Instance>,
    pub(crate) tenants: Collection<Tenant>,
    pub(crate) keys: Collection<Key>,
    pub(crate) templates: Collection<Template>,
    pub(crate) names: Collection<TemplateId>,
    pub(crate) garbage: Collection<crate::records::Garbage>,
}

impl Collections {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self {
            instance: Collection::new(store.clone(), "atoll/instance"),
            tenants: Collection::new(store.clone(), "atoll/tenants"),
            keys: Collection::new(store.clone(), "atoll/keys"),
            templates: Collection::new(store.clone(), "atoll/templates"),
            names: Collection::new(store.clone(), "atoll/names"),
            garbage: Collection::new(store.clone(), "atoll/garbage"),
            store,
        }
    }
}

/// How long a writer waits until what it wrote has come back.
const ECHO: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Contents {
    tenants: HashMap<TenantId, Arc<Tenant>>,
    keys: BTreeMap<String, Arc<Key>>,
    digests: HashMap<KeyDigest, Arc<Key>>,
    templates: BTreeMap<TemplateId, Arc<Template>>,
    names: HashMap<String, TemplateId>,
}

impl Contents {
    fn set_key(&mut self, id: &str, key: Option<Key>) {
        if let Some(old) = self.keys.remove(id)
            && let Some(digest) = parse_digest(&old.digest)
        {
            self.digests.remove(&digest);
        }
        if let Some(key) = key.map(Arc::new) {
            if let Some(digest) = parse_digest(&key.digest) {
                self.digests.insert(digest, key.clone());
            }
            self.keys.insert(id.to_owned(), key);
        }
    }

    fn set_template(&mut self, id: &str, template: Option<Template>) {
        let Ok(id) = id.parse::<TemplateId>() else {
            return;
        };
        if let Some(old) = self.templates.remove(&id) {
            self.names.remove(&old.name);
        }
        if let Some(template) = template {
            self.names.insert(template.name.clone(), id.clone());
            self.templates.insert(id, Arc::new(template));
        }
    }

    fn set_tenant(&mut self, id: &str, tenant: Option<Tenant>) {
        let Ok(id) = id.parse::<TenantId>() else {
            return;
        };
        match tenant {
            Some(tenant) => self.tenants.insert(id, Arc::new(tenant)),
            None => self.tenants.remove(&id),
        };
    }
}

/// Tenants, keys and templates as the store has them.
pub(crate) struct Catalogue {
    collections: Collections,
    contents: RwLock<Contents>,
    revision: watch::Sender<Revision>,
}

impl Catalogue {
    /// Reads everything once.
    pub(crate) async fn load(collections: Collections) -> Result<Self, StoreError> {
        let catalogue = Self {
            collections,
            contents: RwLock::default(),
            revision: watch::Sender::new(Revision(0)),
        };
        catalogue.reload().await?;
        Ok(catalogue)
    }

    /// Follows the store until it is closed. Run it as a task.
    pub(crate) async fn follow(&self) {
        loop {
            match self.follow_once().await {
                Err(StoreError::Closed) => return,
                Err(StoreError::Compacted { .. }) => {
                    if let Err(error) = self.reload().await {
                        tracing::error!(%error, "cannot read the store");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "cannot follow the store");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Ok(()) => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        }
    }

    async fn follow_once(&self) -> Result<(), StoreError> {
        let from = self.revision.borrow().next();
        // The whole store, so that every revision is seen to have been reached.
        let mut watch = self.collections.store.watch("", from).await?;
        while let Some(batch) = watch.next().await {
            let batch = batch?;
            self.apply(&batch);
            self.revision.send_replace(batch.revision);
        }
        Ok(())
    }

    fn apply(&self, batch: &Batch) {
        let Collections {
            tenants,
            keys,
            templates,
            ..
        } = &self.collections;
        let mut contents = self
            .contents
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        for change in keys.changes(batch).into_iter().filter_map(readable) {
            contents.set_key(&change.0, change.1);
        }
        for change in templates.changes(batch).into_iter().filter_map(readable) {
            contents.set_template(&change.0, change.1);
        }
        for change in tenants.changes(batch).into_iter().filter_map(readable) {
            contents.set_tenant(&change.0, change.1);
        }
    }

    async fn reload(&self) -> Result<(), StoreError> {
        // Three ranges, maybe of three moments: the watch goes on from the earliest, and applying
        // a change twice does no harm.
        let (keys, revision) = self.collections.keys.list().await?;
        let (templates, _) = self.collections.templates.list().await?;
        let (tenants, _) = self.collections.tenants.list().await?;
        let mut contents = Contents::default();
        for key in keys {
            contents.set_key(&key.id, Some(key.record));
        }
        for template in templates {
            contents.set_template(&template.id, Some(template.record));
        }
        for tenant in tenants {
            contents.set_tenant(&tenant.id, Some(tenant.record));
        }
        *self
            .contents
            .write()
            .unwrap_or_else(PoisonError::into_inner) = contents;
        self.revision.send_replace(revision);
        Ok(())
    }

    /// Returns once everything up to `revision` can be read here.
    pub(crate) async fn reached(&self, revision: Revision) -> Result<(), Problem> {
        let mut current = self.revision.subscribe();
        let wait = current.wait_for(|current| *current >= revision);
        match tokio::time::timeout(ECHO, wait).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Problem::new(
                ErrorCode::Unavailable,
                "the change was written, but the control plane does not see it yet",
                "look again in a moment",
            )),
        }
    }

    fn read<T>(&self, read: impl FnOnce(&Contents) -> T) -> T {
        read(&self.contents.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The key with a digest.
    pub(crate) fn key_by_digest(&self, digest: &KeyDigest) -> Option<Arc<Key>> {
        self.read(|contents| contents.digests.get(digest).cloned())
    }

    /// All keys, by id.
    pub(crate) fn keys(&self) -> Vec<Arc<Key>> {
        self.read(|contents| contents.keys.values().cloned().collect())
    }

    /// One tenant.
    pub(crate) fn tenant(&self, id: &TenantId) -> Option<Arc<Tenant>> {
        self.read(|contents| contents.tenants.get(id).cloned())
    }

    /// All templates of all tenants, by id. Only reconcilers may show interest in all of them.
    pub(crate) fn templates(&self) -> Vec<Arc<Template>> {
        self.read(|contents| contents.templates.values().cloned().collect())
    }

    /// One template, whoever owns it.
    pub(crate) fn template(&self, id: &TemplateId) -> Option<Arc<Template>> {
        self.read(|contents| contents.templates.get(id).cloned())
    }

    /// The template that a reference means, whoever owns it.
    pub(crate) fn resolve(&self, reference: &Reference) -> Option<Arc<Template>> {
        let template = self.read(|contents| {
            let by_id = reference.id().and_then(|id| contents.templates.get(&id));
            let by_name = || {
                contents
                    .templates
                    .get(contents.names.get(reference.name.as_str())?)
            };
            by_id.or_else(by_name).cloned()
        })?;
        let namespace = reference.namespace.as_deref();
        namespace
            .is_none_or(|owner| owner == template.tenant.as_str())
            .then_some(template)
    }
}

fn readable<T>(change: Result<(String, Option<T>), StoreError>) -> Option<(String, Option<T>)> {
    change
        .inspect_err(|error| tracing::error!(%error, "skipped a record"))
        .ok()
}
