//! A machine that is being saved.

use super::hold::Hold;
use crate::{DriverError, microvm::notes::Notes};

/// What saving needs of one.
pub(super) struct QemuMachine<'a> {
    pub(super) hold: &'a Hold,
    pub(super) notes: &'a Notes,
}

impl QemuMachine<'_> {
    /// Stops it. May be repeated.
    pub(super) async fn stop(&self) -> Result<(), DriverError> {
        self.hold.stop().await
    }

    /// Lets it go on. May be repeated.
    pub(super) async fn go_on(&self) -> Result<(), DriverError> {
        self.hold.go_on().await
    }
}
