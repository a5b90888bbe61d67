//! The prepared sandboxes of one kind.

use super::demand::Demand;
use crate::{
    options::PoolOptions,
    source::Source,
    states::{Lease, StateKey},
};
use api::{BuildId, Bytes, Resources, node::PoolReport};
use driver::{Origin, Plan, Prepared, RootFiles};
use std::{collections::VecDeque, time::Duration};

/// The most sandboxes that are prepared ahead for one build: each is a machine with memory.
const BUILD_MAX: u32 = 8;

/// What prepared sandboxes can become.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// Any sandbox.
    Anything,
    /// Those of one build and size. A build's state that was made again is another origin.
    Build {
        build: BuildId,
        count: u32,
        vcpus: u32,
        memory: u64,
        disk: u64,
    },
}

impl Key {
    /// The key for sandboxes of a source; none if nothing is prepared ahead for it.
    pub(super) fn of(source: &Source, resources: &Resources) -> Option<Self> {
        let StateKey::Build { build, count } = source.shelf.clone()? else {
            return None;
        };
        Some(Self::Build {
            build,
            count,
            vcpus: resources.vcpus,
            memory: resources.memory.0,
            disk: resources.disk.0,
        })
    }

    pub(super) fn is_of(&self, wanted: &BuildId) -> bool {
        matches!(self, Self::Build { build, .. } if build == wanted)
    }
}

pub(super) struct Shelf {
    pub(super) ready: VecDeque<Box<dyn Prepared>>,
    /// Preparations under way for it.
    pub(super) preparing: u32,
    pub(super) demand: Demand,
    pub(super) plan: Plan,
    /// Keeps what it is prepared from.
    pub(super) lease: Option<Lease>,
    /// Whose shell is run in each, so that its first command need not wait for what that reads.
    pub(super) shell_of: Option<String>,
    pub(super) hits: u64,
    pub(super) misses: u64,
}

impl Shelf {
    /// For what may become any sandbox.
    pub(super) fn anything() -> Self {
        let plan = Plan {
            origin: Origin::Fresh(RootFiles {
                layers: Vec::new(),
                disk: None,
            }),
            resources: Resources {
                vcpus: 1,
                memory: Bytes(0),
                disk: Bytes(0),
            },
        };
        Self::new(plan, None, None)
    }

    pub(super) fn of(source: &Source, resources: Resources) -> Self {
        let shell_of = source.shell_of.clone();
        Self::new(source.plan(resources), source.lease.clone(), shell_of)
    }

    fn new(plan: Plan, lease: Option<Lease>, shell_of: Option<String>) -> Self {
        Self {
            ready: VecDeque::new(),
            preparing: 0,
            demand: Demand::default(),
            plan,
            lease,
            shell_of,
            hits: 0,
            misses: 0,
        }
    }

    /// The bounds of one shelf.
    pub(super) fn bounds(key: &Key, options: &PoolOptions) -> PoolOptions {
        match key {
            Key::Anything => *options,
            Key::Build { .. } => PoolOptions {
                min: 0,
                max: options.max.min(BUILD_MAX),
                ..*options
            },
        }
    }

    pub(super) fn target(&self, key: &Key, now: Duration, options: &PoolOptions, room: u32) -> u32 {
        // A build that nobody asks for any more costs memory, so its demand ends altogether.
        if matches!(key, Key::Build { .. }) && self.demand.is_over(now) {
            return 0;
        }
        self.demand.target(now, &Self::bounds(key, options), room)
    }

    pub(super) fn count(&self) -> u32 {
        self.ready.len() as u32 + self.preparing
    }

    pub(super) fn report(&self, key: &Key, wanted: u32) -> PoolReport {
        PoolReport {
            build: match key {
                Key::Anything => None,
                Key::Build { build, .. } => Some(build.clone()),
            },
            resources: self.plan.resources,
            ready: self.ready.len() as u32,
            wanted,
            hits: self.hits,
            misses: self.misses,
        }
    }
}
