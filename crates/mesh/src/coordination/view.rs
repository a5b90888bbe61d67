//! What a node knows of the mesh.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::message::{Change, Frame};
use super::record::{Entry, NodeRecord, Voucher, is_service_v4};
use super::service::ServiceAddresses;
use crate::identity::{IdentityKey, Signed};

/// Why a frame was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// Somebody else signed it.
    #[error("what came is not signed by the mesh's coordinator")]
    Forged,
    /// It does not begin where this view ends.
    #[error("what came begins at {from}, but this node knows everything up to {cursor}")]
    Gap {
        /// Where it begins.
        from: u64,
        /// Where this view ends.
        cursor: u64,
    },
    /// It leads back.
    #[error(
        "what came leads back to {to} from {cursor}: it is old, or the coordinator lost its state"
    )]
    Old {
        /// Where it ends.
        to: u64,
        /// Where this view ends.
        cursor: u64,
    },
}

/// What a frame did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Applied {
    /// It was the whole map.
    pub whole: bool,
    /// Entries that were not believed.
    pub refused: usize,
}

/// A node of which both halves were believed.
#[derive(Debug, Clone, PartialEq)]
pub struct Known {
    /// As it was told.
    pub entry: Entry,
    /// What the coordinator vouches for.
    pub voucher: Voucher,
    /// What the node says.
    pub record: NodeRecord,
}

/// What a node knows of the mesh. Serialised, it is the node's cache; it is verified again when it is read.
#[derive(Debug, Clone)]
pub struct View {
    coordinator: IdentityKey,
    cursor: u64,
    nodes: BTreeMap<IdentityKey, Known>,
    policy: Option<String>,
    services: ServiceAddresses,
}

#[derive(Serialize, Deserialize)]
struct Cache {
    cursor: u64,
    nodes: Vec<Entry>,
    policy: Option<String>,
    /// Absent in what older versions wrote.
    #[serde(default)]
    services: Option<ServiceAddresses>,
}

impl View {
    /// One that knows nothing.
    pub const fn new(coordinator: IdentityKey) -> Self {
        Self {
            coordinator,
            cursor: 0,
            nodes: BTreeMap::new(),
            policy: None,
            services: ServiceAddresses::new(),
        }
    }

    /// Up to where everything is known.
    pub const fn cursor(&self) -> u64 {
        self.cursor
    }

    /// All nodes, also this one.
    pub fn nodes(&self) -> impl Iterator<Item = &Known> + Clone {
        self.nodes.values()
    }

    /// One of them.
    pub fn node(&self, identity: &IdentityKey) -> Option<&Known> {
        self.nodes.get(identity)
    }

    /// The policy's text, once there is one.
    pub fn policy(&self) -> Option<&str> {
        self.policy.as_deref()
    }

    /// The addresses of services; coordinators of older versions give none.
    pub const fn services(&self) -> &ServiceAddresses {
        &self.services
    }

    /// Takes a frame, or leaves everything as it was.
    ///
    /// # Errors
    /// The frame is not the coordinator's, or not the next.
    pub fn apply(&mut self, frame: &Signed<Frame>) -> Result<Applied, ViewError> {
        let frame = frame
            .verify(&self.coordinator)
            .map_err(|_| ViewError::Forged)?;
        if frame.to < self.cursor || frame.from.is_some_and(|from| from > frame.to) {
            return Err(ViewError::Old {
                to: frame.to,
                cursor: self.cursor,
            });
        }
        let mut applied = Applied::default();
        let mut before = BTreeMap::new();
        match frame.from {
            Some(from) if from != self.cursor => {
                return Err(ViewError::Gap {
                    from,
                    cursor: self.cursor,
                });
            }
            Some(_) => {}
            None => {
                applied.whole = true;
                before = std::mem::take(&mut self.nodes);
                self.policy = None;
                self.services.clear();
            }
        }
        for change in frame.changes {
            match change {
                Change::Node(entry) => {
                    // What was believed needs no second look.
                    let claimed = entry.voucher.claimed().map(|voucher| voucher.identity);
                    let known = claimed.and_then(|who| self.nodes.get(&who).or(before.get(&who)));
                    let known = known.filter(|known| known.entry == *entry).cloned();
                    let Some(known) = known.or_else(|| self.believe(*entry)) else {
                        applied.refused += 1;
                        continue;
                    };
                    let identity = known.voucher.identity;
                    let old = self.nodes.get(&identity).or_else(|| before.get(&identity));
                    // What a node once took back stays taken back, whoever hands it out.
                    let known = match old {
                        Some(old) if old.record.epoch > known.record.epoch => {
                            applied.refused += 1;
                            old.clone()
                        }
                        _ => known,
                    };
                    self.nodes.insert(identity, known);
                }
                Change::Gone(identity) => {
                    self.nodes.remove(&identity);
                }
                Change::Policy(text) => {
                    self.policy = Some(text);
                    self.services.clear();
                }
            }
        }
        if let Some(mut services) = frame.services {
            // Whatever else is said, a service is not in a node's place.
            services.retain(|_, address| is_service_v4(*address));
            self.services = services;
        }
        self.cursor = frame.to;
        Ok(applied)
    }

    fn believe(&self, entry: Entry) -> Option<Known> {
        let voucher = entry.voucher.verify(&self.coordinator).ok()?;
        let record = entry.record.verify(&voucher.identity).ok()?;
        (record.identity == voucher.identity && record.bounded()).then_some(Known {
            entry,
            voucher,
            record,
        })
    }

    /// The view as text, for the disk.
    pub fn to_cache(&self) -> String {
        let cache = Cache {
            cursor: self.cursor,
            nodes: self
                .nodes
                .values()
                .map(|known| known.entry.clone())
                .collect(),
            policy: self.policy.clone(),
            services: Some(self.services.clone()),
        };
        serde_json::to_string(&cache).unwrap_or_default()
    }

    /// Reads what [`View::to_cache`] wrote; one that knows nothing if it is spoilt.
    pub fn from_cache(coordinator: IdentityKey, text: &str) -> Self {
        let mut view = Self::new(coordinator);
        let Ok(cache) = serde_json::from_str::<Cache>(text) else {
            return view;
        };
        for entry in cache.nodes {
            let Some(known) = view.believe(entry) else {
                return Self::new(coordinator);
            };
            view.nodes.insert(known.voucher.identity, known);
        }
        view.policy = cache.policy;
        // An older version did not hear of services: the whole map tells of them, and what is known serves until then.
        view.cursor = cache.services.as_ref().map_or(0, |_| cache.cursor);
        view.services = cache.services.unwrap_or_default();
        view
    }
}
