//! What the flows over one connection have in common: that it is in use, and how much each of them sends, by which it gets its shares of the way
//! ([`super::congestion`]).

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::mpsc;

use super::congestion::{Shares, effective};
use super::datagrams::MOST_WAITING;

/// How often it is looked how much flows send.
pub(super) const LOOK: Duration = Duration::from_millis(250);
/// What counts of a flow's rate at the next look; about one second of it is remembered.
const REMEMBERED: f64 = 0.75;
/// Looks for which shares stay though fewer flows are busy: a share that begins anew has to find its window first.
const PATIENCE: usize = 16;

/// Bytes that one flow sent.
#[derive(Debug)]
struct Meter {
    sent: Weak<AtomicU64>,
    before: u64,
    rate: f64,
}

#[derive(Debug, Default)]
struct State {
    meters: Vec<Meter>,
    /// How many flows were busy at the last looks.
    busy: VecDeque<usize>,
}

/// Every flow over a connection holds this, and whoever else uses it.
#[derive(Debug, Default)]
pub(super) struct Lane {
    state: Mutex<State>,
    /// Where datagrams of flows go, by the flow's number.
    datagrams: Mutex<HashMap<u64, mpsc::Sender<Vec<u8>>>>,
}

/// Datagrams that arrive for one flow.
#[derive(Debug)]
pub(super) struct Arrivals {
    lane: Arc<Lane>,
    number: u64,
    queue: mpsc::Receiver<Vec<u8>>,
}

impl Arrivals {
    /// The next.
    pub(super) async fn next(&mut self) -> Option<Vec<u8>> {
        self.queue.recv().await
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        self.lane.datagrams().remove(&self.number);
    }
}

impl Lane {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn datagrams(&self) -> MutexGuard<'_, HashMap<u64, mpsc::Sender<Vec<u8>>>> {
        self.datagrams
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes datagrams of the flow with this number from now on.
    pub(super) fn arrivals(self: &Arc<Self>, number: u64) -> Arrivals {
        let (sender, queue) = mpsc::channel(MOST_WAITING);
        self.datagrams().insert(number, sender);
        Arrivals {
            lane: Arc::clone(self),
            number,
            queue,
        }
    }

    /// Brings a datagram to its flow. If there is none, or it has no room, it is lost.
    pub(super) fn arrived(&self, number: u64, contents: &[u8]) {
        if let Some(flow) = self.datagrams().get(&number) {
            let _ = flow.try_send(contents.to_vec());
        }
    }

    /// Where one more flow counts what it sends, for as long as it is.
    pub(super) fn meter(&self) -> Arc<AtomicU64> {
        let sent = Arc::default();
        self.state().meters.push(Meter {
            sent: Arc::downgrade(&sent),
            before: 0,
            rate: 0.0,
        });
        sent
    }

    /// Looks how much flows sent since the last time; how many shares their connection is to have.
    fn look(&self) -> usize {
        let mut state = self.state();
        state.meters.retain_mut(|meter| {
            let Some(sent) = meter.sent.upgrade() else {
                return false;
            };
            let sent = sent.load(Ordering::Relaxed);
            let moved = sent.saturating_sub(meter.before);
            meter.before = sent;
            meter.rate = meter.rate * REMEMBERED + moved as f64;
            true
        });
        let busy = effective(state.meters.iter().map(|meter| meter.rate)).round() as usize;
        if state.busy.len() >= PATIENCE {
            state.busy.pop_front();
        }
        state.busy.push_back(busy);
        state.busy.iter().copied().max().unwrap_or(0).max(1)
    }

    /// Gives the connection as many shares as there are busy flows.
    pub(super) fn share(&self, connection: &quinn::Connection) {
        let shares = self.look();
        if let Some(control) = Shares::of(connection) {
            control.set(shares);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_follow_the_flows_that_are_busy() {
        let lane = Lane::default();
        assert_eq!(lane.look(), 1);
        let meters: Vec<_> = (0..6).map(|_| lane.meter()).collect();
        // Six flows, of which one says much.
        let say = |bytes: [u64; 6]| {
            for (meter, bytes) in meters.iter().zip(bytes) {
                meter.fetch_add(bytes, Ordering::Relaxed);
            }
            lane.look()
        };
        assert_eq!(say([1_000_000, 100, 100, 100, 100, 100]), 1);
        // Now four do: soon that is so, and stays so over a pause, but not for ever.
        let busy = [1_000_000, 1_000_000, 1_000_000, 1_000_000, 0, 0];
        assert!(say(busy) > 1);
        let soon = (0..8).map(|_| say(busy)).max();
        assert_eq!(soon, Some(4));
        assert_eq!(say([0; 6]), 4);
        let one = [1_000_000, 0, 0, 0, 0, 0];
        for _ in 0..40 {
            say(one);
        }
        assert_eq!(say(one), 1);
        // Flows that are over leave nothing behind.
        drop(meters);
        lane.look();
        assert!(lane.state().meters.is_empty());
    }
}
