//! The nodes of sandboxes that are in the mesh.
//!
//! ```text
//!            host                                   │ the slot's network namespace
//!   coordinator ◄─ MeshLink ─┐                      │
//!                            ├─ Node ── gate ───────┼─ atoll0: 100.64.0.7 ◄─► programs of the sandbox
//!   peers, relays ◄─ UDP ────┘    └─ names ─────────┼─ 100.64.0.7:53
//!                                                   │ eth0 ◄─► what the sandbox had before
//! ```
//!
//! A sandbox's node runs here, in the process that owns the sandbox, and reaches others from the host's network. Only what programs see of it is in the slot's
//! namespace: the device, the server for names, doors. So the sandbox holds no key, needs no right, and speaks to the mesh through the device or not at
//! all; the gate that applies the policy is outside. The namespace belongs to the host's user namespace, so root inside changes neither the device nor a route.
//! A microVM sits behind the namespace: what comes out of the device for the sandbox goes on to the machine, translated by rules of the slot, and doors stand at the
//! addresses that they are for. Other names are asked about from inside the namespace: a sandbox without internet asks nobody by way of its node.
//!
//! Who a sandbox is in the mesh is kept in `agent/mesh/SANDBOX` of the data directory, for this user alone, until the sandbox ends. So a program that is started
//! again after `kill -9` brings each back as who it was.
//!
//! Absent: a decision about who may be in the mesh (the control plane's); anything on the way of a sandbox that is not.

use super::mesh_node::{Keeping, Kept};
use agent::{Attached, Members};
use api::{
    ErrorCode, Problem, SandboxId,
    node::{MeshMembership, MeshPlace},
};
use control::MeshLink;
use driver::{NetworkSlot, slot::machine};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::{oneshot, watch};

/// The most sandboxes that are in the mesh at once: each has three threads and some descriptors.
const MOST: usize = 256;
/// How long joining may take.
const JOINING: Duration = Duration::from_secs(15);
/// How long the others may take to hear that a sandbox has ended.
const LEAVING: Duration = Duration::from_secs(5);
/// Where others find a sandbox, in its directory.
const PLACE: &str = "place.json";

/// The nodes of this program's sandboxes.
pub(super) struct SandboxNodes {
    directory: PathBuf,
    endpoints: Vec<SocketAddr>,
    /// The coordinator, once there is one.
    link: watch::Sender<Option<MeshLink>>,
    kept: Mutex<BTreeMap<SandboxId, Kept>>,
}

/// The address from which the internet is reached; nothing is sent for that.
fn outward() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(1, 1, 1, 1), 53)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Where other nodes find this machine, unless the operator says so: at the address that it serves, or else the one that leads to the internet.
pub(super) fn default_endpoints(served: SocketAddr) -> Vec<SocketAddr> {
    let usable = |ip: &IpAddr| !ip.is_loopback() && !ip.is_unspecified();
    let own = Some(served.ip()).filter(usable).or_else(outward);
    let own = own.filter(usable).map(|ip| SocketAddr::new(ip, 0));
    own.into_iter().collect()
}

fn remove(directory: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(io::Error::other(error)))
}

impl SandboxNodes {
    /// Keeps what it must in `agent/mesh` of the data directory. Others find this machine at `endpoints`; with port 0, at whatever port a node has.
    pub(super) fn new(data: &Path, endpoints: Vec<SocketAddr>) -> Arc<Self> {
        Arc::new(Self {
            directory: data.join("agent").join("mesh"),
            endpoints,
            link: watch::Sender::new(None),
            kept: Mutex::default(),
        })
    }

    /// From now on there is a coordinator.
    pub(super) fn connect(&self, link: MeshLink) {
        self.link.send_replace(Some(link));
    }

    /// Takes all nodes down. Who they are is kept.
    pub(super) async fn stop(&self) {
        let all = std::mem::take(&mut *self.kept());
        futures::future::join_all(all.into_values().map(Kept::end)).await;
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<SandboxId, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn directory(&self, sandbox: &SandboxId) -> PathBuf {
        self.directory.join(sandbox.as_str())
    }

    /// Tells the others that a sandbox has ended, if there is somebody to tell.
    async fn tell(&self, sandbox: &SandboxId) {
        let link = self.link.borrow().clone();
        let told = async {
            if let Some(link) = link {
                link.release(sandbox).await;
            }
        };
        if tokio::time::timeout(LEAVING, told).await.is_err() {
            tracing::warn!(%sandbox, "it stays in the mesh for some seconds");
        }
    }
}

#[async_trait::async_trait]
impl Members for SandboxNodes {
    async fn attach(
        &self,
        sandbox: &SandboxId,
        membership: &MeshMembership,
        slot: &NetworkSlot,
        name_servers: &[IpAddr],
    ) -> Result<Option<Attached>, Problem> {
        self.detach(sandbox).await;
        let failed = |error: io::Error| {
            Problem::new(
                ErrorCode::Internal,
                format!("cannot join the mesh: {error}"),
                "",
            )
        };
        let (first, attached) = oneshot::channel();
        let keeping = Keeping {
            sandbox: sandbox.clone(),
            membership: membership.clone(),
            directory: self.directory(sandbox),
            namespace: Arc::new(slot.namespace.try_clone().map_err(failed)?.into()),
            endpoints: self.endpoints.clone(),
            machine: slot.tap.as_ref().map(|_| machine::ADDRESS),
            upstream: name_servers
                .iter()
                .map(|ip| SocketAddr::new(*ip, 53))
                .collect(),
            link: self.link.subscribe(),
        };
        {
            let mut kept = self.kept();
            if kept.len() >= MOST {
                return Err(Problem::new(
                    ErrorCode::OutOfCapacity,
                    format!("{MOST} sandboxes of this node are in the mesh, which is the most"),
                    "end sandboxes that need not be there",
                ));
            }
            kept.insert(sandbox.clone(), keeping.begin(first));
        }
        let attached = match tokio::time::timeout(JOINING, attached).await {
            Ok(Ok(attached)) => attached?,
            Ok(Err(_)) => return Err(failed(io::Error::other("Atoll is stopping"))),
            Err(_) => {
                return Err(Problem::new(
                    ErrorCode::DeadlineExceeded,
                    "joining the mesh took too long",
                    "try again; if it stays like this, look at the node's log",
                ));
            }
        };
        if let Some(attached) = &attached {
            let text = serde_json::to_vec(&attached.place);
            let text = text.map_err(|error| failed(error.into()))?;
            let path = self.directory(sandbox).join(PLACE);
            let written = blocking(move || std::fs::write(path, text)).await;
            written.map_err(failed)?;
        }
        Ok(attached)
    }

    async fn detach(&self, sandbox: &SandboxId) {
        let kept = self.kept().remove(sandbox);
        if let Some(kept) = kept {
            kept.end().await;
        }
    }

    async fn release(&self, sandbox: &SandboxId) {
        self.detach(sandbox).await;
        let directory = self.directory(sandbox);
        if let Err(error) = blocking(move || remove(&directory)).await {
            tracing::warn!(%sandbox, "who it was in the mesh is still on the disk: {error}");
        }
        self.tell(sandbox).await;
    }

    async fn place(&self, sandbox: &SandboxId) -> Option<MeshPlace> {
        let path = self.directory(sandbox).join(PLACE);
        let text = blocking(move || std::fs::read(path)).await.ok()?;
        serde_json::from_slice(&text).ok()
    }

    async fn sweep(&self, keep: &[SandboxId]) {
        let directory = self.directory.clone();
        let keep: BTreeSet<String> = keep.iter().map(SandboxId::to_string).collect();
        let swept = blocking(move || {
            let entries = match std::fs::read_dir(&directory) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                other => other?,
            };
            for entry in entries {
                let entry = entry?;
                if !entry
                    .file_name()
                    .to_str()
                    .is_some_and(|name| keep.contains(name))
                {
                    remove(&entry.path())?;
                }
            }
            Ok(())
        });
        // The coordinator looks itself for those that are gone.
        if let Err(error) = swept.await {
            tracing::warn!("what sandboxes left that were in the mesh is not removed: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_find_this_machine_where_it_serves() {
        let at = |text: &str| default_endpoints(text.parse().unwrap());
        assert_eq!(at("192.0.2.1:3000"), ["192.0.2.1:0".parse().unwrap()]);
        for elsewhere in ["127.0.0.1:3000", "0.0.0.0:3000", "[::]:3000"] {
            let found = at(elsewhere);
            // This machine may have no way to the internet.
            assert!(found.len() <= 1 && found.iter().all(|at| !at.ip().is_loopback()));
        }
    }

    #[tokio::test]
    async fn what_is_kept_goes_with_the_sandbox() {
        let data = tempfile::tempdir().unwrap();
        let nodes = SandboxNodes::new(data.path(), Vec::new());
        let ids = ["0", "1", "2"]
            .map(|last| -> SandboxId { format!("i{}{last}", "0".repeat(19)).parse().unwrap() });
        let place = MeshPlace {
            name: "ci-1.mesh.internal".to_owned(),
            addresses: vec!["100.64.0.7".parse().unwrap()],
            tags: BTreeSet::from(["ci".to_owned()]),
        };
        for id in &ids {
            std::fs::create_dir_all(nodes.directory(id)).unwrap();
            let text = serde_json::to_vec(&place).unwrap();
            std::fs::write(nodes.directory(id).join(PLACE), text).unwrap();
        }
        assert_eq!(nodes.place(&ids[0]).await, Some(place.clone()));
        nodes.sweep(&ids[..2]).await;
        assert_eq!(nodes.place(&ids[1]).await, Some(place));
        assert!(!nodes.directory(&ids[2]).exists());
        nodes.release(&ids[0]).await;
        assert!(!nodes.directory(&ids[0]).exists());
        // Twice is as once.
        nodes.release(&ids[0]).await;
    }
}
