//! From an identity to a guest that serves.

use crate::{
    accounts, http as server,
    http::Guest,
    logs::Logs,
    metrics::CpuSample,
    process::{self, reaper, table::Table},
};
use api::{
    boot::Identity,
    envd::process::{ProcessConfig, StartRequest},
    node::LogLevel,
};
use std::{
    cell::Cell,
    collections::BTreeMap,
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
    limit_memory();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(BLOCKING_STAY)
        .thread_stack_size(BLOCKING_STACK)
        .build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, run(identity, settings, on_ready))
}

async fn run(identity: Identity, settings: Settings, on_ready: impl FnOnce(u16)) -> io::Result<()> {
    let address = SocketAddr::new(settings.address, identity.port);
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
    let guest = Rc::new(guest(identity));
    on_ready(port);
    tokio::task::spawn_local(reaper::reap(children, Rc::clone(&guest.processes)));
    start_command(&guest);
    server::serve(guest, listener).await;
    Ok(())
}

fn guest(identity: Identity) -> Guest {
    let logs = Rc::new(Logs::default());
    let mut environment = BTreeMap::from([
        ("E2B_SANDBOX".to_owned(), "true".to_owned()),
        ("E2B_SANDBOX_ID".to_owned(), identity.sandbox.to_string()),
        ("E2B_TEMPLATE_ID".to_owned(), identity.template.to_string()),
    ]);
    environment.extend(identity.environment.clone());
    Guest {
        environment,
        processes: Rc::new(Table::new(Rc::clone(&logs))),
        logs,
        watchers: Default::default(),
        cpu_sample: Cell::new(CpuSample::take()),
        can_change_user: rustix::process::geteuid().is_root(),
        child_oom_score: child_oom_score(),
        identity,
    }
}

fn child_oom_score() -> CString {
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    let own: i32 = own.trim().parse().unwrap_or(0);
    let score = (own + CHILD_OOM_SCORE).clamp(-1000, 1000);
    CString::new(score.to_string()).unwrap_or_default()
}

/// Starts the template's command, as the default user.
fn start_command(guest: &Rc<Guest>) {
    let Some(command) = guest
        .identity
        .start_command
        .clone()
        .filter(|text| !text.is_empty())
    else {
        return;
    };
    let name = &guest.identity.default_user;
    let Some(user) = accounts::find_user(name) else {
        let message = format!("the start command was not run: there is no user `{name}`");
        guest.logs.add(LogLevel::Error, message, &[]);
        return;
    };
    let request = StartRequest {
        process: ProcessConfig {
            cmd: "/bin/bash".to_owned(),
            args: vec!["-l".to_owned(), "-c".to_owned(), command],
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
