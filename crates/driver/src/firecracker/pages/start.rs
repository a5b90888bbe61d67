//! This program's side: the socket that Firecracker is told of, and starting a server for it.

use super::{
    super::jail::Jail,
    server::{Task, VARIABLE},
};
use crate::{
    DriverError, NetworkSlot,
    cgroup::Group,
    container::process,
    doing,
    microvm::{child::Child, members, socket},
};
use rustix::process::{Signal, pidfd_send_signal};
use std::{
    ffi::OsString,
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::lchown,
    },
};

/// The socket in the jail.
const SOCKET: &str = "pages.socket";

/// Makes the socket. Nobody else may be in the jail yet.
pub(in super::super) fn listen(jail: &Jail) -> Result<OwnedFd, DriverError> {
    let path = jail.root().join(SOCKET);
    let make = || -> io::Result<OwnedFd> {
        let listener = socket::listen(&jail.root(), SOCKET)?;
        lchown(&path, Some(jail.user()), Some(jail.user()))?;
        Ok(listener)
    };
    make().map_err(doing(format!("make {}", path.display())))
}

/// What a server is started with.
pub(in super::super) struct Pages<'a> {
    pub(in super::super) command: &'a [OsString],
    pub(in super::super) slot: &'a NetworkSlot,
    pub(in super::super) jail: &'a Jail,
    pub(in super::super) group: &'a Group,
    /// From [`listen`].
    pub(in super::super) listener: OwnedFd,
    /// The memory's files, the uppermost first.
    pub(in super::super) memory: Vec<File>,
}

impl Pages<'_> {
    /// Starts a server for a Firecracker, of which this is a pidfd; returns when it listens.
    pub(in super::super) async fn start(self, machine: impl AsFd) -> Result<(), DriverError> {
        let mut child = Child::start(self.command, VARIABLE)?;
        let task = Task {
            groups: members(self.group).collect(),
            root: self.jail.root(),
            user: self.jail.user(),
        };
        let machine = machine.as_fd();
        let mut descriptors = vec![self.slot.namespace.as_fd(), self.listener.as_fd(), machine];
        descriptors.extend(self.memory.iter().map(File::as_fd));
        child.tell(&task, &descriptors)?;
        child.hear().await?;
        child.keep();
        let machine = machine
            .try_clone_to_owned()
            .map_err(doing("watch a process"))?;
        let (mut end, complaints) = (child.end.clone(), child.complaints.clone());
        // One that is killed cannot end the machine, which would wait for its pages for ever.
        tokio::spawn(async move {
            let _ = end.wait_for(Option::is_some).await;
            if !process::has_ended(&machine) {
                tracing::warn!(complaints = complaints.text(), "a machine lost its pages");
                let _ = pidfd_send_signal(&machine, Signal::KILL);
            }
        });
        Ok(())
    }
}
