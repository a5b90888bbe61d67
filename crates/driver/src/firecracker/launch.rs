//! Starts Firecracker through its jailer, and gets hold of it.

use super::{
    client::{Client, SOCKET},
    driver::Inner,
    jail::Jail,
    jailer::{Description, arguments},
    messages::VersionInfo,
    version::Version,
};
use crate::{
    DriverError, NetworkSlot,
    cgroup::{Group, Limits},
    container::process,
    doing,
    microvm::{
        Process,
        console::{Complaints, Console},
        members,
    },
};
use rustix::{
    fs::{Mode, OFlags, inotify},
    process::{Pid, PidfdFlags, pidfd_open},
};
use std::{
    fs,
    io::{self, Read},
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::UnixStream,
    process::Command,
};

/// How long jailer and Firecracker may take until the API answers.
const PATIENCE: Duration = Duration::from_secs(20);

/// Between making a socket and listening on it is no event; it takes some microseconds.
const MOMENT: Duration = Duration::from_millis(1);

/// A Firecracker that waits to be told what it is. Whoever drops it must end its group.
pub(super) struct Launched {
    pub(super) process: Process,
    pub(super) client: Client,
}

/// Starts it. On failure processes may be left in the group.
pub(super) async fn launch(
    inner: &Inner,
    slot: &NetworkSlot,
    jail: &Jail,
    group: &Group,
    limits: &Limits,
) -> Result<Launched, DriverError> {
    let root = jail.root();
    let news = watch_directory(&root).map_err(doing(format!("watch {}", root.display())))?;
    let (ours, theirs) = pair().map_err(doing("make a console"))?;
    let (errors, their_errors) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(doing("make a pipe"))?;
    let console = Console::read_from(ours, jail.path())?;
    let complaints = Complaints::collect(errors).map_err(doing("make a pipe"))?;

    let network = format!(
        "/proc/{}/fd/{}",
        std::process::id(),
        slot.namespace.as_raw_fd()
    );
    let description = Description {
        program: &inner.options.program,
        jails: &inner.jails,
        slot: slot.number,
        instance: &inner.host.instance,
        user: inner.host.user_of(slot.number),
        network: Path::new(&network),
        hierarchies: &inner.host.hierarchies,
        limits,
    };
    let mut command = Command::new(&inner.options.jailer);
    command
        .args(arguments(&description))
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::from(theirs))
        .stderr(Stdio::from(their_errors))
        // The terminal's Ctrl-C is not for sandboxes.
        .process_group(0)
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => inner.no_jailer(),
        _ => doing(format!("start {}", inner.options.jailer.display()))(source),
    })?;
    // With it go this program's ends of what the child has.
    drop(command);
    let ended = tokio::time::timeout(PATIENCE, child.wait())
        .await
        .map_err(|_| DriverError::Guest(format!("the jailer took longer than {PATIENCE:?}")))?
        .map_err(doing("wait for the jailer"))?;
    if !ended.success() {
        return Err(DriverError::Guest(format!(
            "the jailer failed ({ended}): {}",
            last_words(&complaints).await
        )));
    }
    let (pid, start_time, process) = find(&pid_file(inner, jail), group)?;
    let process = process::watch(process, Interest::READABLE).map_err(doing("watch a process"))?;
    join_all(group, pid).map_err(doing("join control groups"))?;

    let client = Client::new(root);
    let listening = tokio::select! {
        listening = wait_for_socket(&client, &news) => listening,
        _ = process.readable() => Err(DriverError::Guest("Firecracker ended early".into())),
        () = tokio::time::sleep(PATIENCE) => Err(DriverError::Guest(format!(
            "Firecracker made no socket within {PATIENCE:?}"
        ))),
    };
    if let Err(error) = listening {
        return Err(match (error, complaints.text(), console.last_lines()) {
            (DriverError::Guest(text), complaint, last)
                if !complaint.is_empty() || !last.is_empty() =>
            {
                DriverError::Guest(format!("{text}: {complaint} {last}"))
            }
            (error, ..) => error,
        });
    }
    check_version(inner, &client).await?;
    Ok(Launched {
        process: Process {
            pid,
            start_time,
            descriptor: process,
            console,
            complaints,
            // Its parent is the jailer, which has ended.
            end: None,
        },
        client,
    })
}

/// What a process complained of that has just ended: it may still be on its way here.
async fn last_words(complaints: &Complaints) -> String {
    for _ in 0..100 {
        if !complaints.text().is_empty() {
            break;
        }
        tokio::time::sleep(MOMENT).await;
    }
    complaints.text()
}

/// The running program may be newer or older than the one that was looked at when this started.
pub(super) async fn check_version(inner: &Inner, client: &Client) -> Result<(), DriverError> {
    let about: VersionInfo = client.get("/version", PATIENCE).await?;
    let version: Version = about
        .firecracker_version
        .parse()
        .map_err(|()| DriverError::Guest("Firecracker's version is odd".into()))?;
    if version.check()? != inner.version {
        return Err(DriverError::Unsupported {
            cause: format!(
                "Firecracker was {} when Atoll started and is {version}",
                inner.version
            ),
            remedy: "Restart Atoll after an update of Firecracker".into(),
        });
    }
    Ok(())
}

fn pair() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, theirs.into()))
}

fn watch_directory(directory: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    use inotify::{CreateFlags, WatchFlags};
    let news = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    inotify::add_watch(&news, directory, WatchFlags::CREATE)?;
    process::watch(news, Interest::READABLE)
}

async fn wait_for_socket(client: &Client, news: &AsyncFd<OwnedFd>) -> Result<(), DriverError> {
    let mut made = false;
    loop {
        if client.listens() {
            return Ok(());
        }
        if made {
            tokio::time::sleep(MOMENT).await;
            continue;
        }
        let names = news
            .async_io(Interest::READABLE, |news| {
                let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
                let mut reader = inotify::Reader::new(news, &mut buffer);
                let mut names = Vec::new();
                loop {
                    let name = reader.next()?.file_name().map(|name| name.to_owned());
                    names.extend(name);
                    if reader.is_buffer_empty() {
                        return Ok(names);
                    }
                }
            })
            .await
            .map_err(doing("wait for Firecracker's socket"))?;
        made = names
            .iter()
            .any(|name| name.to_bytes() == SOCKET.as_bytes());
    }
}

/// Where the jailer writes the pid of what it became.
fn pid_file(inner: &Inner, jail: &Jail) -> PathBuf {
    let mut name = inner.program_name.clone();
    name.push(".pid");
    jail.root().join(name)
}

/// Finds the process by what the jailer wrote. Its user may write there too by now; so a pid is
/// only taken if its process is in the machine's own group.
fn find(file: &Path, group: &Group) -> Result<(u32, u64, OwnedFd), DriverError> {
    let find = || -> io::Result<(u32, u64, OwnedFd)> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = fs::File::from(rustix::fs::open(file, flags, Mode::empty())?);
        let mut text = String::new();
        file.take(32).read_to_string(&mut text)?;
        let odd = || io::Error::new(io::ErrorKind::InvalidData, "its content is no pid");
        let pid: i32 = text.trim().parse().map_err(|_| odd())?;
        let process = pidfd_open(Pid::from_raw(pid).ok_or_else(odd)?, PidfdFlags::empty())?;
        let pid = u32::try_from(pid).map_err(|_| odd())?;
        let start_time = process::start_time(pid)?;
        if !is_member(group, pid) {
            return Err(io::Error::other(
                "its process is not in the machine's group",
            ));
        }
        Ok((pid, start_time, process))
    };
    find().map_err(|error| match error.raw_os_error() {
        Some(libc::ESRCH) => DriverError::Guest("Firecracker ended early".into()),
        _ => doing(format!("read {}", file.display()))(error),
    })
}

fn is_member(group: &Group, pid: u32) -> bool {
    let pid = pid.to_string();
    members(group)
        .any(|file| fs::read_to_string(file).is_ok_and(|text| text.lines().any(|line| line == pid)))
}

/// The jailer joins those hierarchies of version 1 that a limit is set in; the others count and
/// stop.
fn join_all(group: &Group, pid: u32) -> io::Result<()> {
    members(group).try_for_each(|file| fs::write(file, pid.to_string()))
}
