//! Where a sandbox goes: a pure function of inventory, request and policy.
//!
//! It does no I/O, knows no clock and draws no random numbers: the same arguments give the same
//! answer, so that a decision can be replayed and explained, and a policy simulated. What fits is
//! ordered by [`Score`], whose field order is the policy.

use api::{Bytes, NodeId, Resources};
use std::{cmp::Reverse, fmt};

/// A node as the scheduler sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its id.
    pub id: NodeId,
    /// Whether it answers.
    pub available: bool,
    /// Whether it holds the template's root file system.
    pub holds_image: bool,
    /// Whether its sandboxes share its kernel: they take memory as they use it, not as they are
    /// promised it.
    pub shared_kernel: bool,
    /// What the machine has.
    pub capacity: Resources,
    /// What its sandboxes were promised.
    pub allocated: Resources,
    /// The most memory that they may be promised together, as the node says.
    pub memory_max: Bytes,
    /// How many sandboxes it runs.
    pub sandboxes: u32,
    /// How many it may run.
    pub sandboxes_max: u32,
    /// How many network slots are ready for the next sandboxes.
    pub slots_ready: u32,
}

/// How nodes are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Per cent of what may be promised, from which on a node counts as busy and others are
    /// preferred.
    pub busy_percent: u64,
    /// Whether to fill nodes that are in use before others, so that idle ones can be switched
    /// off; otherwise load is spread.
    pub pack: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            busy_percent: 80,
            pack: true,
        }
    }
}

/// How good a node is for a sandbox: the least is best, and earlier fields count more.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Score {
    /// Whether it would be busy with this sandbox.
    pub busy: bool,
    /// Whether the sandbox would have to wait for a network slot.
    pub slot_missing: bool,
    /// Per mille of its memory that would be promised, as the policy wants it: the fuller the
    /// better when packing, otherwise the emptier the better.
    pub memory: Preference,
    /// Processors promised, per mille of what the machine has.
    pub processors: u64,
    /// Among equals, a choice that depends on the seed alone.
    pub lot: u64,
}

/// A figure of which less or more is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Preference {
    /// Less is better.
    Less(u64),
    /// More is better.
    More(Reverse<u64>),
}

/// Where a sandbox goes and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The node.
    pub node: NodeId,
    /// How good it is.
    pub score: Score,
    /// The nodes that it does not fit on, and why.
    pub passed_over: Vec<(NodeId, Reason)>,
}

/// Why a sandbox does not fit on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The node does not answer.
    Unavailable,
    /// The node does not hold the template.
    ImageMissing,
    /// The node runs as many sandboxes as it may.
    Full {
        /// How many that is.
        sandboxes: u32,
    },
    /// More memory would be promised than the node allows.
    Memory {
        /// What would be promised.
        wanted: Bytes,
        /// What may be.
        allowed: Bytes,
    },
    /// The sandbox may use more processors than the machine has.
    Processors {
        /// How many the machine has.
        vcpus: u32,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable => formatter.write_str("does not answer"),
            Self::ImageMissing => formatter.write_str("does not hold the template"),
            Self::Full { sandboxes } => write!(formatter, "runs {sandboxes} sandboxes already"),
            Self::Memory { wanted, allowed } => {
                write!(
                    formatter,
                    "would promise {wanted} of memory, more than {allowed}"
                )
            }
            Self::Processors { vcpus } => write!(formatter, "has only {vcpus} processors"),
        }
    }
}

/// Why no node can take a sandbox: each with its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal(pub Vec<(NodeId, Reason)>);

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return formatter.write_str("there are no nodes");
        }
        const SHOWN: usize = 5;
        for (index, (node, reason)) in self.0.iter().take(SHOWN).enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(formatter, "{separator}node {node} {reason}")?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(formatter, "; and {more} more"),
        }
    }
}

/// Chooses a node for a sandbox of `request`, among equals by `seed`.
pub fn choose(
    candidates: &[Candidate],
    request: &Resources,
    policy: &Policy,
    seed: u64,
) -> Result<Placement, Refusal> {
    let mut passed_over = Vec::new();
    let mut best: Option<(Score, &Candidate)> = None;
    for candidate in candidates {
        match score(candidate, request, policy, seed) {
            Err(reason) => passed_over.push((candidate.id.clone(), reason)),
            Ok(score) => {
                if best.as_ref().is_none_or(|(least, _)| score < *least) {
                    best = Some((score, candidate));
                }
            }
        }
    }
    match best {
        Some((score, candidate)) => Ok(Placement {
            node: candidate.id.clone(),
            score,
            passed_over,
        }),
        None => Err(Refusal(passed_over)),
    }
}

fn score(
    candidate: &Candidate,
    request: &Resources,
    policy: &Policy,
    seed: u64,
) -> Result<Score, Reason> {
    if !candidate.available {
        return Err(Reason::Unavailable);
    }
    if !candidate.holds_image {
        return Err(Reason::ImageMissing);
    }
    if candidate.sandboxes >= candidate.sandboxes_max {
        return Err(Reason::Full {
            sandboxes: candidate.sandboxes,
        });
    }
    // A shared kernel divides time among more processors than there are; a virtual machine with
    // more of them than the host has only gets slower.
    if !candidate.shared_kernel && request.vcpus > candidate.capacity.vcpus {
        return Err(Reason::Processors {
            vcpus: candidate.capacity.vcpus,
        });
    }
    let allowed = candidate.memory_max;
    let wanted = candidate
        .allocated
        .memory
        .0
        .saturating_add(request.memory.0);
    // Where memory is taken as it is used, one sandbox may not be larger than the machine.
    let largest = candidate.capacity.memory;
    if wanted > allowed.0 || (candidate.shared_kernel && request.memory > largest) {
        let (wanted, allowed) = match wanted > allowed.0 {
            true => (Bytes(wanted), allowed),
            false => (request.memory, largest),
        };
        return Err(Reason::Memory { wanted, allowed });
    }
    let memory = per_mille(wanted, allowed.0);
    let processors = u64::from(candidate.allocated.vcpus) + u64::from(request.vcpus);
    Ok(Score {
        busy: memory >= policy.busy_percent.saturating_mul(10),
        slot_missing: candidate.slots_ready == 0,
        memory: match policy.pack {
            true => Preference::More(Reverse(memory)),
            false => Preference::Less(memory),
        },
        processors: per_mille(processors, u64::from(candidate.capacity.vcpus)),
        lot: lot(&candidate.id, seed),
    })
}

fn per_mille(part: u64, whole: u64) -> u64 {
    let share = u128::from(part) * 1000 / u128::from(whole.max(1));
    u64::try_from(share).unwrap_or(u64::MAX)
}

/// FNV-1a over seed and id, stirred once more: enough to break ties evenly.
fn lot(id: &NodeId, seed: u64) -> u64 {
    let bytes = seed.to_le_bytes().into_iter().chain(id.as_str().bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash ^ (hash >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate(id: &str, used_mebibytes: u64) -> Candidate {
        Candidate {
            id: id.parse().unwrap(),
            available: true,
            holds_image: true,
            shared_kernel: false,
            capacity: Resources {
                vcpus: 8,
                memory: Bytes::gibibytes(16),
                disk: Bytes::gibibytes(100),
            },
            allocated: Resources {
                vcpus: 0,
                memory: Bytes::mebibytes(used_mebibytes),
                disk: Bytes(0),
            },
            memory_max: Bytes::gibibytes(24),
            sandboxes: 0,
            sandboxes_max: 100,
            slots_ready: 5,
        }
    }

    fn request(mebibytes: u64) -> Resources {
        Resources {
            memory: Bytes::mebibytes(mebibytes),
            ..Resources::default()
        }
    }

    #[test]
    fn packing_fills_the_fuller_node_until_it_is_busy() {
        let policy = Policy::default();
        let nodes = [
            candidate("aaaa", 0),
            candidate("bbbb", 4096),
            candidate("cccc", 23_000),
        ];
        assert_eq!(
            choose(&nodes, &request(512), &policy, 1)
                .unwrap()
                .node
                .as_str(),
            "bbbb"
        );
        let spread = Policy {
            pack: false,
            ..policy
        };
        assert_eq!(
            choose(&nodes, &request(512), &spread, 1)
                .unwrap()
                .node
                .as_str(),
            "aaaa"
        );
    }

    #[test]
    fn a_refusal_gives_each_node_its_reason() {
        let mut nodes = vec![
            candidate("aaaa", 24_500),
            candidate("bbbb", 0),
            candidate("cccc", 0),
        ];
        nodes[1].sandboxes = 100;
        nodes[2].holds_image = false;
        let refusal = choose(&nodes, &request(512), &Policy::default(), 1).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "node aaaa would promise 24.4 GiB of memory, more than 24 GiB; node bbbb runs 100 \
             sandboxes already; node cccc does not hold the template"
        );
    }

    fn any_candidate() -> impl Strategy<Value = Candidate> {
        (
            "[a-z0-9]{4}",
            any::<[bool; 3]>(),
            0..64u64,
            0..64u64,
            0..5u32,
            0..5u32,
            0..3u32,
        )
            .prop_map(
                |(id, flags, capacity, used, sandboxes, max, slots)| Candidate {
                    available: flags[0],
                    holds_image: flags[1],
                    shared_kernel: flags[2],
                    capacity: Resources {
                        vcpus: 4,
                        memory: Bytes::gibibytes(capacity),
                        disk: Bytes(0),
                    },
                    allocated: Resources {
                        vcpus: 1,
                        memory: Bytes::gibibytes(used),
                        disk: Bytes(0),
                    },
                    memory_max: Bytes::gibibytes(capacity * 3 / 2),
                    sandboxes,
                    sandboxes_max: max,
                    slots_ready: slots,
                    ..candidate(&id, 0)
                },
            )
    }

    proptest! {
        #[test]
        fn a_choice_fits_and_is_the_best_that_does(
            nodes in prop::collection::vec(any_candidate(), 0..20),
            gibibytes in 1..32u64,
            pack: bool,
            seed: u64,
        ) {
            let policy = Policy { pack, ..Policy::default() };
            let request = request(gibibytes << 10);
            let answer = choose(&nodes, &request, &policy, seed);
            let repeated = choose(&nodes, &request, &policy, seed);
            prop_assert_eq!(&answer, &repeated, "the same arguments give the same answer");
            let fits = nodes.iter().filter_map(|n| score(n, &request, &policy, seed).ok());
            match answer {
                Ok(placement) => {
                    prop_assert_eq!(Some(placement.score.clone()), fits.min());
                    let chosen = nodes.iter().find(|n| {
                        n.id == placement.node && score(n, &request, &policy, seed).is_ok()
                    });
                    let chosen = chosen.expect("one of the nodes");
                    prop_assert!(chosen.available && chosen.holds_image);
                    prop_assert!(chosen.sandboxes < chosen.sandboxes_max);
                    prop_assert!(
                        chosen.allocated.memory.0 + request.memory.0 <= chosen.memory_max.0
                    );
                }
                Err(refusal) => {
                    prop_assert_eq!(fits.count(), 0);
                    prop_assert_eq!(refusal.0.len(), nodes.len());
                }
            }
        }

        #[test]
        fn the_order_of_nodes_does_not_matter(
            nodes in prop::collection::btree_map("[a-z0-9]{4}", any_candidate(), 1..12),
            seed: u64,
        ) {
            let nodes: Vec<Candidate> = nodes
                .into_iter()
                .map(|(id, node)| Candidate { id: id.parse().unwrap(), ..node })
                .collect();
            let reversed: Vec<Candidate> = nodes.iter().rev().cloned().collect();
            let choice = |nodes: &[Candidate]| {
                choose(nodes, &request(512), &Policy::default(), seed).map(|p| p.node).ok()
            };
            prop_assert_eq!(choice(&nodes), choice(&reversed));
        }
    }
}
