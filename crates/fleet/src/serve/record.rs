//! What was asked for and what was on, written down as it happens, so that any period of the last
//! 30 days can be run again under another policy.

use super::source::Asked;
use crate::{
    amount::Amount,
    explain::KEPT,
    inventory::{Inventory, Moving, Power},
    moment::{Moment, Span},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};
use store::{
    Collection, Condition, MAX_OPERATIONS, Operation, Range, Store, StoreError, Transaction,
};

const PREFIX: &str = "fleet/record";
/// After this time everything is written down anew, so that nobody needs to read further back.
const WHOLE: Span = Span::hours(6);
/// So many events are in one value.
const EVENTS: usize = 2_000;
/// No more segments are read for one question.
pub const MOST_SEGMENTS: usize = 200_000;
const PAGE: usize = 200;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A workload was asked for.
    Asked {
        /// Its name.
        workload: String,
        /// What it asks for.
        request: Amount,
        /// Whether it may be moved.
        moving: Moving,
        /// The machine that it runs on, if it does not wait.
        machine: Option<String>,
    },
    /// A workload that waited, or ran elsewhere, runs on this machine.
    Placed {
        /// Its name.
        workload: String,
        /// The machine's.
        machine: String,
    },
    /// A workload is done.
    Done {
        /// Its name.
        workload: String,
    },
    /// A machine's power is another.
    Power {
        /// The machine's name.
        machine: String,
        /// What its power is.
        power: Power,
    },
}

/// What happened at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    /// When.
    pub at: Moment,
    /// Whether what is not named is not there: the first part of a whole picture.
    pub whole: bool,
    /// What happened.
    pub events: Vec<Event>,
}

/// Writes down what changes.
pub(super) struct Recorder {
    store: Arc<dyn Store>,
    segments: Collection<Segment>,
    workloads: HashMap<String, Asked>,
    powers: BTreeMap<String, Power>,
    whole: Option<Moment>,
}

impl Recorder {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self {
            segments: Collection::new(store.clone(), PREFIX),
            store,
            workloads: HashMap::new(),
            powers: BTreeMap::new(),
            whole: None,
        }
    }

    /// Notes what differs from the time before, as long as `leader` holds.
    pub(super) async fn note(
        &mut self,
        leader: &Condition,
        inventory: &Inventory,
        asked: &[Asked],
        now: Moment,
    ) -> Result<(), StoreError> {
        let whole = self.whole.is_none_or(|at| now.since(at) >= WHOLE);
        if whole {
            self.workloads.clear();
            self.powers.clear();
            // Written in part, it is begun anew.
            self.whole = None;
        }
        let events = self.differences(inventory, asked);
        if events.is_empty() && !whole {
            return Ok(());
        }
        let parts = events.chunks(EVENTS).map(<[Event]>::to_vec);
        let parts: Vec<Vec<Event>> = match events.len() {
            0 => vec![Vec::new()],
            _ => parts.collect(),
        };
        for (at, events) in parts.into_iter().enumerate() {
            let segment = Segment {
                at: now,
                whole: whole && at == 0,
                events,
            };
            let transaction = Transaction {
                conditions: vec![leader.clone()],
                then: vec![self.segments.put(&id(now, at), &segment)?],
            };
            if let Err(error) = self.store.transact(transaction).await {
                self.whole = None;
                return Err(error);
            }
        }
        self.workloads = asked
            .iter()
            .map(|one| (one.name.clone(), one.clone()))
            .collect();
        let machines = inventory.machines().iter();
        self.powers = machines.map(|one| (one.name.clone(), one.power)).collect();
        if whole {
            self.whole = Some(now);
        }
        Ok(())
    }

    fn differences(&self, inventory: &Inventory, asked: &[Asked]) -> Vec<Event> {
        let mut events = Vec::new();
        for machine in inventory.machines() {
            if self.powers.get(&machine.name) != Some(&machine.power) {
                events.push(Event::Power {
                    machine: machine.name.clone(),
                    power: machine.power,
                });
            }
        }
        let mut gone: HashMap<&str, ()> = self
            .workloads
            .keys()
            .map(|name| (name.as_str(), ()))
            .collect();
        let fresh = |one: &Asked| Event::Asked {
            workload: one.name.clone(),
            request: one.request,
            moving: one.moving,
            machine: one.machine.clone(),
        };
        for one in asked {
            gone.remove(one.name.as_str());
            match self.workloads.get(&one.name) {
                None => events.push(fresh(one)),
                Some(before) if before.request != one.request => {
                    let workload = one.name.clone();
                    events.extend([Event::Done { workload }, fresh(one)]);
                }
                Some(before) if before.machine != one.machine => {
                    if let Some(machine) = &one.machine {
                        events.push(Event::Placed {
                            workload: one.name.clone(),
                            machine: machine.clone(),
                        });
                    }
                }
                Some(_) => {}
            }
        }
        let mut gone: Vec<&str> = gone.into_keys().collect();
        gone.sort_unstable();
        events.extend(gone.into_iter().map(|name| Event::Done {
            workload: name.to_owned(),
        }));
        events
    }
}

/// What was written down between two moments, the oldest first, from the last whole picture before
/// `from` on. At most [`MOST_SEGMENTS`].
///
/// # Errors
/// When the store cannot be read.
pub async fn read(
    store: &Arc<dyn Store>,
    from: Moment,
    until: Moment,
) -> Result<Vec<Segment>, StoreError> {
    let segments: Collection<Segment> = Collection::new(store.clone(), PREFIX);
    let mut range = Range::new(segments.prefix(), PAGE);
    // Twice, as a picture may have been begun anew a little late.
    let earliest = from.minus(Span(WHOLE.0 * 2));
    range.after = Some(segments.key(&id(earliest, 0)));
    let mut found: Vec<Segment> = Vec::new();
    loop {
        let page = store.range(range.clone()).await?;
        for entry in &page.entries {
            let segment = segments.read(entry)?.record;
            if segment.at > until || found.len() == MOST_SEGMENTS {
                return Ok(found);
            }
            if segment.whole && segment.at <= from {
                found.clear();
            }
            found.push(segment);
        }
        range.after = page.entries.last().map(|entry| entry.key.clone());
        if !page.more || range.after.is_none() {
            return Ok(found);
        }
    }
}

/// Forgets what is older than 30 days.
pub(super) async fn prune(store: &Arc<dyn Store>, now: Moment) -> Result<usize, StoreError> {
    let segments: Collection<Segment> = Collection::new(store.clone(), PREFIX);
    let oldest = segments.key(&id(now.minus(Span(KEPT.0 + WHOLE.0)), 0));
    let mut gone = 0;
    loop {
        let page = store.range(Range::new(segments.prefix(), PAGE)).await?;
        let old = page.entries.iter().filter(|entry| entry.key < oldest);
        let operations: Vec<Operation> = old
            .take(MAX_OPERATIONS)
            .map(|entry| Operation::delete(entry.key.clone()))
            .collect();
        if operations.is_empty() {
            return Ok(gone);
        }
        gone += operations.len();
        store.transact(Transaction::always(operations)).await?;
    }
}

/// Keys sort by their bytes, so numbers have a fixed width.
fn id(at: Moment, part: usize) -> String {
    format!("{:012}-{part:04}", at.0)
}
