//! Machines that do not do what they are told, and an executor that is killed at any moment: each
//! ends in the right state, with the right reason, and nothing is sent twice.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may stop at what it did not expect"
)]

use fleet::{
    moment::{Moment, Span},
    power::{
        NodeLook, PowerDriver, PowerError, Reading, Sight, Switch,
        executor::{Executor, Stagger, Switchable},
        journal::{Journal, JournalError},
        transition::{Outcome, Patience, Wanted},
    },
};
use proptest::prelude::*;
use std::sync::{Arc, Mutex};
use store::{SqliteStore, Store};

/// What is wrong with a machine or its controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// The controller answers nothing.
    Dead,
    /// It accepts neither user nor password.
    Denied,
    /// It says that all is done at once, and does nothing.
    Lies,
    /// It says the opposite of what is.
    Contradicts,
    /// The machine does not switch itself off when asked.
    IgnoresGraceful,
    /// It is switched on and never comes up.
    NeverComesUp,
    /// Every second call fails.
    Flaky,
}

#[derive(Debug)]
struct State {
    fault: Fault,
    on: bool,
    /// When the node is there, or gone.
    changes_at: Option<(Moment, bool)>,
    answers: bool,
    work: bool,
    claimed: Option<bool>,
    calls: u32,
    sent: Vec<(Moment, Switch)>,
    now: Moment,
    hang_before: bool,
    hang_after: bool,
}

#[derive(Clone)]
struct Machine(Arc<Mutex<State>>);

impl Machine {
    fn new(on: bool, fault: Fault) -> Self {
        Self(Arc::new(Mutex::new(State {
            fault,
            on,
            changes_at: None,
            answers: on,
            work: false,
            claimed: None,
            calls: 0,
            sent: Vec::new(),
            now: Moment(0),
            hang_before: false,
            hang_after: false,
        })))
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.lock().unwrap())
    }

    fn at(&self, now: Moment) {
        self.with(|state| {
            state.now = now;
            if let Some((at, on)) = state.changes_at
                && at <= now
            {
                (state.on, state.answers, state.changes_at) = (on, on, None);
            }
        });
    }

    fn fails(&self) -> Result<(), PowerError> {
        self.with(|state| {
            state.calls += 1;
            match state.fault {
                Fault::Dead => Err(PowerError::Failed("no answer".into())),
                Fault::Denied => Err(PowerError::Denied),
                Fault::Flaky if state.calls % 2 == 0 => Err(PowerError::Failed("500".into())),
                _ => Ok(()),
            }
        })
    }

    fn switchable(&self, fallback: Option<&Self>) -> Switchable {
        let mut drivers: Vec<Arc<dyn PowerDriver>> = vec![Arc::new(self.clone())];
        if let Some(other) = fallback {
            drivers.push(Arc::new(other.clone()));
        }
        Switchable {
            name: "m1".into(),
            drivers,
            look: Arc::new(fallback.unwrap_or(self).clone()),
        }
    }
}

#[async_trait::async_trait]
impl PowerDriver for Machine {
    fn name(&self) -> &'static str {
        "simulated"
    }

    async fn switch(&self, switch: Switch) -> Result<(), PowerError> {
        if self.with(|state| state.hang_before) {
            std::future::pending::<()>().await;
        }
        self.fails()?;
        let hang = self.with(|state| {
            state.sent.push((state.now, switch));
            state.claimed = Some(switch == Switch::On);
            let obeys = !matches!(
                (state.fault, switch),
                (Fault::Lies, _)
                    | (Fault::NeverComesUp, Switch::On)
                    | (Fault::IgnoresGraceful, Switch::Off)
            );
            if obeys && state.on != (switch == Switch::On) {
                // The controller knows at once, the node takes its time.
                let delay = if switch == Switch::On { 120 } else { 20 };
                state.on = switch != Switch::ForceOff;
                state.changes_at = Some((state.now.plus(Span(delay)), switch == Switch::On));
            }
            state.hang_after
        });
        if hang {
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    async fn read(&self) -> Result<Reading, PowerError> {
        self.fails()?;
        Ok(self.with(|state| {
            let says = match state.fault {
                Fault::Lies => state.claimed.unwrap_or(state.on),
                Fault::Contradicts => !state.on,
                Fault::NeverComesUp => state.claimed.unwrap_or(state.on),
                _ => state.on,
            };
            if says { Reading::On } else { Reading::Off }
        }))
    }
}

#[async_trait::async_trait]
impl NodeLook for Machine {
    async fn look(&self) -> Sight {
        self.with(|state| Sight {
            answers: state.answers,
            carries_work: state.work,
        })
    }
}

struct Bench {
    _folder: tempfile::TempDir,
    journal: Journal,
    executor: Executor,
}

async fn bench() -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.sqlite");
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(path).await.unwrap());
    let journal = Journal::new(store);
    let leadership = journal.lead().await.unwrap().unwrap();
    let patience = Patience::default();
    let stagger = Stagger::per_second(1.0);
    let executor = Executor::new(journal.clone(), leadership, patience, stagger);
    Bench {
        _folder: folder,
        journal,
        executor,
    }
}

/// Steps every five seconds for up to half an hour; returns how it ended.
async fn run(bench: &mut Bench, machine: &Switchable, parts: &[&Machine]) -> Option<Outcome> {
    for step in 0..360 {
        let now = Moment(step * 5);
        for part in parts {
            part.at(now);
        }
        if let Some(outcome) = bench.executor.step(machine, now).await.unwrap() {
            return Some(outcome);
        }
    }
    None
}

async fn check(wanted: Wanted, fault: Fault, expected: Outcome, most_sent: usize) {
    let machine = Machine::new(wanted == Wanted::Off, fault);
    let mut bench = bench().await;
    bench.executor.want("m1", wanted, Moment(0)).await.unwrap();
    let outcome = run(&mut bench, &machine.switchable(None), &[&machine]).await;
    assert_eq!(outcome, Some(expected), "{wanted:?} {fault:?}");
    let sent = machine.with(|state| state.sent.clone());
    assert!(sent.len() <= most_sent, "{wanted:?} {fault:?}: {sent:?}");
    if expected == Outcome::Done {
        assert_eq!(machine.with(|state| state.answers), wanted == Wanted::On);
    }
}

#[tokio::test]
async fn each_fault_ends_in_the_right_state_with_the_right_reason() {
    use Fault::{Contradicts, Dead, Denied, Flaky, IgnoresGraceful, Lies, NeverComesUp};
    check(Wanted::On, Fault::None, Outcome::Done, 1).await;
    check(Wanted::Off, Fault::None, Outcome::Done, 1).await;
    check(Wanted::On, Dead, Outcome::NeverCame, 0).await;
    check(Wanted::Off, Dead, Outcome::WouldNotStop, 0).await;
    check(Wanted::On, Denied, Outcome::NeverCame, 0).await;
    check(Wanted::On, Lies, Outcome::NeverCame, 2).await;
    check(Wanted::Off, Lies, Outcome::WouldNotStop, 8).await;
    // It says `off` while the machine boots, so it is told again, after 30 and 60 seconds.
    check(Wanted::On, Contradicts, Outcome::Done, 3).await;
    check(Wanted::Off, IgnoresGraceful, Outcome::Done, 5).await;
    check(Wanted::On, NeverComesUp, Outcome::NeverCame, 2).await;
    check(Wanted::On, Flaky, Outcome::Done, 4).await;
    check(Wanted::Off, Flaky, Outcome::Done, 4).await;
}

#[tokio::test]
async fn a_machine_with_work_is_never_switched_off() {
    let machine = Machine::new(true, Fault::None);
    machine.with(|state| state.work = true);
    let mut bench = bench().await;
    bench
        .executor
        .want("m1", Wanted::Off, Moment(0))
        .await
        .unwrap();
    let outcome = run(&mut bench, &machine.switchable(None), &[&machine]).await;
    assert_eq!(outcome, Some(Outcome::CarriesWork));
    // Nor is one whose node nobody can see.
    machine.with(|state| state.answers = false);
    bench
        .executor
        .want("m1", Wanted::On, Moment(0))
        .await
        .unwrap();
    bench
        .executor
        .want("m1", Wanted::Off, Moment(0))
        .await
        .unwrap();
    let outcome = run(&mut bench, &machine.switchable(None), &[&machine]).await;
    assert_eq!(outcome, Some(Outcome::CarriesWork));
    assert!(machine.with(|state| state.sent.is_empty()));
}

#[tokio::test]
async fn the_fallback_switches_when_the_first_driver_cannot() {
    let first = Machine::new(false, Fault::Dead);
    let second = Machine::new(false, Fault::None);
    let mut bench = bench().await;
    bench
        .executor
        .want("m1", Wanted::On, Moment(0))
        .await
        .unwrap();
    let both = first.switchable(Some(&second));
    let outcome = run(&mut bench, &both, &[&first, &second]).await;
    assert_eq!(outcome, Some(Outcome::Done));
    assert_eq!(second.with(|state| state.sent.len()), 1);
}

#[tokio::test]
async fn only_one_instance_acts() {
    let bench = bench().await;
    assert!(bench.journal.lead().await.unwrap().is_none());
    let machine = Machine::new(false, Fault::None);
    bench
        .executor
        .want("m1", Wanted::On, Moment(0))
        .await
        .unwrap();
    // Another takes over, for whatever reason: the first sends nothing more.
    let lost = bench.journal.clone();
    let store_wide = lost.all().await.unwrap();
    assert_eq!(store_wide.len(), 1);
    bench.executor.resign().await.unwrap();
    let _other = bench.journal.lead().await.unwrap().unwrap();
    let refused = bench
        .executor
        .step(&machine.switchable(None), Moment(0))
        .await;
    assert!(matches!(refused, Err(JournalError::NotLeader)));
    assert!(machine.with(|state| state.sent.is_empty()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Killed before or after something is sent, again and again: it is carried on with, and
    /// nothing is sent again before its time.
    #[test]
    fn killed_at_any_boundary_nothing_is_lost_or_sent_twice(
        kills in prop::collection::vec((0..40_u64, any::<bool>()), 0..6),
        on in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let wanted = if on { Wanted::On } else { Wanted::Off };
            let machine = Machine::new(!on, Fault::None);
            let mut bench = bench().await;
            bench.executor.want("m1", wanted, Moment(0)).await.unwrap();
            let switchable = machine.switchable(None);
            let mut outcome = None;
            for step in 0..400 {
                let now = Moment(step * 5);
                machine.at(now);
                let kill = kills.iter().find(|(at, _)| *at == step);
                machine.with(|state| {
                    state.hang_before = kill.is_some_and(|(_, before)| *before);
                    state.hang_after = kill.is_some_and(|(_, before)| !before);
                });
                let stepped = tokio::time::timeout(
                    std::time::Duration::from_millis(if kill.is_some() { 60 } else { 10_000 }),
                    bench.executor.step(&switchable, now),
                );
                match stepped.await {
                    Ok(result) => outcome = result.unwrap(),
                    Err(_) => {
                        // The process is gone; its lease runs out, and another begins.
                        bench.executor.resign().await.unwrap();
                        let leadership = bench.journal.lead().await.unwrap().unwrap();
                        bench.executor = Executor::new(
                            bench.journal.clone(),
                            leadership,
                            Patience::default(),
                            Stagger::per_second(1.0),
                        );
                    }
                }
                if outcome.is_some() {
                    break;
                }
            }
            prop_assert_eq!(outcome, Some(Outcome::Done));
            let sent = machine.with(|state| state.sent.clone());
            for pair in sent.windows(2) {
                prop_assert!(pair[1].0.since(pair[0].0) >= Patience::default().retry, "{:?}", sent);
            }
            Ok(())
        })?;
    }
}
