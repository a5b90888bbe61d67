//! Where this machine stands in its network: its addresses, its router, and ports that the router forwards to it.
//!
//! A node that is somewhere else should not wait until timers notice: the kernel says when addresses and routes change (`network`), and then candidates
//! are gathered anew and ways are probed at once. A router that forwards ports for who asks (`mapping`: PCP, NAT-PMP, UPnP) gives one more candidate. None of
//! it is on the way of packets, and none of it is believed by others: what a node says of where it is, its peers probe.

mod mapping;
mod network;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

pub use mapping::{MappedPort, MappingProtocol};
use network::{Network, Watch};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Addresses of this machine that are told, beside those that its owner names.
const MOST_HOSTS: usize = 4;
/// Changes come in several messages; how long the next is waited for.
const SETTLE: Duration = Duration::from_millis(50);
/// When it is looked whether something changed though nobody said so.
const LOOK: Duration = Duration::from_secs(60);
/// How long forwarded ports may take to be given back at the end.
const FAREWELL: Duration = Duration::from_secs(1);

/// What there is to tell of where this machine is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct News {
    /// Its addresses, the best first.
    pub(crate) hosts: Vec<IpAddr>,
    /// Ports that the router forwards.
    pub(crate) mapped: Vec<MappedPort>,
    /// Ways that began here may be gone: an address is, or the router is another.
    pub(crate) moved: bool,
}

impl News {
    /// Where others may find one port of this machine: what was said of it, what the router forwards, what it has itself.
    pub(crate) fn candidates(&self, port: u16, said: &[SocketAddr]) -> Vec<SocketAddr> {
        let mapped = self.mapped.iter().filter(|mapped| mapped.port == port);
        let mapped = mapped.map(|mapped| mapped.outside);
        let hosts = self.hosts.iter().map(|ip| SocketAddr::new(*ip, port));
        let mut all = Vec::new();
        for at in said.iter().copied().chain(mapped).chain(hosts) {
            if !all.contains(&at) {
                all.push(at);
            }
        }
        all
    }
}

/// What of a network is told. `own` are addresses that lead into the mesh, not to it.
fn hosts(network: &Network, own: &[IpAddr]) -> Vec<IpAddr> {
    let first = network.router.map(|router| IpAddr::V4(router.own));
    let others = network.addresses.iter().copied();
    let mut hosts: Vec<IpAddr> = Vec::new();
    for ip in first.into_iter().chain(others) {
        if !own.contains(&ip) && !hosts.contains(&ip) {
            hosts.push(ip);
        }
    }
    hosts.truncate(MOST_HOSTS);
    hosts
}

/// Looks after all of it. Dropping it ends it; [`Surroundings::stop`] gives forwarded ports back first.
#[derive(Debug)]
pub(crate) struct Surroundings {
    task: JoinHandle<()>,
    tasks: TaskTracker,
    stop: CancellationToken,
    mapped: watch::Receiver<Vec<MappedPort>>,
}

impl Surroundings {
    /// Begins to tell. `own` are this node's addresses in the mesh; of `forward`, ports of UDP, the router is asked to forward each.
    pub(crate) fn start(
        own: Vec<IpAddr>,
        forward: &[u16],
        tell: impl Fn(News) + Send + 'static,
    ) -> Self {
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let (network, seen) = watch::channel(Network::default());
        let (mapped, told) = watch::channel(Vec::new());
        let mapped = Arc::new(mapped);
        for port in forward {
            let (seen, mapped) = (seen.clone(), Arc::clone(&mapped));
            tasks.spawn(mapping::keep(*port, seen, mapped, stop.clone()));
        }
        tasks.close();
        let task = tokio::spawn(attend(own, network, told.clone(), tell));
        Self {
            task,
            tasks,
            stop,
            mapped: told,
        }
    }

    /// Ports that the router forwards now.
    pub(crate) fn mapped(&self) -> Vec<MappedPort> {
        self.mapped.borrow().clone()
    }

    /// Ends it, and gives forwarded ports back if the router answers soon.
    pub(crate) async fn stop(&self) {
        self.task.abort();
        self.stop.cancel();
        // What is not given back ends with its lease.
        let _ = tokio::time::timeout(FAREWELL, self.tasks.wait()).await;
    }
}

impl Drop for Surroundings {
    fn drop(&mut self) {
        self.task.abort();
        self.stop.cancel();
    }
}

/// The next change, or so long.
async fn next(watch: Option<&Watch>) {
    let changed = async {
        match watch {
            Some(watch) if watch.changed().await.is_ok() => {}
            _ => std::future::pending().await,
        }
    };
    let _ = tokio::time::timeout(LOOK, changed).await;
}

async fn attend(
    own: Vec<IpAddr>,
    network: watch::Sender<Network>,
    mut mapped: watch::Receiver<Vec<MappedPort>>,
    tell: impl Fn(News),
) {
    // First listen, then look.
    let watch = Watch::open();
    if let Err(error) = &watch {
        tracing::warn!("changes of addresses are not heard of: {error}");
    }
    let watch = watch.ok();
    let mut before: Option<Network> = None;
    loop {
        let now = tokio::task::spawn_blocking(Network::look).await;
        let now = match now {
            Ok(Ok(now)) => now,
            // What is known stays.
            _ => before.clone().unwrap_or_default(),
        };
        let changed = before.as_ref() != Some(&now);
        if changed {
            let moved = before.as_ref().is_some_and(|before| now.moved_from(before));
            tell(News {
                hosts: hosts(&now, &own),
                mapped: mapped.borrow_and_update().clone(),
                moved,
            });
            network.send_replace(now.clone());
            before = Some(now);
        }
        let known = before.as_ref().map(|known| hosts(known, &own));
        tokio::select! {
            () = next(watch.as_ref()) => {
                tokio::time::sleep(SETTLE).await;
                if let Some(watch) = &watch {
                    watch.drain();
                }
            }
            Ok(()) = mapped.changed() => tell(News {
                hosts: known.unwrap_or_default(),
                mapped: mapped.borrow_and_update().clone(),
                moved: false,
            }),
        }
    }
}
