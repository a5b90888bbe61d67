//! The client's side of the keeper: finds it or starts it, asks, hears.

use super::{
    keeper, packet,
    packet::Received,
    process,
    protocol::{Answer, Failure, Question, Request, Statement, Status, VERSION},
};
use crate::{DriverError, doing};
use rustix::{
    fs::{Mode, OFlags},
    net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
    },
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use std::{
    collections::HashMap,
    ffi::OsString,
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{Notify, oneshot},
    task::JoinHandle,
};

/// The keeper's socket in the instance's `run` directory, and where it writes what went wrong.
const SOCKET: &str = "keeper.sock";
const LOG: &str = "keeper.log";

/// How long the keeper may take for one answer, if nothing shorter is asked for.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a keeper is started: a program whose `main` calls [`keeper::run_if_asked`] first.
#[derive(Debug, Clone)]
pub(super) struct Launch {
    pub(super) command: Vec<OsString>,
    pub(super) directory: PathBuf,
}

/// A connection to a keeper. When it is dropped, the keeper ends what nobody has claimed.
#[derive(Debug)]
pub(super) struct Connection {
    shared: Arc<Shared>,
    listener: JoinHandle<()>,
    /// The keeper's process.
    keeper: OwnedFd,
    /// Set if this program started it: then it is this program's to reap.
    child: Mutex<Option<Child>>,
}

#[derive(Debug)]
struct Shared {
    socket: AsyncFd<OwnedFd>,
    last: AtomicU64,
    state: Mutex<State>,
    /// Rung whenever a cell's end is heard or the connection ends.
    news: Notify,
}

#[derive(Debug, Default)]
struct State {
    ended: bool,
    waiting: HashMap<u64, oneshot::Sender<(Answer, Vec<OwnedFd>)>>,
    /// Ends that were told, until they are fetched.
    ends: HashMap<u32, Status>,
}

impl Connection {
    /// Finds the keeper of the instance, or starts one. Returns also the cells that it has.
    pub(super) async fn open(launch: &Launch) -> Result<(Self, Vec<u32>), DriverError> {
        for _ in 0..3 {
            let connection = match Self::find(launch)? {
                Some(found) => found,
                None => Self::launch(launch)?,
            };
            match connection
                .ask(Request::Hello { version: VERSION }, &[], PATIENCE)
                .await
            {
                Ok((Answer::Hello { pids }, _)) => return Ok((connection, pids)),
                // Of another version: its running cells go on without it.
                Ok(_) => {
                    let _ = pidfd_send_signal(&connection.keeper, Signal::KILL);
                    connection.wait_for_end().await;
                }
                // It was on its way out.
                Err(_) => connection.wait_for_end().await,
            }
        }
        Err(DriverError::Guest("the keeper does not answer".into()))
    }

    fn find(launch: &Launch) -> Result<Option<Self>, DriverError> {
        let socket = new_socket()?;
        match connect(&socket, &Address::of(&launch.directory)?.address) {
            Ok(()) => {}
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::CONNREFUSED) => return Ok(None),
            Err(error) => return Err(doing("connect to the keeper")(error)),
        }
        let peer = rustix::net::sockopt::socket_peercred(&socket)
            .map_err(doing("ask who the keeper is"))?;
        match pidfd_open(peer.pid, PidfdFlags::empty()) {
            Ok(keeper) => Self::on(socket, keeper, None).map(Some),
            Err(_) => Ok(None),
        }
    }

    fn launch(launch: &Launch) -> Result<Self, DriverError> {
        let directory = &launch.directory;
        let _ = std::fs::remove_file(directory.join(SOCKET));
        let listener = new_socket()?;
        let address = Address::of(directory)?;
        bind(&listener, &address.address).map_err(doing("make the keeper's socket"))?;
        listen(&listener, 16).map_err(doing("listen for the keeper"))?;
        rustix::io::ioctl_fionbio(&listener, true).map_err(doing("listen for the keeper"))?;
        let log = File::create(directory.join(LOG)).map_err(doing("make the keeper's log"))?;
        let Some((program, arguments)) = launch.command.split_first() else {
            return Err(DriverError::Guest(
                "there is no command for the keeper".into(),
            ));
        };
        let child = Command::new(program)
            .args(arguments)
            .env_clear()
            .env(keeper::VARIABLE, directory)
            .stdin(Stdio::from(listener))
            .stdout(Stdio::null())
            .stderr(Stdio::from(log))
            .spawn()
            .map_err(doing("start the keeper"))?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| DriverError::Guest("the keeper has no pid".into()))?;
        let keeper = pidfd_open(pid, PidfdFlags::empty()).map_err(doing("watch the keeper"))?;
        let socket = new_socket()?;
        connect(&socket, &address.address).map_err(doing("connect to the keeper"))?;
        Self::on(socket, keeper, Some(child))
    }

    fn on(socket: OwnedFd, keeper: OwnedFd, child: Option<Child>) -> Result<Self, DriverError> {
        rustix::io::ioctl_fionbio(&socket, true).map_err(doing("connect to the keeper"))?;
        packet::make_room(&socket).map_err(doing("connect to the keeper"))?;
        let shared = Arc::new(Shared {
            socket: process::watch(socket, Interest::READABLE | Interest::WRITABLE)
                .map_err(doing("listen to the keeper"))?,
            last: AtomicU64::new(0),
            state: Mutex::default(),
            news: Notify::new(),
        });
        let listener = tokio::spawn(Arc::clone(&shared).listen());
        Ok(Self {
            shared,
            listener,
            keeper,
            child: Mutex::new(child),
        })
    }

    /// Whether the keeper is still there.
    pub(super) fn is_alive(&self) -> bool {
        !self.shared.state().ended && !process::has_ended(&self.keeper)
    }

    /// The keeper's pid, if this program started it.
    pub(super) fn child_pid(&self) -> Option<u32> {
        self.child
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .map(Child::id)
    }

    /// Asks, and waits for the answer; `Failed` answers are errors.
    pub(super) async fn ask(
        &self,
        request: Request,
        descriptors: &[&OwnedFd],
        patience: Duration,
    ) -> Result<(Answer, Vec<OwnedFd>), DriverError> {
        let number = self.shared.last.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        {
            let mut state = self.shared.state();
            if state.ended {
                return Err(gone());
            }
            state.waiting.insert(number, sender);
        }
        let asked = async {
            let question = Question { number, request };
            let descriptors: Vec<_> = descriptors.iter().map(|each| each.as_fd()).collect();
            self.shared
                .socket
                .async_io(Interest::WRITABLE, |socket| {
                    packet::send(socket, &question, &descriptors)
                })
                .await
                .map_err(doing("ask the keeper"))?;
            receiver.await.map_err(|_| gone())
        };
        let answer = tokio::time::timeout(patience, asked).await;
        self.shared.state().waiting.remove(&number);
        match answer {
            Ok(Ok((Answer::Failed(failure), _))) => Err(failure.into()),
            Ok(answer) => answer,
            Err(_) => Err(DriverError::Guest(format!("no answer within {patience:?}"))),
        }
    }

    /// How a cell ended, once the keeper has told; None if it will not tell within `patience`.
    pub(super) async fn end_of(&self, pid: u32, patience: Duration) -> Option<Status> {
        let told = async {
            loop {
                let news = self.shared.news.notified();
                {
                    let state = self.shared.state();
                    if let Some(status) = state.ends.get(&pid) {
                        return Some(*status);
                    }
                    if state.ended {
                        return None;
                    }
                }
                news.await;
            }
        };
        tokio::time::timeout(patience, told).await.ok().flatten()
    }

    /// How a cell ended that was asked to be released.
    pub(super) fn remember(&self, pid: u32, status: Status) {
        self.shared.state().ends.insert(pid, status);
        self.shared.news.notify_waiters();
    }

    /// The end of a cell need not be remembered any longer.
    pub(super) fn forget(&self, pid: u32) {
        self.shared.state().ends.remove(&pid);
    }

    /// Hangs up: the keeper ends when nothing that was claimed is left. Waits for that end only
    /// if `empty` says that it is due.
    pub(super) async fn close(&self, empty: bool) {
        self.listener.abort();
        let _ = rustix::net::shutdown(self.shared.socket.get_ref(), rustix::net::Shutdown::Both);
        if empty {
            self.wait_for_end().await;
        }
    }

    async fn wait_for_end(&self) {
        if let Ok(keeper) = self.watch_keeper() {
            let _ = tokio::time::timeout(PATIENCE, keeper.readable()).await;
        }
        self.reap();
    }

    fn watch_keeper(&self) -> io::Result<AsyncFd<OwnedFd>> {
        process::watch(self.keeper.try_clone()?, Interest::READABLE)
    }

    fn reap(&self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(child) = child.as_mut() {
            let _ = child.try_wait();
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.listener.abort();
        let _ = rustix::net::shutdown(self.shared.socket.get_ref(), rustix::net::Shutdown::Both);
        self.reap();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn listen(self: Arc<Self>) {
        loop {
            let received = self
                .socket
                .async_io(Interest::READABLE, |socket| {
                    match packet::receive::<Statement>(socket)? {
                        Received::Nothing => Err(io::ErrorKind::WouldBlock.into()),
                        other => Ok(other),
                    }
                })
                .await;
            match received {
                Ok(Received::Packet(Statement::Answer { number, answer }, descriptors)) => {
                    let waiting = self.state().waiting.remove(&number);
                    if let Some(waiting) = waiting {
                        // Whoever asked may have lost patience.
                        let _ = waiting.send((answer, descriptors));
                    }
                }
                Ok(Received::Packet(Statement::Exited { pid, status }, _)) => {
                    self.state().ends.insert(pid, status);
                    self.news.notify_waiters();
                }
                Ok(Received::End | Received::Nothing) => break,
                Err(error) => {
                    tracing::warn!(%error, "the keeper is not understood");
                    break;
                }
            }
        }
        let mut state = self.state();
        state.ended = true;
        state.waiting.clear();
        drop(state);
        self.news.notify_waiters();
    }
}

fn gone() -> DriverError {
    DriverError::Guest("the keeper of the sandboxes has ended".into())
}

fn new_socket() -> Result<OwnedFd, DriverError> {
    socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(doing("make a socket"))
}

/// The address of the socket, through a descriptor of its directory: the address of a socket may
/// have 108 bytes at most, a path more.
struct Address {
    address: SocketAddrUnix,
    _directory: OwnedFd,
}

impl Address {
    fn of(directory: &Path) -> Result<Self, DriverError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = rustix::fs::open(directory, flags, Mode::empty())
            .map_err(doing(format!("open {}", directory.display())))?;
        let path = format!("/proc/self/fd/{}/{SOCKET}", open.as_raw_fd());
        let address = SocketAddrUnix::new(path).map_err(doing("name the keeper's socket"))?;
        Ok(Self {
            address,
            _directory: open,
        })
    }
}

impl From<Failure> for DriverError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::System { doing: what, error } => {
                let source = io::Error::from_raw_os_error(error);
                match error {
                    libc::EAGAIN => Self::Exhausted {
                        what: "processes",
                        cause: source.to_string(),
                    },
                    libc::ENOMEM => Self::Exhausted {
                        what: "memory",
                        cause: source.to_string(),
                    },
                    libc::ENOSPC => Self::Exhausted {
                        what: "disk",
                        cause: source.to_string(),
                    },
                    _ => doing(what)(source),
                }
            }
            Failure::Unsupported { cause, remedy } => Self::Unsupported { cause, remedy },
            Failure::Guest { message } => Self::Guest(message),
            Failure::Version { version } => Self::Guest(format!(
                "the keeper speaks version {version} and this is {VERSION}"
            )),
        }
    }
}
