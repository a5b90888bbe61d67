//! Who is let in: by number, by promised memory, and by what the machine has left.

use crate::{facts::Facts, options::Limits};
use api::{Bytes, ErrorCode, Problem, Resources};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What sandboxes were promised together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Promised {
    /// Those that are not paused.
    pub(crate) sandboxes: u32,
    /// Paused ones; they were promised disk only.
    pub(crate) paused: u32,
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
        *self.promised_mut()
    }

    fn promised_mut(&self) -> MutexGuard<'_, Promised> {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner)
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
        let mut promised = self.check(resources)?;
        promised.disk = promised.disk.saturating_add(resources.disk.0);
        promised.add(resources);
        drop(promised);
        Ok(self.reservation(resources))
    }

    /// Whether there is so much memory that machines may be started before anybody asks.
    pub(crate) fn has_memory_to_prepare(&self) -> bool {
        self.facts.memory_available().0 / 2 > self.limits.memory_reserve.0
    }

    /// Whether there is room on the disk to save a sandbox.
    pub(crate) fn has_room_for_a_state(&self) -> Result<(), Problem> {
        let free = self.facts.disk_free();
        if free >= self.limits.disk_reserve {
            return Ok(());
        }
        Err(Problem::new(
            ErrorCode::OutOfDisk,
            format!(
                "the disk of the data directory has {free} left and keeps {} free",
                self.limits.disk_reserve
            ),
            "free space on it, or remove templates, snapshots and paused sandboxes that nobody uses",
        ))
    }

    /// Whether there is room for one more that runs.
    fn check(&self, resources: &Resources) -> Result<MutexGuard<'_, Promised>, Problem> {
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
        self.has_room_for_a_state()?;
        let promised = self.promised.lock().unwrap_or_else(PoisonError::into_inner);
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
        Ok(promised)
    }

    /// Counts a sandbox that runs already and can't be turned away.
    pub(crate) fn reserve_adopted(self: &Arc<Self>, resources: &Resources) -> Reservation {
        let mut promised = self.promised.lock().unwrap_or_else(PoisonError::into_inner);
        promised.disk = promised.disk.saturating_add(resources.disk.0);
        promised.add(resources);
        drop(promised);
        self.reservation(resources)
    }

    fn reservation(self: &Arc<Self>, resources: &Resources) -> Reservation {
        Reservation {
            admission: self.clone(),
            resources: *resources,
            rests: false,
        }
    }
}

impl Promised {
    /// Counts one that runs; not its disk.
    fn add(&mut self, resources: &Resources) {
        self.sandboxes += 1;
        self.vcpus = self.vcpus.saturating_add(resources.vcpus);
        self.memory = self.memory.saturating_add(resources.memory.0);
    }

    fn subtract(&mut self, resources: &Resources) {
        self.sandboxes = self.sandboxes.saturating_sub(1);
        self.vcpus = self.vcpus.saturating_sub(resources.vcpus);
        self.memory = self.memory.saturating_sub(resources.memory.0);
    }
}

/// A place for one sandbox; given back on drop.
pub(crate) struct Reservation {
    admission: Arc<Admission>,
    resources: Resources,
    /// Whether it is paused, and so needs disk only.
    rests: bool,
}

impl Reservation {
    /// Gives back all but the disk, as the sandbox is paused.
    pub(crate) fn rest(&mut self) {
        if !std::mem::replace(&mut self.rests, true) {
            let mut promised = self.admission.promised_mut();
            promised.subtract(&self.resources);
            promised.paused += 1;
        }
    }

    /// Takes it again, if there is room.
    pub(crate) fn wake(&mut self) -> Result<(), Problem> {
        if self.rests {
            let mut promised = self.admission.check(&self.resources)?;
            promised.add(&self.resources);
            promised.paused = promised.paused.saturating_sub(1);
            self.rests = false;
        }
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut promised = self.admission.promised_mut();
        match self.rests {
            true => promised.paused = promised.paused.saturating_sub(1),
            false => promised.subtract(&self.resources),
        }
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
