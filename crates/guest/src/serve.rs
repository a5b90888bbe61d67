//! From an identity to a guest that serves.

use crate::{
    accounts, http as server,
    http::Guest,
    logs::Logs,
    machine::Machine,
    metrics::{CpuSample, Scope},
    process::{self, reaper, table::Table},
    role::Role,
};
use api::{
    Secret,
    boot::Identity,
    envd::process::{ProcessConfig, StartRequest},
    node::LogLevel,
};
use std::{
    cell::{Cell, RefCell},
    ffi::CString,
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::Duration,
};
use tokio::net::TcpSocket;

/// Where and how to serve.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// The address to listen on.
    pub address: IpAddr,
}

/// Threads for work that waits for disks, and how long one stays when there is none.
const BLOCKING_THREADS: usize = 4;
const BLOCKING_STAY: Duration = Duration::from_secs(5);
const BLOCKING_STACK: usize = 512 << 10;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// Children's score for the kernel's choice of whom to end when memory is short, above the guest's.
const CHILD_OOM_SCORE: i32 = 100;

/// Serves as `identity` for ever. `on_ready` is called once connections are taken, with the port.
///
/// Fails only before that: if the runtime cannot be made or the port cannot be opened.
pub fn serve(identity: Identity, settings: Settings, on_ready: impl FnOnce(u16)) -> io::Result<()> {
    let guest = guest(Role::from(&identity), None, child_oom_score());
    let command = identity.start_command.clone();
    enter(settings.address, identity.port, guest, |guest, port| {
        on_ready(port);
        start_command(guest, command.as_deref());
    })
}

/// Serves as the first process of a microVM, which is nobody's until it is told who it is.
///
/// Fails as [`serve`] does.
pub fn serve_machine(
    control_token: Secret,
    port: u16,
    settings: Settings,
    on_ready: impl FnOnce(u16),
) -> io::Result<()> {
    let machine = Machine::new(port);
    let guest = guest(Role::waiting(control_token), Some(machine), c"0".into());
    enter(settings.address, port, guest, |_, port| on_ready(port))
}

fn enter(
    address: IpAddr,
    port: u16,
    guest: Guest,
    on_ready: impl FnOnce(&Rc<Guest>, u16),
) -> io::Result<()> {
    limit_memory();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(BLOCKING_STAY)
        .thread_stack_size(BLOCKING_STACK)
        .build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(
        &runtime,
        run(SocketAddr::new(address, port), guest, on_ready),
    )
}

async fn run(
    address: SocketAddr,
    guest: Guest,
    on_ready: impl FnOnce(&Rc<Guest>, u16),
) -> io::Result<()> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?;
    let children = reaper::listen()?;
    // Orphans come here, as they do to a first process.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let port = listener.local_addr()?.port();
    let guest = Rc::new(guest);
    tokio::task::spawn_local(reaper::reap(children, Rc::clone(&guest.processes)));
    on_ready(&guest, port);
    server::serve(guest, listener).await;
    Ok(())
}

fn guest(role: Role, machine: Option<Machine>, child_oom_score: CString) -> Guest {
    let logs = Rc::new(Logs::default());
    let scope = match machine {
        Some(_) => Scope::Machine,
        None => Scope::Processes,
    };
    Guest {
        role: RefCell::new(Rc::new(role)),
        machine,
        connections: Rc::default(),
        processes: Rc::new(Table::new(Rc::clone(&logs))),
        logs,
        watchers: Default::default(),
        cpu_sample: Cell::new(CpuSample::take(scope)),
        can_change_user: rustix::process::geteuid().is_root(),
        child_oom_score,
    }
}

fn child_oom_score() -> CString {
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    let own: i32 = own.trim().parse().unwrap_or(0);
    let score = (own + CHILD_OOM_SCORE).clamp(-1000, 1000);
    CString::new(score.to_string()).unwrap_or_default()
}

/// Starts the template's command, if there is one, as the default user.
pub(crate) fn start_command(guest: &Rc<Guest>, command: Option<&str>) {
    let Some(command) = command.filter(|text| !text.is_empty()) else {
        return;
    };
    let role = guest.role();
    let name = &role.default_user;
    let Some(user) = accounts::find_user(name) else {
        let message = format!("the start command was not run: there is no user `{name}`");
        guest.logs.add(LogLevel::Error, message, &[]);
        return;
    };
    let request = StartRequest {
        process: ProcessConfig {
            cmd: "/bin/bash".to_owned(),
            args: vec!["-l".to_owned(), "-c".to_owned(), command.to_owned()],
            ..ProcessConfig::default()
        },
        tag: Some("start-command".to_owned()),
        stdin: Some(false),
        pty: None,
    };
    if let Err(error) = process::service::start(guest, &user, request, None) {
        let message = format!("the start command was not run: {error}");
        guest.logs.add(LogLevel::Error, message, &[]);
    }
}

/// One arena for all threads, and large blocks given back at once: memory of an idle sandbox is
/// memory that no other one has.
fn limit_memory() {
    // SAFETY: sets parameters of the allocator, before other threads are started.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 256 << 10);
    }
}
