//! When the key of a node's tunnels is exchanged, and what is kept of it.
//!
//! ```text
//! one key ──► announced: the next one is in the node's record, and answered to
//!    ▲            │ the coordinator told it, and all who speak with this node use it; or it took too long
//!    │            ▼
//!    └─────── exchanged: the next one is the present one, the other is still answered to for a while
//! ```
//!
//! Every step is on disk before anybody is told of it, so whatever a record names is answered to also after `kill -9`. The name that the engine and relays know the node by
//! stays its first key, which no tunnel uses any more.

use std::sync::PoisonError;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Live, Node, now_ms};
use crate::coordination::Renewal;
use crate::crypto::OwnKeys;
use crate::error::Error;
use crate::key::{PrivateKey, PublicKey};

/// How long a session lives (section 6.1 of the WireGuard paper): who has none since then speaks with nobody.
const SESSION: Duration = Duration::from_secs(180);
/// How often it is looked whether something is due.
const LOOK: Duration = Duration::from_secs(1);

/// When keys are exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RotationTimes {
    /// How often, if all who may be spoken with can be told; `None` for only on demand.
    pub every: Option<Duration>,
    /// How long the next key is announced at least.
    pub least: Duration,
    /// How long it is announced at most, and how long the old one is answered to after that.
    pub most: Duration,
}

impl Default for RotationTimes {
    fn default() -> Self {
        Self {
            every: Some(Duration::from_secs(7 * 24 * 3600)),
            least: Duration::from_secs(10),
            most: Duration::from_secs(600),
        }
    }
}

/// How far an exchange of keys is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RotationPhase {
    /// There is one key.
    Settled,
    /// The next one is announced.
    Announced,
    /// It is in its place; the other is still answered to.
    Exchanged,
}

/// The key of a node's tunnels as it shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotationStatus {
    /// The key that peers use, in base64.
    pub key: String,
    /// How far an exchange is.
    pub phase: RotationPhase,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
    /// Nodes and peers that cannot be told of another key: none is made by itself while there are some.
    pub unable: Vec<String>,
}

/// The keys besides the one that the node began with.
#[derive(Debug, Clone, Default)]
pub struct Rotation {
    /// The one that took its place.
    pub present: Option<PrivateKey>,
    /// The one that is announced.
    pub next: Option<PrivateKey>,
    /// The one that was used before.
    pub retired: Option<PrivateKey>,
    /// When this last changed, in milliseconds since 1970.
    pub since_ms: u64,
}

/// The same on disk.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct RotationFile {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    present: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retired: Option<String>,
    since_ms: u64,
}

/// What is done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Announce,
    Exchange,
    Forget,
}

/// What a step depends on.
#[derive(Debug, Clone, Copy)]
struct Facts {
    now_ms: u64,
    times: RotationTimes,
    /// Whether the coordinator tells others what this node says of its keys.
    told: bool,
    /// Whether all who speak with this node use its newest key.
    moved: bool,
    /// Whether somebody cannot be told of another key.
    unable: bool,
    /// Whether an exchange was asked for.
    wanted: bool,
}

fn write(key: Option<&PrivateKey>) -> Option<String> {
    key.map(PrivateKey::to_base64)
}

impl Rotation {
    pub(super) fn to_file(&self) -> RotationFile {
        RotationFile {
            present: write(self.present.as_ref()),
            next: write(self.next.as_ref()),
            retired: write(self.retired.as_ref()),
            since_ms: self.since_ms,
        }
    }

    pub(super) fn from_file(file: &RotationFile) -> Result<Self, Error> {
        let read = |key: &Option<String>| key.as_ref().map(|key| key.parse()).transpose();
        Ok(Self {
            present: read(&file.present)?,
            next: read(&file.next)?,
            retired: read(&file.retired)?,
            since_ms: file.since_ms,
        })
    }

    /// The keys that this node answers to. `name` is the one that it began with.
    pub(super) fn own_keys(&self, name: &PrivateKey) -> OwnKeys {
        OwnKeys {
            present: self.present.as_ref().unwrap_or(name).clone(),
            next: self.next.clone(),
            retired: self.retired.clone(),
        }
    }

    /// What the node's record says of them.
    pub(super) fn renewal(&self) -> Renewal {
        Renewal {
            present: self.present.as_ref().map(PrivateKey::public),
            next: self.next.as_ref().map(PrivateKey::public),
        }
    }

    const fn phase(&self) -> RotationPhase {
        match (&self.next, &self.retired) {
            (Some(_), _) => RotationPhase::Announced,
            (None, Some(_)) => RotationPhase::Exchanged,
            (None, None) => RotationPhase::Settled,
        }
    }

    /// What is due.
    fn due(&self, facts: &Facts) -> Option<Step> {
        let age = Duration::from_millis(facts.now_ms.saturating_sub(self.since_ms));
        let times = &facts.times;
        match self.phase() {
            RotationPhase::Settled => {
                let by_itself = times.every.is_some_and(|every| age >= every) && !facts.unable;
                (facts.wanted || by_itself).then_some(Step::Announce)
            }
            RotationPhase::Announced => {
                let moved = facts.moved && age >= times.least;
                (facts.told && (moved || age >= times.most)).then_some(Step::Exchange)
            }
            RotationPhase::Exchanged => (facts.told && age >= times.most).then_some(Step::Forget),
        }
    }

    /// Takes a step.
    fn take(&self, step: Step, name: &PrivateKey, fresh: PrivateKey, now_ms: u64) -> Self {
        let mut after = self.clone();
        after.since_ms = now_ms;
        match step {
            Step::Announce => after.next = Some(fresh),
            Step::Exchange => {
                after.retired = Some(self.own_keys(name).present);
                after.present = after.next.take();
            }
            Step::Forget => after.retired = None,
        }
        after
    }
}

impl Node {
    /// Who may be spoken with through tunnels and cannot be told of another key.
    fn unable(&self, live: &Live) -> Vec<String> {
        let peers = live.current.peers.values();
        let unable = peers.filter(|peer| peer.mode.is_tun() && !peer.renews());
        unable.map(|peer| peer.name.clone()).collect()
    }

    /// The key of this node's tunnels, if it has some.
    pub fn rotation(&self) -> Option<RotationStatus> {
        self.carriers.engine()?;
        let live = self.live();
        let unable = self.unable(&live);
        let state = self.state();
        Some(RotationStatus {
            key: state.own_keys().present.public().to_string(),
            phase: state.rotation.phase(),
            since_ms: state.rotation.since_ms,
            unable,
        })
    }

    /// Makes a new key for tunnels now, unless that is under way. Who cannot be told keeps speaking with the old one for ten minutes, and with none after that.
    pub fn rotate(&self) {
        *self.wanted.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Takes the steps that are due, for as long as the node runs.
    pub(super) async fn follow_keys(&self) -> std::convert::Infallible {
        loop {
            tokio::time::sleep(LOOK).await;
            if let Err(error) = self.turn_keys() {
                tracing::warn!("the key of the tunnels is not exchanged: {error}");
            }
        }
    }

    fn turn_keys(&self) -> Result<(), super::NodeError> {
        let Some(engine) = self.carriers.engine() else {
            return Ok(());
        };
        let live = self.live();
        let unable = !self.unable(&live).is_empty();
        let mut state = self.state();
        if state.rotation.since_ms == 0 {
            // Of a version that exchanged none: it begins now.
            state.rotation.since_ms = now_ms();
            state.save()?;
        }
        let renewal = Some(state.rotation.renewal());
        let own = live.view.node(&self.voucher.identity);
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let facts = Facts {
            now_ms: now_ms(),
            times: self.times,
            told: live.connected && own.is_some_and(|own| own.record.renewal == renewal),
            moved: engine.peers().iter().all(|peer| {
                let speaks = peer.last_handshake.is_some_and(|ago| ago < SESSION);
                peer.renewed || !speaks
            }),
            unable,
            wanted: std::mem::take(&mut wanted),
        };
        drop(wanted);
        let Some(step) = state.rotation.due(&facts) else {
            return Ok(());
        };
        let fresh = PrivateKey::generate()?;
        let after = state
            .rotation
            .take(step, &state.wireguard, fresh, facts.now_ms);
        let before = std::mem::replace(&mut state.rotation, after);
        // Forgetting a key is nothing that others are told.
        let says = step != Step::Forget;
        state.epoch += u64::from(says);
        if let Err(error) = state.save() {
            state.rotation = before;
            return Err(error.into());
        }
        tracing::info!(?step, "the key of the tunnels");
        self.carriers.set_keys(&state.own_keys());
        drop((state, live));
        if says {
            self.say();
        }
        Ok(())
    }
}

/// The keys of a node's tunnels as its record says: the one that it surely answers to first.
pub(super) fn tunnels(wireguard: PublicKey, renewal: Option<&Renewal>) -> Vec<PublicKey> {
    let present = renewal.and_then(|renewal| renewal.present);
    let next = renewal.and_then(|renewal| renewal.next);
    std::iter::once(present.unwrap_or(wireguard))
        .chain(next)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600 * 1000;

    fn key(seed: u8) -> PrivateKey {
        PrivateKey::from_bytes([seed; 32])
    }

    fn facts(now_ms: u64) -> Facts {
        Facts {
            now_ms,
            times: RotationTimes::default(),
            told: true,
            moved: true,
            unable: false,
            wanted: false,
        }
    }

    #[test]
    fn a_key_is_exchanged_when_it_is_due_or_asked_for() {
        let rotation = Rotation {
            since_ms: 1,
            ..Rotation::default()
        };
        assert_eq!(rotation.due(&facts(6 * DAY)), None);
        assert_eq!(rotation.due(&facts(8 * DAY)), Some(Step::Announce));
        let unable = Facts {
            unable: true,
            ..facts(8 * DAY)
        };
        assert_eq!(rotation.due(&unable), None, "somebody cannot be told");
        let asked = Facts {
            wanted: true,
            ..unable
        };
        assert_eq!(rotation.due(&asked), Some(Step::Announce));
    }

    #[test]
    fn nothing_is_given_up_before_others_were_told() {
        let name = key(1);
        let announced = Rotation::default().take(Step::Announce, &name, key(2), DAY);
        assert_eq!(announced.phase(), RotationPhase::Announced);
        let late = DAY + 601_000;
        for (now_ms, told, moved, step) in [
            (DAY + 9_000, true, true, None),
            (DAY + 11_000, true, true, Some(Step::Exchange)),
            (DAY + 11_000, true, false, None),
            (late, true, false, Some(Step::Exchange)),
            (late, false, true, None),
        ] {
            let facts = Facts {
                told,
                moved,
                ..facts(now_ms)
            };
            assert_eq!(announced.due(&facts), step, "{now_ms} {told} {moved}");
        }
        let exchanged = announced.take(Step::Exchange, &name, key(3), late);
        assert_eq!(exchanged.own_keys(&name).present.public(), key(2).public());
        assert_eq!(exchanged.due(&facts(late + 599_000)), None);
        let untold = Facts {
            told: false,
            ..facts(late + 601_000)
        };
        assert_eq!(exchanged.due(&untold), None);
        assert_eq!(exchanged.due(&facts(late + 601_000)), Some(Step::Forget));
    }

    /// Whatever two records after each other name is answered to by who reads what the disk has at that moment.
    #[test]
    fn what_is_on_disk_answers_to_what_was_said() {
        let name = key(1);
        let mut rotation = Rotation::default();
        let mut said = Renewal::default();
        let steps = [Step::Announce, Step::Exchange, Step::Forget];
        for (turn, step) in (2_u8..).zip(steps.into_iter().cycle().take(9)) {
            let after = rotation.take(step, &name, key(turn), u64::from(turn));
            let text = serde_json::to_string(&after.to_file()).unwrap();
            let again = Rotation::from_file(&serde_json::from_str(&text).unwrap()).unwrap();
            let own = again.own_keys(&name);
            let answered: Vec<_> = [Some(&own.present), own.next.as_ref(), own.retired.as_ref()]
                .into_iter()
                .flatten()
                .map(PrivateKey::public)
                .collect();
            // Killed before or after it was said.
            for renewal in [&said, &again.renewal()] {
                for named in tunnels(name.public(), Some(renewal)) {
                    assert!(answered.contains(&named), "{step:?} at {turn}");
                }
            }
            said = again.renewal();
            rotation = again;
        }
        assert_eq!(rotation.phase(), RotationPhase::Settled);
    }
}
