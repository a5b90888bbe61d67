//! Simulated nodes: they join, ask for what changed, and come back after the coordinator was away, as real ones do. They have no data plane.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mesh::PublicKey;
use mesh::coordination::{
    Frame, Identity, IdentityKey, JoinRequest, Mode, NodeRecord, Signed, Token, WatchRequest,
};
use tokio::sync::Notify;

use crate::http::Http;
use crate::lab::Outcome;

/// Nodes that ask from one address of this machine.
const GROUP: usize = 2000;
/// As real nodes wait before they ask again.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// When a node that heard nothing signs its next question ahead: real ones sign on their own machines, while others still hear.
const QUIET: Duration = Duration::from_millis(1500);

/// What all nodes share.
pub(crate) struct Mesh {
    pub(crate) at: SocketAddr,
    pub(crate) coordinator: IdentityKey,
    /// When which node heard of the change that is looked for: one that leads to at least so far.
    wanted: AtomicU64,
    heard: Mutex<Vec<(Instant, usize)>>,
    waiting: AtomicUsize,
    back: Mutex<Vec<Instant>>,
    pub(crate) whole: AtomicUsize,
    /// Why nodes had to try again, and how often.
    failures: Mutex<BTreeMap<String, usize>>,
    pub(crate) news: Notify,
    last: Mutex<Checked>,
}

/// A frame whose signature was looked at: all get the same, so one look is enough.
#[derive(Clone, Default)]
struct Checked {
    text: Arc<[u8]>,
    from: Option<u64>,
    to: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

impl Mesh {
    pub(crate) fn new(at: SocketAddr, coordinator: IdentityKey) -> Self {
        Self {
            at,
            coordinator,
            wanted: AtomicU64::new(u64::MAX),
            heard: Mutex::default(),
            waiting: AtomicUsize::new(0),
            back: Mutex::default(),
            whole: AtomicUsize::new(0),
            failures: Mutex::default(),
            news: Notify::new(),
            last: Mutex::default(),
        }
    }

    /// From now on it is noted who hears of this change.
    pub(crate) fn want(&self, change: u64) {
        lock(&self.heard).clear();
        self.wanted.store(change, Ordering::Relaxed);
    }

    /// When each heard of it, and with how many bytes.
    pub(crate) fn heard(&self) -> Vec<(Instant, usize)> {
        lock(&self.heard).clone()
    }

    pub(crate) fn heard_by(&self) -> usize {
        lock(&self.heard).len()
    }

    /// How many wait for changes now, as far as they have asked.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// When each was answered again after the coordinator was away.
    pub(crate) fn back(&self) -> Vec<Instant> {
        lock(&self.back).clone()
    }

    pub(crate) fn back_count(&self) -> usize {
        lock(&self.back).len()
    }

    /// Why nodes had to try again, and how often.
    pub(crate) fn failures(&self) -> String {
        let all = lock(&self.failures);
        let all = all.iter().map(|(why, times)| format!("{times} x {why}"));
        all.collect::<Vec<_>>().join("; ")
    }

    pub(crate) fn forget_back(&self) {
        lock(&self.back).clear();
    }

    fn check(&self, text: Vec<u8>) -> Outcome<Checked> {
        let last = lock(&self.last).clone();
        if *last.text == *text {
            return Ok(last);
        }
        let frame: Signed<Frame> = serde_json::from_slice(&text)?;
        let frame = frame.verify(&self.coordinator)?;
        let checked = Checked {
            text: text.into(),
            from: frame.from,
            to: frame.to,
        };
        *lock(&self.last) = checked.clone();
        Ok(checked)
    }
}

/// One of them.
#[derive(Clone)]
pub(crate) struct SimulatedNode {
    number: usize,
    identity: Identity,
    record: NodeRecord,
    said: String,
    pub(crate) cursor: u64,
    last_ms: u64,
}

impl SimulatedNode {
    pub(crate) fn new(number: usize) -> Outcome<Self> {
        let identity = Identity::generate()?;
        let public = identity.public();
        let place = SocketAddr::from(([192, 0, 2, 1], 51_820));
        let record = NodeRecord {
            identity: public,
            epoch: 1,
            name: format!("node-{number}"),
            // A key of tunnels that nobody uses.
            wireguard: PublicKey::from_bytes(*public.as_bytes()),
            renewal: None,
            endpoints: vec![place],
            flows: vec![place],
            underlay: Some(PublicKey::from_bytes(*public.as_bytes())),
            relay: None,
            plain: false,
            mode: Mode::Tun,
            unready: Default::default(),
        };
        Ok(Self {
            number,
            said: serde_json::to_string(&identity.sign(&record))?,
            identity,
            record,
            cursor: 0,
            last_ms: 0,
        })
    }

    pub(crate) fn connect(&self, at: SocketAddr) -> impl Future<Output = Outcome<Http>> + Send {
        Http::connect(at, (self.number / GROUP) as u8)
    }

    pub(crate) fn join(&self, token: &Token) -> Outcome<String> {
        Ok(serde_json::to_string(&JoinRequest {
            token: token.id.clone(),
            admission: token.admission(self.identity.public()),
            record: self.identity.sign(&self.record),
        })?)
    }

    /// Something else to say of itself.
    pub(crate) fn change(&mut self) -> Outcome<&str> {
        self.record.epoch += 1;
        self.said = serde_json::to_string(&self.identity.sign(&self.record))?;
        Ok(&self.said)
    }

    /// A question for what changed since.
    pub(crate) fn question(&mut self, cursor: u64) -> Outcome<String> {
        self.last_ms = now_ms().max(self.last_ms + 1);
        Ok(serde_json::to_string(&self.identity.sign(&WatchRequest {
            identity: self.identity.public(),
            cursor,
            at_ms: self.last_ms,
        }))?)
    }

    /// Lives until the task is dropped.
    pub(crate) async fn live(mut self, mesh: Arc<Mesh>) {
        let mut pause = FIRST_PAUSE;
        let mut first = true;
        loop {
            let lived = self.follow(&mesh, &mut first, &mut pause).await;
            if let Err(error) = lived {
                let _ = lock(&mesh.failures)
                    .entry(error.to_string())
                    .and_modify(|times| *times += 1)
                    .or_insert(1);
            }
            first = false;
            // Not all at once when it is back, as in real nodes.
            let turn = u32::from(self.identity.public().as_bytes()[0]);
            tokio::time::sleep(pause / 2 + pause * turn / 510).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// As long as the coordinator is there.
    async fn follow(&mut self, mesh: &Mesh, first: &mut bool, pause: &mut Duration) -> Outcome<()> {
        let mut http = self.connect(mesh.at).await?;
        if !*first {
            // A real node says again what it said.
            let answer = http.post("/v1/mesh/record", &self.said, None).await?;
            if answer.status != 204 {
                return Err(format!("a record is answered with {}", answer.status).into());
            }
            lock(&mesh.back).push(Instant::now());
            mesh.news.notify_one();
        }
        *pause = FIRST_PAUSE;
        let mut ahead: Option<(u64, String)> = None;
        loop {
            let question = match ahead.take().filter(|(cursor, _)| *cursor == self.cursor) {
                Some((_, question)) => question,
                None => self.question(self.cursor)?,
            };
            http.ask("/v1/mesh/watch", &question, None).await?;
            let answer = match tokio::time::timeout(QUIET, http.answer()).await {
                Ok(answer) => answer,
                Err(_) => {
                    ahead = Some((self.cursor + 1, self.question(self.cursor + 1)?));
                    mesh.waiting.fetch_add(1, Ordering::Relaxed);
                    let answer = http.answer().await;
                    mesh.waiting.fetch_sub(1, Ordering::Relaxed);
                    answer
                }
            };
            let now = Instant::now();
            let answer = answer?;
            match answer.status {
                204 => {}
                200 => {
                    let size = answer.body.len();
                    let frame = mesh.check(answer.body)?;
                    match frame.from {
                        None => _ = mesh.whole.fetch_add(1, Ordering::Relaxed),
                        Some(from) if from != self.cursor => return Err("a gap".into()),
                        Some(_) => {}
                    }
                    let wanted = mesh.wanted.load(Ordering::Relaxed);
                    if self.cursor < wanted && frame.to >= wanted {
                        lock(&mesh.heard).push((now, size));
                        mesh.news.notify_one();
                    }
                    self.cursor = frame.to;
                }
                status => return Err(format!("a question is answered with {status}").into()),
            }
        }
    }
}
