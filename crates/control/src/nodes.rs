//! The nodes: which there are, what they have left, and which sandboxes run on them.
//!
//! What the scheduler reads is a picture that is renewed every second and adjusted by what this
//! control plane did meanwhile, so that creating a sandbox asks no node how it is. The node has
//! the last word: it refuses what does not fit, and another is tried.

use crate::schedule::{Candidate, Policy, Refusal, choose};
use api::{
    Bytes, ClusterId, ErrorCode, ImageDigest, NodeId, Problem, Resources, SandboxId,
    node::{Node, NodeDescription, SandboxStatus},
};
use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

/// How long a node may take for a short question.
const QUESTION: Duration = Duration::from_secs(10);

/// A node with its last description.
struct Member {
    node: Arc<dyn Node>,
    description: NodeDescription,
    available: bool,
}

/// All nodes of the cluster.
pub(crate) struct Nodes {
    cluster: ClusterId,
    policy: Policy,
    members: RwLock<BTreeMap<NodeId, Member>>,
}

impl Nodes {
    /// Asks every node who it is.
    pub(crate) async fn meet(
        cluster: ClusterId,
        policy: Policy,
        nodes: Vec<Arc<dyn Node>>,
    ) -> Result<Self, Problem> {
        let mut members = BTreeMap::new();
        for node in nodes {
            let description = within(QUESTION, node.describe()).await?;
            let id = description.id.clone();
            let member = Member {
                node,
                description,
                available: true,
            };
            if members.insert(id.clone(), member).is_some() {
                return Err(Problem::new(
                    ErrorCode::InvalidArgument,
                    format!("two nodes have the id {id}"),
                    "give each node a data directory of its own",
                ));
            }
        }
        Ok(Self {
            cluster,
            policy,
            members: RwLock::new(members),
        })
    }

    fn read<T>(&self, read: impl FnOnce(&BTreeMap<NodeId, Member>) -> T) -> T {
        read(&self.members.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, id: &NodeId, change: impl FnOnce(&mut Member)) {
        let mut members = self.members.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(member) = members.get_mut(id) {
            change(member);
        }
    }

    /// All nodes with their ids.
    pub(crate) fn all(&self) -> Vec<(NodeId, Arc<dyn Node>)> {
        self.read(|members| {
            members
                .iter()
                .map(|(id, m)| (id.clone(), m.node.clone()))
                .collect()
        })
    }

    /// One node.
    pub(crate) fn get(&self, id: &NodeId) -> Option<Arc<dyn Node>> {
        self.read(|members| members.get(id).map(|member| member.node.clone()))
    }

    /// The node that a sandbox's id names, if it is one of ours.
    pub(crate) fn of(&self, id: &SandboxId) -> Option<Arc<dyn Node>> {
        if id.cluster() != self.cluster {
            None
        } else {
            self.get(&id.node())
        }
    }

    /// The cluster.
    pub(crate) fn cluster(&self) -> &ClusterId {
        &self.cluster
    }

    /// Asks every node how it is, all at once.
    pub(crate) async fn refresh(&self) {
        let questions = self.all().into_iter().map(|(id, node)| async move {
            let answer = within(QUESTION, node.describe()).await;
            self.change(&id, |member| {
                if member.available != answer.is_ok() {
                    tracing::warn!(node = %id, available = answer.is_ok(), "a node changed");
                }
                member.available = answer.is_ok();
                if let Ok(description) = answer {
                    member.description = description;
                }
            });
        });
        futures::future::join_all(questions).await;
    }

    /// What the nodes said last.
    pub(crate) fn descriptions(&self) -> Vec<NodeDescription> {
        self.read(|members| members.values().map(|m| m.description.clone()).collect())
    }

    /// Whether a node keeps the memory of what it pauses.
    pub(crate) fn keeps_memory(&self, id: &NodeId) -> bool {
        self.read(|members| {
            let member = members.get(id);
            member.is_some_and(|member| member.description.memory_snapshots)
        })
    }

    /// Chooses a node that holds one of `images`, from memory, and counts the sandbox there.
    pub(crate) fn place(
        &self,
        images: &BTreeMap<NodeId, ImageDigest>,
        request: &Resources,
        except: &[NodeId],
        seed: u64,
    ) -> Result<Placed, Refusal> {
        let candidates: Vec<Candidate> = self.read(|members| {
            let members = members.iter().filter(|(id, _)| !except.contains(id));
            members
                .map(
                    |(
                        id,
                        Member {
                            description,
                            available,
                            ..
                        },
                    )| Candidate {
                        id: id.clone(),
                        available: *available,
                        holds_image: images.contains_key(id),
                        shared_kernel: description.driver == "container",
                        capacity: description.capacity,
                        allocated: description.allocated,
                        memory_max: description.memory_max,
                        sandboxes: description.sandboxes,
                        sandboxes_max: description.sandboxes_max,
                        slots_ready: description.slots_ready,
                    },
                )
                .collect()
        });
        let placement = choose(&candidates, request, &self.policy, seed)?;
        tracing::debug!(node = %placement.node, score = ?placement.score, "placed a sandbox");
        let id = placement.node;
        let found = self.get(&id).zip(images.get(&id).cloned());
        let Some((node, image)) = found else {
            return Err(Refusal(placement.passed_over));
        };
        self.count(&id, request, true);
        Ok(Placed { id, node, image })
    }

    /// Adjusts the picture of a node by a sandbox that came or went.
    pub(crate) fn count(&self, id: &NodeId, resources: &Resources, came: bool) {
        let change = |total: u64, part: u64| match came {
            true => total.saturating_add(part),
            false => total.saturating_sub(part),
        };
        let change_count = |total: u32, part: u32| match came {
            true => total.saturating_add(part),
            false => total.saturating_sub(part),
        };
        self.change(id, |Member { description, .. }| {
            let allocated = &mut description.allocated;
            allocated.memory = Bytes(change(allocated.memory.0, resources.memory.0));
            allocated.disk = Bytes(change(allocated.disk.0, resources.disk.0));
            allocated.vcpus = change_count(allocated.vcpus, resources.vcpus);
            description.sandboxes = change_count(description.sandboxes, 1);
        });
    }

    /// Every sandbox on every node that answers.
    pub(crate) async fn sandboxes(&self) -> Result<Vec<Arc<SandboxStatus>>, Problem> {
        let nodes = self.all();
        let lists = nodes.iter().map(|(_, node)| within(QUESTION, node.list()));
        let mut all = Vec::new();
        for ((id, _), list) in nodes.iter().zip(futures::future::join_all(lists).await) {
            match list {
                Ok(list) => all.extend(list),
                // Half a list would look like sandboxes that have ended.
                Err(problem) => {
                    tracing::warn!(node = %id, %problem, "a node did not list its sandboxes");
                    return Err(problem);
                }
            }
        }
        Ok(all)
    }
}

/// Where a sandbox goes.
pub(crate) struct Placed {
    pub(crate) id: NodeId,
    pub(crate) node: Arc<dyn Node>,
    pub(crate) image: ImageDigest,
}

/// Waits for a node's answer, but not for ever.
pub(crate) async fn within<T>(
    limit: Duration,
    question: impl Future<Output = Result<T, Problem>>,
) -> Result<T, Problem> {
    match tokio::time::timeout(limit, question).await {
        Ok(answer) => answer,
        Err(_) => Err(Problem::new(
            ErrorCode::DeadlineExceeded,
            format!("the node did not answer within {} s", limit.as_secs()),
            "look at the node's log, and try again",
        )),
    }
}

/// The time that a short question to a node may take.
pub(crate) async fn ask<T>(
    question: impl Future<Output = Result<T, Problem>>,
) -> Result<T, Problem> {
    within(QUESTION, question).await
}
