//! Who is let in: by number, by promised memory, and by what the machine has left.

use crate::{facts::Facts, options::Limits};
use api::{Bytes, ErrorCode, Problem, Resources};
use std::sync::{Arc, Mutex, PoisonError};

/// What sandboxes were promised together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Promised {
    pub(crate) sandboxes: u32,
    pub(crate) vcpus: u32,
    pub(crate) memory: u64,
    pub(crate) disk: u64,
}

/// The door: every sandbox holds a [`Reservation`] from before anything of it exists until
/// nothing of it is left.
pub(crate) struct Admission {
    limits: Limits,
    facts: Arc<Facts>,
    promised: Mutex<Promised>,
}

impl Admission {
    pub(crate) fn new(limits: Limits, facts: Arc<Facts>) -> Self {
        Self {
            limits,
            facts,
            promised: Mutex::default(),
        }
    }

    pub(crate) fn promised(&self) -> Promised {
        *self.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The most memory that may be promised.
    pub(crate) fn memory_max(&self) -> Bytes {
        Bytes((self.facts.memory_total().0 as f64 * self.limits.memory_overcommit) as u64)
    }

    /// Lets a sandbox in, or says what is used up.
    pub(crate) fn reserve(self: &Arc<Self>, resources: &Resources) -> Result<Reservation, Problem> {
        let available = self.facts.memory_available();
        if available < self.limits.memory_reserve {
            return Err(Problem::new(
                ErrorCode::OutOfCapacity,
                format!(
                    "this machine has {available} of memory left and keeps {} for itself",
                    self.limits.memory_reserve
                ),
                "end sandboxes that are not needed, or try again later",
            ));
        }
        let free = self.facts.disk_free();
        if free < self.limits.disk_reserve {
            return Err(Problem::new(
                ErrorCode::OutOfDisk,
                format!(
                    "the disk of the data directory has {free} left and keeps {} free",
                    self.limits.disk_reserve
                ),
                "free space on it, or remove templates that nobody uses",
            ));
        }
        let mut promised = self.promised.lock().unwrap_or_else(PoisonError::into_inner);
        if promised.sandboxes >= self.limits.sandboxes {
            return Err(Problem::new(
                ErrorCode::OutOfCapacity,
                format!(
                    "this node runs {} sandboxes, the most that it may",
                    promised.sandboxes
                ),
                "end sandboxes that are not needed, or start Atoll with a higher `--max-sandboxes`",
            ));
        }
        let most = self.memory_max().0;
        if promised.memory.saturating_add(resources.memory.0) > most {
            return Err(Problem::new(
                ErrorCode::OutOfCapacity,
                format!(
                    "{} of memory were asked for, and {} of {} are promised already",
                    resources.memory,
                    Bytes(promised.memory),
                    Bytes(most)
                ),
                "ask for less memory, end sandboxes that are not needed, or start Atoll with a \
                 higher `--memory-overcommit`",
            ));
        }
        Ok(self.add(&mut promised, resources))
    }

    /// Counts a sandbox that runs already and can't be turned away.
    pub(crate) fn reserve_adopted(self: &Arc<Self>, resources: &Resources) -> Reservation {
        let mut promised = self.promised.lock().unwrap_or_else(PoisonError::into_inner);
        self.add(&mut promised, resources)
    }

    fn add(self: &Arc<Self>, promised: &mut Promised, resources: &Resources) -> Reservation {
        promised.sandboxes += 1;
        promised.vcpus = promised.vcpus.saturating_add(resources.vcpus);
        promised.memory = promised.memory.saturating_add(resources.memory.0);
        promised.disk = promised.disk.saturating_add(resources.disk.0);
        Reservation {
            admission: self.clone(),
            resources: *resources,
        }
    }
}

/// A place for one sandbox; given back on drop.
pub(crate) struct Reservation {
    admission: Arc<Admission>,
    resources: Resources,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut promised = self
            .admission
            .promised
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        promised.sandboxes = promised.sandboxes.saturating_sub(1);
        promised.vcpus = promised.vcpus.saturating_sub(self.resources.vcpus);
        promised.memory = promised.memory.saturating_sub(self.resources.memory.0);
        promised.disk = promised.disk.saturating_sub(self.resources.disk.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn admission(limits: Limits) -> Arc<Admission> {
        Arc::new(Admission::new(
            limits,
            Arc::new(Facts::new(Path::new("/tmp"))),
        ))
    }

    fn refused(limits: Limits, resources: Resources) -> Problem {
        admission(limits)
            .reserve(&resources)
            .err()
            .expect("should be refused")
    }

    #[test]
    fn each_limit_is_named_when_it_is_reached() {
        let free = Limits {
            memory_reserve: Bytes(0),
            disk_reserve: Bytes(0),
            memory_overcommit: 1.0,
            sandboxes: 1,
        };
        let small = Resources {
            memory: Bytes(1),
            ..Resources::default()
        };
        let much = Bytes(u64::MAX);

        let problem = refused(
            Limits {
                memory_reserve: much,
                ..free
            },
            small,
        );
        assert_eq!(problem.code, ErrorCode::OutOfCapacity);
        assert!(problem.cause.contains("memory left"), "{problem}");

        let problem = refused(
            Limits {
                disk_reserve: much,
                ..free
            },
            small,
        );
        assert_eq!(problem.code, ErrorCode::OutOfDisk);

        let problem = refused(
            free,
            Resources {
                memory: much,
                ..small
            },
        );
        assert_eq!(problem.code, ErrorCode::OutOfCapacity);
        assert!(problem.cause.contains("promised"), "{problem}");

        let door = admission(free);
        let place = door.reserve(&small).unwrap();
        let problem = door.reserve(&small).err().expect("should be full");
        assert!(problem.cause.contains("runs 1 sandboxes"), "{problem}");
        drop(place);
        assert_eq!(door.promised(), Promised::default());
        door.reserve(&small).unwrap();
    }
}
