//! Many callers at once see one history.

use super::{Subject, soon};
use crate::{Condition, Operation, Outcome, Range, Revision, Store, StoreError, Transaction};
use futures::{StreamExt, future::join_all};
use std::{collections::BTreeSet, future::Future, sync::Arc};

pub(super) async fn run<S: Subject, F: Future<Output = S>>(make: &impl Fn() -> F) {
    soon("counting", counters(make().await.open().await)).await;
    soon("moving", transfers(make().await.open().await)).await;
    soon("claiming", claims(make().await.open().await)).await;
    soon(
        "reading",
        reads_see_what_was_acknowledged(make().await.open().await),
    )
    .await;
}

fn number(value: &[u8]) -> u64 {
    std::str::from_utf8(value).unwrap().parse().unwrap()
}

/// Reads a number and writes the next one, if nobody was faster.
async fn increment(store: &dyn Store, key: &str) -> Result<Revision, StoreError> {
    loop {
        let (condition, value) = match store.get(key).await? {
            Some(entry) => (
                Condition::Unchanged(key.into(), entry.modified),
                number(&entry.value) + 1,
            ),
            None => (Condition::Absent(key.into()), 1),
        };
        let then = vec![Operation::put(key, value.to_string())];
        let outcome = store
            .transact(Transaction {
                conditions: vec![condition],
                then,
            })
            .await?;
        if let Outcome::Committed { revision } = outcome {
            return Ok(revision);
        }
    }
}

/// No increment is lost, and no two share a revision.
async fn counters(store: Arc<dyn Store>) {
    const TASKS: usize = 8;
    const TIMES: usize = 25;
    let tasks = (0..TASKS).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut revisions = Vec::new();
            for _ in 0..TIMES {
                revisions.push(increment(&*store, "counter").await.unwrap());
            }
            assert!(revisions.is_sorted(), "each caller sees time go forward");
            revisions
        })
    });
    let revisions: Vec<Revision> = join_all(tasks)
        .await
        .into_iter()
        .flat_map(Result::unwrap)
        .collect();
    let different: BTreeSet<Revision> = revisions.iter().copied().collect();
    assert_eq!(different.len(), TASKS * TIMES);
    let entry = store.get("counter").await.unwrap().unwrap();
    assert_eq!(number(&entry.value), (TASKS * TIMES) as u64);

    // The history shows the same: each number once, in order.
    let mut watch = store.watch("counter", Revision(1)).await.unwrap();
    for expected in 1..=(TASKS * TIMES) as u64 {
        let batch = watch.next().await.unwrap().unwrap();
        match &batch.changes[..] {
            [crate::Change::Put(entry)] => assert_eq!(number(&entry.value), expected),
            other => panic!("{other:?}"),
        }
    }
}

/// Money moves between accounts; whoever looks always sees all of it.
async fn transfers(store: Arc<dyn Store>) {
    const ACCOUNTS: u64 = 4;
    const EACH: u64 = 100;
    let accounts: Vec<Operation> = (0..ACCOUNTS)
        .map(|account| Operation::put(format!("account/{account}"), EACH.to_string()))
        .collect();
    store.transact(Transaction::always(accounts)).await.unwrap();
    let movers = (0..ACCOUNTS).map(|mover| {
        let store = store.clone();
        tokio::spawn(async move {
            for round in 0..30 {
                let from = format!("account/{}", (mover + round) % ACCOUNTS);
                let to = format!("account/{}", (mover + round * 3 + 1) % ACCOUNTS);
                if from == to {
                    continue;
                }
                let source = store.get(&from).await.unwrap().unwrap();
                let target = store.get(&to).await.unwrap().unwrap();
                if number(&source.value) == 0 {
                    continue;
                }
                let transaction = Transaction {
                    conditions: vec![
                        Condition::Unchanged(from.clone(), source.modified),
                        Condition::Unchanged(to.clone(), target.modified),
                    ],
                    then: vec![
                        Operation::put(from, (number(&source.value) - 1).to_string()),
                        Operation::put(to, (number(&target.value) + 1).to_string()),
                    ],
                };
                store.transact(transaction).await.unwrap();
            }
        })
    });
    let movers = join_all(movers);
    let onlooker = async {
        for _ in 0..60 {
            let page = store.range(Range::new("account/", 10)).await.unwrap();
            let total: u64 = page.entries.iter().map(|entry| number(&entry.value)).sum();
            assert_eq!(total, ACCOUNTS * EACH, "at {}", page.revision);
        }
    };
    let (movers, ()) = futures::future::join(movers, onlooker).await;
    assert!(movers.into_iter().all(|mover| mover.is_ok()));
}

/// Of many who want to be the first, one is.
async fn claims(store: Arc<dyn Store>) {
    for round in 0..10 {
        let key = format!("leader/{round}");
        let rivals = (0..8).map(|rival| {
            let (store, key) = (store.clone(), key.clone());
            tokio::spawn(async move {
                let transaction = Transaction {
                    conditions: vec![Condition::Absent(key.clone())],
                    then: vec![Operation::put(key, rival.to_string())],
                };
                store
                    .transact(transaction)
                    .await
                    .unwrap()
                    .committed()
                    .then_some(rival)
            })
        });
        let winners: Vec<usize> = join_all(rivals)
            .await
            .into_iter()
            .filter_map(Result::unwrap)
            .collect();
        assert_eq!(winners.len(), 1, "{winners:?}");
        let entry = store.get(&key).await.unwrap().unwrap();
        assert_eq!(number(&entry.value), winners[0] as u64);
    }
}

/// What was acknowledged to one is there for everybody from then on.
async fn reads_see_what_was_acknowledged(store: Arc<dyn Store>) {
    for round in 0..50_u64 {
        let value = round.to_string();
        let outcome = store
            .transact(Transaction::always([Operation::put("x", value.clone())]))
            .await
            .unwrap();
        let readers = (0..4).map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.get("x").await.unwrap().unwrap() })
        });
        for entry in join_all(readers).await {
            let entry = entry.unwrap();
            assert_eq!(entry.value, value);
            assert_eq!(entry.modified, outcome.revision());
        }
        assert!(store.revision().await.unwrap() >= outcome.revision());
    }
}
