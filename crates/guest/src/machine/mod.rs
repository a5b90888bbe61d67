//! How the guest starts and lives as the first process of a microVM.
//!
//! ```text
//!  kernel ──▶ /init in the initial file system
//!               │ modules, disks, overlay, new root     filesystem, modules
//!               │ address, route, limits                network
//!               ▼
//!            waiting: serves its identity's path alone  claim
//!               │ told who it is
//!               ▼
//!            somebody ──▶ saved, resumed, told again: the same one, or somebody else
//! ```
//!
//! The machine is the boundary: here the guest drops nothing and filters nothing, and root inside
//! may do as root does. What the node must rely on (tokens, answers about identity) is only as
//! good as the sandbox's own root wants it to be, and it matters to that sandbox alone.
//!
//! A guest that cannot start says why on the console and switches the machine off.

mod claim;
mod command_line;
mod entropy;
mod filesystem;
mod modules;
mod names;
mod network;
mod power;
mod settle;

use crate::{
    Settings,
    http::{
        Guest, access,
        reply::{Failure, Reply},
    },
    serve_machine,
};
use api::boot::{IDENTITY_PATH, SERIAL_FAILED, SERIAL_WAITING};
use command_line::CommandLine;
use http::Request;
use hyper::body::Incoming;
use names::Names;
use rustix::process::{Resource, Rlimit, setrlimit};
use std::{
    cell::{Cell, RefCell},
    fs::{File, OpenOptions},
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr},
    rc::Rc,
};

/// Open files of one process, and what it may raise that to: as in a container.
const OPEN_FILES: u64 = 65_536;
const OPEN_FILES_AT_MOST: u64 = 1_048_576;

/// Why a machine cannot start.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing}: {source}")]
struct MachineError {
    doing: String,
    #[source]
    source: io::Error,
}

impl MachineError {
    fn new(doing: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self {
            doing: doing.into(),
            source: source.into(),
        }
    }
}

/// Adds what was being done to an error of the system.
trait Doing<T> {
    fn doing(self, doing: impl Into<String>) -> Result<T, MachineError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, doing: impl Into<String>) -> Result<T, MachineError> {
        self.map_err(|source| MachineError::new(doing, source))
    }
}

/// What the guest keeps for the machine's life, whoever it is.
#[derive(Debug)]
pub struct Machine {
    port: u16,
    /// Whether the start command was started in this memory.
    started: Cell<bool>,
    /// The names that were written last.
    names: RefCell<Option<Names>>,
}

impl Machine {
    /// A machine whose guest serves on `port`.
    pub fn new(port: u16) -> Self {
        Self {
            port,
            started: Cell::new(false),
            names: RefCell::default(),
        }
    }
}

/// Whether this process was started by a kernel, to be the machine's first.
pub fn is_wanted() -> bool {
    rustix::process::getpid().is_init()
        && std::env::args_os()
            .next()
            .is_some_and(|name| name == "/init")
}

/// Starts the machine, serves, and switches it off if it cannot.
pub fn run() -> ! {
    let cause = match start() {
        Ok(()) => "the guest's server ended".to_owned(),
        Err(error) => error.to_string(),
    };
    say(&format!("{SERIAL_FAILED}{cause}"));
    power::off()
}

fn start() -> Result<(), MachineError> {
    filesystem::mount_kernel_views()?;
    let text = std::fs::read_to_string("/proc/cmdline").doing("read the kernel's command line")?;
    let line = CommandLine::parse(&text)
        .map_err(|error| io::Error::other(error.to_string()))
        .doing("understand the kernel's command line")?;
    modules::load(&line.virtio_devices)?;
    filesystem::enter_root()?;
    network::configure(&line)?;
    set_limits()?;
    // Not before: failures until here are told there.
    let console = open_console();
    filesystem::detach_streams()?;
    let settings = Settings {
        address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    serve_machine(line.control_token, line.port, settings, |_| {
        if let Ok(mut console) = console {
            // Whoever waits for this line finds out by its absence.
            let _ = writeln!(console, "{SERIAL_WAITING}");
        }
    })
    .doing("serve")
}

fn set_limits() -> Result<(), MachineError> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let limit = |current, maximum| Rlimit {
        current: Some(current),
        maximum: Some(maximum),
    };
    setrlimit(Resource::Core, limit(0, 0)).doing("forbid core files")?;
    setrlimit(Resource::Nofile, limit(OPEN_FILES, OPEN_FILES_AT_MOST)).doing("limit open files")?;
    std::fs::write("/proc/self/oom_score_adj", "-1000").doing("outlive a shortage of memory")
}

fn open_console() -> io::Result<File> {
    OpenOptions::new().write(true).open("/dev/console")
}

fn say(line: &str) {
    // At the very beginning there is no /dev, but the kernel has opened the console.
    let written = open_console().and_then(|mut console| writeln!(console, "{line}"));
    if written.is_err() {
        eprintln!("{line}");
    }
}

/// Answers what only a machine's guest is asked, by whoever has the node's token.
pub(crate) async fn answer(
    guest: &Rc<Guest>,
    request: Request<Incoming>,
) -> Result<Reply, Failure> {
    if request.uri().path() == IDENTITY_PATH {
        claim::answer(guest, request).await
    } else {
        settle::answer(guest, request.uri().query().unwrap_or_default()).await
    }
}

/// Refuses if the node's token has changed while the request was read.
fn check_again(guest: &Guest, headers: &http::HeaderMap) -> Result<(), Failure> {
    if access::has_control_token(guest, headers) {
        Ok(())
    } else {
        Err(Failure::unauthorized("this token is not in force any more"))
    }
}
