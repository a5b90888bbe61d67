//! Machines that are suspended: a process that is killed at every boundary of the way into it and out of it.
//! Nobody waits for time to pass, and whoever hangs where it is to be killed says so.

use fleet::{
    moment::{Moment, Span},
    power::{
        NodeLook, PowerDriver, PowerError, Reading, Sight, Switch,
        executor::{Executor, Stagger, Switchable},
        journal::Journal,
        transition::{Intent, Outcome, Patience, Wanted},
    },
};
use std::sync::{Arc, Mutex};
use store::{SqliteOptions, SqliteStore, Store, clock::ManualClock};
use tokio::sync::Notify;

/// Where a process is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Read,
    Look,
    Boot,
    BeforeAction,
    AfterAction,
}

const PLACES: [Place; 5] = [
    Place::Read,
    Place::Look,
    Place::Boot,
    Place::BeforeAction,
    Place::AfterAction,
];

#[derive(Debug)]
struct State {
    now: Moment,
    answers: bool,
    /// When the node is there, or gone.
    changes: Option<(Moment, bool)>,
    boot: u32,
    sent: Vec<Switch>,
    /// Where to hang, after so many visits.
    hang: Option<(Place, u32)>,
}

#[derive(Clone)]
struct Machine {
    state: Arc<Mutex<State>>,
    hangs: Arc<Notify>,
}

impl Machine {
    fn new() -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                now: Moment(0),
                answers: true,
                changes: None,
                boot: 1,
                sent: Vec::new(),
                hang: None,
            })),
            hangs: Arc::new(Notify::new()),
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap())
    }

    fn pass(&self, span: Span) -> Moment {
        self.with(|state| {
            state.now = state.now.plus(span);
            if let Some((at, answers)) = state.changes
                && at <= state.now
            {
                (state.answers, state.changes) = (answers, None);
            }
            state.now
        })
    }

    async fn visit(&self, place: Place) {
        let stays = self.with(|state| match &mut state.hang {
            Some((at, left)) if *at == place => {
                let here = *left == 0;
                *left = left.saturating_sub(1);
                here
            }
            _ => false,
        });
        if stays {
            self.hangs.notify_one();
            std::future::pending::<()>().await;
        }
    }

    fn switchable(&self) -> Switchable {
        Switchable {
            name: "m1".to_owned(),
            drivers: vec![Arc::new(self.clone())],
            look: Arc::new(self.clone()),
        }
    }
}

#[async_trait::async_trait]
impl PowerDriver for Machine {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn suspends(&self) -> bool {
        true
    }

    async fn switch(&self, switch: Switch) -> Result<(), PowerError> {
        self.visit(Place::BeforeAction).await;
        self.with(|state| {
            state.sent.push(switch);
            let up = switch == Switch::On;
            if state.answers != up && state.changes.is_none() {
                state.changes = Some((state.now.plus(Span(8)), up));
            }
        });
        self.visit(Place::AfterAction).await;
        Ok(())
    }

    async fn read(&self) -> Result<Reading, PowerError> {
        self.visit(Place::Read).await;
        Ok(Reading::Unknown)
    }
}

#[async_trait::async_trait]
impl NodeLook for Machine {
    async fn look(&self) -> Sight {
        self.visit(Place::Look).await;
        Sight {
            answers: self.with(|state| state.answers),
            carries_work: false,
        }
    }

    async fn boot_id(&self) -> Result<Option<String>, PowerError> {
        self.visit(Place::Boot).await;
        Ok(Some(self.with(|state| state.boot).to_string()))
    }
}

struct Keeper {
    journal: Journal,
    executor: Executor,
    _folder: tempfile::TempDir,
}

async fn executor(journal: &Journal) -> Executor {
    let leadership = journal.lead().await.unwrap().unwrap();
    let stagger = Stagger::per_second(1.0);
    Executor::new(journal.clone(), leadership, Patience::default(), stagger)
}

impl Keeper {
    async fn new() -> Self {
        let folder = crate::cluster::folder();
        let options = SqliteOptions {
            clock: Arc::new(ManualClock::default()),
            ..SqliteOptions::default()
        };
        let path = folder.path().join("store.sqlite");
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open_with(path, options).await.unwrap());
        let journal = Journal::new(store);
        Self {
            executor: executor(&journal).await,
            journal,
            _folder: folder,
        }
    }

    /// Steps until it ends. Where the machine hangs the process is killed, and another goes on.
    async fn carry_out(&mut self, machine: &Machine, wanted: Wanted) -> (Intent, bool) {
        let now = machine.pass(Span(5));
        self.executor.want("m1", wanted, now).await.unwrap();
        let switchable = machine.switchable();
        let mut killed = false;
        for _ in 0..400 {
            let now = machine.pass(Span(5));
            let ended = tokio::select! {
                biased;
                () = machine.hangs.notified() => None,
                ended = self.executor.step(&switchable, now) => Some(ended.unwrap()),
            };
            match ended {
                Some(Some(_)) => {
                    let stored = self.journal.get("m1").await.unwrap().unwrap();
                    return (stored.record, killed);
                }
                Some(None) => {}
                None => {
                    killed = true;
                    machine.with(|state| state.hang = None);
                    self.executor.resign().await.unwrap();
                    self.executor = executor(&self.journal).await;
                }
            }
        }
        panic!("{wanted:?} has no end");
    }
}

#[tokio::test]
async fn killed_at_each_boundary_a_machine_is_suspended_and_woken_once() {
    let mut kills = 0;
    for place in PLACES {
        for visit in 0..5 {
            for way in [Wanted::Suspended, Wanted::On, Wanted::Off] {
                let machine = Machine::new();
                let mut keeper = Keeper::new().await;
                let (mut sent, mut expected) = (0, Vec::new());
                for wanted in [
                    Wanted::Suspended,
                    Wanted::On,
                    Wanted::Suspended,
                    Wanted::Off,
                ] {
                    let hang = (wanted == way).then_some((place, visit));
                    machine.with(|state| state.hang = hang);
                    let (intent, killed) = keeper.carry_out(&machine, wanted).await;
                    machine.with(|state| state.hang = None);
                    kills += u32::from(killed);
                    let here = format!("{wanted:?}, killed at {place:?} {visit}: {intent:?}");
                    assert_eq!(intent.outcome, Some(Outcome::Done), "{here}");
                    let up = machine.with(|state| state.answers);
                    assert_eq!(up, wanted == Wanted::On, "{here}");
                    if wanted == Wanted::On {
                        assert_eq!(intent.resumed, Some(true), "{here}");
                    }
                    expected.extend(match wanted {
                        Wanted::Suspended => vec![Switch::Suspend],
                        Wanted::On => vec![Switch::On],
                        // Its system ends as it should.
                        Wanted::Off => vec![Switch::On, Switch::Off],
                    });
                    let all = machine.with(|state| state.sent.clone());
                    assert_eq!(all[sent..], expected[sent..], "nothing twice: {here}");
                    sent = all.len();
                }
            }
        }
    }
    assert!(kills >= 40, "{kills}");
}

#[tokio::test]
async fn a_machine_that_lost_its_power_asleep_is_known_when_it_wakes() {
    let machine = Machine::new();
    let mut keeper = Keeper::new().await;
    keeper.carry_out(&machine, Wanted::Suspended).await;
    machine.with(|state| state.boot += 1);
    let (intent, _) = keeper.carry_out(&machine, Wanted::On).await;
    assert_eq!(
        (intent.outcome, intent.resumed),
        (Some(Outcome::Done), Some(false))
    );
    assert!(intent.last_error.unwrap().contains("another boot"));
}
