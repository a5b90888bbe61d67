//! The order in which endpoints are tried.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::distance::Class;
use super::evidence::{Evidence, State};

/// How much more than its part an endpoint can carry: a class takes everything while 1 in this, 5 of 7, of its endpoints are well.
const OVERPROVISIONING: f64 = 1.4;
/// One connection in so many is a trial for an endpoint that was put aside long enough.
const TRIALS: u64 = 8;

/// An endpoint that may be tried.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Whether it is this node.
    pub here: bool,
    /// Whether its node says that it is ready, or says nothing.
    pub ready: bool,
    /// What was seen of it.
    pub evidence: &'a Evidence,
}

impl Candidate<'_> {
    /// How far it is.
    pub const fn class(&self) -> Class {
        if self.here {
            Class::Here
        } else {
            self.evidence.class()
        }
    }
}

/// Why an endpoint is where it is in the order, or is not in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It is of the nearest class.
    Nearest,
    /// Too few of a nearer class are well, so this one takes a part.
    Spill,
    /// It is tried if nearer ones fail.
    Farther,
    /// Its last connection failed or was slow, so others of its class go first.
    Suspect,
    /// It was put aside long enough, and may show that it is well again.
    Trial,
    /// Most look ill, so all are used.
    Panic,
    /// Its node says that it is not ready, as do all.
    NoneReady,
    /// It is put aside, and tried only if all else fails.
    Ejected,
    /// Its node says that it is not ready: it is not tried.
    NotReady,
}

/// A try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Which of the candidates.
    pub at: usize,
    /// How far it is.
    pub class: Class,
    /// Why it is in this place.
    pub reason: Reason,
}

/// In which order endpoints are tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The first first.
    pub choices: Vec<Choice>,
    /// Those that are not tried.
    pub left_out: Vec<Choice>,
    /// Whether most look ill, so that what was seen counts nothing.
    pub panic: bool,
}

/// What else is drawn than the turns of endpoints.
const TRIAL: usize = usize::MAX;
const SHARE: usize = usize::MAX - 1;

/// A number for each endpoint that follows from one random number (SplitMix64).
fn mixed(random: u64, at: usize) -> u64 {
    let steps = (at as u64).wrapping_add(1);
    let mut mixed = random.wrapping_add(steps.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// An endpoint on its way into the order.
#[derive(Clone, Copy)]
struct Known {
    at: usize,
    class: Class,
    state: State,
    turn: u64,
}

impl Known {
    const fn choice(&self, reason: Reason) -> Choice {
        Choice {
            at: self.at,
            class: self.class,
            reason,
        }
    }
}

/// In which order the candidates are tried for one connection.
pub fn order(candidates: &[Candidate<'_>], now: Instant, random: u64) -> Order {
    let known = |(at, candidate): (usize, &Candidate<'_>)| Known {
        at,
        class: candidate.class(),
        state: candidate.evidence.state(now),
        turn: mixed(random, at),
    };
    let all = candidates.iter().enumerate();
    let (ready, unready): (Vec<_>, Vec<_>) = all.partition(|(_, candidate)| candidate.ready);
    let nobody_ready = ready.is_empty();
    let (pool, out) = if nobody_ready {
        (unready, ready)
    } else {
        (ready, unready)
    };
    let mut pool: Vec<_> = pool.into_iter().map(known).collect();
    pool.sort_by_key(|one| (one.class, one.turn));
    let out = out.into_iter().map(known);
    let mut order = Order {
        choices: Vec::with_capacity(pool.len()),
        left_out: out.map(|one| one.choice(Reason::NotReady)).collect(),
        panic: false,
    };
    let ill = pool.iter().filter(|one| one.state.is_out()).count();
    // What was seen puts at most half aside.
    order.panic = 2 * ill > pool.len();
    if order.panic {
        let all = pool.iter().map(|one| one.choice(Reason::Panic));
        order.choices.extend(all);
    } else {
        by_class(&pool, random, &mut order.choices);
    }
    if nobody_ready {
        for choice in &mut order.choices {
            choice.reason = Reason::NoneReady;
        }
    }
    order
}

/// Nearest first, with a part for farther ones where too few are well.
fn by_class(pool: &[Known], random: u64, choices: &mut Vec<Choice>) {
    let mut classes: Vec<_> = pool.iter().map(|one| one.class).collect();
    classes.dedup();
    let first = share(pool, &classes, random);
    // Now and then somebody has to find out whether who was put aside is well again.
    let try_one = mixed(random, TRIAL).is_multiple_of(TRIALS);
    let trial = pool.iter().find(|one| one.state == State::Trial);
    if let Some(one) = trial.filter(|_| try_one) {
        choices.push(one.choice(Reason::Trial));
    }
    let nearer = first.and_then(|class| classes.iter().position(|other| *other == class));
    let turns = first.into_iter().chain(classes.iter().copied());
    for (turn, class) in turns.enumerate() {
        if turn > 0 && Some(class) == first {
            continue;
        }
        let reason = match turn {
            0 if nearer == Some(0) => Reason::Nearest,
            0 => Reason::Spill,
            _ => Reason::Farther,
        };
        let of_class = |one: &&Known| one.class == class && !one.state.is_out();
        let suspect = |one: &&Known| one.state == State::Suspect;
        let members = || pool.iter().filter(of_class);
        let good = members().filter(|one| !suspect(one));
        choices.extend(good.map(|one| one.choice(reason)));
        let doubtful = members().filter(suspect);
        choices.extend(doubtful.map(|one| one.choice(Reason::Suspect)));
    }
    // Better one that looks ill than none.
    for one in pool.iter().filter(|one| one.state.is_out()) {
        if !choices.iter().any(|choice| choice.at == one.at) {
            choices.push(one.choice(Reason::Ejected));
        }
    }
}

/// The class that goes first this time.
fn share(pool: &[Known], classes: &[Class], random: u64) -> Option<Class> {
    // 53 bits are a number from 0 to below 1.
    let mut draw = (mixed(random, SHARE) >> 11) as f64 / (1_u64 << 53) as f64;
    let mut some = None;
    for class in classes {
        let of_class = pool.iter().filter(|one| one.class == *class);
        let (all, well) = of_class.fold((0_u32, 0_u32), |(all, well), one| {
            (all + 1, well + u32::from(!one.state.is_out()))
        });
        if well == 0 {
            continue;
        }
        some = some.or(Some(*class));
        let part = (OVERPROVISIONING * f64::from(well) / f64::from(all)).min(1.0);
        if draw < part {
            return Some(*class);
        }
        draw = (draw - part) / (1.0 - part);
    }
    some
}
