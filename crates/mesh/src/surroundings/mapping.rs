//! Ports that the router forwards to this machine because it was asked to: by PCP (RFC 6887), NAT-PMP (RFC 6886) or UPnP, whichever it speaks.
//!
//! What the router says is not believed by anybody: an address that it names is told to peers as one more that they may probe.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use crab_nat::{
    GatewayAddress, InternetProtocol, PortMapping, PortMappingOptions, PortMappingType,
    TimeoutConfig, natpmp, pcp,
};
use igd_next::aio::Gateway;
use igd_next::aio::tokio::{Tokio, search_gateway};
use igd_next::{PortMappingProtocol, SearchOptions};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::network::{Network, Router};

/// For how long a port is asked for; it is asked for again after half of that.
const LIFETIME: Duration = Duration::from_secs(3600);
const SHORTEST: Duration = Duration::from_secs(30);
/// When a router is asked again that forwards nothing.
const AGAIN: Duration = Duration::from_secs(300);
/// How long UPnP may take: to be found, and for each request.
const SEARCH: Duration = Duration::from_secs(3);
const REQUEST: Duration = Duration::from_secs(3);
/// How often and for how long PCP and NAT-PMP are asked: about two seconds in all.
const PATIENCE: TimeoutConfig = TimeoutConfig {
    initial_timeout: Duration::from_millis(250),
    max_retries: 2,
    max_retry_timeout: Some(Duration::from_secs(1)),
};
/// What UPnP shows on the router's pages.
const DESCRIPTION: &str = "Atoll mesh";

/// By what a router was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MappingProtocol {
    /// The Port Control Protocol.
    Pcp,
    /// The NAT Port Mapping Protocol.
    NatPmp,
    /// An Internet Gateway Device of UPnP.
    Upnp,
}

impl std::fmt::Display for MappingProtocol {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Pcp => "PCP",
            Self::NatPmp => "NAT-PMP",
            Self::Upnp => "UPnP",
        })
    }
}

/// A port of UDP that the router forwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappedPort {
    /// The port of this machine.
    pub port: u16,
    /// Where others reach it.
    pub outside: SocketAddr,
    /// By what the router was asked.
    pub by: MappingProtocol,
}

/// What the router promised, to be asked for again or given back.
enum Lease {
    Plain(PortMapping),
    Upnp(Gateway<Tokio>, u16),
}

struct Obtained {
    lease: Lease,
    outside: SocketAddr,
    by: MappingProtocol,
    lifetime: Duration,
}

/// Asks by the two protocols that one datagram each way is enough for.
async fn plain(router: Router, port: NonZeroU16) -> Option<Obtained> {
    let gateway = GatewayAddress::IpV4(router.address);
    let options = PortMappingOptions {
        external_port: Some(port),
        lifetime_seconds: u32::try_from(LIFETIME.as_secs()).ok(),
        timeout_config: Some(PATIENCE),
    };
    let udp = InternetProtocol::Udp;
    let request = pcp::BaseMapRequest::new(gateway, router.own.into(), udp, port);
    let mapping = match pcp::port_mapping(request, None, None, options).await {
        Ok(mapping) => mapping,
        Err(error) => {
            tracing::debug!("the router forwards nothing by PCP: {error}");
            let asked = natpmp::port_mapping(gateway, udp, port, options).await;
            let refused = |error| tracing::debug!("nor by NAT-PMP: {error}");
            asked.map_err(refused).ok()?
        }
    };
    let (ip, by) = match mapping.mapping_type() {
        PortMappingType::Pcp { external_ip, .. } => (external_ip, MappingProtocol::Pcp),
        PortMappingType::NatPmp => {
            let asked = natpmp::external_address(gateway, Some(PATIENCE)).await;
            (IpAddr::V4(asked.ok()?), MappingProtocol::NatPmp)
        }
    };
    Some(Obtained {
        outside: SocketAddr::new(ip.to_canonical(), mapping.external_port().get()),
        by,
        lifetime: Duration::from_secs(mapping.lifetime().into()),
        lease: Lease::Plain(mapping),
    })
}

async fn upnp(router: Router, port: u16) -> Option<Obtained> {
    let mut options = SearchOptions::default();
    // From the address that the router knows, so that it is asked and nobody beside it.
    options.bind_addr = (router.own, 0).into();
    options.timeout = Some(SEARCH);
    let found = search_gateway(options).await;
    let none = |error| tracing::debug!("nor by UPnP: {error}");
    let gateway = found.map_err(none).ok()?;
    if gateway.addr.ip() != IpAddr::V4(router.address) {
        return None;
    }
    let (udp, own) = (PortMappingProtocol::UDP, (router.own, port).into());
    let seconds = u32::try_from(LIFETIME.as_secs()).ok()?;
    let same = gateway.add_port(udp, port, own, seconds, DESCRIPTION);
    let outside = match timeout(REQUEST, same).await.ok()? {
        Ok(()) => port,
        Err(_) => {
            let any = gateway.add_any_port(udp, own, seconds, DESCRIPTION);
            timeout(REQUEST, any).await.ok()?.ok()?
        }
    };
    let ip = timeout(REQUEST, gateway.get_external_ip()).await.ok()?;
    Some(Obtained {
        outside: SocketAddr::new(ip.ok()?, outside),
        by: MappingProtocol::Upnp,
        lifetime: LIFETIME,
        lease: Lease::Upnp(gateway, outside),
    })
}

async fn obtain(router: Router, port: u16) -> Option<Obtained> {
    let wanted = NonZeroU16::new(port)?;
    let obtained = match plain(router, wanted).await {
        Some(obtained) => obtained,
        None => upnp(router, port).await?,
    };
    let ip = obtained.outside.ip();
    let usable = !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast());
    usable.then_some(obtained)
}

impl Lease {
    /// Gives it back. If the router does not answer, it ends by itself.
    async fn give_back(self) {
        match self {
            Self::Plain(mapping) => _ = mapping.try_drop().await,
            Self::Upnp(gateway, port) => {
                let removed = gateway.remove_port(PortMappingProtocol::UDP, port);
                let _ = timeout(REQUEST, removed).await;
            }
        }
    }
}

fn publish(mapped: &watch::Sender<Vec<MappedPort>>, port: u16, now: Option<MappedPort>) {
    mapped.send_if_modified(|all| {
        let before = all.clone();
        all.retain(|known| known.port != port);
        all.extend(now);
        all.sort_unstable_by_key(|known| known.port);
        *all != before
    });
}

/// Has a port forwarded by whatever router there is, until it is stopped.
pub(super) async fn keep(
    port: u16,
    mut network: watch::Receiver<Network>,
    mapped: Arc<watch::Sender<Vec<MappedPort>>>,
    stop: CancellationToken,
) {
    let mut lease: Option<Lease> = None;
    loop {
        let router = network.borrow_and_update().router;
        let asked = async {
            match router {
                Some(router) => obtain(router, port).await,
                None => None,
            }
        };
        let obtained = tokio::select! {
            obtained = asked => obtained,
            () = stop.cancelled() => break,
        };
        let wait = match &obtained {
            Some(obtained) => (obtained.lifetime / 2).max(SHORTEST),
            None => AGAIN,
        };
        let now = obtained.as_ref().map(|obtained| MappedPort {
            port,
            outside: obtained.outside,
            by: obtained.by,
        });
        publish(&mapped, port, now);
        lease = obtained.map(|obtained| obtained.lease);
        let elsewhere = async {
            // Another router, or another address to forward to.
            while network.changed().await.is_ok() {
                if network.borrow_and_update().router != router {
                    return;
                }
            }
            std::future::pending().await
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = elsewhere => publish(&mapped, port, None),
            () = stop.cancelled() => break,
        }
    }
    if let Some(lease) = lease {
        lease.give_back().await;
    }
}
