//! A process that looks after a fleet is killed (`kill -9`) at every boundary of a power action, and at
//! random moments; another takes its place. The machines and their controller outlive them all.

use super::bench::{Rack, STEP};
use bmc::Point;
use fleet::{
    config,
    moment::{Moment, Span},
    power::transition::Patience,
    serve::{FileSource, Fleet, Setup, TickError},
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use store::{
    Entry, LeaseId, Outcome, Page, Range, Revision, SqliteOptions, SqliteStore, Store, StoreError,
    Transaction, Watch, clock::ManualClock,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines, stdin},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

const FOLDER: &str = "ATOLL_TEST_KEEPER";
const BOUNDARY: &str = "ATOLL_TEST_KEEPER_BOUNDARY";
/// Nothing that is waited for takes longer.
const DEADLINE: Duration = Duration::from_secs(60);
/// How many kills there are as a rule; all of the promise with `ATOLL_TEST_KILLS=500`.
const KILLS: u32 = 24;

/// A store that stops for ever before or after a write: whoever waits there can be killed there.
struct Stopping {
    inner: Arc<dyn Store>,
    /// Counts down with each boundary of a write of what is wanted of machines.
    left: AtomicI64,
}

impl Stopping {
    async fn boundary(&self, transaction: &Transaction) {
        let ours = |key: &str| key.starts_with("fleet/power/");
        if transaction.then.iter().any(|one| ours(one.key()))
            && self.left.fetch_sub(1, Relaxed) == 0
        {
            println!("\nkeeper boundary");
            std::future::pending::<()>().await;
        }
    }
}

#[async_trait::async_trait]
impl Store for Stopping {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.inner.get(key).await
    }

    async fn range(&self, range: Range) -> Result<Page, StoreError> {
        self.inner.range(range).await
    }

    async fn transact(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        self.boundary(&transaction).await;
        let outcome = self.inner.transact(transaction.clone()).await;
        self.boundary(&transaction).await;
        outcome
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        self.inner.watch(prefix, from).await
    }

    async fn grant(&self, time_to_live: Duration) -> Result<LeaseId, StoreError> {
        self.inner.grant(time_to_live).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.revoke(lease).await
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        self.inner.revision().await
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.inner.compact(revision).await
    }
}

/// Run as a process of its own by the test below; does nothing otherwise. Each line of its input is a
/// moment, at which it ticks.
#[tokio::test]
async fn keeper_process() {
    let Ok(folder) = std::env::var(FOLDER) else {
        return;
    };
    let folder = PathBuf::from(folder);
    let left: i64 = std::env::var(BOUNDARY).unwrap().parse().unwrap();
    let clock = ManualClock::default();
    let options = SqliteOptions {
        clock: Arc::new(clock.clone()),
        ..SqliteOptions::default()
    };
    let store = SqliteStore::open_with(folder.join("fleet.sqlite"), options).await;
    let text = std::fs::read_to_string(folder.join("fleet.toml")).unwrap();
    let setup = Setup {
        file: config::parse(&text).unwrap(),
        store: Arc::new(Stopping {
            inner: Arc::new(store.unwrap()),
            left: AtomicI64::new(left),
        }),
        source: Arc::new(FileSource::new(folder.join("demand"))),
        patience: Patience::default(),
        dry_run: false,
    };
    let mut fleet = Fleet::open(setup).unwrap();
    println!("\nkeeper ready");
    let mut lines = BufReader::new(stdin()).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        let now = Moment(line.parse().unwrap());
        clock.advance(Duration::from_secs(5));
        let acts = fleet.try_lead(now).await.unwrap();
        if acts {
            match fleet.tick(now).await {
                Ok(()) => {}
                Err(TickError::NotLeader) => fleet.step_down(),
                Err(error) => panic!("{error}"),
            }
        }
        println!("\nkeeper {}", if acts { "ticked" } else { "waits" });
    }
}

struct Keeper {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Keeper {
    async fn start(folder: &Path, boundary: i64) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "rack::kills::keeper_process", "--nocapture"])
            .env(FOLDER, folder)
            .env(BOUNDARY, boundary.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut keeper = Self {
            child,
            input,
            output,
        };
        assert_eq!(keeper.says().await, "ready");
        keeper
    }

    async fn tell(&mut self, now: Moment) {
        let line = format!("{}\n", now.0);
        self.input.write_all(line.as_bytes()).await.unwrap();
    }

    /// What it says next.
    async fn says(&mut self) -> String {
        loop {
            let line = timeout(DEADLINE, self.output.next_line()).await;
            let line = line.expect("it says something in time").unwrap();
            let line = line.expect("it goes on until it is killed");
            if let Some(said) = line.strip_prefix("keeper ") {
                return said.to_owned();
            }
        }
    }

    async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}

/// Where a process is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// Before or after what is wanted of a machine is written.
    Journal,
    /// When its request for a session has come.
    Session,
    /// When it asks for the state of a machine.
    Read,
    /// When it has sent an action, which is not done.
    BeforeAction,
    /// When the action is done, and it has not heard of that.
    AfterAction,
    /// So long after it was told to tick.
    Random,
}

const PLACES: [Place; 6] = [
    Place::Journal,
    Place::Session,
    Place::Read,
    Place::BeforeAction,
    Place::AfterAction,
    Place::Random,
];

impl Place {
    const fn point(self) -> Option<Point> {
        match self {
            Self::Journal | Self::Random => None,
            Self::Session => Some(Point::Session),
            Self::Read => Some(Point::Read),
            Self::BeforeAction => Some(Point::BeforeReset),
            Self::AfterAction => Some(Point::AfterReset),
        }
    }
}

/// Random enough to choose with (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// Lets a process work for a few ticks, and kills it at the place if it gets there; returns whether
/// that was so.
async fn work_and_kill(rack: &mut Rack, random: &mut Random, place: Place) -> bool {
    let boundary = match place {
        Place::Journal => random.below(16) as i64,
        _ => i64::MAX,
    };
    let mut keeper = Keeper::start(rack.folder.path(), boundary).await;
    // Until its right to act is its own, there is nothing to be killed in.
    let mut paused = place.point().map(|point| rack.bmc.pause(point));
    let (mut ticks, mut killed) = (0, false);
    while ticks < 14 && !killed {
        rack.now = rack.now.plus(STEP);
        rack.tell_time();
        rack.schedule();
        keeper.tell(rack.now).await;
        if place == Place::Random && ticks > 4 && random.below(3) == 0 {
            let micros = random.below(40_000);
            tokio::time::sleep(Duration::from_micros(micros)).await;
            killed = true;
            break;
        }
        let said = match &mut paused {
            Some(pause) => tokio::select! {
                _ = pause => "boundary".to_owned(),
                said = keeper.says() => said,
            },
            None => keeper.says().await,
        };
        killed = said == "boundary";
        ticks += 1;
    }
    keeper.kill().await;
    rack.bmc.unpause();
    // What it had sent arrives, or nobody will ever hear of it.
    timeout(DEADLINE, rack.bmc.quiet()).await.unwrap();
    killed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_killed_at_every_boundary_switch_nothing_twice_and_forget_nothing() {
    let kills: u32 = match std::env::var("ATOLL_TEST_KILLS") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => KILLS,
    };
    let seed: u64 = match std::env::var("ATOLL_TEST_SEED") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => u64::from(std::process::id()),
    };
    println!("ATOLL_TEST_SEED={seed}");
    let began = Instant::now();
    let mut random = Random(seed);
    let mut rack = Rack::new(4, true).await;
    std::fs::write(rack.path("fleet.toml"), rack.text()).unwrap();
    rack.work.insert("always".to_owned(), Some("m0".to_owned()));
    rack.schedule();
    let mut count: BTreeMap<Place, u32> = BTreeMap::new();
    let (mut done, mut rounds) = (0, 0);
    // Chance may leave a place out for long.
    let everywhere = |count: &BTreeMap<Place, u32>| {
        let places = [Place::Journal, Place::BeforeAction, Place::AfterAction];
        places.iter().all(|place| count.contains_key(place))
    };
    // Until all was done that was asked for last.
    while done < kills || !everywhere(&count) {
        for needed in [false, true] {
            for name in ["a", "b", "c"] {
                match needed {
                    true => drop(rack.work.insert(name.to_owned(), None)),
                    false => drop(rack.work.remove(name)),
                }
            }
            let start = rack.now;
            let there = |rack: &Rack| match needed {
                true => rack.work.values().all(Option::is_some),
                false => rack.names[1..].iter().all(|name| rack.is_off(name)),
            };
            while !there(&rack) {
                let waited = rack.now.since(start);
                assert!(waited < Span::hours(6), "{seed}: {needed} after {waited}");
                let place = PLACES[random.below(PLACES.len() as u64) as usize];
                if work_and_kill(&mut rack, &mut random, place).await {
                    *count.entry(place).or_default() += 1;
                    done += 1;
                }
            }
        }
        rounds += 1;
    }
    println!(
        "{done} kills in {rounds} rounds and {:?}: {count:?}",
        began.elapsed()
    );
    let events = rack.bmc.events();
    let twice: Vec<_> = events.iter().filter(|one| one.needless).collect();
    assert!(twice.is_empty(), "{seed}: {twice:?}");
    rack.nothing_was_taken_from_work();
    assert!(rack.told("m0").is_empty(), "{seed}");
}
