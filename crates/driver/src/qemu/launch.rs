//! Starts QEMU in its jail, and gets hold of it.

use super::{
    arguments::{Description, INITRAMFS, KERNEL, MEMORY, arguments},
    driver::Inner,
    jail::{Jail, VARIABLE},
    opener,
    qmp::Qmp,
};
use crate::{
    DriverError, NetworkSlot,
    cgroup::Group,
    container::process,
    doing,
    microvm::{Process, child::Child, console::Console, members, socket},
};
use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::Duration,
};
use tokio::io::Interest;

/// The sockets in a machine's directory.
pub(super) const QMP: &str = "qmp.sock";
pub(super) const SERIAL: &str = "serial.sock";

/// The mount point of a jail in a machine's directory; empty to all but the jail.
const ROOT: &str = "root";

/// How long QEMU may take until it can be spoken to.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a machine is started with.
pub(super) struct Launch<'a> {
    pub(super) slot: &'a NetworkSlot,
    /// Its own directory.
    pub(super) directory: &'a Path,
    pub(super) description: &'a Description,
    pub(super) group: &'a Group,
    /// The read-only disk.
    pub(super) root: OwnedFd,
    /// The writable disk.
    pub(super) layer: OwnedFd,
    /// Its memory.
    pub(super) memory: OwnedFd,
}

/// A QEMU that stands still and waits for commands.
pub(super) struct Launched {
    pub(super) process: Process,
    pub(super) qmp: Qmp,
    pub(super) phases: Vec<(String, u64)>,
}

/// Starts it. On failure its process is killed.
pub(super) async fn launch(inner: &Inner, launch: Launch<'_>) -> Result<Launched, DriverError> {
    let mut phases = crate::phases::Stopwatch::start();
    let directory = launch.directory;
    let listen = |name: &str| {
        let path = directory.join(name);
        socket::listen(directory, name).map_err(doing(format!("make {}", path.display())))
    };
    let (qmp, serial) = (listen(QMP)?, listen(SERIAL)?);
    let root = directory.join(ROOT);
    std::fs::create_dir(&root).map_err(doing(format!("make {}", root.display())))?;
    let mut child = Child::start(&inner.options.jail_command, VARIABLE)?;
    phases.mark("process");

    let jail = describe(inner, &launch, root);
    let network = &launch.slot.namespace;
    let descriptors = [network, &qmp, &serial, &launch.root, &launch.layer];
    child.tell(&jail, &descriptors.map(|each| each.as_fd()))?;
    drop((qmp, serial, launch.root, launch.layer));
    let (report, sent) = child.hear().await?;
    let Some(listener) = sent.into_iter().next() else {
        return Err(DriverError::Guest("the jail sent no filter".into()));
    };
    phases.insert(report);

    let mut openable = vec![(MEMORY, launch.memory)];
    if launch.description.accelerator == super::Accelerator::Kvm {
        let kvm = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .map_err(doing("open /dev/kvm"))?;
        openable.push(("/dev/kvm", kvm.into()));
    }
    let questions =
        process::watch(listener, Interest::READABLE).map_err(doing("watch a filter"))?;
    // Both until QEMU greets: then it has opened all that it ever will.
    let connected = tokio::select! {
        connected = Qmp::connect(directory, QMP, PATIENCE) => connected,
        error = opener::answer(&questions, &openable) => match error {
            Ok(()) => Err(DriverError::Guest("QEMU has ended".into())),
            Err(error) => Err(doing("hand QEMU its memory")(error)),
        },
    };
    let qmp = match connected {
        Ok(qmp) => qmp,
        Err(error) => {
            return Err(match child.complaints.text() {
                text if text.is_empty() => error,
                text => DriverError::Guest(format!("QEMU did not start: {text}")),
            });
        }
    };
    let console = Console::connect(directory, SERIAL)?;
    phases.mark("QEMU");
    let descriptor = child
        .process
        .try_clone()
        .map_err(doing("watch a process"))?;
    let process = Process {
        pid: child.pid,
        start_time: child.start_time,
        descriptor: process::watch(descriptor, Interest::READABLE)
            .map_err(doing("watch a process"))?,
        console,
        complaints: child.complaints.clone(),
        end: Some(child.end.clone()),
    };
    child.keep();
    Ok(Launched {
        process,
        qmp,
        phases: phases.take(),
    })
}

fn describe(inner: &Inner, launch: &Launch<'_>, root: std::path::PathBuf) -> Jail {
    let mut files: Vec<_> = inner
        .runtime
        .files
        .iter()
        .map(|file| (file.clone(), file.clone()))
        .collect();
    if matches!(
        launch.description.begin,
        super::arguments::Begin::Boot { .. }
    ) {
        let kernel = &inner.options.kernel;
        files.push((kernel.image.clone(), KERNEL.into()));
        files.push((kernel.initramfs.clone(), INITRAMFS.into()));
    }
    Jail {
        root,
        files,
        groups: members(launch.group).collect(),
        user: inner.host.user_of(launch.slot.number),
        tap: launch
            .slot
            .tap
            .clone()
            .unwrap_or_else(|| crate::slot::machine::TAP.to_owned()),
        program: inner.runtime.program.clone(),
        arguments: arguments(launch.description),
    }
}
