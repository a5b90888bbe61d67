//! `atoll mesh up`: this machine as a node.

use super::{StateDirectory, http::Http, talk};
use crate::{failure::Failure, signals::Signals, style, up::log};
use anyhow::Context;
use api::Secret;
use mesh::{
    coordination::Token,
    names::upstream_of,
    node::{
        Node, NodeError, NodeOptions, RelayPorts, RotationTimes, State, StateError, device_allowed,
    },
};
use reqwest::Url;
use std::{
    net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket},
    sync::Arc,
    time::Duration,
};

const EXAMPLES: &str = "\
Examples:
  sudo ATOLL_MESH_TOKEN=atm_... atoll mesh up
  sudo atoll mesh up                        again later: the token is needed once
  sudo atoll mesh up --state /srv/mesh --name web-1 --endpoint 192.0.2.7
  atoll mesh up --state ~/mesh --socks 127.0.0.1:1080     without root or a network device
  sudo atoll mesh up --relay --endpoint 192.0.2.7      also a relay for others

It prints `up NAME ADDRESS` to standard output once all is up, and all else to standard error.
Services are to listen at that address. When the coordinator is down, it starts from what it knew.

Without a network device TCP and UDP reach others at loopback addresses that stand for them, to
which names lead, and through the proxy of --socks: SOCKS5 and HTTP CONNECT at one port, with the
user and password in the file `proxy` of the state directory.

Names are answered at port 53 of the node's own address, or without a device at another where that
port is not allowed, see `atoll mesh status`; resolv.conf is left alone. To use them, write
`nameserver ADDRESS` and `search mesh.internal` there. Other names are asked of the name servers
that /etc/resolv.conf names when it starts.

Ctrl-C ends it. When the node was revoked it ends with status 1.";

/// Run this machine as a node of the mesh
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Join token, needed once. Others on this machine see arguments: rather use ATOLL_MESH_TOKEN
    #[arg(
        long,
        value_name = "TOKEN",
        env = "ATOLL_MESH_TOKEN",
        hide_env_values = true,
        value_parser = secret
    )]
    token: Option<Secret>,

    /// How packets get in and out
    #[arg(long, value_enum, default_value = "auto")]
    mode: Mode,

    /// Where programs find a proxy into the mesh, for SOCKS5 and HTTP CONNECT [default: none]
    #[arg(long, value_name = "HOST:PORT")]
    socks: Option<SocketAddr>,

    #[command(flatten)]
    state: StateDirectory,

    /// What it would like to be called [default: this machine's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// Where other nodes reach it, ADDRESS or ADDRESS:PORT, with the port of tunnels, or of flows
    /// without a device; may be given several times [default: the address that leads to the coordinator]
    #[arg(long = "endpoint", value_name = "ADDRESS", value_parser = endpoint)]
    endpoints: Vec<SocketAddr>,

    /// Another address to answer questions for names at; may be given several times
    #[arg(long, value_name = "HOST:PORT")]
    dns: Vec<SocketAddr>,

    /// Be a relay for others, who reach this machine at its endpoints. The policy's `relays` must name it
    #[arg(long)]
    relay: bool,

    /// How often its tunnels get a new key, while all who may speak with it can be told: 12h, 7d, 0s for
    /// only by `atoll mesh rotate`
    #[arg(long, value_name = "TIME", value_parser = crate::commands::parse_seconds, default_value = "7d")]
    rotate_keys: u64,

    /// The relay's port for UDP
    #[arg(long, value_name = "PORT", default_value_t = 51822, requires = "relay")]
    relay_udp: u16,

    /// The relay's port for TLS, for networks that let nothing else pass; 0 for none [default: 443 if
    /// it is free and allowed]
    #[arg(long, value_name = "PORT", requires = "relay")]
    relay_tls: Option<u16>,

    /// Do not ask the router to forward ports (PCP, NAT-PMP, UPnP)
    #[arg(long)]
    no_port_mapping: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    /// A network device if this machine allows one, else none
    Auto,
    /// A network device: needs root and /dev/net/tun
    Tun,
    /// Without one: TCP and UDP only, needs no rights
    Userspace,
}

/// The mode, and why it is not another if the machine decided.
fn choose(mode: Mode) -> (mesh::coordination::Mode, Option<String>) {
    use mesh::coordination::Mode as Chosen;
    match mode {
        Mode::Tun => (Chosen::Tun, None),
        Mode::Userspace => (Chosen::Userspace, None),
        Mode::Auto => match device_allowed() {
            Ok(()) => (Chosen::Tun, None),
            Err(error) => (Chosen::Userspace, Some(error.to_string())),
        },
    }
}

fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(text))
}

/// An address, with port 0 if it has none.
fn endpoint(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 0));
    let address = address.or_else(|_| text.parse::<SocketAddr>());
    address.map_err(|_| "write ADDRESS or ADDRESS:PORT".to_owned())
}

/// The own address from which the coordinator is reached: nothing is sent for that.
fn address_towards(url: &Url) -> Option<SocketAddr> {
    let host = url
        .host_str()?
        .trim_start_matches('[')
        .trim_end_matches(']');
    let port = url.port_or_known_default()?;
    (host, port).to_socket_addrs().ok()?.find_map(|to| {
        let any: IpAddr = if to.is_ipv4() {
            [0; 4].into()
        } else {
            [0_u16; 8].into()
        };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect(to).ok()?;
        let ip = socket.local_addr().ok()?.ip();
        (!ip.is_loopback() && !ip.is_unspecified()).then_some(SocketAddr::new(ip, 0))
    })
}

/// Errors with what to do about them.
fn explain(error: NodeError) -> anyhow::Error {
    let hint = match &error {
        NodeError::State(StateError::NeverJoined(_)) => {
            "give the token that `atoll mesh token create` prints, with ATOLL_MESH_TOKEN"
        }
        NodeError::State(StateError::OtherMesh(_)) => "use another directory with --state",
        NodeError::State(StateError::Taken(_)) => "stop the other one, or use another --state",
        NodeError::Data(_) => {
            "a network device needs root and /dev/net/tun; `--mode userspace` needs neither"
        }
        NodeError::Flows(_) => "name another address with --socks",
        NodeError::Relay(..) => {
            "name other ports with --relay-udp and --relay-tls; those below 1024 need root"
        }
        NodeError::Names(..) => {
            "another name server holds port 53 of all addresses: let it listen at its own only"
        }
        NodeError::Link(_) => {
            "see whether the coordinator runs, and whether the token is still good: `atoll mesh token ls`"
        }
        NodeError::Revoked => {
            "to let the machine in again, join with a new --state and a new token"
        }
        NodeError::Forgotten => "join again with a token",
        NodeError::Impostor => {
            "make a new token; somebody else may answer at the coordinator's address"
        }
        _ => "",
    };
    Failure::new(error.to_string(), hint).into()
}

/// Does it, until it is told to stop.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    log::begin(false);
    let (mode, reason) = choose(arguments.mode);
    if let Some(reason) = reason {
        style::note(&format!(
            "this machine allows no network device ({reason}): going on without, mode userspace"
        ));
    }
    let mut signals = Signals::listen()?;
    let token = arguments.token.as_ref().map(Secret::expose);
    let token = token.filter(|token| !token.is_empty());
    let token: Option<Token> = token.map(str::parse).transpose()?;
    let directory = arguments.state.path();
    let mesh = token.as_ref().map(|token| (token.coordinator, &*token.url));
    let state = State::open(&directory, mesh).map_err(|error| explain(error.into()))?;
    let url = Url::parse(&state.url)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https"));
    let url = url.context("the token names no address that could be asked")?;
    let link = Arc::new(Http::new(&url)?);
    let mut endpoints = arguments.endpoints;
    if endpoints.is_empty() {
        let url = url.clone();
        let own = tokio::task::spawn_blocking(move || address_towards(&url));
        endpoints.extend(own.await.unwrap_or_default());
    }
    let own: Vec<_> = state
        .voucher
        .iter()
        .filter_map(|voucher| voucher.verify(&state.coordinator).ok())
        .collect();
    let own = own.iter().map(|voucher| voucher.v4);
    let own = own.flat_map(|v4| [Some(v4), mesh::userspace::loopback(v4)]);
    let own: Vec<_> = own.flatten().map(IpAddr::V4).collect();
    let resolvers = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let options = NodeOptions {
        name: arguments.name.unwrap_or(name),
        mode,
        endpoints,
        proxies: arguments.socks.into_iter().collect(),
        dns: arguments.dns,
        upstream: upstream_of(&resolvers, &own),
        rotation: RotationTimes {
            every: Some(Duration::from_secs(arguments.rotate_keys))
                .filter(|every| !every.is_zero()),
            ..RotationTimes::default()
        },
        relay: arguments.relay.then_some(RelayPorts {
            udp: arguments.relay_udp,
            tls: Some(arguments.relay_tls.unwrap_or(443)).filter(|port| *port != 0),
            tls_optional: arguments.relay_tls.is_none(),
        }),
        programs: None,
        machine: None,
        port_mapping: !arguments.no_port_mapping,
    };
    let back = state.voucher.is_some();
    let start = Node::start(state, token.as_ref(), options, &*link);
    let node = tokio::select! {
        node = start => Arc::new(node.map_err(explain)?),
        _ = signals.stop() => return Ok(0),
    };
    if back {
        node.greet();
    }
    let serving = tokio::spawn(talk::serve(
        talk::listen(&directory)?,
        node.clone(),
        link.clone(),
    ));
    let status = node.status();
    let address = status.home;
    if let Some(at) = status.dns.first().filter(|at| at.port() != 53) {
        style::note(&format!(
            "port 53 is not allowed here: names are answered at {at}"
        ));
    }
    if let Some(trouble) = status
        .relaying
        .as_ref()
        .and_then(|relay| relay.trouble.as_ref())
    {
        style::note(&format!("the relay speaks no TLS: {trouble}"));
    }
    if let Some(file) = &status.proxy_file {
        let file = file.display();
        style::note(&format!("the proxy's user and password are in {file}"));
    }
    style::to_stdout(&format!("up {}.{} {address}\n", status.name, status.domain))?;
    let ended = tokio::select! {
        ended = node.follow(&*link) => Some(ended),
        _ = signals.stop() => None,
    };
    serving.abort();
    node.stop().await;
    // The next start takes its place.
    let _ = std::fs::remove_file(directory.join(talk::SOCKET));
    match ended {
        Some(Err(error)) => Err(explain(error)),
        _ => Ok(0),
    }
}
