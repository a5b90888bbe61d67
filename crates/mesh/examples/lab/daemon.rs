//! One node of two in a process of its own, without a coordinator: each knows the other from its number.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh::coordination::{Identity, IdentityKey, Mode, overlay_v4, overlay_v6};
use mesh::policy::{Allowance, Filter, FilterGate, FilterPeer, Ports};
use mesh::userspace::{Directory, Member, Service, Userspace, UserspaceOptions};
use mesh::{Engine, PeerOptions, PrivateKey, SystemClock, Tun, TunOptions, Wire, WireOptions};

use super::Outcome;

/// The port of `iperf3`.
pub(crate) const IPERF: u16 = 5201;
/// The port of the first node's flows.
const FLOWS: u16 = 51_830;

/// Where the first node's tunnels listen, less one.
pub(crate) const TUNNELS: u16 = 51_820;

/// Where a node is found on the cable.
pub(crate) fn outside(number: u8) -> Ipv4Addr {
    [192, 0, 2, number].into()
}

pub(crate) fn key(number: u8) -> PrivateKey {
    PrivateKey::from_bytes([number; 32])
}

/// `node tun|flows NUMBER BUFFER`, in the namespace that it is in, until it is killed.
pub(crate) fn serve(arguments: &[String]) -> Outcome<()> {
    let [kind, number, buffer] = arguments else {
        return Err("node KIND NUMBER BUFFER".into());
    };
    let number: u8 = number.parse()?;
    match kind.as_str() {
        "tun" => serve_tunnels(number, buffer.parse()?),
        _ => serve_flows(number),
    }
}

fn serve_tunnels(number: u8, buffer: u32) -> Outcome<()> {
    let port = |number: u8| TUNNELS + u16::from(number);
    let tun = TunOptions {
        name: "wg0".to_owned(),
        addresses: vec![([10, 7, 0, number].into(), 24)],
        ..TunOptions::default()
    };
    let tun = Tun::create(&tun, None)?;
    let wire = Wire::bind(
        &WireOptions {
            port: port(number),
            buffer,
            ..WireOptions::default()
        },
        None,
    )?;
    let clock = Arc::new(SystemClock);
    let core = mesh::crypto::NoiseCore::new(&key(number), 500, clock.clone());
    let engine = Engine::start(tun, wire, Arc::new(core), clock)?;
    let other = 3 - number;
    engine.set_peer(&PeerOptions {
        endpoint: Some((outside(other), port(other)).into()),
        ..PeerOptions::new(
            key(other).public(),
            vec![IpAddr::from([10, 7, 0, other]).into()],
        )
    })?;
    while engine.running() {
        std::thread::park_timeout(Duration::from_secs(1));
    }
    Ok(())
}

fn flows_at(number: u8) -> SocketAddr {
    (outside(number), FLOWS + u16::from(number)).into()
}

fn identity(number: u8) -> Identity {
    Identity::from_seed([number; 32])
}

fn member(number: u8) -> Outcome<Member> {
    let mesh = IdentityKey::from_bytes([0; 32]);
    Ok(Member {
        identity: identity(number).public(),
        key: key(number).public(),
        name: format!("node{number}"),
        v4: overlay_v4(number.into()).ok_or("no address")?,
        v6: overlay_v6(&mesh, number.into()),
        mode: Mode::Userspace,
        endpoints: vec![flows_at(number)],
        underlay: Some(key(number + 100).public()),
    })
}

fn serve_flows(number: u8) -> Outcome<()> {
    let (own, other) = (member(number)?, member(3 - number)?);
    let port = format!("tcp/{IPERF}").parse();
    let port: Ports = port.map_err(|()| "no port")?;
    let ports: Box<[Allowance]> = Box::new([port.into()]);
    let peer = FilterPeer {
        v4: other.v4,
        v6: other.v6,
        inbound: ports.clone(),
        outbound: ports,
    };
    let gate = Arc::new(FilterGate::closed(Instant::now()));
    gate.set(Filter::new((own.v4, own.v6), [(other.key, peer)]));
    let directory = Directory::new("mesh.internal", own, [other], []);
    let mut options = UserspaceOptions::new(identity(number), directory, gate);
    options.listen = flows_at(number);
    options.underlay = Some(key(number + 100));
    options.services = vec![Service {
        port: IPERF,
        target: None,
    }];
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let _up = Userspace::start(options).await?;
        std::future::pending().await
    })
}
