//! `atoll mesh peer`: telephones, routers and whatever else speaks WireGuard and runs no Atoll.

use super::http::Http;
use crate::{
    client::{Client, connection::Connection, encode},
    failure::Failure,
    style,
};
use anyhow::Context;
use api::rest::mesh::{CreatedMeshToken, MeshNode, MeshPolicy, NewMeshToken};
use clap::Subcommand;
use mesh::{
    PrivateKey, PublicKey,
    coordination::{Identity, JoinRequest, Mode, NodeRecord, Token},
    node::Link,
    policy::{Policy, Subject},
};
use qrcode::{QrCode, render::unicode::Dense1x2};
use std::{
    fmt::Write as _,
    fs::File,
    io::Write as _,
    net::{IpAddr, SocketAddr},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// How long the token is good for that a peer is let in with, in seconds.
const MOMENT: u64 = 60;
/// How often a peer says something, so that its NAT remembers it.
const KEEPALIVE: u16 = 25;

/// Let WireGuard peers in that run no Atoll: telephones, routers
///
/// A peer gets a configuration with the nodes that policy lets it speak with, and that have a network device. Policy is applied by
/// these, to what comes from it and goes to it. Nodes behind NAT without a forwarded port are reached by other nodes only.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Let a peer in and print its configuration, this once
    #[command(
        after_help = "Examples:\n  atoll mesh peer add phone --tags phone --qr\n  \
                      atoll mesh peer add router --tags office --out router.conf --endpoint 198.51.100.4:51820\n  \
                      atoll mesh peer add laptop --tags staff --public-key \"$(wg pubkey <laptop.key)\"\n\n\
                      The private key is made here and kept nowhere, so it cannot be shown again. With --public-key the\n\
                      peer keeps its own. `atoll mesh revoke` puts a peer out."
    )]
    Add {
        /// What it is called
        #[arg(value_name = "NAME")]
        name: String,

        /// Its tags, by which policy knows it
        #[arg(long, value_name = "TAG", value_delimiter = ',')]
        tags: Vec<String>,

        /// The peer's own public key, in base64; its private key stays where it is
        #[arg(long, value_name = "KEY")]
        public_key: Option<PublicKey>,

        /// Where nodes reach it, if they do [default: it calls them]
        #[arg(long, value_name = "ADDRESS:PORT")]
        endpoint: Option<SocketAddr>,

        #[command(flatten)]
        output: Output,

        #[command(flatten)]
        connection: Connection,
    },

    /// Print a peer's configuration as it should be now, without its private key
    #[command(after_help = "Example:\n  atoll mesh peer config phone")]
    Config {
        /// What it is called
        #[arg(value_name = "NAME")]
        name: String,

        #[command(flatten)]
        output: Output,

        #[command(flatten)]
        connection: Connection,
    },
}

/// Where the configuration goes.
#[derive(Debug, clap::Args)]
struct Output {
    /// Show it as a QR code, for applications that read one
    #[arg(long, conflicts_with = "out")]
    qr: bool,

    /// Write it to a new file that nobody else may read
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Output {
    /// Makes the file, if one is wanted: before anything else is done.
    fn open(&self) -> anyhow::Result<Option<File>> {
        let Some(path) = &self.out else {
            return Ok(None);
        };
        let made = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        made.map(Some).map_err(|error| refused(path, &error))
    }

    fn give(&self, file: Option<File>, text: &str) -> anyhow::Result<()> {
        match (file, &self.out) {
            (Some(mut file), Some(path)) => {
                file.write_all(text.as_bytes())
                    .and_then(|()| file.sync_all())
                    .map_err(|error| refused(path, &error))?;
                style::note(&format!("the configuration is in {}", path.display()));
            }
            _ if self.qr => {
                let code = QrCode::new(text).map_err(|_| {
                    Failure::new(
                        "the configuration is too long for a QR code",
                        "use --out, or let policy name fewer nodes for it",
                    )
                })?;
                let picture = code.render::<Dense1x2>().build();
                style::to_stdout(&format!("{picture}\n"))?;
            }
            _ => style::to_stdout(text)?,
        }
        Ok(())
    }
}

fn refused(path: &Path, error: &std::io::Error) -> anyhow::Error {
    let cause = format!("cannot write {}: {error}", path.display());
    Failure::new(
        cause,
        "name a file that is not there yet, in a folder that is",
    )
    .into()
}

/// What a configuration is made from.
struct Peer<'a> {
    name: &'a str,
    tags: &'a std::collections::BTreeSet<String>,
    addresses: &'a [IpAddr],
    key: Option<&'a PrivateKey>,
}

/// A node's addresses, as WireGuard routes them.
fn allowed(addresses: &[IpAddr]) -> String {
    let ranges = addresses.iter().map(|address| match address {
        IpAddr::V4(address) => format!("{address}/32"),
        IpAddr::V6(address) => format!("{address}/128"),
    });
    ranges.collect::<Vec<_>>().join(", ")
}

/// Whether an address is one of the internet, as far as can be told.
fn public(at: &SocketAddr) -> bool {
    match at.ip() {
        IpAddr::V4(ip) => !(ip.is_private() || ip.is_link_local() || ip.is_loopback()),
        IpAddr::V6(ip) => !(ip.is_unique_local() || ip.is_unicast_link_local() || ip.is_loopback()),
    }
}

/// The configuration of a peer, as `wg-quick` reads it.
fn configuration(peer: &Peer<'_>, nodes: &[MeshNode], policy: &Policy) -> String {
    let own = Subject {
        name: Some(peer.name),
        tags: peer.tags,
    };
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(text, "[Interface]\n# {}.{}", peer.name, policy.domain());
    let _ = match peer.key {
        Some(key) => writeln!(text, "PrivateKey = {}", key.to_base64()),
        None => writeln!(text, "# PrivateKey = the one that this peer has"),
    };
    let _ = writeln!(text, "Address = {}", allowed(peer.addresses));
    for node in nodes {
        let other = Subject {
            name: Some(&node.name),
            tags: &node.tags,
        };
        let something =
            !policy.ports(own, other).is_empty() || !policy.ports(other, own).is_empty();
        if node.name == peer.name || node.plain || node.mode != Mode::Tun.to_string() || !something
        {
            continue;
        }
        let name = style::harmless(&node.name);
        let _ = writeln!(text, "\n[Peer]\n# {name}\nPublicKey = {}", node.wireguard);
        let _ = writeln!(text, "AllowedIPs = {}", allowed(&node.addresses));
        let endpoint = node.endpoints.iter().find(|at| public(at));
        if let Some(endpoint) = endpoint.or(node.endpoints.first()) {
            let _ = writeln!(
                text,
                "Endpoint = {endpoint}\nPersistentKeepalive = {KEEPALIVE}"
            );
        }
    }
    text
}

async fn state(client: &Client) -> anyhow::Result<(Vec<MeshNode>, Policy)> {
    let nodes = client.get("/v1/mesh/nodes").await?;
    let policy: MeshPolicy = client.get("/v1/mesh/policy").await?;
    let policy = Policy::parse(&policy.text).unwrap_or_else(|_| Policy::none());
    Ok((nodes, policy))
}

/// Does it.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    match arguments.command {
        Command::Add {
            name,
            tags,
            public_key,
            endpoint,
            output,
            connection,
        } => {
            let file = output.open()?;
            let client = connection.open()?;
            let key = match public_key {
                Some(_) => None,
                None => Some(PrivateKey::generate()?),
            };
            let public = public_key.or_else(|| key.as_ref().map(PrivateKey::public));
            let public = public.context("there is no key")?;
            let added = add(&client, name, tags, public, endpoint, key.as_ref()).await;
            let given = added.and_then(|text| output.give(file, &text));
            if given.is_err()
                && let Some(path) = &output.out
            {
                // Nothing of use is in it.
                let _ = std::fs::remove_file(path);
            }
            given?;
        }
        Command::Config {
            name,
            output,
            connection,
        } => {
            let client = connection.open()?;
            let (nodes, policy) = state(&client).await?;
            let found = nodes.iter().find(|node| node.plain && node.name == name);
            let found = found.ok_or_else(|| {
                Failure::new(
                    format!("there is no WireGuard peer {name:?}"),
                    "see `atoll mesh nodes`; nodes of Atoll need no configuration",
                )
            })?;
            let peer = Peer {
                name: &found.name,
                tags: &found.tags,
                addresses: &found.addresses,
                key: None,
            };
            let text = configuration(&peer, &nodes, &policy);
            output.give(output.open()?, &text)?;
        }
    }
    Ok(0)
}

/// Lets a peer in on its behalf; its configuration.
async fn add(
    client: &Client,
    name: String,
    tags: Vec<String>,
    public: PublicKey,
    endpoint: Option<SocketAddr>,
    key: Option<&PrivateKey>,
) -> anyhow::Result<String> {
    let wanted = NewMeshToken {
        tags: tags.into_iter().collect(),
        ephemeral: false,
        reuse: false,
        valid_seconds: Some(MOMENT),
        url: client.url().to_string(),
    };
    let created: CreatedMeshToken = client.post("/v1/mesh/tokens", &wanted).await?;
    let token: Token = created.token.expose().parse()?;
    // It signs this once and is forgotten: nobody can say anything else in the peer's name.
    let identity = Identity::generate()?;
    let record = NodeRecord {
        identity: identity.public(),
        epoch: 1,
        name,
        wireguard: public,
        renewal: None,
        endpoints: endpoint.into_iter().collect(),
        flows: Vec::new(),
        underlay: None,
        relay: None,
        mode: Mode::Tun,
        plain: true,
        unready: Default::default(),
    };
    let request = JoinRequest {
        token: token.id.clone(),
        admission: token.admission(identity.public()),
        record: identity.sign(&record),
    };
    let joined = Http::new(client.url())?.join(&request).await;
    // It is used up, and of no use to see in lists.
    let path = format!("/v1/mesh/tokens/{}", encode(&token.id));
    let removed = client.delete(&path).await;
    let answer = joined.map_err(|error| Failure::new(error.to_string(), ""))?;
    removed?;
    let voucher = answer.voucher.verify(&token.coordinator)?;
    if voucher.name != record.name {
        style::note(&format!("it is called {}", voucher.name));
    }
    let (nodes, policy) = state(client).await?;
    let addresses = [IpAddr::V4(voucher.v4), IpAddr::V6(voucher.v6)];
    let peer = Peer {
        name: &voucher.name,
        tags: &voucher.tags,
        addresses: &addresses,
        key,
    };
    Ok(configuration(&peer, &nodes, &policy))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, tag: &str, mode: &str, endpoints: &[&str]) -> MeshNode {
        MeshNode {
            name: name.to_owned(),
            identity: String::new(),
            wireguard: PublicKey::from_bytes([7; 32]).to_string(),
            plain: false,
            addresses: vec![
                IpAddr::from([100, 64, 0, name.len() as u8]),
                "fd00::1".parse().unwrap(),
            ],
            tags: [tag.to_owned()].into(),
            ephemeral: false,
            mode: mode.to_owned(),
            endpoints: endpoints.iter().map(|at| at.parse().unwrap()).collect(),
            flows: Vec::new(),
            unready: Default::default(),
            sandbox: None,
            token: String::new(),
            seen_ms: None,
        }
    }

    #[test]
    fn a_configuration_holds_whom_policy_names_and_who_has_a_device() {
        let policy =
            "[[allow]]\nfrom = [\"tag:phone\"]\nto = [\"tag:web\"]\nports = [\"tcp/443\"]\n";
        let policy = Policy::parse(policy).unwrap();
        let nodes = [
            node("web", "web", "tun", &["10.0.0.7:51820", "192.0.2.7:51820"]),
            node("db-1", "db", "tun", &["192.0.2.8:51820"]),
            node("poor", "web", "userspace", &[]),
        ];
        let tags = ["phone".to_owned()].into();
        let key = PrivateKey::from_bytes([1; 32]);
        let mut peer = Peer {
            name: "phone",
            tags: &tags,
            addresses: &[IpAddr::from([100, 64, 0, 9])],
            key: Some(&key),
        };
        let text = configuration(&peer, &nodes, &policy);
        let expected = format!(
            "[Interface]\n# phone.mesh.internal\nPrivateKey = {}\nAddress = 100.64.0.9/32\n\n\
             [Peer]\n# web\nPublicKey = {}\nAllowedIPs = 100.64.0.3/32, fd00::1/128\n\
             Endpoint = 192.0.2.7:51820\nPersistentKeepalive = 25\n",
            key.to_base64(),
            nodes[0].wireguard
        );
        assert_eq!(text, expected);
        let code = QrCode::new(&text).unwrap().render::<Dense1x2>().build();
        assert!(code.lines().count() > 20);
        peer.key = None;
        assert!(!configuration(&peer, &nodes, &policy).contains("\nPrivateKey"));
    }
}
