//! The coordinator's state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::message::{Change, Farewell, Frame, JoinAnswer, JoinRequest, WatchRequest};
use super::record::{Entry, Mode, NodeRecord, Voucher, label, overlay_v4, overlay_v6};
use super::service::ServiceNumbers;
use super::token::{NewToken, SandboxSeat, Token, TokenStatus, show_id, signer};
use crate::identity::{Identity, IdentityKey, Purpose, Signed};
use crate::key::PublicKey;
use crate::policy::{Mistake, Policy, for_nodes};

/// How far a node's clock may be from the coordinator's.
pub(super) const SKEW_MS: u64 = 15 * 60 * 1000;
/// How long a token is good for unless it says so itself.
const VALID_SECONDS: u64 = 24 * 3600;
/// The most nodes.
const MOST_NODES: usize = 100_000;

/// One key to write, or to remove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Set a key.
    Put(String, Vec<u8>),
    /// Remove it.
    Delete(String),
}

/// What a step answers, and what must be written before anybody is told.
#[derive(Debug, Clone)]
pub struct Plan<T> {
    /// The answer, true once everything is written.
    pub answer: T,
    /// What to write, all or nothing, and only if `head` is still what this book read; nothing if empty.
    pub writes: Vec<Write>,
}

/// Why a step is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The token does not exist, or its secret is another.
    #[error("the join token is not known")]
    Token,
    /// It is too late.
    #[error("the join token has expired")]
    Expired,
    /// Somebody joined with it.
    #[error("the join token was for one node and is used up")]
    UsedUp,
    /// The node was put out.
    #[error("this node was revoked")]
    Revoked,
    /// There is no such node, token or name.
    #[error("there is no such {0}")]
    Unknown(&'static str),
    /// A signature does not hold, or something is too long.
    #[error("what was sent is not signed by whom it names, or is too long")]
    Forged,
    /// It was seen before, or something later was.
    #[error("what was sent is old: something later came before")]
    Replayed,
    /// The node's clock differs too much.
    #[error("the node's clock is {0} s away from the coordinator's")]
    Clock(u64),
    /// The node knows of things that never were.
    #[error("the node knows of later changes than the coordinator, which has lost some")]
    Ahead,
    /// There is no room.
    #[error("there is no room for another node")]
    Full,
    /// What is asked for cannot be.
    #[error("{0}")]
    Invalid(String),
    /// The policy has mistakes.
    #[error("the policy has {} mistake(s)", .0.len())]
    Policy(Vec<Mistake>),
    /// The kernel gives no random numbers.
    #[error("there are no random numbers")]
    Random,
}

/// How a book is kept.
#[derive(Debug, Clone, Copy)]
pub struct BookOptions {
    /// How many changes back a node may come and go on where it was.
    pub log: u64,
    /// After how long without a word an ephemeral node has vanished.
    pub grace: Duration,
}

impl Default for BookOptions {
    fn default() -> Self {
        Self {
            log: 20_000,
            grace: Duration::from_secs(90),
        }
    }
}

/// How far the log is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    /// The last change.
    seq: u64,
    /// The last number that a node got.
    pub(super) number: u32,
}

/// What a change was about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Subject {
    Node(IdentityKey),
    Policy,
}

/// A node as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Member {
    entry: Entry,
    token: String,
    /// The sandbox that it is, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) sandbox: Option<String>,
}

/// A node as it is used.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) member: Member,
    pub(super) voucher: Voucher,
    record: NodeRecord,
}

/// What is remembered of a node only while this runs.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    /// By its own clock, in its last request.
    at_ms: u64,
    /// By the coordinator's.
    now_ms: u64,
    /// Whether it has a map.
    served: bool,
}

/// A node as administrators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// What the coordinator vouches for.
    #[serde(flatten)]
    pub voucher: Voucher,
    /// The key of its tunnels.
    pub wireguard: crate::PublicKey,
    /// Where it says that its tunnels can be reached.
    pub endpoints: Vec<std::net::SocketAddr>,
    /// Where it says that its carrier of flows can be reached.
    pub flows: Vec<std::net::SocketAddr>,
    /// How packets get in and out of it.
    pub mode: Mode,
    /// Whether it runs no Atoll.
    pub plain: bool,
    /// The services that it says it is not ready to give.
    pub unready: BTreeSet<String>,
    /// The token that it joined with.
    pub token: String,
    /// The sandbox that it is, if it is one.
    pub sandbox: Option<String>,
    /// When it was last heard of, in milliseconds since 1970, if it was since the coordinator started.
    pub seen_ms: Option<u64>,
}

/// The coordinator's state: plain data. Steps plan, [`Book::apply`] carries out what was written.
#[derive(Debug)]
pub struct Book {
    identity: Identity,
    public: IdentityKey,
    options: BookOptions,
    started_ms: u64,
    pub(super) head: Head,
    pub(super) nodes: BTreeMap<IdentityKey, Node>,
    pub(super) names: BTreeMap<String, IdentityKey>,
    /// Whose tunnels have which key.
    keys: BTreeMap<PublicKey, IdentityKey>,
    revoked: BTreeSet<IdentityKey>,
    pub(super) tokens: BTreeMap<String, TokenStatus>,
    policy: Option<String>,
    pub(super) services: ServiceNumbers,
    /// Whether policy or numbers were written since it was last looked whether they fit.
    pub(super) unsettled: AtomicBool,
    log: BTreeMap<u64, Vec<Subject>>,
    seen: BTreeMap<IdentityKey, Seen>,
    frames: BTreeMap<u64, Arc<str>>,
}

impl Book {
    /// A book without a page; [`Book::apply`] what was written before.
    pub fn new(identity: Identity, options: BookOptions, now_ms: u64) -> Self {
        Self {
            public: identity.public(),
            identity,
            options,
            started_ms: now_ms,
            head: Head::default(),
            nodes: BTreeMap::new(),
            names: BTreeMap::new(),
            keys: BTreeMap::new(),
            revoked: BTreeSet::new(),
            tokens: BTreeMap::new(),
            policy: None,
            services: ServiceNumbers::default(),
            unsettled: AtomicBool::new(false),
            log: BTreeMap::new(),
            seen: BTreeMap::new(),
            frames: BTreeMap::new(),
        }
    }

    /// Takes along what another book of the same coordinator remembers only while it runs: when it heard of whom.
    pub fn remember(&mut self, before: &Self) {
        self.started_ms = before.started_ms;
        let seen = before.seen.iter();
        let here = seen.filter(|(identity, _)| self.nodes.contains_key(identity));
        self.seen = here.map(|(identity, seen)| (*identity, *seen)).collect();
    }

    /// The coordinator's key.
    pub const fn key(&self) -> IdentityKey {
        self.public
    }

    /// The last change.
    pub const fn head(&self) -> u64 {
        self.head.seq
    }

    /// Carries out what was written. What is not understood is left out, with `false` as the answer.
    pub fn apply(&mut self, writes: &[Write]) -> bool {
        let mut understood = true;
        for write in writes {
            understood &= match write {
                Write::Put(key, value) => self.put(key, value).is_some(),
                Write::Delete(key) => self.delete(key).is_some(),
            };
        }
        self.frames.clear();
        understood
    }

    fn put(&mut self, key: &str, value: &[u8]) -> Option<()> {
        match key.split_once('/').unwrap_or((key, "")) {
            ("head", _) => self.head = serde_json::from_slice(value).ok()?,
            ("log", seq) => {
                let subjects = serde_json::from_slice(value).ok()?;
                self.log.insert(seq.parse().ok()?, subjects);
            }
            ("tokens", id) => {
                let token = serde_json::from_slice(value).ok()?;
                self.tokens.insert(id.to_owned(), token);
            }
            ("revoked", id) => {
                self.revoked.insert(id.parse().ok()?);
            }
            ("policy", _) => {
                self.policy = Some(serde_json::from_slice(value).ok()?);
                *self.unsettled.get_mut() = true;
            }
            ("services", _) => {
                self.services = serde_json::from_slice(value).ok()?;
                *self.unsettled.get_mut() = true;
            }
            ("nodes", id) => {
                let identity: IdentityKey = id.parse().ok()?;
                let member: Member = serde_json::from_slice(value).ok()?;
                let voucher = member.entry.voucher.verify(&self.public).ok()?;
                let record = member.entry.record.verify(&identity).ok()?;
                self.names.insert(voucher.name.clone(), identity);
                if let Some(old) = self.nodes.get(&identity) {
                    for key in old.record.keys() {
                        self.keys.remove(&key);
                    }
                }
                self.keys.extend(record.keys().map(|key| (key, identity)));
                let node = Node {
                    member,
                    voucher,
                    record,
                };
                self.nodes.insert(identity, node);
            }
            _ => return None,
        }
        Some(())
    }

    fn delete(&mut self, key: &str) -> Option<()> {
        match key.split_once('/')? {
            ("log", seq) => {
                self.log.remove(&seq.parse().ok()?);
            }
            ("tokens", id) => {
                self.tokens.remove(id);
            }
            ("nodes", id) => {
                let identity = id.parse().ok()?;
                if let Some(node) = self.nodes.remove(&identity) {
                    self.names.remove(&node.voucher.name);
                    for key in node.record.keys() {
                        self.keys.remove(&key);
                    }
                }
                self.seen.remove(&identity);
            }
            _ => return None,
        }
        Some(())
    }

    /// The writes of a step that changes what nodes are told of.
    pub(super) fn change(
        &self,
        subject: Subject,
        number: u32,
        mut writes: Vec<Write>,
    ) -> Vec<Write> {
        let head = Head {
            seq: self.head.seq + 1,
            number,
        };
        writes.push(put("head".to_owned(), &head));
        writes.push(put(log_key(head.seq), &[subject]));
        if let Some(old) = head
            .seq
            .checked_sub(self.options.log)
            .filter(|seq| *seq > 0)
        {
            writes.push(Write::Delete(log_key(old)));
        }
        writes
    }

    /// Makes a token. Its secret is in the answer and nowhere else.
    ///
    /// # Errors
    /// A tag is not one, the time is too long, or the address is no address.
    pub fn new_token(
        &self,
        allows: NewToken,
        url: &str,
        now_ms: u64,
    ) -> Result<Plan<Token>, Refusal> {
        self.token_for(allows, None, url, now_ms)
    }

    /// Makes a token, maybe for a sandbox.
    pub(super) fn token_for(
        &self,
        allows: NewToken,
        sandbox: Option<SandboxSeat>,
        url: &str,
        now_ms: u64,
    ) -> Result<Plan<Token>, Refusal> {
        if let Some(tag) = allows.tags.iter().find(|tag| label(tag) != **tag) {
            let cause = format!("{tag:?} is not a tag: use lower case letters, digits and hyphens");
            return Err(Refusal::Invalid(cause));
        }
        let seconds = allows.valid_seconds.unwrap_or(VALID_SECONDS);
        if allows.tags.len() > 32 || seconds == 0 || seconds > 366 * 24 * 3600 {
            let cause = "a token has at most 32 tags and is good for at most a year";
            return Err(Refusal::Invalid(cause.to_owned()));
        }
        let random = crate::key::random().map_err(|_| Refusal::Random)?;
        let mut secret = [0; 16];
        secret.copy_from_slice(&random[..16]);
        let mut id = [0; 8];
        id.copy_from_slice(&random[16..24]);
        let token = Token::new(&show_id(id), self.public, url, secret);
        let token = token
            .ok_or_else(|| Refusal::Invalid("the address is missing or too long".to_owned()))?;
        let status = TokenStatus {
            id: token.id.clone(),
            key: signer(&secret).public(),
            allows,
            sandbox,
            expires_ms: now_ms.saturating_add(seconds * 1000),
            uses: 0,
        };
        let mut writes = vec![put(format!("tokens/{}", status.id), &status)];
        // Those that nobody can join with any more go when new ones come.
        writes.extend(
            self.tokens
                .values()
                .filter(|old| old.expires_ms.saturating_add(7 * 24 * 3_600_000) < now_ms)
                .take(50)
                .map(|old| Write::Delete(format!("tokens/{}", old.id))),
        );
        Ok(Plan {
            answer: token,
            writes,
        })
    }

    /// Takes a token back. Nodes that joined with it stay.
    ///
    /// # Errors
    /// There is none.
    pub fn remove_token(&self, id: &str) -> Result<Plan<()>, Refusal> {
        if !self.tokens.contains_key(id) {
            return Err(Refusal::Unknown("token"));
        }
        Ok(Plan {
            answer: (),
            writes: vec![Write::Delete(format!("tokens/{id}"))],
        })
    }

    /// All tokens.
    pub fn tokens(&self) -> Vec<TokenStatus> {
        self.tokens.values().cloned().collect()
    }

    /// Lets a machine in, or says again that it is in.
    ///
    /// # Errors
    /// The token or the record is refused.
    pub fn join(&self, request: &JoinRequest, now_ms: u64) -> Result<Plan<JoinAnswer>, Refusal> {
        let record = own(&request.record)?;
        let identity = record.identity;
        if self.revoked.contains(&identity) {
            return Err(Refusal::Revoked);
        }
        let token = self.tokens.get(&request.token).ok_or(Refusal::Token)?;
        let shown = request.admission.verify(&token.key);
        let shown = shown.map_err(|_| Refusal::Token)?;
        if shown.token != token.id || shown.identity != identity {
            return Err(Refusal::Token);
        }
        let known = self.nodes.get(&identity);
        if let Some(node) = known.filter(|node| node.member.token == token.id) {
            let answer = JoinAnswer {
                voucher: node.member.entry.voucher.clone(),
            };
            // A join that is played back changes nothing.
            let writes = match self.update(&request.record) {
                Ok(plan) => plan.writes,
                Err(_) => Vec::new(),
            };
            return Ok(Plan { answer, writes });
        }
        if now_ms >= token.expires_ms {
            return Err(Refusal::Expired);
        }
        if !token.allows.reuse && token.uses > 0 {
            return Err(Refusal::UsedUp);
        }
        if known.is_none() && self.nodes.len() >= MOST_NODES {
            return Err(Refusal::Full);
        }
        if known.is_some_and(|node| node.record.epoch > record.epoch) {
            return Err(Refusal::Replayed);
        }
        self.own_key(&record)?;
        let number = match known {
            Some(node) => node.voucher.number,
            None => self.free_number().ok_or(Refusal::Full)?,
        };
        let voucher = Voucher {
            identity,
            number,
            name: match (known, &token.sandbox) {
                (Some(node), _) => node.voucher.name.clone(),
                (None, Some(sandbox)) => self.seat(sandbox)?,
                (None, None) => self.free_name(&record.name),
            },
            v4: overlay_v4(number).ok_or(Refusal::Full)?,
            v6: overlay_v6(&self.public, number),
            tags: token.allows.tags.clone(),
            ephemeral: token.allows.ephemeral,
        };
        let voucher = self.identity.sign(&voucher);
        let member = Member {
            entry: Entry {
                voucher: voucher.clone(),
                record: request.record.clone(),
            },
            token: token.id.clone(),
            sandbox: token.sandbox.as_ref().map(|sandbox| sandbox.id.clone()),
        };
        let used = TokenStatus {
            uses: token.uses + 1,
            ..token.clone()
        };
        let writes = vec![
            put(format!("tokens/{}", token.id), &used),
            put(node_key(&identity), &member),
        ];
        Ok(Plan {
            answer: JoinAnswer { voucher },
            writes: self.change(
                Subject::Node(identity),
                self.head.number.max(number),
                writes,
            ),
        })
    }

    /// The next number, or once all were given out, the lowest that nobody has.
    fn free_number(&self) -> Option<u32> {
        let next = self.head.number + 1;
        if overlay_v4(next).is_some() {
            return Some(next);
        }
        let taken: BTreeSet<_> = self
            .nodes
            .values()
            .map(|node| node.voucher.number)
            .collect();
        (1..next).find(|number| !taken.contains(number))
    }

    fn free_name(&self, wanted: &str) -> String {
        let wanted = label(wanted);
        if !self.names.contains_key(&wanted) {
            return wanted;
        }
        (2_u64..)
            .map(|number| format!("{wanted}-{number}"))
            .find(|name| !self.names.contains_key(name))
            .unwrap_or(wanted)
    }

    /// A node says something else of itself: another key, other endpoints.
    ///
    /// # Errors
    /// It is no node's word, or an old one.
    pub fn update(&self, record: &Signed<NodeRecord>) -> Result<Plan<()>, Refusal> {
        let said = own(record)?;
        let node = self.member(&said.identity)?;
        if node.member.entry.record == *record {
            return Ok(Plan {
                answer: (),
                writes: Vec::new(),
            });
        }
        if said.epoch <= node.record.epoch {
            return Err(Refusal::Replayed);
        }
        self.own_key(&said)?;
        let mut member = node.member.clone();
        member.entry.record = record.clone();
        let writes = vec![put(node_key(&said.identity), &member)];
        Ok(Plan {
            answer: (),
            writes: self.change(Subject::Node(said.identity), self.head.number, writes),
        })
    }

    /// A node that names another's key would take the tunnel to that one away from everybody.
    fn own_key(&self, record: &NodeRecord) -> Result<(), Refusal> {
        let mut owners = record.keys().filter_map(|key| self.keys.get(&key));
        if owners.any(|owner| *owner != record.identity) {
            let cause = "another node's tunnels have this key";
            return Err(Refusal::Invalid(cause.to_owned()));
        }
        Ok(())
    }

    pub(super) fn member(&self, identity: &IdentityKey) -> Result<&Node, Refusal> {
        if self.revoked.contains(identity) {
            return Err(Refusal::Revoked);
        }
        self.nodes.get(identity).ok_or(Refusal::Unknown("node"))
    }

    /// Puts a node out, by its name or identity, for good.
    ///
    /// # Errors
    /// There is none.
    pub fn revoke(&self, name: &str) -> Result<Plan<IdentityKey>, Refusal> {
        let by_name = self.names.get(name).copied();
        let identity = by_name.or_else(|| name.parse().ok());
        let identity = identity.filter(|identity| self.nodes.contains_key(identity));
        let identity = identity.ok_or(Refusal::Unknown("node"))?;
        let writes = vec![
            Write::Delete(node_key(&identity)),
            Write::Put(format!("revoked/{identity}"), b"true".to_vec()),
        ];
        Ok(Plan {
            answer: identity,
            writes: self.change(Subject::Node(identity), self.head.number, writes),
        })
    }

    /// Forgets one ephemeral node that has vanished, if there is one. Only one that had a map can vanish.
    pub fn sweep(&self, now_ms: u64) -> Option<Plan<IdentityKey>> {
        let grace = u64::try_from(self.options.grace.as_millis()).unwrap_or(u64::MAX);
        let gone = self.nodes.values().find(|node| {
            let identity = &node.voucher.identity;
            let seen = self.seen.get(identity).copied().unwrap_or_default();
            // One that never came for its map gets ten times as long: it may be starting.
            let grace = if seen.served {
                grace
            } else {
                grace.saturating_mul(10)
            };
            let last = seen.now_ms.max(self.started_ms);
            // A sandbox ends with `release`: while it is paused, it is silent.
            let ephemeral = node.voucher.ephemeral && node.member.sandbox.is_none();
            ephemeral && now_ms.saturating_sub(last) > grace
        })?;
        let identity = gone.voucher.identity;
        let writes = vec![Write::Delete(node_key(&identity))];
        Some(Plan {
            answer: identity,
            writes: self.change(Subject::Node(identity), self.head.number, writes),
        })
    }

    /// Takes another policy, once its own tests pass.
    ///
    /// # Errors
    /// It has mistakes, or a test of its own fails.
    pub fn set_policy(&self, text: &str) -> Result<Plan<()>, Refusal> {
        let policy = Policy::parse(text).map_err(Refusal::Policy)?;
        policy.test().map_err(Refusal::Policy)?;
        let mut writes = vec![put("policy".to_owned(), &text)];
        writes.extend(self.number_services(&policy));
        Ok(Plan {
            answer: (),
            writes: self.change(Subject::Policy, self.head.number, writes),
        })
    }

    /// The policy's text.
    pub fn policy(&self) -> Option<&str> {
        self.policy.as_deref()
    }

    /// Signs an answer to a node.
    pub fn sign<T: Purpose + Serialize>(&self, answer: &T) -> Signed<T> {
        self.identity.sign(answer)
    }

    /// Checks who asks for changes, and notes that the node lives. The answer is its cursor.
    ///
    /// # Errors
    /// It is no node, the request was seen before, or the clocks differ too much.
    pub fn hear(
        &mut self,
        request: &Signed<WatchRequest>,
        now_ms: u64,
    ) -> Result<WatchRequest, Refusal> {
        let asked = request.check()?;
        self.note(&asked, now_ms)?;
        Ok(asked)
    }

    /// As [`Book::hear`], for a request that was [checked](Signed::check) already.
    ///
    /// # Errors
    /// It is no node, the request was seen before, or the clocks differ too much.
    pub fn note(&mut self, asked: &WatchRequest, now_ms: u64) -> Result<(), Refusal> {
        self.member(&asked.identity)?;
        if asked.at_ms.abs_diff(now_ms) > SKEW_MS {
            return Err(Refusal::Clock(asked.at_ms.abs_diff(now_ms) / 1000));
        }
        let seen = self.seen.entry(asked.identity).or_default();
        if asked.at_ms <= seen.at_ms {
            return Err(Refusal::Replayed);
        }
        // Not noted: it may be asked again once this book was read anew.
        if asked.cursor > self.head.seq {
            return Err(Refusal::Ahead);
        }
        *seen = Seen {
            at_ms: asked.at_ms,
            now_ms,
            served: seen.served || asked.cursor > 0,
        };
        Ok(())
    }

    /// What to answer who asks for changes and is in no more; `None` if he is in, or is not who he says.
    pub fn farewell(&self, request: &Signed<WatchRequest>) -> Option<Signed<Farewell>> {
        let asked = request.verify_own(|asked| asked.identity).ok()?;
        let revoked = match self.member(&asked.identity) {
            Ok(_) => return None,
            Err(refusal) => refusal == Refusal::Revoked,
        };
        Some(self.identity.sign(&Farewell {
            identity: asked.identity,
            at_ms: asked.at_ms,
            revoked,
        }))
    }

    /// Notes that a node still waits for changes.
    pub fn still_there(&mut self, identity: &IdentityKey, now_ms: u64) -> Result<(), Refusal> {
        self.member(identity)?;
        self.seen.entry(*identity).or_default().now_ms = now_ms;
        Ok(())
    }

    /// What changed since, signed and encoded, once for all who ask from there; `None` if nothing did.
    pub fn frame(&mut self, cursor: u64) -> Option<Arc<str>> {
        if cursor >= self.head.seq {
            return None;
        }
        if let Some(frame) = self.frames.get(&cursor) {
            return Some(Arc::clone(frame));
        }
        let reaches = cursor > 0 && self.log.contains_key(&(cursor + 1));
        let frame = if reaches {
            let subjects: BTreeSet<_> = self.log.range(cursor + 1..).flat_map(|(_, s)| s).collect();
            Frame {
                services: self.told_services(subjects.contains(&Subject::Policy)),
                from: Some(cursor),
                to: self.head.seq,
                changes: subjects
                    .into_iter()
                    .filter_map(|s| self.present(s))
                    .collect(),
            }
        } else {
            let nodes = self.nodes.keys().copied().map(Subject::Node);
            let subjects = nodes.chain([Subject::Policy]);
            Frame {
                services: self.told_services(true),
                from: None,
                to: self.head.seq,
                changes: subjects.filter_map(|s| self.present(&s)).collect(),
            }
        };
        let frame: Arc<str> = serde_json::to_string(&self.identity.sign(&frame))
            .ok()?
            .into();
        // Those who are far behind are few; a whole map is the same for all of them.
        if self.frames.len() < 64 {
            self.frames.insert(cursor, Arc::clone(&frame));
        }
        Some(frame)
    }

    /// What a subject is now.
    fn present(&self, subject: &Subject) -> Option<Change> {
        match subject {
            Subject::Node(identity) => Some(match self.nodes.get(identity) {
                Some(node) => Change::Node(Box::new(node.member.entry.clone())),
                None => Change::Gone(*identity),
            }),
            Subject::Policy => {
                let text = self.policy.as_deref();
                text.map(|text| Change::Policy(for_nodes(text).into_owned()))
            }
        }
    }

    /// All nodes.
    pub fn members(&self) -> Vec<MemberStatus> {
        let show = |node: &Node| MemberStatus {
            voucher: node.voucher.clone(),
            wireguard: node.record.tunnel(),
            endpoints: node.record.endpoints.clone(),
            flows: node.record.flows.clone(),
            mode: node.record.mode,
            plain: node.record.plain,
            unready: node.record.unready.clone(),
            token: node.member.token.clone(),
            sandbox: node.member.sandbox.clone(),
            seen_ms: self
                .seen
                .get(&node.voucher.identity)
                .map(|seen| seen.now_ms),
        };
        self.nodes.values().map(show).collect()
    }
}

/// What a node says of itself, if it is itself who says it.
fn own(record: &Signed<NodeRecord>) -> Result<NodeRecord, Refusal> {
    let said = record.verify_own(|said| said.identity);
    said.ok().filter(NodeRecord::bounded).ok_or(Refusal::Forged)
}

pub(super) fn put<T: Serialize + ?Sized>(key: String, value: &T) -> Write {
    Write::Put(key, serde_json::to_vec(value).unwrap_or_default())
}

pub(super) fn node_key(identity: &IdentityKey) -> String {
    format!("nodes/{identity}")
}

fn log_key(seq: u64) -> String {
    format!("log/{seq:020}")
}
