//! Two agents, a relay and the NATs between them, in simulated time: the same seed gives the same run.
//!
//! The NATs are those that `nft` makes of `masquerade` with incoming traffic dropped (a port for each inside address, open to
//! whom was sent to) and of `masquerade random` (another port for each destination).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use super::*;

const RELAY: Route = Route::Relay(RelayId(1));
/// How long a run is, and when faults may begin.
const END: u64 = 70_000;
const DATA_EVERY: u64 = 100;
/// From a fault to the time when everything goes another way.
const DETECTED: u64 = 6_000;
/// From when a direct route works to the time when it is used: two of the longest intervals, as one probe may be lost.
const FOUND: u64 = 36_000;

/// SplitMix64: small, and good enough to make cases.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nat {
    None,
    /// One port outside for all destinations; open to those that were sent to.
    Cone,
    /// A port for each destination.
    Symmetric,
    /// No UDP but to the relay.
    Closed,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Data(usize),
    Tick(usize),
    Arrival {
        to: usize,
        route: Route,
        message: Message,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Message {
    Data,
    Probe(u64),
    Answer(u64),
}

/// Between two times, packets from this node get lost.
#[derive(Debug, Clone, Copy)]
struct Fault {
    from: u64,
    until: u64,
    direct: bool,
    /// Of one node, or of both.
    of: Option<usize>,
}

struct World {
    chance: Chance,
    start: Instant,
    now: u64,
    agents: [Agent; 2],
    nats: [Nat; 2],
    /// What each NAT has open: the port outside, and with whom.
    open: [BTreeSet<(u16, SocketAddr)>; 2],
    ports: [BTreeMap<SocketAddr, u16>; 2],
    faults: Vec<Fault>,
    /// One-way times, and losses in a thousand.
    delay: [u64; 2],
    loss: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    order: u64,
    /// When data was last sent on a route that a fault or a NAT swallowed.
    swallowed: Vec<u64>,
    probes: u64,
}

const CONE_PORT: u16 = 40_000;

fn outside(node: usize, port: u16) -> SocketAddr {
    SocketAddr::new([198, 51, 100, node as u8 + 1].into(), port)
}

impl World {
    fn new(seed: u64) -> Self {
        let mut chance = Chance(seed);
        let mut nat = || match chance.below(8) {
            0..2 => Nat::None,
            2..5 => Nat::Cone,
            5..7 => Nat::Symmetric,
            _ => Nat::Closed,
        };
        let nats = [nat(), nat()];
        let mut faults = Vec::new();
        // One fault at a time: with the relay gone while a direct route works, or the direct one.
        if chance.below(3) > 0 {
            let direct = chance.below(2) == 0;
            // The relay goes when there was time to find a direct route.
            let from = if direct { 2_000 } else { 30_000 } + chance.below(8_000);
            let of = [None, Some(0), Some(1)][chance.below(3) as usize];
            faults.push(Fault {
                from,
                until: from + 1_000 + chance.below(10_000),
                direct,
                of,
            });
        }
        let delay = [1 + chance.below(60), 1 + chance.below(60)];
        let loss = [0, 0, 10, 50][chance.below(4) as usize];
        let start = Instant::now();
        let mut world = Self {
            chance,
            start,
            now: 0,
            agents: [Agent::new(), Agent::new()],
            nats,
            open: Default::default(),
            ports: Default::default(),
            faults,
            delay,
            loss,
            events: BinaryHeap::new(),
            order: 0,
            swallowed: Vec::new(),
            probes: 0,
        };
        for node in 0..2 {
            // What a coordinator would tell: the relay, and how the other looked to it.
            let other = outside(1 - node, CONE_PORT);
            world.agents[node].set_routes(start, &[Route::Direct(other), RELAY]);
            let first = world.chance.below(DATA_EVERY);
            world.schedule(first, Event::Data(node));
        }
        world
    }

    fn schedule(&mut self, at: u64, event: Event) {
        self.order += 1;
        self.events.push(Reverse((at, self.order, event)));
    }

    fn instant(&self) -> Instant {
        self.start + Duration::from_millis(self.now)
    }

    fn faulty(&self, from: usize, direct: bool) -> bool {
        self.faults.iter().any(|fault| {
            fault.direct == direct
                && (fault.from..fault.until).contains(&self.now)
                && fault.of.is_none_or(|of| of == from)
        })
    }

    /// Whether a direct route can be found at all.
    fn feasible(&self) -> bool {
        match self.nats {
            [Nat::Closed, _] | [_, Nat::Closed] => false,
            [Nat::None, _] | [_, Nat::None] | [Nat::Cone, Nat::Cone] => true,
            _ => false,
        }
    }

    /// Where a direct packet comes from as the other sees it, if it gets there.
    fn translate(&mut self, from: usize, to: SocketAddr) -> Option<SocketAddr> {
        let port = match self.nats[from] {
            Nat::Closed => return None,
            Nat::None | Nat::Cone => CONE_PORT,
            Nat::Symmetric => {
                let next = 50_000 + self.ports[from].len() as u16;
                *self.ports[from].entry(to).or_insert(next)
            }
        };
        self.open[from].insert((port, to));
        let source = outside(from, port);
        let there = 1 - from;
        let passes = to.ip() == outside(there, 0).ip()
            && match self.nats[there] {
                Nat::Closed => false,
                Nat::None => to.port() == CONE_PORT,
                Nat::Cone | Nat::Symmetric => self.open[there].contains(&(to.port(), source)),
            };
        passes.then_some(source)
    }

    fn send(&mut self, from: usize, route: Route, message: Message) {
        let direct = !route.relayed();
        let seen = match route {
            Route::Direct(to) => self.translate(from, to).map(Route::Direct),
            Route::Relay(_) => Some(route),
        };
        let seen = seen.filter(|_| !self.faulty(from, direct));
        let Some(seen) = seen else {
            if message == Message::Data {
                self.swallowed.push(self.now);
            }
            return;
        };
        if self.chance.below(1000) < self.loss {
            return;
        }
        // Up to 10 ms of jitter, so packets overtake each other.
        let at = self.now + self.delay[usize::from(direct)] + self.chance.below(10);
        self.schedule(
            at,
            Event::Arrival {
                to: 1 - from,
                route: seen,
                message,
            },
        );
    }

    fn act(&mut self, event: Event) {
        let now = self.instant();
        match event {
            Event::Data(node) => {
                self.agents[node].sent(now);
                if let Some(route) = self.agents[node].route() {
                    self.send(node, route, Message::Data);
                }
                self.tick(node);
                self.schedule(self.now + DATA_EVERY, Event::Data(node));
            }
            Event::Tick(node) => self.tick(node),
            Event::Arrival { to, route, message } => {
                self.agents[to].heard(now, route);
                match message {
                    Message::Data => {}
                    Message::Probe(number) => self.send(to, route, Message::Answer(number)),
                    Message::Answer(number) => self.agents[to].answered(now, route, number),
                }
                self.tick(to);
            }
        }
    }

    fn tick(&mut self, node: usize) {
        let mut probes = Vec::new();
        let now = self.instant();
        self.agents[node].tick(now, &mut probes);
        self.probes += probes.len() as u64;
        for probe in probes {
            self.send(node, probe.route, Message::Probe(probe.number));
        }
        if let Some(deadline) = self.agents[node].deadline() {
            let at = deadline.saturating_duration_since(self.start).as_millis() as u64;
            // Data comes soon, and ticks too.
            if at > self.now && at < self.now + DATA_EVERY {
                self.schedule(at, Event::Tick(node));
            }
        }
    }

    /// Runs to the end, and checks all along.
    fn run(mut self) -> Result<(), String> {
        // A direct route works since here, unless a fault says otherwise.
        let feasible = self.feasible();
        while let Some(Reverse((at, _, event))) = self.events.pop() {
            if at >= END {
                break;
            }
            self.now = at;
            self.act(event);
            for agent in &self.agents {
                let route = agent.route().ok_or("no route at all")?;
                let proven = agent.round_trip().is_some();
                if !route.relayed() && !proven {
                    return Err(format!("{at}: unproven and in use: {route:?}"));
                }
            }
            let calm = self
                .faults
                .iter()
                .all(|fault| !fault.direct || at < fault.from || at > fault.until + FOUND);
            if feasible
                && calm
                && at > FOUND
                && self.agents.iter().any(|agent| agent.route() == Some(RELAY))
            {
                return Err(format!("{at}: still over the relay: {:?}", self.agents));
            }
        }
        // Data may be lost only while a fault is new.
        for at in &self.swallowed {
            let excused = self.faults.iter().any(|fault| {
                let hurts = fault.direct == feasible;
                let lasts = if feasible {
                    fault.from + DETECTED
                } else {
                    fault.until
                };
                hurts && (fault.from..lasts.min(fault.until)).contains(at)
            });
            if !excused {
                return Err(format!(
                    "data sent at {at} went nowhere; faults {:?}",
                    self.faults
                ));
            }
        }
        // Two nodes, at most some dozens of routes; a probe and a half a second for each would be too many.
        if self.probes > END / 1000 * 10 {
            return Err(format!("{} probes", self.probes));
        }
        Ok(())
    }
}

/// Runs every second world, of as many as `ATOLL_MESH_SEEDS` says, or 1000.
fn check(half: u64) {
    let seeds = std::env::var("ATOLL_MESH_SEEDS")
        .ok()
        .and_then(|seeds| seeds.parse().ok());
    for seed in (half..seeds.unwrap_or(1000)).step_by(2) {
        let world = World::new(seed);
        let about = format!(
            "seed {seed}: {:?}, {:?}, delay {:?}, loss {}",
            world.nats, world.faults, world.delay, world.loss
        );
        if let Err(error) = world.run() {
            panic!("{about}: {error}");
        }
    }
}

#[test]
fn even_worlds() {
    check(0);
}

#[test]
fn odd_worlds() {
    check(1);
}
