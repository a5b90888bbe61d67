//! The store in SQLite: it passes the conformance suite, agrees with a model, survives `kill -9`,
//! and refuses files that it cannot use.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Helpers of tests too.

#[path = "sqlite/power_cut.rs"]
mod power_cut;

use bytes::Bytes;
use proptest::prelude::*;
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};
use store::{
    Condition, Operation, Outcome, Range, Revision, SqliteOptions, SqliteStore, Store, StoreError,
    Transaction, clock::ManualClock, conformance, write_back,
};
use tempfile::TempDir;

struct Sqlite {
    folder: TempDir,
    clock: ManualClock,
    opened: Mutex<Option<Arc<dyn Store>>>,
}

impl Sqlite {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            folder,
            clock: ManualClock::default(),
            opened: Mutex::new(None),
        }
    }
}

#[async_trait::async_trait]
impl conformance::Subject for Sqlite {
    async fn open(&self) -> Arc<dyn Store> {
        let options = SqliteOptions {
            clock: Arc::new(self.clock.clone()),
            history: 100_000,
        };
        let path = self.folder.path().join("store.sqlite");
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open_with(path, options).await.unwrap());
        *self.opened.lock().unwrap() = Some(store.clone());
        store
    }

    async fn reopen(&self) -> Arc<dyn Store> {
        self.opened.lock().unwrap().take();
        self.open().await
    }

    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn it_conforms() {
    conformance::run(Sqlite::new).await;
}

#[tokio::test]
async fn its_files_are_its_owners_alone() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path().join("store.sqlite"))
        .await
        .unwrap();
    store
        .transact(Transaction::always([Operation::put("a", "1")]))
        .await
        .unwrap();
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let file = file.unwrap();
        let mode = file.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", file.path().display());
    }
}

#[tokio::test]
async fn files_that_it_cannot_use_are_refused_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let check = |path: std::path::PathBuf, reason: &'static str| async move {
        let error = SqliteStore::open(&path).await.unwrap_err();
        assert!(matches!(error, StoreError::Unusable { .. }), "{error:?}");
        assert!(error.to_string().contains(reason), "{error}");
    };
    std::fs::write(
        path("text"),
        "this is no database, but it is long enough to look",
    )
    .unwrap();
    check(path("text"), "not a database").await;
    check(path("no/such/folder"), "No such file").await;

    let other = rusqlite::Connection::open(path("other")).unwrap();
    other.execute_batch("CREATE TABLE x (y)").unwrap();
    check(path("other"), "another program").await;

    drop(SqliteStore::open(path("newer")).await.unwrap());
    let newer = rusqlite::Connection::open(path("newer")).unwrap();
    newer.pragma_update(None, "user_version", 99).unwrap();
    check(path("newer"), "newer Atoll").await;
}

#[tokio::test]
async fn it_forgets_old_history_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let options = SqliteOptions {
        history: 100,
        ..SqliteOptions::default()
    };
    let store = SqliteStore::open_with(folder.path().join("s"), options)
        .await
        .unwrap();
    for number in 0..400 {
        let operation = Operation::put("a", number.to_string());
        store
            .transact(Transaction::always([operation]))
            .await
            .unwrap();
    }
    let at = |revision| Range {
        at: Some(Revision(revision)),
        ..Range::new("", 1)
    };
    assert!(matches!(
        store.range(at(2)).await,
        Err(StoreError::Compacted { .. })
    ));
    assert!(
        store.range(at(302)).await.is_ok(),
        "as much as was asked for is kept"
    );
}

const CHILD: &str = "STORE_TEST_CHILD";
/// Set if it does not wait for the disk.
const SOON: &str = "STORE_TEST_SOON";

/// Not a test by itself: writes as fast as it can until it is killed, and prints each number once
/// it is acknowledged. Two keys change together, so that half a transaction would show.
#[tokio::test]
async fn child_that_writes_until_it_is_killed() {
    let Ok(path) = std::env::var(CHILD) else {
        return;
    };
    let store = SqliteStore::open(path).await.unwrap();
    let begin = match store.get("left").await.unwrap() {
        Some(entry) => String::from_utf8(entry.value.to_vec())
            .unwrap()
            .parse::<u64>()
            .unwrap(),
        None => 0,
    };
    for number in begin + 1.. {
        let (left, right) = (number.to_string(), number.to_string());
        let both = [Operation::put("left", left), Operation::put("right", right)];
        let transaction = Transaction::always(both);
        let outcome = match std::env::var_os(SOON) {
            Some(_) => store.transact_soon(transaction).await,
            None => store.transact(transaction).await,
        };
        assert!(outcome.unwrap().committed());
        println!("acknowledged {number}");
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_kill_9() {
    check_kills(false).await;
}

#[tokio::test]
async fn what_was_acknowledged_soon_survives_kill_9() {
    check_kills(true).await;
}

async fn check_kills(soon: bool) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.sqlite");
    let mut acknowledged = 0;
    for round in 0..8_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap());
        if soon {
            child.env(SOON, "1");
        }
        let mut child = child
            .args([
                "--exact",
                "child_that_writes_until_it_is_killed",
                "--nocapture",
            ])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let numbers = lines.map_while(Result::ok).filter_map(|line| {
            line.strip_prefix("acknowledged ")
                .map(|number| number.parse::<u64>().unwrap())
        });
        let mut killed = false;
        for (index, number) in numbers.enumerate() {
            acknowledged = number;
            // Each round at another moment; what it still prints after the kill counts too.
            if index as u64 == 3 + round * 7 && !killed {
                child.kill().unwrap();
                killed = true;
            }
        }
        child.wait().unwrap();
        assert!(killed);

        let store = SqliteStore::open(&path).await.unwrap();
        let left = store.get("left").await.unwrap().unwrap();
        let right = store.get("right").await.unwrap().unwrap();
        assert_eq!((&left.value, left.modified), (&right.value, right.modified));
        let found: u64 = std::str::from_utf8(&left.value).unwrap().parse().unwrap();
        assert!(found >= acknowledged, "{found} < {acknowledged}");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Transact(Vec<(u8, bool)>, Vec<(u8, Option<u8>)>),
    Range {
        prefix: bool,
        after: Option<u8>,
        limit: usize,
    },
    Past(prop::sample::Index),
    Compact(prop::sample::Index),
    Reopen,
}

fn key(number: u8) -> String {
    format!("{}{}", ["a/", "b/"][usize::from(number % 2)], number / 2)
}

fn any_step() -> impl Strategy<Value = Step> {
    let conditions = prop::collection::vec((0..8_u8, any::<bool>()), 0..2);
    let operations = prop::collection::btree_map(0..8_u8, prop::option::of(any::<u8>()), 0..4);
    prop_oneof![
        8 => (conditions, operations)
            .prop_map(|(conditions, then)| Step::Transact(conditions, then.into_iter().collect())),
        3 => (any::<bool>(), prop::option::of(0..8_u8), 1..6_usize)
            .prop_map(|(prefix, after, limit)| Step::Range { prefix, after, limit }),
        2 => any::<prop::sample::Index>().prop_map(Step::Past),
        1 => any::<prop::sample::Index>().prop_map(Step::Compact),
        1 => Just(Step::Reopen),
    ]
}

type State = BTreeMap<String, (Bytes, Revision, Revision)>;

/// What a store is: all its states, the first one at revision 1.
struct Model {
    states: Vec<State>,
    compacted: u64,
}

impl Model {
    fn revision(&self) -> Revision {
        Revision(self.states.len() as u64)
    }

    fn transact(&mut self, conditions: &[Condition], then: &[Operation]) -> bool {
        let now = self.states.last().unwrap();
        let hold = conditions.iter().all(|condition| match condition {
            Condition::Absent(key) => !now.contains_key(key),
            Condition::Exists(key) => now.contains_key(key),
            Condition::Unchanged(key, revision) => now
                .get(key)
                .is_some_and(|(_, _, modified)| modified == revision),
        });
        if !hold {
            return false;
        }
        let (mut next, revision) = (now.clone(), self.revision().next());
        let mut changed = false;
        for operation in then {
            match operation {
                Operation::Put { key, value, .. } => {
                    let created = next.get(key).map_or(revision, |(_, created, _)| *created);
                    next.insert(key.clone(), (value.clone(), created, revision));
                    changed = true;
                }
                Operation::Delete { key } => changed |= next.remove(key).is_some(),
            }
        }
        if changed {
            self.states.push(next);
        }
        true
    }
}

async fn agree(steps: Vec<Step>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.sqlite");
    let mut store = SqliteStore::open(&path).await.unwrap();
    let mut model = Model {
        states: vec![State::new()],
        compacted: 0,
    };
    for step in steps {
        match step {
            Step::Transact(conditions, then) => {
                let now = model.states.last().unwrap();
                let conditions: Vec<Condition> = conditions
                    .into_iter()
                    .map(|(number, known)| match now.get(&key(number)) {
                        Some((_, _, modified)) if known => {
                            Condition::Unchanged(key(number), *modified)
                        }
                        _ if known => Condition::Exists(key(number)),
                        _ => Condition::Absent(key(number)),
                    })
                    .collect();
                let then: Vec<Operation> = then
                    .into_iter()
                    .map(|(number, value)| match value {
                        Some(value) => Operation::put(key(number), vec![value]),
                        None => Operation::delete(key(number)),
                    })
                    .collect();
                let expected = model.transact(&conditions, &then);
                let outcome = store
                    .transact(Transaction { conditions, then })
                    .await
                    .unwrap();
                assert_eq!(outcome.committed(), expected);
                assert_eq!(outcome.revision(), model.revision());
                if let Outcome::Refused { current, .. } = outcome {
                    assert!(!current.is_empty());
                }
            }
            Step::Range {
                prefix,
                after,
                limit,
            } => {
                let prefix = if prefix { "a/" } else { "" };
                let range = Range {
                    after: after.map(key),
                    ..Range::new(prefix, limit)
                };
                check_range(&store, &model, range, model.revision()).await;
            }
            Step::Past(index) => {
                let revision = Revision(index.index(model.states.len()) as u64 + 1);
                let range = Range {
                    at: Some(revision),
                    ..Range::new("", 100)
                };
                check_range(&store, &model, range, revision).await;
            }
            Step::Compact(index) => {
                let revision = index.index(model.states.len()) as u64 + 1;
                let result = store.compact(Revision(revision)).await;
                assert_eq!(result.is_ok(), revision > model.compacted);
                model.compacted = model.compacted.max(revision);
            }
            Step::Reopen => {
                drop(store);
                store = SqliteStore::open(&path).await.unwrap();
            }
        }
    }
}

async fn check_range(store: &SqliteStore, model: &Model, range: Range, revision: Revision) {
    let answer = store.range(range.clone()).await;
    if revision.0 < model.compacted {
        assert!(
            matches!(answer, Err(StoreError::Compacted { .. })),
            "{answer:?}"
        );
        return;
    }
    let page = answer.unwrap();
    let expected: Vec<_> = model.states[revision.0 as usize - 1]
        .iter()
        .filter(|(key, _)| key.starts_with(&range.prefix))
        .filter(|(key, _)| range.after.as_ref().is_none_or(|after| *key > after))
        .collect();
    assert_eq!(page.more, expected.len() > range.limit);
    assert_eq!(page.revision, revision);
    let found: Vec<_> = page.entries.iter().collect();
    assert_eq!(found.len(), expected.len().min(range.limit));
    for (entry, (key, (value, created, modified))) in found.into_iter().zip(expected) {
        assert_eq!((&entry.key, &entry.value), (key, value));
        assert_eq!((&entry.created, &entry.modified), (created, modified));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn it_agrees_with_the_model(steps in prop::collection::vec(any_step(), 1..40)) {
        tokio::runtime::Runtime::new().unwrap().block_on(agree(steps));
    }
}

#[tokio::test]
async fn what_is_in_the_log_is_written_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.sqlite");
    let store = SqliteStore::open(&path).await.unwrap();
    let put = |number: u32| Transaction {
        conditions: Vec::new(),
        then: vec![Operation::Put {
            key: format!("key/{number}"),
            value: Bytes::from(vec![7; 1000]),
            lease: None,
        }],
    };
    for number in 0..100 {
        store.transact(put(number)).await.unwrap();
    }
    let log = folder.path().join("store.sqlite-wal");
    assert!(std::fs::metadata(&log).unwrap().len() > 100_000);
    let at = path.clone();
    tokio::task::spawn_blocking(move || write_back(at).unwrap())
        .await
        .unwrap();
    assert_eq!(std::fs::metadata(&log).unwrap().len(), 0);
    // Who has it open goes on.
    store.transact(put(100)).await.unwrap();
    drop(store);
    let again = SqliteStore::open(&path).await.unwrap();
    assert!(again.get("key/0").await.unwrap().is_some());
    assert!(again.get("key/100").await.unwrap().is_some());
}
