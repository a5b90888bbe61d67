//! A machine, and the way to its QEMU.

use super::{
    driver::{Inner, PATIENCE},
    full_disk,
    launch::{self, Launched},
    qmp::Qmp,
};
use crate::{
    DriverError, MachineRecord, NetworkSlot,
    cgroup::Group,
    microvm::{Held, console::Console},
};
use serde_json::json;
use std::{ops::Deref, os::fd::OwnedFd, sync::Arc};

/// What all machines have, and QEMU's protocol.
pub(crate) struct Hold {
    pub(super) inner: Arc<Inner>,
    pub(super) qmp: Arc<Qmp>,
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
        group: Group,
    ) -> Result<Self, DriverError> {
        let directory = inner.directory_of(slot.number);
        let host = Arc::clone(&inner.host);
        let qmp = Arc::new(launched.qmp);
        full_disk::watch(&qmp, slot.number);
        Ok(Self {
            inner: Arc::clone(inner),
            qmp,
            held: Held::of_launched(host, slot, launched.process, group, directory)?,
        })
    }

    /// Of a machine that an earlier run of this program started.
    pub(super) async fn of_adopted(
        inner: &Arc<Inner>,
        record: &MachineRecord,
        process: OwnedFd,
        console: Option<Console>,
    ) -> Result<Self, DriverError> {
        let directory = inner.directory_of(record.slot);
        let host = Arc::clone(&inner.host);
        let qmp = Arc::new(Qmp::connect(&directory, launch::QMP, PATIENCE).await?);
        full_disk::watch(&qmp, record.slot);
        Ok(Self {
            inner: Arc::clone(inner),
            qmp,
            held: Held::of_adopted(host, record, process, directory, console)?,
        })
    }

    /// Whether it stands still.
    pub(super) async fn stands(&self) -> Result<bool, DriverError> {
        let status = self.qmp.call("query-status", json!({}), PATIENCE).await?;
        Ok(!status["running"].as_bool().unwrap_or(true))
    }

    /// Stops it. May be repeated.
    pub(super) async fn stop(&self) -> Result<(), DriverError> {
        self.qmp.call("stop", json!({}), PATIENCE).await.map(drop)
    }

    /// Lets it go on. May be repeated.
    pub(super) async fn go_on(&self) -> Result<(), DriverError> {
        self.qmp.call("cont", json!({}), PATIENCE).await.map(drop)
    }
}
