//! The network of a node: slots for its sandboxes, and the rules that they live under.
//!
//! A *slot* is an unnamed network namespace with one end of a veth pair in it, two addresses (the
//! sandbox's and the host's) and a default route. Slot `n` of the instance `ab12` has the host's
//! interface `atab12.n` and the addresses `2n` and `2n + 1` of the instance's block of 4096. The
//! block is chosen at the first start, so that it overlaps nothing that the host knows, and kept.
//!
//! Rules are one nftables table for each instance ([`rules`]), loaded at start. They tell sandboxes
//! by interface name, and those that may reach the internet by interface group, so that making,
//! opening and closing a slot are a few netlink messages and start no program.
//!
//! What holds, whatever a sandbox does (it may be root of a kernel of its own):
//! - it reaches no other sandbox, none of the host's own addresses, no private, link-local or
//!   otherwise special address, and nothing over IPv6;
//! - it sends from its own address only;
//! - only the host opens connections to it, and only it opens connections to the internet, if it
//!   may, with limits to how many, so that it cannot fill the host's table of connections.
//!
//! What is not here: which ports of a sandbox the public reaches is the gateway's affair.
//!
//! For microVMs a slot has a tap device besides, and its namespace translates between the slot's
//! address and the machine's, which is the same in all ([`tap`], [`nat`]).
//!
//! Messages to the kernel are written by hand ([`netlink`], [`link`]): there are few of them, and
//! most are sent by short-lived threads in another namespace, where an asynchronous client of
//! netlink has no place.
//!
//! Start reading at [`Network`], then `build.rs`, then `rules.rs`.

mod build;
mod check;
mod conntrack;
mod error;
mod guard;
mod life;
mod link;
mod namespace;
mod nat;
mod netlink;
mod numbers;
mod range;
mod registry;
mod resolvers;
mod rules;
mod tap;

pub use check::check;
pub use error::NetworkError;
pub use range::{Ipv4Range, ParseRangeError};
pub use tap::MachineSlots;

use crate::slots::Slots;
use api::Problem;
use build::{INNER, Plan};
use driver::NetworkSlot;
use guard::Guard;
use netlink::Socket;
use numbers::Numbers;
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{runtime::Handle, sync::Semaphore, sync::oneshot};

/// How many slots are made at the same time: the kernel makes them one after another for the most
/// part, but waits in between.
const AT_ONCE: usize = 4;
/// Longest wait for a start or stop, which may wait for those of other instances.
const LIFE_DEADLINE: Duration = Duration::from_secs(60);

/// How a node's network is set up.
#[derive(Debug, Clone)]
pub struct NetworkOptions {
    /// Names all that is made on the host: four hexadecimal digits in lower case.
    pub instance: String,
    /// Where the choice of addresses is kept between runs; made if it is not there.
    pub directory: PathBuf,
    /// Where to choose the block of addresses from, the preferred first.
    pub ranges: Vec<Ipv4Range>,
    /// Name servers for sandboxes; if empty, the host's public ones or well-known ones.
    pub name_servers: Vec<IpAddr>,
    /// Set if sandboxes are microVMs: each slot then has a tap device besides.
    pub machines: Option<MachineSlots>,
    /// Where the instances of one host agree; emptied when the machine restarts.
    pub shared: PathBuf,
}

impl NetworkOptions {
    /// The usual options for an instance that keeps its state in `directory`.
    pub fn new(instance: impl Into<String>, directory: impl Into<PathBuf>) -> Self {
        let range =
            |address: [u8; 4], prefix| Ipv4Range::containing(Ipv4Addr::from(address), prefix);
        Self {
            instance: instance.into(),
            directory: directory.into(),
            // The others are for hosts that route all of 10.0.0.0/8 to a private network.
            ranges: vec![
                range([10, 192, 0, 0], 10),
                range([172, 16, 0, 0], 12),
                range([198, 18, 0, 0], 15),
            ],
            name_servers: Vec::new(),
            machines: None,
            shared: PathBuf::from("/run/atoll/network"),
        }
    }
}

/// The network of a running node. Clones are handles of the same network.
///
/// Every method may be called at the same time as any other. All must be called within a tokio
/// runtime whose threads are in the host's network namespace.
#[derive(Debug, Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: NetworkOptions,
    plan: Plan,
    name_servers: Vec<IpAddr>,
    numbers: Mutex<Numbers>,
    makers: Semaphore,
    /// None once the network was told to stop.
    guard: Mutex<Option<Guard>>,
}

impl Network {
    /// The most slots that an instance has, and so the most sandboxes.
    pub const CAPACITY: u32 = build::SLOTS;

    /// Chooses the addresses, loads the rules and turns forwarding on.
    ///
    /// What a run that crashed left behind is put in order; its sandboxes' slots are kept for
    /// [`Network::adopt`] until [`Network::sweep`].
    ///
    /// # Errors
    /// If the name or a name server is unusable, `nft` is missing, the kernel lacks something, no
    /// addresses are free, or this program is not root. Nothing is left behind then.
    pub async fn start(options: NetworkOptions) -> Result<Self, NetworkError> {
        let runtime = Handle::current();
        let begin = move || {
            let name_servers = resolvers::choose(&options.name_servers)?;
            let started = life::start(&runtime, &options, &name_servers)?;
            Ok(Inner {
                options,
                plan: started.plan,
                name_servers,
                numbers: Mutex::new(Numbers::new(build::SLOTS, started.left_over)),
                makers: Semaphore::new(AT_ONCE),
                guard: Mutex::new(Some(started.guard)),
            })
        };
        let inner = within(LIFE_DEADLINE, "starting the network", begin).await?;
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Makes a slot that may reach the internet. Give it back with [`Network::release`].
    ///
    /// # Errors
    /// [`NetworkError::NoSlot`] if all are in use; otherwise what the kernel refused. Nothing is
    /// left behind then, nor if the caller stops waiting.
    pub async fn claim_slot(&self) -> Result<NetworkSlot, NetworkError> {
        let closed = |_| NetworkError::Answer("waiting to make a network slot");
        let _turn = self.inner.makers.acquire().await.map_err(closed)?;
        let number = self
            .inner
            .numbers()
            .claim()
            .ok_or(NetworkError::NoSlot(build::SLOTS))?;
        let inner = Arc::clone(&self.inner);
        let mut claim = Claim {
            inner,
            number,
            host: None,
            slot: None,
            owns_number: true,
        };
        let (sender, receiver) = oneshot::channel();
        let make = move || {
            let outcome = claim.make().map(|()| claim);
            // If nobody waits any more, the claim that comes back undoes itself.
            let _ = sender.send(outcome);
        };
        start_thread(make)?;
        receiver
            .await
            .unwrap_or(Err(NetworkError::Answer("making a network slot")))?
            .into_slot()
            .ok_or(NetworkError::NotClaimed(number))
    }

    /// Opens or closes the internet for a slot in use. Closing breaks open connections, too.
    pub async fn set_internet(&self, number: u32, open: bool) -> Result<(), NetworkError> {
        if !self.inner.numbers().is_used(number) {
            return Err(NetworkError::NotClaimed(number));
        }
        let interface = self.inner.plan.interface(number);
        let group = if open { rules::OPEN } else { rules::CLOSED };
        let moved =
            blocking(move || link::set_group(&mut Socket::route(0)?, &interface, group)).await?;
        if moved {
            Ok(())
        } else {
            Err(NetworkError::NotClaimed(number))
        }
    }

    /// Translates between the machine in a slot and its address in the mesh; see [`nat`].
    async fn join_mesh(
        &self,
        slot: &NetworkSlot,
        devices: &str,
        address: Ipv4Addr,
    ) -> Result<(), NetworkError> {
        let handle = slot.namespace.try_clone();
        let handle =
            handle.map_err(|source| NetworkError::system("holding a network namespace", source))?;
        let devices = devices.to_owned();
        blocking(move || {
            namespace::inside(&handle, || {
                nat::join(&mut Socket::netfilter(0)?, &devices, address)
            })
        })
        .await
    }

    /// Takes over the slot of a sandbox that ran before this program started. `pid` is a process
    /// inside it; that it is the right one is the caller's affair.
    ///
    /// # Errors
    /// If the process is gone, or is not in the slot of this number.
    pub async fn adopt(&self, number: u32, pid: u32) -> Result<NetworkSlot, NetworkError> {
        if !self.inner.numbers().adopt(number) {
            let cause = "no interface of an earlier run has its number".to_owned();
            return Err(NetworkError::NotAdopted { number, cause });
        }
        let inner = Arc::clone(&self.inner);
        let adopted = blocking(move || inner.find(number, pid)).await;
        if adopted.is_err() {
            self.inner.numbers().disown(number);
        }
        adopted
    }

    /// Deletes a slot's interfaces at once. Its number is used again when all other handles of the
    /// slot are closed.
    pub async fn release(&self, slot: Arc<NetworkSlot>) -> Result<(), NetworkError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.remove(slot)).await
    }

    /// Removes the interfaces of this instance that are neither in use nor in `keep`, which earlier
    /// runs left. Returns their names.
    pub async fn sweep(&self, keep: &[u32]) -> Result<Vec<String>, NetworkError> {
        let keep: BTreeSet<u32> = keep.iter().copied().collect();
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            let plan = &inner.plan;
            let used = |number| keep.contains(&number) || inner.numbers().is_used(number);
            let removed = life::remove_interfaces(plan, |number| !used(number))?;
            inner.numbers().sweep(&keep);
            Ok(removed)
        })
        .await
    }

    /// Removes the instance's interfaces and rules from the host, and restores forwarding as it was
    /// found if no other instance needs it. With `keep_sandboxes` all stays, for the next start.
    pub async fn stop(&self, keep_sandboxes: bool) -> Result<(), NetworkError> {
        if keep_sandboxes {
            return Ok(());
        }
        drop(
            self.inner
                .guard
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        let runtime = Handle::current();
        let inner = Arc::clone(&self.inner);
        within(LIFE_DEADLINE, "stopping the network", move || {
            life::stop(&runtime, &inner.options, &inner.plan)
        })
        .await
    }

    /// The name servers that sandboxes should use.
    pub fn name_servers(&self) -> Vec<IpAddr> {
        self.inner.name_servers.clone()
    }

    /// The block of addresses that all slots lie in.
    pub fn range(&self) -> Ipv4Range {
        self.inner.plan.range
    }

    /// How many slots there may be at once.
    pub fn capacity(&self) -> u32 {
        build::SLOTS
    }
}

impl Inner {
    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        // Numbers are consistent between any two of their statements that can panic.
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, number: u32, pid: u32) -> Result<NetworkSlot, NetworkError> {
        let refuse = |cause: String| NetworkError::NotAdopted { number, cause };
        let slot = self.plan.slot(number, namespace::of_process(pid)?)?;
        let outer = Socket::route(0)?
            .index(&slot.host_interface)?
            .ok_or_else(|| refuse(format!("the interface {} is gone", slot.host_interface)))?;
        let inside = namespace::inside(&slot.namespace, || link::links(&mut Socket::route(0)?))?;
        let joined = inside
            .iter()
            .any(|link| link.name == INNER && link.peer == Some(outer));
        let tap = slot.tap.as_ref();
        let fits = tap.is_none_or(|tap| inside.iter().any(|link| link.name == *tap));
        if joined && fits {
            Ok(slot)
        } else {
            Err(refuse(format!(
                "process {pid} is not in the namespace behind it"
            )))
        }
    }

    fn remove(&self, slot: Arc<NetworkSlot>) -> Result<(), NetworkError> {
        if !self.numbers().is_used(slot.number) {
            return Ok(());
        }
        link::delete(&mut Socket::route(0)?, &slot.host_interface)?;
        if let Err(error) = conntrack::forget(slot.address) {
            // An old kernel, or one without the interface: entries end when their time is up.
            tracing::debug!(%error, number = slot.number, "connections are not forgotten");
        }
        self.numbers().retire(slot);
        Ok(())
    }
}

/// A number that was claimed, and its slot once it is made. Undoes itself unless it is taken.
#[derive(Debug)]
struct Claim {
    inner: Arc<Inner>,
    number: u32,
    /// Opened in the host's namespace: the thread that makes the slot leaves it.
    host: Option<Socket>,
    slot: Option<NetworkSlot>,
    /// Whether the number is to be freed with the claim.
    owns_number: bool,
}

impl Claim {
    fn make(&mut self) -> Result<(), NetworkError> {
        let host = self.host.insert(Socket::route(0)?);
        self.slot = Some(self.inner.plan.build(self.number, host)?);
        Ok(())
    }

    fn into_slot(mut self) -> Option<NetworkSlot> {
        self.owns_number = self.slot.is_none();
        self.slot.take()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let (inner, number) = (Arc::clone(&self.inner), self.number);
        let (Some(slot), Some(mut host)) = (self.slot.take(), self.host.take()) else {
            if self.owns_number {
                inner.numbers().free(number);
            }
            return;
        };
        // Deleting waits for the kernel, and this may be an asynchronous thread.
        let undo = move || {
            if let Err(error) = link::delete(&mut host, &slot.host_interface) {
                tracing::warn!(%error, number, "an unwanted network slot is left");
            }
            drop(slot);
            inner.numbers().free(number);
        };
        if let Err(error) = start_thread(undo) {
            tracing::warn!(%error, number, "an unwanted network slot is left");
        }
    }
}

/// Starts a thread of our own. Threads inherit the network namespace of the one that starts them,
/// so what makes slots must not use the runtime's, which serve others afterwards.
fn start_thread(work: impl FnOnce() + Send + 'static) -> Result<(), NetworkError> {
    std::thread::Builder::new()
        .name("slot".to_owned())
        .spawn(work)
        .map(|_| ())
        .map_err(|source| NetworkError::system("starting a thread", source))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(NetworkError::Answer("changing the network")))
}

async fn within<T: Send + 'static>(
    deadline: Duration,
    doing: &'static str,
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    let late = Err(NetworkError::Deadline(doing));
    tokio::time::timeout(deadline, blocking(work))
        .await
        .unwrap_or(late)
}

#[async_trait::async_trait]
impl Slots for Network {
    async fn claim(&self) -> Result<Arc<NetworkSlot>, Problem> {
        self.claim_slot()
            .await
            .map(Arc::new)
            .map_err(|error| error.problem())
    }

    async fn set_internet(&self, number: u32, open: bool) -> Result<(), Problem> {
        Self::set_internet(self, number, open)
            .await
            .map_err(|error| error.problem())
    }

    async fn join(
        &self,
        slot: &NetworkSlot,
        devices: &str,
        address: Ipv4Addr,
    ) -> Result<(), Problem> {
        self.join_mesh(slot, devices, address)
            .await
            .map_err(|error| error.problem())
    }

    async fn adopt(&self, number: u32, pid: u32) -> Result<Arc<NetworkSlot>, Problem> {
        Self::adopt(self, number, pid)
            .await
            .map(Arc::new)
            .map_err(|error| error.problem())
    }

    async fn release(&self, slot: Arc<NetworkSlot>) {
        let number = slot.number;
        if let Err(error) = Self::release(self, slot).await {
            tracing::warn!(%error, number, "a network slot could not be given back");
        }
    }

    async fn sweep(&self, keep: &[u32]) -> Result<Vec<String>, Problem> {
        Self::sweep(self, keep)
            .await
            .map_err(|error| error.problem())
    }

    async fn stop(&self, keep_sandboxes: bool) {
        if let Err(error) = Self::stop(self, keep_sandboxes).await {
            tracing::warn!(%error, "the network was not taken down completely");
        }
    }

    fn name_servers(&self) -> Vec<IpAddr> {
        Self::name_servers(self)
    }
}
