//! `atoll mesh up`: this machine as a node.

use super::{StateDirectory, http::Http, talk};
use crate::{failure::Failure, signals::Signals, style, up::log};
use anyhow::Context;
use api::Secret;
use mesh::{
    coordination::Token,
    names::upstream_of,
    node::{Node, NodeError, NodeOptions, State, StateError},
};
use reqwest::Url;
use std::{
    net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket},
    sync::Arc,
};

const EXAMPLES: &str = "\
Examples:
  sudo ATOLL_MESH_TOKEN=atm_... atoll mesh up
  sudo atoll mesh up                        again later: the token is needed once
  sudo atoll mesh up --state /srv/mesh --name web-1 --endpoint 192.0.2.7

It prints `up NAME ADDRESS` to standard output once tunnels and names are up, and all else to
standard error. It starts from what it knew last when the coordinator is down.

Names are answered at port 53 of the node's own address; resolv.conf is left alone. To use them,
write `nameserver ADDRESS` and `search mesh.internal` there. Other names are asked of the name
servers that /etc/resolv.conf names when it starts.

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

    /// Where to serve SOCKS5, without a network device only
    #[arg(long, value_name = "HOST:PORT")]
    socks: Option<SocketAddr>,

    #[command(flatten)]
    state: StateDirectory,

    /// What it would like to be called [default: this machine's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// Where other nodes reach it, ADDRESS or ADDRESS:PORT; may be given several times [default: the
    /// address that leads to the coordinator]
    #[arg(long = "endpoint", value_name = "ADDRESS", value_parser = endpoint)]
    endpoints: Vec<SocketAddr>,

    /// Another address to answer questions for names at; may be given several times
    #[arg(long, value_name = "HOST:PORT")]
    dns: Vec<SocketAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    /// What this machine allows: so far `tun` or nothing
    Auto,
    /// A network device
    Tun,
    /// Without one: this Atoll cannot do that yet
    Userspace,
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
            "tunnels need root and /dev/net/tun; this Atoll has no mode without them yet"
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
    if arguments.mode == Mode::Userspace {
        return Err(Failure::new(
            "this Atoll has no userspace mode: nodes without a network device are not there yet",
            "use --mode tun on a machine with root and /dev/net/tun",
        )
        .into());
    }
    if arguments.socks.is_some() {
        return Err(Failure::new(
            "--socks belongs to the userspace mode, which this Atoll does not have yet",
            "leave it away: with a network device, programs reach the mesh without a proxy",
        )
        .into());
    }
    log::begin(false);
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
    let link = Http::new(&url)?;
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
    let own: Vec<_> = own.iter().map(|voucher| IpAddr::V4(voucher.v4)).collect();
    let resolvers = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let options = NodeOptions {
        name: arguments.name.unwrap_or(name),
        endpoints,
        dns: arguments.dns,
        upstream: upstream_of(&resolvers, &own),
    };
    let start = Node::start(state, token.as_ref(), options, &link);
    let node = tokio::select! {
        node = start => Arc::new(node.map_err(explain)?),
        _ = signals.stop() => return Ok(0),
    };
    let serving = tokio::spawn(talk::serve(talk::listen(&directory)?, node.clone()));
    let status = node.status();
    let address = node.voucher().v4;
    style::to_stdout(&format!("up {}.{} {address}\n", status.name, status.domain))?;
    let ended = tokio::select! {
        ended = node.follow(&link) => Some(ended),
        _ = signals.stop() => None,
    };
    serving.abort();
    // The next start takes its place.
    let _ = std::fs::remove_file(directory.join(talk::SOCKET));
    match ended {
        Some(Err(error)) => Err(explain(error)),
        _ => Ok(0),
    }
}
