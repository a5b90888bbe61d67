//! One sandbox's node, kept up until it is told to end.

use agent::Attached;
use api::{
    ErrorCode, Problem, SandboxId,
    node::{MeshMembership, MeshPlace},
};
use control::MeshLink;
use mesh::{
    Namespace,
    coordination::{JoinAnswer, JoinRequest, NodeRecord, Signed, Token, WatchRequest},
    node::{Heard, Link, LinkError, Node, NodeError, NodeOptions, State},
};
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    pin::pin,
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// How long to wait before a node is brought up again that failed, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long flows may take to end in order.
const ENDING: Duration = Duration::from_secs(2);
/// Says in a sandbox's directory that it was put out of the mesh.
const OUT: &str = "out";

/// What there is to know of a sandbox's node.
pub(super) struct Keeping {
    pub(super) sandbox: SandboxId,
    pub(super) membership: MeshMembership,
    /// Where it is kept who the sandbox is.
    pub(super) directory: PathBuf,
    /// The slot's.
    pub(super) namespace: Arc<Namespace>,
    pub(super) endpoints: Vec<SocketAddr>,
    /// The machine that the sandbox is, if it is one.
    pub(super) machine: Option<Ipv4Addr>,
    /// Who is asked about other names.
    pub(super) upstream: Vec<SocketAddr>,
    pub(super) link: watch::Receiver<Option<MeshLink>>,
}

/// A node that is kept up.
pub(super) struct Kept {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Kept {
    /// Takes it down; returns when nothing of it is left.
    pub(super) async fn end(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::error!("a sandbox's node ended unexpectedly: {error}");
        }
    }
}

/// The first time that a node is up, or why it is not: told to who waits for it.
type First = oneshot::Sender<Result<Option<Attached>, Problem>>;

/// The coordinator, which is there some time after those who need it.
struct Later(watch::Receiver<Option<MeshLink>>);

impl Later {
    async fn link(&self) -> Result<MeshLink, LinkError> {
        let mut receiver = self.0.clone();
        let link = receiver.wait_for(Option::is_some).await;
        let link = link.ok().and_then(|link| link.clone());
        link.ok_or_else(|| LinkError::Unreachable("Atoll is stopping".to_owned()))
    }
}

impl Link for Later {
    async fn join(&self, request: &JoinRequest) -> Result<JoinAnswer, LinkError> {
        self.link().await?.join(request).await
    }

    async fn update(&self, record: &Signed<NodeRecord>) -> Result<(), LinkError> {
        self.link().await?.update(record).await
    }

    async fn watch(&self, request: &Signed<WatchRequest>) -> Result<Heard, LinkError> {
        self.link().await?.watch(request).await
    }
}

fn explain(error: &NodeError) -> Problem {
    let (code, remedy) = match error {
        NodeError::Link(LinkError::Refused(_)) => (
            ErrorCode::Conflict,
            "choose another name, or create the sandbox anew",
        ),
        NodeError::Link(LinkError::Unreachable(_)) => (ErrorCode::Unavailable, "try again"),
        NodeError::Data(_) => (
            ErrorCode::Unsupported,
            "a sandbox in the mesh needs /dev/net/tun on the node: load the kernel's module `tun`",
        ),
        _ => (ErrorCode::Internal, "look at the node's log"),
    };
    Problem::new(
        code,
        format!("the sandbox cannot join the mesh: {error}"),
        remedy,
    )
}

fn attached(node: &Node, machine: Option<Ipv4Addr>) -> Attached {
    let status = node.status();
    // A machine is reached over IPv4 alone.
    let mut addresses = status.addresses;
    addresses.retain(|address| machine.is_none() || address.is_ipv4());
    Attached {
        place: MeshPlace {
            name: format!("{}.{}", status.name, status.domain),
            addresses,
            tags: status.tags.into_iter().collect(),
        },
        name_server: status.home.into(),
        domain: status.domain,
        devices: mesh::DEVICES,
    }
}

/// What became of a node that is not up any more.
enum End {
    /// Nobody wants it.
    Stopped,
    /// It is in the mesh no more, for good.
    Out,
    /// It is to be brought up again.
    Failed(NodeError),
}

impl Keeping {
    /// Brings the node up, and again whenever it fails. `first` hears how that went at first.
    pub(super) fn begin(self, first: First) -> Kept {
        let stop = CancellationToken::new();
        let task = tokio::spawn(self.keep(first, stop.clone()));
        Kept { stop, task }
    }

    async fn keep(self, first: First, stop: CancellationToken) {
        let mut first = Some(first);
        let mut pause = FIRST_PAUSE;
        loop {
            let before = first.is_some();
            let error = match self.run(&mut first, &stop).await {
                End::Stopped => return,
                End::Out => {
                    tracing::warn!(sandbox = %self.sandbox, "it was put out of the mesh");
                    tell(&mut first, Ok(None));
                    return;
                }
                End::Failed(error) => error,
            };
            if before && first.is_none() {
                pause = FIRST_PAUSE;
            }
            tracing::warn!(sandbox = %self.sandbox, "its place in the mesh is lost, next try in {pause:?}: {error}");
            tell(&mut first, Err(explain(&error)));
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// The node, and whether it was there before.
    async fn start(&self, link: &Later) -> Result<(Node, bool), NodeError> {
        let text = self.membership.token.expose();
        let token: Token = text.parse()?;
        let (directory, coordinator, url) =
            (self.directory.clone(), token.coordinator, token.url.clone());
        let opened =
            tokio::task::spawn_blocking(move || State::open(&directory, Some((coordinator, &url))));
        let state = opened
            .await
            .map_err(|error| NodeError::Link(LinkError::Unreachable(error.to_string())))??;
        let options = NodeOptions {
            name: self.membership.name.clone(),
            endpoints: self.endpoints.clone(),
            upstream: self.upstream.clone(),
            programs: Some(Arc::clone(&self.namespace)),
            machine: self.machine,
            ..NodeOptions::default()
        };
        let back = state.voucher.is_some();
        let node = Node::start(state, Some(&token), options, link).await?;
        Ok((node, back))
    }

    async fn run(&self, first: &mut Option<First>, stop: &CancellationToken) -> End {
        if self.directory.join(OUT).exists() {
            return End::Out;
        }
        let link = Later(self.link.clone());
        let (node, back) = tokio::select! {
            () = stop.cancelled() => return End::Stopped,
            node = self.start(&link) => match node {
                Ok(started) => started,
                Err(error) => return End::Failed(error),
            },
        };
        if back {
            node.greet();
        }
        let mut following = pin!(node.follow(&link));
        let informed = async {
            node.informed().await;
            tell(first, Ok(Some(attached(&node, self.machine))));
            std::future::pending::<()>().await;
        };
        let end = tokio::select! {
            () = stop.cancelled() => End::Stopped,
            () = informed => End::Stopped,
            ended = &mut following => match ended {
                Err(NodeError::Revoked | NodeError::Forgotten) => {
                    if let Err(error) = std::fs::write(self.directory.join(OUT), "") {
                        tracing::warn!(sandbox = %self.sandbox, "that it is out is not kept: {error}");
                    }
                    End::Out
                }
                Err(error) => End::Failed(error),
                Ok(never) => match never {},
            },
        };
        if tokio::time::timeout(ENDING, node.stop()).await.is_err() {
            tracing::debug!(sandbox = %self.sandbox, "its flows did not end in order");
        }
        end
    }
}

fn tell(first: &mut Option<First>, what: Result<Option<Attached>, Problem>) {
    if let Some(first) = first.take() {
        // Who asked may have gone away.
        let _ = first.send(what);
    }
}
