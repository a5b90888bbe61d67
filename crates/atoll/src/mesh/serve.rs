//! `atoll mesh serve`: says of a service whether it is ready on this machine, for as long as it runs.

use super::{
    StateDirectory,
    talk::{Question, Talk},
};
use crate::{failure::Failure, signals::Signals, style};
use mesh::{coordination::Mode, node::NodeStatus};
use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
    str::FromStr,
    time::Duration,
};
use tokio::net::TcpStream;

/// How often it is looked whether the service is well.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often in a row it must fail to be ill.
const FAILURES: u32 = 2;

const EXAMPLES: &str = "\
Examples:
  atoll mesh serve db --port 5432
  atoll mesh serve shop --port 8080 --health http:/healthz

The policy must name the service, this node and the port:

  [services.db]
  nodes = [\"tag:db\"]
  ports = [\"tcp/5432\"]

The service is looked for once a second where others reach it: at this node's own address (see
`services at` in `atoll mesh status`); without a network device also at 127.0.0.1. While it is well,
others are led here too; when it failed twice in a row, or this command ended, they are not, unless
no other node is ready either. Nodes that never said anything of a service count as ready.

It prints `ready` or `not ready` whenever that changes. Ctrl-C ends it.";

/// Say that a service is ready here, as long as it is
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Its name in the policy
    #[arg(value_name = "NAME")]
    name: String,

    /// Its TCP port
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,

    /// How to see that it is well: tcp (it takes connections), or http:PATH (it answers with 2xx or
    /// 3xx)
    #[arg(long, value_name = "HOW", default_value = "tcp")]
    health: Health,

    #[command(flatten)]
    state: StateDirectory,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Health {
    Tcp,
    Http(String),
}

impl FromStr for Health {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "tcp" => Ok(Self::Tcp),
            Some(("http", path)) if path.starts_with('/') => Ok(Self::Http(path.to_owned())),
            _ => Err("write tcp or http:/PATH".to_owned()),
        }
    }
}

/// Does it, until it is told to stop.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    let mut signals = Signals::listen()?;
    let state = arguments.state.path();
    tokio::select! {
        ended = watch(&arguments, &state) => ended,
        _ = signals.stop() => Ok(0),
    }
}

async fn watch(arguments: &Arguments, state: &Path) -> anyhow::Result<u8> {
    let client = reqwest::Client::builder()
        .timeout(PATIENCE)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .tls_built_in_root_certs(false)
        .build()?;
    // Whether there is a node at all is said at once; one that goes and comes back is waited for.
    let mut talk = Some(Talk::open(state).await?);
    let mut shown = None;
    let mut failures = FAILURES;
    loop {
        let status = match &mut talk {
            Some(open) => open.status().await.ok(),
            None => None,
        };
        let Some(status) = status else {
            if talk.take().is_some() {
                style::note("the node is gone; waiting for it");
                shown = None;
            }
            tokio::time::sleep(INTERVAL).await;
            talk = Talk::open(state).await.ok();
            continue;
        };
        let mut is_well = false;
        for address in places(&status) {
            is_well |= well(&client, &arguments.health, address, arguments.port).await;
            if is_well {
                break;
            }
        }
        failures = if is_well {
            0
        } else {
            failures.saturating_add(1)
        };
        let ready = failures < FAILURES;
        let question = Question::Serve {
            service: arguments.name.clone(),
            port: arguments.port,
            ready,
        };
        if let Some(open) = &mut talk
            && let Err(error) = open.ask(&question).await
        {
            if error.is::<Failure>() {
                let hint = "see `atoll mesh serve --help` for what the policy needs";
                return Err(Failure::new(error.to_string(), hint).into());
            }
            talk = None;
            continue;
        }
        if shown != Some(ready) {
            shown = Some(ready);
            style::to_stdout(if ready { "ready\n" } else { "not ready\n" })?;
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Where the service may be: where others reach it.
fn places(status: &NodeStatus) -> Vec<IpAddr> {
    let home = IpAddr::V4(status.home);
    match status.mode {
        Mode::Tun => vec![home],
        Mode::Userspace => vec![home, Ipv4Addr::LOCALHOST.into()],
    }
}

async fn well(client: &reqwest::Client, health: &Health, address: IpAddr, port: u16) -> bool {
    match health {
        Health::Tcp => {
            let connect = TcpStream::connect((address, port));
            matches!(tokio::time::timeout(PATIENCE, connect).await, Ok(Ok(_)))
        }
        Health::Http(path) => {
            let at = std::net::SocketAddr::new(address, port);
            let response = client.get(format!("http://{at}{path}")).send().await;
            response.is_ok_and(|answer| answer.status().as_u16() < 400)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_is_tcp_or_a_path() {
        assert_eq!("tcp".parse(), Ok(Health::Tcp));
        assert_eq!("http:/a".parse(), Ok(Health::Http("/a".to_owned())));
        for text in ["", "udp", "http", "http:", "http:a", "tcp:1"] {
            assert!(text.parse::<Health>().is_err(), "{text}");
        }
    }
}
