//! Probes of the endpoints of services that this node uses.
//!
//! A service is in use for a while after a connection to it or a question for its name. Its nearest endpoints are then asked for a connection every few seconds, the same way
//! as programs' connections go, unless one of these has just shown how it is; who fails is asked again soon, and who was put aside when its time is over. So a dead endpoint is
//! known of before a program meets it, and no coordinator is needed for that.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::timeout;

use super::carrier::Core;
use super::consumer::{Place, open};
use super::directory::Member;
use super::flow::Far;
use super::header::Refusal;
use super::service::Protocol;
use crate::services::Failure;

/// For how long a service is in use.
const IN_USE: Duration = Duration::from_secs(30);
/// Endpoints of a service's port that are probed, and probes at once.
const PROBED: usize = 16;
const AT_ONCE: usize = 32;
/// How long a probe may take: less than programs' connections, as nobody waits for it.
const PATIENCE: Duration = Duration::from_millis(1500);
/// The longest wait until it is looked again.
const LOOK: Duration = Duration::from_secs(1);

/// Probes until this node stops.
pub(super) async fn keep(core: Arc<Core>) {
    let mut busy: HashSet<Place> = HashSet::new();
    let mut running = JoinSet::new();
    loop {
        let mut next = None;
        for (place, member, at) in due(&core) {
            let wait = at.map(|at| at.saturating_duration_since(Instant::now()));
            match wait {
                Some(wait) if !wait.is_zero() => {
                    next = Some(next.map_or(wait, |next: Duration| next.min(wait)));
                }
                _ if running.len() < AT_ONCE && busy.insert(place) => {
                    let core = Arc::clone(&core);
                    running.spawn(async move {
                        probe(&core, &member, place).await;
                        place
                    });
                }
                _ => {}
            }
        }
        // Without anything in use there is nothing to wait for but news.
        let pause = async {
            match next {
                Some(wait) => tokio::time::sleep(wait.min(LOOK)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(done) = running.join_next(), if !running.is_empty() => match done {
                Ok(place) => _ = busy.remove(&place),
                // A probe that failed by itself would leave its place busy.
                Err(_) => busy.clear(),
            },
            () = core.consumer.news.notified() => {}
            () = pause => {}
        }
    }
}

/// The endpoints that are to be probed, and when; those without a time are due.
fn due(core: &Core) -> Vec<(Place, Arc<Member>, Option<Instant>)> {
    let (directory, filter) = (core.directory(), core.filter());
    let now = Instant::now();
    let used = core.consumer.sweep(&directory, IN_USE);
    let mut all = Vec::new();
    for (name, port) in used {
        let Some(service) = directory.service(&name) else {
            continue;
        };
        // The nearest, as the next connection would try them; who says that it is not ready needs no probe.
        let view = core
            .consumer
            .view(&directory, &filter, service, (Protocol::Tcp, port));
        let probed = view.endpoints.into_iter().filter(|endpoint| endpoint.ready);
        for endpoint in probed.take(PROBED) {
            let place = (endpoint.member.identity, Protocol::Tcp, port);
            let at = core.consumer.next_probe(&place, now);
            all.push((place, endpoint.member, at));
        }
    }
    all
}

async fn probe(core: &Arc<Core>, member: &Arc<Member>, place: Place) {
    match timeout(PATIENCE, open(core, member, place.2)).await {
        Ok(Ok(((mut far, _), round_trip))) => {
            core.consumer.succeeded(place, round_trip);
            // Closed in order where that is possible; a flow is reset, so that its other end is rid of it at once.
            if let Far::Own { service, .. } = &mut far {
                service.settle();
            }
        }
        Ok(Err(Refusal::Busy)) => {
            // This machine has no room: it says nothing of the endpoint. It is due again, but not at once.
            tokio::time::sleep(LOOK).await;
        }
        Ok(Err(refusal)) => core
            .consumer
            .failed(place, super::consumer::failure(refusal)),
        Err(_) => core.consumer.failed(place, Failure::Silent),
    }
}
