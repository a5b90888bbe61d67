//! `atoll up`: control plane, agent and gateway in one process on one address.
//!
//! The options and the life of the program are here; [`server`] puts the rooms together.

mod announce;
pub(crate) mod driver;
mod limits;
pub(crate) mod log;
mod machines;
mod mesh;
mod mesh_node;
mod open;
mod server;

use crate::{
    client::connection::DEFAULT_ADDRESS,
    data_dir::{self, DataDir, KeyOrigin},
    failure::Failure,
    instance::{self, Claim},
    signals::Signals,
    style,
};
use ::agent::{PoolOptions, network::Network};
use ::driver::cgroup::IoLimits;
use anyhow::Context;
use api::{Bytes, Secret};
use gateway::TlsFiles;
use server::{Plan, Server};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::net::TcpListener;

/// How long an orderly stop may take.
const STOP_DEADLINE: Duration = Duration::from_secs(45);
/// Exit status when an orderly stop was cut short.
const STOPPED_AT_ONCE: i32 = 130;

const EXAMPLES: &str = "\
Examples:
  sudo atoll up
  sudo atoll up --data-dir /srv/atoll --listen 0.0.0.0:3000
  sudo atoll up --domain sandboxes.example.com --tls-cert chain.pem --tls-key key.pem

It prints `ready http://HOST:PORT` to standard output once it serves, and all else to standard
error. The first key is that of ATOLL_API_KEY (`e2b_` and 40 hexadecimal digits), or one that is
made and kept in `api-key` in the data directory. ATOLL_LOG chooses what is logged: `debug`, or
`warn,agent=debug`.

Ctrl-C ends it in good order; the second Ctrl-C ends it at once.";

/// Run Atoll on this machine: control plane, node and gateway in one
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Where it keeps its data [default: /var/lib/atoll for root, else ~/.local/share/atoll]
    #[arg(
        long,
        value_name = "DIR",
        env = "ATOLL_DATA_DIR",
        hide_env_values = true
    )]
    data_dir: Option<PathBuf>,

    /// Address to serve the API and the sandboxes at; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT", default_value = DEFAULT_ADDRESS)]
    listen: String,

    /// How sandboxes run
    #[arg(long, value_enum, default_value = "auto")]
    driver: driver::Choice,

    /// Kernel of microVMs, vmlinux or vmlinuz [default: the distribution's for virtual machines]
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,

    /// MiB a second that a container may read of its disk, and write to it; 0 for no limit.
    /// With control groups of version 1 only what it writes past the page cache is bounded
    #[arg(long, value_name = "MIB", default_value_t = IoLimits::default().bytes >> 20,
        value_parser = clap::value_parser!(u64).range(0..=1 << 20))]
    disk_rate: u64,

    /// Reads a second, and writes, that a container may make on its disk; 0 for no limit
    #[arg(long, value_name = "COUNT", default_value_t = IoLimits::default().operations)]
    disk_operations: u32,

    /// What becomes of running sandboxes when it stops
    #[arg(long, value_enum, default_value = "kill")]
    on_exit: OnExit,

    /// Domain whose names lead to sandboxes: PORT-SANDBOX.DOMAIN
    #[arg(long, value_name = "DOMAIN")]
    domain: Option<String>,

    /// Certificate chain (PEM), to serve HTTPS
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// Private key (PEM) of the certificate
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// Fewest sandboxes that are kept prepared, up to 1 MiB each [default: 8 to 32, by memory]
    #[arg(long, value_name = "COUNT")]
    pool_min: Option<u32>,

    /// Most sandboxes that are kept prepared
    #[arg(long, value_name = "COUNT", default_value_t = PoolOptions::default().max)]
    pool_max: u32,

    /// Most sandboxes at once
    #[arg(long, value_name = "COUNT", default_value_t = ::agent::Limits::default().sandboxes,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(Network::CAPACITY)))]
    max_sandboxes: u32,

    /// How many times this machine's memory may be promised to sandboxes together
    #[arg(long, value_name = "TIMES", value_parser = times, default_value_t = ::agent::Limits::default().memory_overcommit)]
    memory_overcommit: f64,

    /// Name servers of sandboxes, separated by commas [default: this machine's]
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    dns: Vec<IpAddr>,

    /// Address at which other nodes of the mesh reach sandboxes that are in it; may be given several
    /// times [default: that of --listen, or the one that leads to the internet]
    #[arg(long = "mesh-endpoint", value_name = "ADDRESS")]
    mesh_endpoints: Vec<IpAddr>,

    /// Registry that images may be pulled from without TLS; may be given several times
    #[arg(long = "insecure-registry", value_name = "HOST:PORT")]
    insecure_registries: Vec<String>,

    /// Do not build the template `base`, which E2B's clients start from unless told otherwise
    #[arg(long)]
    no_base: bool,

    /// Log in JSON, one object a line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    firecracker: machines::FirecrackerArguments,
}

/// What becomes of running sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum OnExit {
    /// They end, and nothing is left behind
    Kill,
    /// They go on, and the next start finds them again
    Keep,
}

/// The threads to serve with: few, as memory that a thread once used stays with it.
pub(crate) fn runtime() -> tokio::runtime::Builder {
    limits::bound_heaps();
    let processors = std::thread::available_parallelism().map_or(2, usize::from);
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder
        .worker_threads(processors.clamp(2, 8))
        .max_blocking_threads(64)
        .thread_keep_alive(Duration::from_secs(2))
        .thread_name("atoll");
    builder
}

/// Serves until it is told to stop.
pub(crate) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    let chosen = driver::choose(arguments.driver);
    arguments.firecracker.check(chosen.kind)?;
    require_root()?;
    log::begin(arguments.json);
    limits::raise_open_files();
    let mut signals = Signals::listen()?;
    let path = arguments
        .data_dir
        .clone()
        .unwrap_or_else(data_dir::default_path);
    let data = DataDir::take(&path)?;
    let given = std::env::var("ATOLL_API_KEY").ok().map(Secret::new);
    let key = data.first_key(given)?;
    let listener = listen(&arguments.listen).await?;
    let address = listener
        .local_addr()
        .context("cannot read the address that is served")?;
    let scheme = if arguments.tls_cert.is_some() {
        "https"
    } else {
        "http"
    };

    let name = Claim::take(Path::new(instance::FOLDER), &data.instance(), data.path())?;
    let keeps = arguments.on_exit == OnExit::Keep;

    tracing::info!("{}", chosen.reason);
    let mut server = Server::start(
        &data,
        listener,
        plan(arguments, chosen.kind, key.for_control()),
    )
    .await?;
    let published = data.publish(&format!("{scheme}://{}", reachable(address)))?;
    match &key.origin {
        KeyOrigin::Kept(path) if !server.knows(&key.key) => tracing::warn!(
            "the API key in {} was removed and opens nothing; to add it again, start with \
             ATOLL_API_KEY set to it",
            path.display()
        ),
        KeyOrigin::Environment => tracing::info!("the API key is that of ATOLL_API_KEY"),
        KeyOrigin::Kept(path) => tracing::info!("the API key is in {}", path.display()),
        KeyOrigin::Made(path) => tracing::info!("a new API key is in {}", path.display()),
    }
    style::to_stdout(&format!("ready {scheme}://{address}\n"))?;

    let fault = tokio::select! {
        _ = signals.stop() => false,
        () = server.ended() => true,
    };
    drop(published);
    tracing::info!("stopping");
    tokio::select! {
        stopped = tokio::time::timeout(STOP_DEADLINE, server.stop()) => {
            if stopped.is_err() {
                anyhow::bail!("stopping took longer than {STOP_DEADLINE:?}; the next start cleans up");
            }
        }
        _ = signals.stop() => {
            style::note("stopped at once; the next start cleans up");
            std::process::exit(STOPPED_AT_ONCE);
        }
    }
    if !keeps {
        name.release();
    }
    anyhow::ensure!(!fault, "the gateway ended unexpectedly");
    Ok(0)
}

fn plan(arguments: Arguments, driver: ::driver::DriverKind, first_key: control::FirstKey) -> Plan {
    let pool = PoolOptions::for_memory(Bytes(machine_memory()));
    Plan {
        driver,
        kernel: arguments.kernel,
        firecracker: arguments.firecracker,
        disk_limits: disk_limits(arguments.disk_rate, arguments.disk_operations),
        first_key,
        domain: arguments.domain,
        tls: arguments
            .tls_cert
            .zip(arguments.tls_key)
            .map(|(certificate, key)| TlsFiles { certificate, key }),
        on_exit: match arguments.on_exit {
            OnExit::Kill => ::agent::OnExit::Kill,
            OnExit::Keep => ::agent::OnExit::Keep,
        },
        pool: PoolOptions {
            min: arguments
                .pool_min
                .unwrap_or(pool.min)
                .min(arguments.pool_max),
            max: arguments.pool_max,
            ..pool
        },
        limits: ::agent::Limits {
            sandboxes: arguments.max_sandboxes,
            memory_overcommit: arguments.memory_overcommit,
            ..::agent::Limits::default()
        },
        name_servers: arguments.dns,
        mesh_endpoints: arguments.mesh_endpoints,
        insecure_registries: arguments.insecure_registries,
        base: !arguments.no_base,
    }
}

fn machine_memory() -> u64 {
    let about = rustix::system::sysinfo();
    about.totalram.saturating_mul(u64::from(about.mem_unit))
}

/// A number of times that makes sense: not less than once.
/// What the kernel takes as no limit on a rate.
const UNBOUNDED: u64 = u64::MAX;

/// From what the operator says, where 0 is no limit.
fn disk_limits(rate: u64, operations: u32) -> Option<IoLimits> {
    let limits = IoLimits {
        bytes: match rate {
            0 => UNBOUNDED,
            rate => rate << 20,
        },
        operations: match operations {
            0 => u32::MAX,
            operations => operations,
        },
    };
    (rate != 0 || operations != 0).then_some(limits)
}

fn times(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(times) if (1.0..=1000.0).contains(&times) => Ok(times),
        _ => Err("a number from 1 to 1000 is needed".to_owned()),
    }
}

fn require_root() -> anyhow::Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Failure::new(
        "`atoll up` needs root: namespaces, mounts and network rules belong to it",
        "run it with sudo; commands such as `atoll run` need no root",
    )
    .into())
}

async fn listen(text: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(text).await.map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                "another program listens there; choose another --listen"
            }
            _ => "write HOST:PORT with an address of this machine",
        };
        Failure::new(format!("cannot listen on {text}: {error}"), hint).into()
    })
}

/// The address as clients on this machine reach it.
fn reachable(address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        return SocketAddr::from((Ipv4Addr::LOCALHOST, address.port()));
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_limits_a_disk_that_the_operator_frees() {
        let limits = |bytes, operations| Some(IoLimits { bytes, operations });
        assert_eq!(disk_limits(0, 0), None);
        assert_eq!(disk_limits(8, 100), limits(8 << 20, 100));
        assert_eq!(disk_limits(0, 100), limits(u64::MAX, 100));
        assert_eq!(disk_limits(8, 0), limits(8 << 20, u32::MAX));
    }
}
