//! A coordinator and its nodes in a world that loses, delays, doubles and reorders what they say, parts them, moves their clocks
//! and restarts all of them. Chance comes from a seed, so what fails can be run again: `ATOLL_SEED=N cargo test -p mesh simulation`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::PrivateKey;

/// When the simulated world begins, in milliseconds since 1970.
pub(super) const NOW: u64 = 1_800_000_000_000;
const GRACE_MS: u64 = 90_000;
const STATIONS: usize = 5;

/// Carries out a plan, as if it had been written.
pub(super) fn write<T>(book: &mut Book, plan: Plan<T>) -> T {
    assert!(book.apply(&plan.writes));
    plan.answer
}

/// A node's side.
pub(super) struct Station {
    pub(super) identity: Identity,
    pub(super) wireguard: PrivateKey,
    pub(super) view: View,
    pub(super) name: String,
    pub(super) epoch: u64,
    clock_ms: u64,
    seed: u8,
}

impl Station {
    pub(super) fn new(seed: u8, coordinator: IdentityKey) -> Self {
        Self {
            identity: Identity::from_seed([seed; 32]),
            wireguard: PrivateKey::from_bytes([seed; 32]),
            view: View::new(coordinator),
            name: String::new(),
            epoch: 1,
            clock_ms: NOW,
            seed,
        }
    }

    pub(super) fn say(&self) -> NodeRecord {
        NodeRecord {
            identity: self.identity.public(),
            epoch: self.epoch,
            name: "node".to_owned(),
            wireguard: self.wireguard.public(),
            renewal: None,
            endpoints: vec![SocketAddr::from(([192, 0, 2, self.seed], 51820))],
            underlay: None,
            relay: None,
            plain: false,
            flows: Vec::new(),
            mode: Default::default(),
            unready: Default::default(),
        }
    }

    pub(super) fn record(&self) -> Signed<NodeRecord> {
        self.identity.sign(&self.say())
    }

    pub(super) fn request(&self, token: &Token) -> JoinRequest {
        JoinRequest {
            token: token.id.clone(),
            admission: token.admission(self.identity.public()),
            record: self.record(),
        }
    }

    pub(super) fn watch(&mut self) -> Signed<WatchRequest> {
        self.clock_ms += 1;
        self.identity.sign(&WatchRequest {
            identity: self.identity.public(),
            cursor: self.view.cursor(),
            at_ms: self.clock_ms,
        })
    }

    pub(super) fn rotate(&mut self) {
        self.epoch += 1;
        let mut seed = [self.seed; 32];
        seed[..8].copy_from_slice(&self.epoch.to_le_bytes());
        self.wireguard = PrivateKey::from_bytes(seed);
    }
}

/// Chance: SplitMix64.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Clone)]
enum Letter {
    Join(Box<JoinRequest>),
    Update(Signed<NodeRecord>),
    Watch(Signed<WatchRequest>),
    /// To a station.
    Joined(Box<JoinAnswer>),
    Frame(Arc<str>),
    Out(Refusal),
}

/// What a station is up to.
#[derive(PartialEq)]
enum Life {
    Waiting,
    Joined,
    Out,
}

struct World {
    chance: Chance,
    now_ms: u64,
    options: BookOptions,
    book: Option<Book>,
    disk: BTreeMap<String, Vec<u8>>,
    down_until: u64,
    stations: Vec<Station>,
    lives: Vec<Life>,
    skew: Vec<i64>,
    parted_until: Vec<u64>,
    asks_at: Vec<u64>,
    tokens: Vec<Token>,
    post: BTreeMap<(u64, u64), (Option<usize>, usize, Letter)>,
    letters: u64,
    old: Vec<(usize, Letter)>,
    revoked: BTreeMap<IdentityKey, u64>,
    silent_since: Vec<u64>,
    calm: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut chance = Chance(seed);
        let options = BookOptions {
            log: 6 + chance.below(30),
            grace: Duration::from_millis(GRACE_MS),
        };
        let coordinator = Identity::from_seed([200; 32]);
        let stations: Vec<_> = (1..=STATIONS as u8)
            .map(|s| Station::new(s, coordinator.public()))
            .collect();
        // Up to ten minutes wrong, either way.
        let skew = stations
            .iter()
            .map(|_| chance.below(1_200_000) as i64 - 600_000)
            .collect();
        let mut world = Self {
            chance,
            now_ms: NOW,
            options,
            book: Some(Book::new(coordinator, options, NOW)),
            disk: BTreeMap::new(),
            down_until: 0,
            lives: stations.iter().map(|_| Life::Waiting).collect(),
            skew,
            parted_until: vec![0; STATIONS],
            asks_at: vec![NOW; STATIONS],
            silent_since: vec![NOW; STATIONS],
            stations,
            tokens: Vec::new(),
            post: BTreeMap::new(),
            letters: 0,
            old: Vec::new(),
            revoked: BTreeMap::new(),
            calm: false,
        };
        for at in 0..STATIONS {
            let allows = NewToken {
                // The first three have a token each, the others share ephemeral ones.
                reuse: at >= 3,
                ephemeral: at >= 3,
                valid_seconds: Some(30 * 24 * 3600),
                ..NewToken::default()
            };
            let token = if at > 3 {
                world.tokens[3].clone()
            } else {
                let book = world.book.as_ref().unwrap();
                let plan = book.new_token(allows, "http://c", NOW).unwrap();
                world.commit(plan).unwrap()
            };
            world.tokens.push(token);
        }
        world
    }

    /// Writes a plan; the coordinator may die before or after.
    fn commit<T>(&mut self, plan: Plan<T>) -> Option<T> {
        let dies = !self.calm && self.now_ms > NOW && self.chance.percent(2);
        let before = dies && self.chance.percent(50);
        if !before {
            for write in &plan.writes {
                match write {
                    Write::Put(key, value) => self.disk.insert(key.clone(), value.clone()),
                    Write::Delete(key) => self.disk.remove(key),
                };
            }
        }
        if dies {
            self.book = None;
            self.down_until = self.now_ms + self.chance.below(20_000);
            return None;
        }
        let book = self.book.as_mut()?;
        assert!(book.apply(&plan.writes));
        Some(plan.answer)
    }

    fn restart(&mut self) {
        let mut book = Book::new(Identity::from_seed([200; 32]), self.options, self.now_ms);
        let writes: Vec<_> = self
            .disk
            .iter()
            .map(|(k, v)| Write::Put(k.clone(), v.clone()))
            .collect();
        assert!(book.apply(&writes));
        self.book = Some(book);
    }

    fn send(&mut self, from: Option<usize>, to: usize, letter: Letter) {
        if !self.calm {
            if self.chance.percent(10) {
                return;
            }
            if self.old.len() < 40 {
                self.old.push((to, letter.clone()));
            }
        }
        let copies = if self.chance.percent(5) { 2 } else { 1 };
        for _ in 0..copies {
            let slow = !self.calm && self.chance.percent(5);
            let at = self.now_ms + 1 + self.chance.below(if slow { 30_000 } else { 100 });
            self.letters += 1;
            self.post
                .insert((at, self.letters), (from, to, letter.clone()));
        }
    }

    fn parted(&self, station: usize) -> bool {
        self.parted_until[station] > self.now_ms
    }

    /// A letter from a station reaches the coordinator.
    fn serve(&mut self, station: usize, letter: Letter) {
        let now = self.now_ms;
        let Some(book) = self.book.as_mut() else {
            return;
        };
        let answer = match letter {
            Letter::Join(request) => match book.join(&request, now) {
                Ok(plan) => self
                    .commit(plan)
                    .map(|answer| Letter::Joined(Box::new(answer))),
                Err(refusal) => Some(Letter::Out(refusal)),
            },
            Letter::Update(record) => match book.update(&record) {
                Ok(plan) => {
                    self.commit(plan);
                    None
                }
                Err(_) => None,
            },
            Letter::Watch(request) => match book.hear(&request, now) {
                Ok(asked) => {
                    self.silent_since[station] = now;
                    let frame = book.frame(asked.cursor);
                    // Nobody is sent the whole map whom the log still reaches.
                    let next = format!("log/{:020}", asked.cursor + 1);
                    let reached = asked.cursor > 0 && self.disk.contains_key(&next);
                    let whole = frame
                        .as_ref()
                        .is_some_and(|text| text.contains("\\\"from\\\":null"));
                    assert!(!(whole && reached), "a whole map for {}", asked.cursor);
                    frame.map(Letter::Frame)
                }
                Err(refusal) => Some(Letter::Out(refusal)),
            },
            _ => None,
        };
        if let Some(answer) = answer {
            self.send(None, station, answer);
        }
    }

    /// A letter from the coordinator reaches a station.
    fn receive(&mut self, at: usize, letter: Letter) {
        let station = &mut self.stations[at];
        match letter {
            Letter::Joined(answer) if self.lives[at] == Life::Waiting => {
                // It may be the answer to another, played back.
                let voucher = answer.voucher.verify(&self.tokens[0].coordinator).unwrap();
                if voucher.identity == station.identity.public() {
                    station.name = voucher.name;
                    self.lives[at] = Life::Joined;
                }
            }
            Letter::Frame(text) => {
                let before = station.view.cursor();
                let Ok(frame) = serde_json::from_str(&text) else {
                    return;
                };
                if let Ok(applied) = station.view.apply(&frame) {
                    assert_eq!(applied.refused, 0);
                }
                assert!(station.view.cursor() >= before);
                for (identity, since) in &self.revoked {
                    let knows = station.view.node(identity).is_some();
                    assert!(
                        !knows || station.view.cursor() < *since,
                        "a revoked node came back"
                    );
                }
            }
            Letter::Out(Refusal::Revoked | Refusal::Unknown("node")) => {
                // Old words of a coordinator that did not know it yet do no harm: it asks again.
                if self.revoked.contains_key(&station.identity.public()) {
                    self.lives[at] = Life::Out;
                } else {
                    self.lives[at] = Life::Waiting;
                }
            }
            _ => {}
        }
    }

    fn ask(&mut self, at: usize) {
        // Once nothing is lost, asking often shows nothing more.
        let (least, spread) = if self.calm {
            (6_000, 6_000)
        } else {
            (1_000, 4_000)
        };
        self.asks_at[at] = self.now_ms + least + self.chance.below(spread);
        let wrong = self.now_ms.saturating_add_signed(self.skew[at]);
        let station = &mut self.stations[at];
        station.clock_ms = station.clock_ms.max(wrong);
        let letter = match self.lives[at] {
            Life::Out => return,
            Life::Waiting => Letter::Join(Box::new(station.request(&self.tokens[at]))),
            Life::Joined => Letter::Watch(station.watch()),
        };
        self.send(Some(at), at, letter);
        if self.lives[at] == Life::Joined && (self.calm || self.chance.percent(40)) {
            // Also says its own word again, as nobody acknowledges it.
            let record = self.stations[at].record();
            self.send(Some(at), at, Letter::Update(record));
        }
    }

    /// Something happens.
    fn disturb(&mut self) {
        let at = self.chance.below(STATIONS as u64) as usize;
        match self.chance.below(100) {
            0..=9 => self.stations[at].rotate(),
            10..=14 => self.parted_until[at] = self.now_ms + self.chance.below(200_000),
            15..=19 => {
                // It restarts from its cache.
                let station = &mut self.stations[at];
                let cache = station.view.to_cache();
                station.view = View::from_cache(self.tokens[0].coordinator, &cache);
            }
            20..=23 => {
                self.book = None;
                self.down_until = self.now_ms + self.chance.below(30_000);
            }
            // Somebody plays back what he saw, to whom it was sent or to another.
            24..=40 if !self.old.is_empty() => {
                let pick = self.chance.below(self.old.len() as u64) as usize;
                let (to, letter) = self.old[pick].clone();
                let to = if self.chance.percent(50) { at } else { to };
                let stations = matches!(letter, Letter::Joined(_) | Letter::Frame(_));
                let from = (!stations).then_some(to);
                if !matches!(letter, Letter::Out(_)) {
                    self.post
                        .insert((self.now_ms + 1, self.letters + 1), (from, to, letter));
                    self.letters += 1;
                }
            }
            41..=42 if self.revoked.len() < 2 => {
                let name = self.stations[at].name.clone();
                let identity = self.stations[at].identity.public();
                let plan = self.book.as_ref().and_then(|book| book.revoke(&name).ok());
                if let Some(plan) = plan.filter(|plan| plan.answer == identity) {
                    let seq = self.book.as_ref().map_or(0, Book::head) + 1;
                    self.commit(plan);
                    // It may have died before it wrote it.
                    if self.disk.contains_key(&format!("revoked/{identity}")) {
                        self.revoked.insert(identity, seq);
                    }
                }
            }
            43..=46 => {
                let text = format!("# {}\n", self.chance.next());
                let plan = self
                    .book
                    .as_ref()
                    .map(|book| book.set_policy(&text).unwrap());
                if let Some(plan) = plan {
                    self.commit(plan);
                }
            }
            _ => {}
        }
    }

    fn sweep(&mut self) {
        let now = self.now_ms;
        while let Some(plan) = self.book.as_ref().and_then(|book| book.sweep(now)) {
            let gone = plan.answer;
            let at = self
                .stations
                .iter()
                .position(|s| s.identity.public() == gone)
                .unwrap();
            assert!(at >= 3, "a lasting node was forgotten");
            assert!(
                now - self.silent_since[at] >= GRACE_MS.min(now - NOW),
                "a node that was heard of {} ms ago was forgotten",
                now - self.silent_since[at]
            );
            if self.commit(plan).is_none() {
                break;
            }
        }
    }

    fn step(&mut self, disturb: bool) {
        let next_post = self.post.keys().next().map_or(u64::MAX, |key| key.0);
        let next_ask = *self.asks_at.iter().min().unwrap();
        self.now_ms = self.now_ms.max(next_post.min(next_ask));
        if self.book.is_none() && self.now_ms >= self.down_until {
            self.restart();
        }
        if disturb && self.chance.percent(25) {
            self.disturb();
        }
        self.sweep();
        if next_ask <= next_post {
            let at = self.asks_at.iter().position(|at| *at == next_ask).unwrap();
            self.ask(at);
            return;
        }
        let Some((_, (from, to, letter))) = self.post.pop_first() else {
            return;
        };
        if self.parted(to) {
            return;
        }
        match from {
            Some(station) => {
                self.serve(station, letter);
            }
            None => self.receive(to, letter),
        }
    }

    fn calm_down(&mut self) {
        self.calm = true;
        self.parted_until = vec![0; STATIONS];
        if self.book.is_none() {
            self.restart();
        }
        let end = self.now_ms + 52_000;
        while self.now_ms < end {
            self.step(false);
        }
    }

    fn check(&self) {
        let book = self.book.as_ref().unwrap();
        let members = book.members();
        let live: BTreeSet<_> = (0..STATIONS)
            .filter(|at| self.lives[*at] != Life::Out)
            .map(|at| self.stations[at].identity.public())
            .collect();
        let known: BTreeSet<_> = members.iter().map(|m| m.voucher.identity).collect();
        assert_eq!(known, live, "who lives is in, and nobody else");
        let numbers: BTreeSet<_> = members.iter().map(|m| m.voucher.number).collect();
        let names: BTreeSet<_> = members.iter().map(|m| &m.voucher.name).collect();
        assert_eq!((numbers.len(), names.len()), (live.len(), live.len()));
        for (at, station) in self.stations.iter().enumerate() {
            if self.lives[at] == Life::Out {
                assert!(self.revoked.contains_key(&station.identity.public()));
                continue;
            }
            assert_eq!(
                station.view.cursor(),
                book.head(),
                "station {at} knows everything"
            );
            let seen: BTreeSet<_> = station
                .view
                .nodes()
                .map(|known| known.voucher.identity)
                .collect();
            assert_eq!(seen, live);
            assert_eq!(station.view.policy(), book.policy());
            assert_eq!(*station.view.services(), book.services());
            for known in station.view.nodes() {
                let there = self
                    .stations
                    .iter()
                    .find(|s| s.identity.public() == known.voucher.identity);
                assert_eq!(
                    known.record,
                    there.unwrap().say(),
                    "the last word of a node is known"
                );
            }
        }
        for token in book.tokens() {
            assert!(
                token.allows.reuse || token.uses <= 1,
                "a token for one was used twice"
            );
        }
    }
}

fn run(seed: u64) {
    let mut world = World::new(seed);
    for _ in 0..60 {
        world.step(true);
    }
    world.calm_down();
    world.check();
}

#[test]
fn simulation_converges_whatever_happens() {
    let (first, count) = match std::env::var("ATOLL_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
    {
        Some(seed) => (seed, 1),
        None => (0, 1000),
    };
    // Two threads share the seeds.
    std::thread::scope(|scope| {
        for half in 0..count.min(2) {
            scope.spawn(move || {
                for seed in (first + half..first + count).step_by(2) {
                    if let Err(panic) = std::panic::catch_unwind(|| run(seed)) {
                        eprintln!("the simulation failed: run it again with ATOLL_SEED={seed}");
                        std::panic::resume_unwind(panic);
                    }
                }
            });
        }
    });
}
