//! Holding a state, so that nobody removes it.

use super::{StateKey, States};
use driver::{Origin, SavedState};
use std::{fmt, sync::Arc};

/// A state in use. It stays on the disk while this or a clone exists.
pub(crate) struct Lease {
    states: Arc<States>,
    key: StateKey,
    state: Arc<SavedState>,
}

impl Lease {
    /// Whoever makes one has counted it already.
    pub(super) fn new(states: Arc<States>, key: StateKey, state: Arc<SavedState>) -> Self {
        Self { states, key, state }
    }

    pub(crate) fn key(&self) -> &StateKey {
        &self.key
    }

    pub(crate) fn state(&self) -> &Arc<SavedState> {
        &self.state
    }

    /// To start from it.
    pub(crate) fn origin(&self) -> Origin {
        Origin::Saved(self.state.clone())
    }

    /// Takes the state's name away: it goes when nobody holds it any more.
    pub(crate) fn doom(&self) {
        self.states.doom(&self.key);
    }
}

impl Clone for Lease {
    fn clone(&self) -> Self {
        self.states.count_in(&self.key);
        Self::new(self.states.clone(), self.key.clone(), self.state.clone())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.states.count_out(&self.key);
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Lease({})", self.key)
    }
}
