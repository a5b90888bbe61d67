//! A machine, and the way to its Firecracker.

use super::{
    client::Client,
    driver::{Inner, PATIENCE},
    jail::Jail,
    launch::Launched,
    messages::{Backend, Change, InstanceInfo},
};
use crate::{DriverError, MachineRecord, NetworkSlot, cgroup::Group, microvm::Held};
use std::{ops::Deref, os::fd::OwnedFd, sync::Arc};

/// What all machines have, and Firecracker's API.
pub(crate) struct Hold {
    pub(super) inner: Arc<Inner>,
    pub(super) jail: Jail,
    pub(super) client: Client,
    /// Where its memory is yet to be loaded from; none if it boots.
    pub(super) loads: Option<Backend>,
    held: Held,
}

impl Deref for Hold {
    type Target = Held;

    fn deref(&self) -> &Held {
        &self.held
    }
}

impl Hold {
    /// Of a machine that was just started.
    pub(super) fn of_launched(
        inner: &Arc<Inner>,
        slot: &NetworkSlot,
        launched: Launched,
        (group, jail): (Group, Jail),
        loads: Option<Backend>,
    ) -> Result<Self, DriverError> {
        let directory = jail.path().to_owned();
        let host = Arc::clone(&inner.host);
        Ok(Self {
            inner: Arc::clone(inner),
            jail,
            client: launched.client,
            loads,
            held: Held::of_launched(host, slot, launched.process, group, directory)?,
        })
    }

    /// Of a machine that an earlier run of this program started. Its console has nobody who reads
    /// it any more, and Firecracker throws away what is written there.
    pub(super) fn of_adopted(
        inner: &Arc<Inner>,
        record: &MachineRecord,
        process: OwnedFd,
    ) -> Result<Self, DriverError> {
        let jail = inner.jail_of(record.slot);
        let directory = jail.path().to_owned();
        let host = Arc::clone(&inner.host);
        Ok(Self {
            inner: Arc::clone(inner),
            client: Client::new(jail.root()),
            jail,
            loads: None,
            held: Held::of_adopted(host, record, process, directory, None)?,
        })
    }

    /// Whether it stands still.
    pub(super) async fn stands(&self) -> Result<bool, DriverError> {
        let about: InstanceInfo = self.client.get("/", PATIENCE).await?;
        Ok(about.state == "Paused")
    }

    /// Stops it, which must run, or lets it go on, which must stand still.
    pub(super) async fn change(&self, change: Change) -> Result<(), DriverError> {
        let asked = self.client.patch("/vm", &change, PATIENCE);
        self.unless_ended(asked).await
    }
}
