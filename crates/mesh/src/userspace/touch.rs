//! Connections that are opened ahead: with those who may begin flows to this node.
//!
//! Behind NAT, and behind firewalls that let nothing in, a way leads in only where one was opened from inside. A connection carries flows of both directions,
//! so it does not matter who opened it. One that broke off, or was closed since nothing was carried, is opened again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::carrier::Core;
use super::directory::{Directory, Member};
use crate::coordination::IdentityKey;
use crate::policy::Filter;

/// With how many a connection is kept, and how many are tried at once.
const MOST: usize = 64;
const AT_ONCE: usize = 8;
/// How often it is looked whether one is missing, and when one is tried again that was not to be had.
const LOOK: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_secs(15);

/// Who may begin flows to this node and might be reached: always the same ones if there are too many.
fn callers(
    directory: &Directory,
    filter: &Filter,
    has_way: impl Fn(&Member) -> bool,
) -> BTreeMap<IdentityKey, Arc<Member>> {
    let own = directory.own();
    let others = directory.members().filter(|member| {
        let tunnel = own.mode.is_tun() && member.mode.is_tun();
        let rules = filter.peer(&member.key);
        member.identity != own.identity
            && !tunnel
            && has_way(member)
            && rules.is_some_and(|rules| !rules.inbound.is_empty())
    });
    let all: BTreeMap<_, _> = others
        .map(|member| (member.identity, Arc::clone(member)))
        .collect();
    all.into_iter().take(MOST).collect()
}

/// Keeps them until this node stops.
pub(super) async fn keep(core: Arc<Core>) {
    let mut changes = core.changes();
    let mut failed: HashMap<IdentityKey, Instant> = HashMap::new();
    let mut busy = BTreeSet::new();
    let mut tries = JoinSet::new();
    loop {
        failed.retain(|_, at| at.elapsed() < AGAIN);
        for (peer, member) in callers(&core.directory(), &core.filter(), |member| {
            core.has_way(member)
        }) {
            if tries.len() >= AT_ONCE {
                break;
            }
            let wait = core.connected(&peer) || failed.contains_key(&peer);
            if !wait && busy.insert(peer) {
                let core = Arc::clone(&core);
                tries.spawn(async move { (peer, core.connect(&member).await.is_ok()) });
            }
        }
        tokio::select! {
            Some(tried) = tries.join_next(), if !tries.is_empty() => {
                if let Ok((peer, connected)) = tried {
                    busy.remove(&peer);
                    if !connected {
                        failed.insert(peer, Instant::now());
                    }
                }
            }
            changed = changes.changed() => match changed {
                // Who is somewhere else now is tried at once.
                Ok(()) => failed.clear(),
                Err(_) => return,
            },
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}
