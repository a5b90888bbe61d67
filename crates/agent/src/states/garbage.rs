//! What is removed although nobody asked for it by name, and why the rest is kept.

use super::{StateKey, States, store::carried};
use api::{BuildId, Bytes, node::Garbage};
use jiff::Timestamp;
use std::{collections::BTreeSet, time::Duration};

/// A younger state's build may not be known to the control plane yet.
const YOUNG: Duration = Duration::from_secs(600);

impl States {
    /// Goes through all states, and removes those of builds that are not in `keep`.
    pub(crate) fn collect_garbage(&self, keep: &BTreeSet<BuildId>, dry_run: bool) -> Vec<Garbage> {
        let now = Timestamp::now();
        let mut report = Vec::new();
        let mut unwanted = Vec::new();
        {
            let entries = self.entries();
            let carried = carried(&entries);
            for (key, entry) in entries.iter() {
                let above = carried.get(&*entry.state.directory);
                let made_at = entry.about.as_ref().map(|about| about.made_at);
                let young =
                    made_at.is_some_and(|made_at| crate::clock::until(made_at, now) < YOUNG);
                let named = match key {
                    StateKey::Build { build, .. } => keep.contains(build) && !entry.doomed,
                    _ => !entry.doomed,
                };
                let goes = !named && !young;
                let reason = match (above, entry.users) {
                    (_, users) if users > 0 && !named => {
                        format!("nothing names it, but {users} sandboxes use it")
                    }
                    (Some(other), _) if !named => {
                        format!("nothing names it, but the {other} lies on it")
                    }
                    _ if goes => "nothing needs it".into(),
                    _ if young && !named => "it is new, and its build may not be known yet".into(),
                    _ => match key {
                        StateKey::Build { .. } if entry.is_cache() => "its template uses it".into(),
                        StateKey::Build { .. } => "it is a snapshot of a user".into(),
                        StateKey::Paused { .. } => "the sandbox is paused".into(),
                        StateKey::Fork(_) => "children are started from it".into(),
                    },
                };
                let removed = goes && entry.users == 0 && above.is_none();
                if goes {
                    unwanted.push(key.clone());
                }
                report.push(Garbage {
                    what: key.to_string(),
                    reason,
                    size: Bytes(entry.size),
                    removed,
                });
            }
        }
        if !dry_run {
            for key in unwanted {
                self.doom(&key);
            }
        }
        report.sort_by(|a, b| a.what.cmp(&b.what));
        report
    }

    /// Removes states that can be made again and that nobody uses, the least recently used first,
    /// until about `wanted` bytes are freed. Returns what went.
    pub(crate) fn evict(&self, wanted: u64) -> Vec<(StateKey, u64)> {
        let mut caches: Vec<(Timestamp, StateKey, u64)> = {
            let entries = self.entries();
            let carried = carried(&entries);
            entries
                .iter()
                .filter(|(_, entry)| entry.is_cache() && !entry.doomed && entry.users == 0)
                .filter(|(_, entry)| !carried.contains_key(&*entry.state.directory))
                .map(|(key, entry)| (entry.used_at, key.clone(), entry.size))
                .collect()
        };
        caches.sort();
        let mut freed = 0;
        let mut gone = Vec::new();
        for (_, key, size) in caches {
            if freed >= wanted {
                break;
            }
            self.doom(&key);
            freed += size;
            gone.push((key, size));
        }
        gone
    }
}
