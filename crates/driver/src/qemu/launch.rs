//! Starts QEMU in its jail, and gets hold of it.

use super::{
    arguments::{Description, INITRAMFS, KERNEL, MEMORY, arguments},
    console::{Complaints, Console},
    driver::Inner,
    jail::{Jail, Report, VARIABLE},
    opener,
    qmp::Qmp,
};
use crate::{
    DriverError, NetworkSlot,
    cgroup::Group,
    container::{
        packet::{self, Received},
        process,
    },
    doing,
};
use rustix::{
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with},
    process::{
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
    },
    thread::UnshareFlags,
};
use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
};

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

/// A QEMU that stands still and waits for commands. It is killed when this is dropped before
/// [`Launched::keep`].
pub(super) struct Launched {
    pub(super) pid: u32,
    pub(super) start_time: u64,
    pub(super) process: OwnedFd,
    /// How it ended, once it has.
    pub(super) end: watch::Receiver<Option<String>>,
    pub(super) qmp: Qmp,
    pub(super) console: Console,
    pub(super) complaints: Complaints,
    pub(super) phases: Vec<(String, u64)>,
}

/// Kills what it holds, unless it is told not to.
struct Guard(Option<OwnedFd>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(process) = &self.0 {
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
    }
}

/// Starts it. On failure its process is killed.
pub(super) async fn launch(inner: &Inner, launch: Launch<'_>) -> Result<Launched, DriverError> {
    let mut phases = crate::phases::Stopwatch::start();
    let directory = launch.directory;
    let (ours, theirs) = packet::pair().map_err(doing("make sockets"))?;
    rustix::io::ioctl_fionbio(&theirs, false).map_err(doing("make sockets"))?;
    let qmp = listener(directory, QMP)?;
    let serial = listener(directory, SERIAL)?;
    let root = directory.join(ROOT);
    std::fs::create_dir(&root).map_err(doing(format!("make {}", root.display())))?;
    let (errors, their_errors) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(doing("make a pipe"))?;
    let complaints = Complaints::collect(errors).map_err(doing("make a pipe"))?;

    let (pid, process) = spawn(&inner.options.jail_command, theirs, their_errors)?;
    let mut guard = Guard(Some(process.try_clone().map_err(doing("watch a process"))?));
    let start_time = process::start_time(pid).map_err(doing("read a process's start"))?;
    let end = reap(process.try_clone().map_err(doing("watch a process"))?)?;
    phases.mark("process");

    let jail = describe(inner, &launch, root);
    let network = &launch.slot.namespace;
    let descriptors = [network, &qmp, &serial, &launch.root, &launch.layer];
    packet::send(&ours, &jail, &descriptors.map(|each| each.as_fd()))
        .map_err(doing("describe a jail"))?;
    drop((qmp, serial, launch.root, launch.layer));
    let (report, listener) = hear(ours, &complaints).await?;
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
            return Err(match complaints.text() {
                text if text.is_empty() => error,
                text => DriverError::Guest(format!("QEMU did not start: {text}")),
            });
        }
    };
    let console = Console::connect(directory, SERIAL)?;
    phases.mark("QEMU");
    guard.0 = None;
    Ok(Launched {
        pid,
        start_time,
        process,
        end,
        qmp,
        console,
        complaints,
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
    let group = launch.group;
    let groups = group.legacy().into_iter();
    let groups = groups.chain(group.unified().map(Into::into));
    Jail {
        root,
        files,
        groups: groups.map(|group| group.join("cgroup.procs")).collect(),
        user: inner.options.first_id + launch.slot.number,
        tap: launch
            .slot
            .tap
            .clone()
            .unwrap_or_else(|| crate::slot::machine::TAP.to_owned()),
        program: inner.runtime.program.clone(),
        arguments: arguments(launch.description),
    }
}

/// A socket that QEMU listens on, ready to be connected to before QEMU is there.
fn listener(directory: &Path, name: &str) -> Result<OwnedFd, DriverError> {
    use rustix::fs::{Mode, OFlags};
    let make = || -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = rustix::fs::open(directory, flags, Mode::empty())?;
        // An address may have 108 bytes at most, a path more.
        let path = format!("/proc/self/fd/{}/{name}", open.as_raw_fd());
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        listen(&socket, 4)?;
        Ok(socket)
    };
    make().map_err(doing(format!("make {}", directory.join(name).display())))
}

/// Starts the process that becomes QEMU, as the first of a pid namespace.
fn spawn(
    command: &[std::ffi::OsString],
    input: OwnedFd,
    errors: OwnedFd,
) -> Result<(u32, OwnedFd), DriverError> {
    let Some((program, arguments)) = command.split_first() else {
        return Err(DriverError::Guest(
            "there is no command for the jail".into(),
        ));
    };
    let start = || -> io::Result<(u32, OwnedFd)> {
        // SAFETY: this thread alone, which ends with this; its children get another pid namespace.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWPID) }?;
        let child = Command::new(program)
            .args(arguments)
            .env_clear()
            .env(VARIABLE, "1")
            .current_dir("/")
            .stdin(Stdio::from(input))
            .stdout(Stdio::null())
            .stderr(Stdio::from(errors))
            .spawn()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("it has no pid"))?;
        Ok((child.id(), pidfd_open(pid, PidfdFlags::empty())?))
    };
    std::thread::scope(|scope| {
        scope
            .spawn(start)
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a thread ended early")))
    })
    .map_err(doing("start a jail"))
}

/// Waits for the end of a child, so that it does not stay behind as a zombie, and keeps how it
/// ended.
fn reap(process: OwnedFd) -> Result<watch::Receiver<Option<String>>, DriverError> {
    let process = process::watch(process, Interest::READABLE).map_err(doing("watch a process"))?;
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        let _ = process.readable().await;
        let ended = waitid(
            WaitId::PidFd(process.get_ref().as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        );
        let text = match ended {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => format!("its machine ended with code {code}"),
                (_, Some(signal)) => format!("its machine was killed by signal {signal}"),
                _ => "its machine ended".into(),
            },
            _ => "its machine ended".into(),
        };
        sender.send_replace(Some(text));
    });
    Ok(receiver)
}

/// Takes the jail's report.
async fn hear(
    socket: OwnedFd,
    complaints: &Complaints,
) -> Result<(Vec<(String, u64)>, OwnedFd), DriverError> {
    let socket: AsyncFd<OwnedFd> =
        process::watch(socket, Interest::READABLE).map_err(doing("listen to a jail"))?;
    let heard = socket.async_io(Interest::READABLE, |socket| {
        match packet::receive::<Report>(socket)? {
            Received::Nothing => Err(io::ErrorKind::WouldBlock.into()),
            other => Ok(other),
        }
    });
    let heard = tokio::time::timeout(PATIENCE, heard)
        .await
        .map_err(|_| DriverError::Guest(format!("no jail within {PATIENCE:?}")))?
        .map_err(doing("listen to a jail"))?;
    match heard {
        Received::Packet(Report::Locked { phases }, descriptors) => descriptors
            .into_iter()
            .next()
            .map(|listener| (phases, listener))
            .ok_or_else(|| DriverError::Guest("the jail sent no filter".into())),
        Received::Packet(Report::Failed { doing: what, error }, _) => {
            Err(doing(format!("{what} for a machine"))(
                io::Error::from_raw_os_error(error),
            ))
        }
        Received::Nothing | Received::End => Err(DriverError::Guest(format!(
            "the jail ended early: {}",
            complaints.text()
        ))),
    }
}
