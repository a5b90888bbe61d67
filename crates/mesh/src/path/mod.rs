//! Which way packets to one peer go: over a relay at once, and directly as soon as that is proven to work.
//!
//! There is no I/O here and no clock: the caller says what happened and when, sends the probes it is given, and asks for the
//! [route](Agent::route). So the agent runs in a simulation (`path/simulation.rs`) exactly as it runs in a node.
//!
//! ```text
//!                 first packet                    an answer to a probe
//!   idle ───────────────────────► relayed ───────────────────────────────► direct
//!    ▲                             ▲   ▲                                   │   │
//!    │     nothing sent for 30 s   │   └───── five probes unanswered ──────┘   │
//!    └─────────────────────────────┴───────────────────────────────────────────┘
//! ```
//!
//! - *idle → relayed*: a packet is to be sent. It goes over the first relay, and every route is probed, often at first, then
//!   less and less often. Both ends do this, which is what opens the NATs between them.
//! - *relayed → direct*: an answer came back over a route that is better. Only an answer counts: that packets arrive says nothing
//!   of the way there. Routes of one kind are exchanged only for a clearly shorter time, or they would change all the time.
//! - *direct → relayed*: the route in use is probed every two seconds, after a miss every 300 ms; five misses in a row
//!   mean that it is gone. The next best route that is proven takes its place, or the relay. Nothing else makes
//!   it worse, so who is connected stays connected.
//! - *→ idle*: who sends nothing is not probed; NATs forget, so after a silence the relay has the first word again.
//!
//! Probes travel inside the session and are authentic. A peer that lies in its answers harms its own packets only.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

/// Routes of one peer that are kept; what peers claim beyond that is left away.
const MOST_ROUTES: usize = 32;
/// Probes of a route that an answer may still come to.
const OUTSTANDING: usize = 8;
/// Silence after which nothing is probed and no direct route is taken as proven.
const IDLE_AFTER: Duration = Duration::from_secs(30);
/// How often the route in use is probed.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// How often it is probed after a miss.
const DOUBT: Duration = Duration::from_millis(300);
/// How often other routes that work are probed.
const REFRESH: Duration = Duration::from_secs(10);
/// How often a route that is not proven is probed: first, and at last; doubling in between.
const FIRST_INTERVAL: Duration = Duration::from_millis(100);
/// See [`FIRST_INTERVAL`].
const LAST_INTERVAL: Duration = Duration::from_secs(16);
/// From this interval on, hearing something over a route that is not proven begins with the first anew.
const RECONSIDER: Duration = Duration::from_millis(3_200);
/// How long an answer may take; of a route that is proven, four times as long as usual, but not less than half of this.
const PATIENCE: Duration = Duration::from_secs(1);
/// Misses in a row after which a route is not proven any more.
const MISSES: u32 = 5;

/// Misses in a row after which another one of the same kind takes its place, if it misses none.
const DOUBTFUL: u32 = 2;

/// Which relay, as its number in the caller's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelayId(pub u32);

/// One way to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Route {
    /// Straight to this address.
    Direct(SocketAddr),
    /// Over this relay.
    Relay(RelayId),
}

impl Route {
    /// Whether somebody is in between.
    pub const fn relayed(&self) -> bool {
        matches!(self, Self::Relay(_))
    }
}

/// A question to be sent over a route; the peer sends the number back over the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// The way to send it.
    pub route: Route,
    /// What the answer must hold.
    pub number: u64,
}

/// How good a route is; the smallest is the best. The order of the fields is the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Score {
    relayed: bool,
    round_trip: Duration,
}

#[derive(Debug)]
struct Candidate {
    route: Route,
    /// The time of a round trip, smoothed, if the route is proven.
    round_trip: Option<Duration>,
    outstanding: VecDeque<(u64, Instant)>,
    misses: u32,
    next: Instant,
    interval: Duration,
    /// Whether it came from the caller's list; others were seen.
    listed: bool,
}

impl Candidate {
    fn new(route: Route, now: Instant, listed: bool) -> Self {
        Self {
            route,
            round_trip: None,
            outstanding: VecDeque::new(),
            misses: 0,
            next: now,
            interval: FIRST_INTERVAL,
            listed,
        }
    }

    fn score(&self) -> Option<Score> {
        Some(Score {
            relayed: self.route.relayed(),
            round_trip: self.round_trip?,
        })
    }

    /// Probes it anew, often at first.
    fn restart(&mut self, now: Instant) {
        self.next = now;
        self.interval = FIRST_INTERVAL;
    }

    /// How long an answer is waited for.
    fn patience(&self) -> Duration {
        let usual = self.round_trip.unwrap_or(PATIENCE);
        (usual * 4).clamp(PATIENCE / 2, PATIENCE)
    }

    /// Notes which probes were not answered.
    fn expire(&mut self, now: Instant) {
        while let Some((_, sent)) = self.outstanding.front()
            && now.saturating_duration_since(*sent) >= self.patience()
        {
            self.outstanding.pop_front();
            self.misses = self.misses.saturating_add(1);
            if self.misses == 1 && self.round_trip.is_some() {
                self.next = now;
            }
            if self.misses >= MISSES && self.round_trip.take().is_some() {
                self.restart(now);
            }
        }
    }
}

/// The ways to one peer.
#[derive(Debug)]
pub struct Agent {
    candidates: Vec<Candidate>,
    chosen: Option<Route>,
    last_sent: Option<Instant>,
    next_number: u64,
}

impl Default for Agent {
    fn default() -> Self {
        Self::new()
    }
}

impl Agent {
    /// An agent that knows no route.
    pub const fn new() -> Self {
        Self {
            candidates: Vec::new(),
            chosen: None,
            last_sent: None,
            next_number: 1,
        }
    }

    /// Numbers its probes from here on: answers to those of somebody before are none to these.
    pub const fn number_from(&mut self, first: u64) {
        self.next_number = first;
    }

    /// Where packets go now; `None` if no route is known.
    pub const fn route(&self) -> Option<Route> {
        self.chosen
    }

    /// The time of a round trip over the route in use, if it is proven.
    pub fn round_trip(&self) -> Option<Duration> {
        self.find(self.chosen?)?.round_trip
    }

    /// How many probes in a row of the route in use were not answered.
    pub fn misses(&self) -> u32 {
        self.chosen
            .and_then(|route| self.find(route))
            .map_or(0, |candidate| candidate.misses)
    }

    /// Tells which routes there may be, the preferred relay first. What is known of those that stay is kept; those that are not
    /// listed and were not seen either are forgotten.
    pub fn set_routes(&mut self, now: Instant, routes: &[Route]) {
        self.candidates.retain_mut(|candidate| {
            candidate.listed = routes.contains(&candidate.route);
            candidate.listed || (candidate.round_trip.is_some() && !candidate.route.relayed())
        });
        let mut known = std::mem::take(&mut self.candidates);
        for route in routes {
            if self.candidates.len() >= MOST_ROUTES {
                break;
            }
            if self.find(*route).is_some() {
                continue;
            }
            let before = known.iter().position(|candidate| candidate.route == *route);
            self.candidates.push(match before {
                Some(at) => known.swap_remove(at),
                None => Candidate::new(*route, now, true),
            });
        }
        self.candidates
            .extend(known.into_iter().take(MOST_ROUTES - self.candidates.len()));
        self.choose();
    }

    /// Notes that packets are sent, which keeps the routes probed.
    pub fn sent(&mut self, now: Instant) {
        let idle = !self.active(now);
        self.last_sent = Some(now);
        if idle {
            for candidate in &mut self.candidates {
                candidate.restart(now);
            }
            self.forget();
        }
    }

    /// Notes that packets are sent and nothing comes back: the route in use is probed at once.
    pub fn doubt(&mut self, now: Instant) {
        if let Some(chosen) = self.chosen
            && let Some(candidate) = self.find_mut(chosen)
            && candidate.round_trip.is_some()
            && candidate.outstanding.is_empty()
        {
            candidate.next = candidate.next.min(now);
        }
    }

    /// Notes that this node is somewhere else now: nothing direct is proven any more, and everything is probed anew.
    pub fn moved(&mut self, now: Instant) {
        for candidate in &mut self.candidates {
            candidate.restart(now);
        }
        self.forget();
    }

    /// Forgets what was proven of direct routes.
    fn forget(&mut self) {
        for candidate in &mut self.candidates {
            candidate.outstanding.clear();
            candidate.misses = 0;
            if !candidate.route.relayed() {
                candidate.round_trip = None;
            }
        }
        self.choose();
    }

    /// Notes that something authentic came over a route. A direct one that was not known is probed from now on; one that was
    /// nearly given up is probed often again, as one half of it works. A relay that carried something is the best guess while
    /// nothing is proven.
    pub fn heard(&mut self, now: Instant, route: Route) {
        if route.relayed() {
            if self.round_trip().is_none()
                && let Some(candidate) = self.find_mut(route)
            {
                candidate.misses = 0;
                self.chosen = Some(route);
            } else if self.chosen.is_some_and(|chosen| !chosen.relayed()) {
                // The peer gave the direct route up, or never had one: look whether it is still there.
                self.doubt(now);
            }
            return;
        }
        if let Some(candidate) = self.find_mut(route) {
            // Not before it was probed for a while: what is heard all the time must not keep this at its fastest.
            if candidate.round_trip.is_none() && candidate.interval >= RECONSIDER {
                candidate.restart(now);
            }
            return;
        }
        if self.candidates.len() >= MOST_ROUTES {
            // One that was only seen, and is not proven, gives way; else the new one is left away.
            let chosen = self.chosen;
            let spare = self.candidates.iter().position(|candidate| {
                !candidate.listed
                    && candidate.round_trip.is_none()
                    && Some(candidate.route) != chosen
            });
            match spare {
                Some(at) => self.candidates.remove(at),
                None => return,
            };
        }
        self.candidates.push(Candidate::new(route, now, false));
        // The peer may have moved: then the one in use answers no more.
        if let Some(chosen) = self.chosen
            && let Some(candidate) = self.find_mut(chosen)
        {
            candidate.next = candidate.next.min(now);
        }
        if self.chosen.is_none() {
            self.choose();
        }
    }

    /// Takes the answer to a probe. Answers that nobody waits for change nothing.
    pub fn answered(&mut self, now: Instant, route: Route, number: u64) {
        let Some(candidate) = self.find_mut(route) else {
            return;
        };
        let outstanding = &mut candidate.outstanding;
        let Some(at) = outstanding.iter().position(|(sent, _)| *sent == number) else {
            return;
        };
        let Some((_, sent)) = outstanding.remove(at) else {
            return;
        };
        // What was sent before it may still be on the way, or lost: that the route works is known either way.
        outstanding.drain(..at);
        candidate.misses = 0;
        let measured = now.saturating_duration_since(sent);
        candidate.round_trip = Some(match candidate.round_trip {
            Some(before) => (before * 7 + measured) / 8,
            None => measured,
        });
        self.choose();
        let wait = if self.chosen == Some(route) {
            HEARTBEAT
        } else {
            REFRESH
        };
        if let Some(candidate) = self.find_mut(route) {
            candidate.next = now + wait;
        }
    }

    /// Lets time pass; appends the probes that are due.
    pub fn tick(&mut self, now: Instant, probes: &mut Vec<Probe>) {
        if !self.active(now) {
            if self.last_sent.take().is_some() {
                self.forget();
            }
            return;
        }
        for candidate in &mut self.candidates {
            candidate.expire(now);
        }
        self.choose();
        for candidate in &mut self.candidates {
            if now < candidate.next {
                continue;
            }
            let number = self.next_number;
            self.next_number += 1;
            if candidate.outstanding.len() == OUTSTANDING {
                candidate.outstanding.pop_front();
                candidate.misses = candidate.misses.saturating_add(1);
            }
            candidate.outstanding.push_back((number, now));
            probes.push(Probe {
                route: candidate.route,
                number,
            });
            let in_use = self.chosen == Some(candidate.route);
            candidate.next = now
                + match (candidate.round_trip, in_use) {
                    (Some(_), true) if candidate.misses > 0 => DOUBT,
                    (Some(_), true) => HEARTBEAT,
                    (Some(_), false) if candidate.misses > 0 => DOUBT,
                    (Some(_), false) => REFRESH,
                    (None, _) => {
                        let interval = candidate.interval;
                        candidate.interval = (interval * 2).min(LAST_INTERVAL);
                        interval
                    }
                };
        }
    }

    /// When [`Agent::tick`] has something to do next; `None` until something is sent.
    pub fn deadline(&self) -> Option<Instant> {
        let idle = self.last_sent? + IDLE_AFTER;
        let next = self.candidates.iter().flat_map(|candidate| {
            let expires = candidate
                .outstanding
                .front()
                .map(|(_, sent)| *sent + candidate.patience());
            expires.into_iter().chain([candidate.next])
        });
        next.min().filter(|next| *next < idle)
    }

    /// All routes that are known.
    pub fn routes(&self) -> impl Iterator<Item = Route> {
        self.candidates.iter().map(|candidate| candidate.route)
    }

    /// Whether packets are sent, so that routes are probed.
    pub fn active(&self, now: Instant) -> bool {
        self.last_sent
            .is_some_and(|sent| now.saturating_duration_since(sent) < IDLE_AFTER)
    }

    fn find(&self, route: Route) -> Option<&Candidate> {
        self.candidates
            .iter()
            .find(|candidate| candidate.route == route)
    }

    fn find_mut(&mut self, route: Route) -> Option<&mut Candidate> {
        self.candidates
            .iter_mut()
            .find(|candidate| candidate.route == route)
    }

    /// Takes the best route if it is better than the one in use.
    fn choose(&mut self) {
        let current = self.chosen.and_then(|route| self.find(route));
        let best = self
            .candidates
            .iter()
            .filter_map(|candidate| Some((candidate.score()?, candidate.route)))
            .min();
        self.chosen = match (current, current.and_then(Candidate::score), best) {
            (Some(current), Some(used), Some((best, route))) => Some(if better(&best, &used) {
                route
            } else {
                self.refuge(current).unwrap_or(current.route)
            }),
            (_, None, Some((_, route))) => Some(route),
            (current, _, None) => self.guess(current),
            (None, Some(_), Some((_, route))) => Some(route),
        };
    }

    /// What to take instead of a direct route that is in doubt: another one that answered ever since. A peer that moved is followed so.
    fn refuge(&self, current: &Candidate) -> Option<Route> {
        if current.misses < DOUBTFUL || current.route.relayed() {
            return None;
        }
        let others = self
            .candidates
            .iter()
            .filter(|other| !other.route.relayed() && other.misses == 0);
        others
            .filter_map(|other| Some((other.score()?, other.route)))
            .min()
            .map(|(_, route)| route)
    }

    /// The route to take while none is proven: a relay, the one in use if it did not fail; without relays, any.
    fn guess(&self, current: Option<&Candidate>) -> Option<Route> {
        let kept = current.filter(|current| {
            current.misses < MISSES && (current.route.relayed() || !self.relays())
        });
        if let Some(kept) = kept {
            return Some(kept.route);
        }
        // The first of those that failed least, in fives: relays take turns when all fail.
        let least = |candidate: &&Candidate| candidate.misses / MISSES;
        let relays = self
            .candidates
            .iter()
            .filter(|candidate| candidate.route.relayed());
        let guess = relays
            .min_by_key(least)
            .or_else(|| self.candidates.iter().min_by_key(least));
        guess.map(|candidate| candidate.route)
    }

    fn relays(&self) -> bool {
        self.candidates
            .iter()
            .any(|candidate| candidate.route.relayed())
    }
}

/// Whether changing is worth it: another kind of route, or at least a quarter and 2 ms less.
fn better(new: &Score, used: &Score) -> bool {
    if new.relayed != used.relayed {
        return !new.relayed;
    }
    new.round_trip + Duration::from_millis(2) <= used.round_trip
        && new.round_trip * 4 <= used.round_trip * 3
}
