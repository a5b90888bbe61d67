//! `atoll mesh`: the private network among nodes.
//!
//! [`up`] runs a node. The other commands ask either the coordinator, over the public API ([`token`], [`policy`], [`nodes`], [`peer`]), or the node on
//! this machine, over the socket in its state directory ([`talk`]: [`status`], [`ping`], [`flows`], [`services`], [`netcheck`],
//! [`serve`], [`certificate`]).

mod certificate;
mod check;
mod flows;
mod http;
mod map;
mod metrics;
mod netcheck;
mod nodes;
mod peer;
mod ping;
mod policy;
mod rotate;
mod serve;
mod services;
mod status;
mod talk;
mod token;
mod up;

use clap::Subcommand;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  atoll mesh token create --tags web --address http://192.0.2.1:3000   let one machine in
  sudo ATOLL_MESH_TOKEN=atm_... atoll mesh up                          on that machine
  atoll mesh policy test policy.toml                                   run a policy's own tests
  atoll mesh policy set policy.toml                                    nothing passes without one
  atoll mesh serve db --port 5432                                      a service is ready here
  atoll mesh services                                                  who gives what, as this node sees it
  atoll mesh peers                                                     whom this node reaches
  atoll mesh revoke web-2                                              put a node out, at once
  atoll mesh peer add phone --tags phone --qr                          whatever speaks WireGuard";

/// Join machines by a private, encrypted network
///
/// The coordinator is part of `atoll up`. A machine with root and /dev/net/tun gets a network device; any other is a node without
/// one. Ways go straight from node to node where NATs and firewalls let them, else over relays: nodes with `mesh up --relay` that
/// the policy names.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::Arguments),
    Serve(serve::Arguments),
    Status(status::StatusArguments),
    Peers(status::PeersArguments),
    Ping(ping::Arguments),
    Flows(flows::Arguments),
    Services(services::Arguments),
    Map(map::Arguments),
    Netcheck(netcheck::Arguments),
    Certificate(certificate::Arguments),
    Rotate(rotate::Arguments),
    Token(token::Arguments),
    Policy(policy::Arguments),
    Check(check::Arguments),
    Nodes(nodes::ListArguments),
    Revoke(nodes::RevokeArguments),
    Peer(peer::Arguments),
}

/// Does it.
pub(crate) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    match arguments.command {
        Command::Up(arguments) => up::execute(arguments).await,
        Command::Serve(arguments) => serve::execute(arguments).await,
        Command::Status(arguments) => status::execute(arguments).await,
        Command::Peers(arguments) => status::peers(arguments).await,
        Command::Ping(arguments) => ping::execute(arguments).await,
        Command::Flows(arguments) => flows::execute(arguments).await,
        Command::Services(arguments) => services::execute(arguments).await,
        Command::Map(arguments) => map::execute(arguments).await,
        Command::Netcheck(arguments) => netcheck::execute(arguments).await,
        Command::Certificate(arguments) => certificate::execute(arguments).await,
        Command::Rotate(arguments) => rotate::execute(arguments).await,
        Command::Token(arguments) => token::execute(arguments).await,
        Command::Policy(arguments) => policy::execute(arguments).await,
        Command::Check(arguments) => check::execute(arguments).await,
        Command::Nodes(arguments) => nodes::list(arguments).await,
        Command::Revoke(arguments) => nodes::revoke(arguments).await,
        Command::Peer(arguments) => peer::execute(arguments).await,
    }
}

/// Which node on this machine is meant.
#[derive(Debug, clap::Args)]
struct StateDirectory {
    /// Where the node keeps its keys and what it knows [default: /var/lib/atoll-mesh for root]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

impl StateDirectory {
    fn path(&self) -> PathBuf {
        self.state.clone().unwrap_or_else(|| {
            let mut path = crate::data_dir::default_path().into_os_string();
            path.push("-mesh");
            path.into()
        })
    }
}
