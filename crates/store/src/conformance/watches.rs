//! Watches: complete, in order, resumable.

use super::{Subject, soon};
use crate::{Batch, Change, Operation, Range, Revision, Store, StoreError, Transaction};
use futures::StreamExt;
use std::{collections::BTreeMap, future::Future};

pub(super) async fn run<S: Subject, F: Future<Output = S>>(make: &impl Fn() -> F) {
    past_and_future(&*make().await.open().await).await;
    batches(&*make().await.open().await).await;
    compaction(&*make().await.open().await).await;
    slow(&*make().await.open().await).await;
    let subject = make().await;
    resumed(&subject).await;
}

async fn write(store: &dyn Store, operations: Vec<Operation>) -> Revision {
    store
        .transact(Transaction::always(operations))
        .await
        .unwrap()
        .revision()
}

async fn next(watch: &mut crate::Watch) -> Batch {
    soon("a change", watch.next())
        .await
        .expect("a watch does not end")
        .expect("no error")
}

fn keys(batch: &Batch) -> Vec<&str> {
    batch.changes.iter().map(Change::key).collect()
}

async fn past_and_future(store: &dyn Store) {
    let first = write(store, vec![Operation::put("p/a", "1")]).await;
    write(store, vec![Operation::put("other", "x")]).await;
    let second = write(store, vec![Operation::delete("p/a")]).await;
    let mut all = store.watch("p/", first).await.unwrap();
    let mut late = store.watch("p/", first.next()).await.unwrap();
    let mut future = store.watch("p/", Revision(second.0 + 2)).await.unwrap();

    let batch = next(&mut all).await;
    assert_eq!(batch.revision, first);
    match &batch.changes[..] {
        [Change::Put(entry)] => {
            assert_eq!(
                (entry.key.as_str(), entry.value.as_ref()),
                ("p/a", &b"1"[..])
            );
            assert_eq!((entry.created, entry.modified), (first, first));
        }
        other => panic!("{other:?}"),
    }
    let gone = Batch {
        revision: second,
        changes: vec![Change::Deleted { key: "p/a".into() }],
    };
    assert_eq!(next(&mut all).await, gone);
    assert_eq!(
        next(&mut late).await,
        gone,
        "the first revision is included, not one before"
    );

    let third = write(store, vec![Operation::put("p/b", "2")]).await;
    assert_eq!(
        next(&mut all).await.revision,
        third,
        "what comes later follows"
    );
    let fourth = write(store, vec![Operation::put("p/c", "3")]).await;
    assert_eq!(
        next(&mut future).await.revision,
        fourth,
        "a revision that is yet to come"
    );
}

async fn batches(store: &dyn Store) {
    let mut watch = store.watch("p/", Revision(1)).await.unwrap();
    let revision = write(
        store,
        vec![
            Operation::put("p/b", "1"),
            Operation::put("q", "2"),
            Operation::put("p/a", "3"),
        ],
    )
    .await;
    let batch = next(&mut watch).await;
    assert_eq!(batch.revision, revision);
    assert_eq!(
        keys(&batch),
        ["p/a", "p/b"],
        "all of a transaction, and only below the prefix"
    );
}

async fn compaction(store: &dyn Store) {
    let first = write(store, vec![Operation::put("a", "1")]).await;
    let second = write(store, vec![Operation::put("a", "2")]).await;
    let third = write(store, vec![Operation::put("a", "3")]).await;
    store.compact(second).await.unwrap();
    for from in [first, second] {
        let mut watch = store.watch("", from).await.unwrap();
        let answer = soon("an error", watch.next()).await;
        match answer {
            Some(Err(StoreError::Compacted {
                requested,
                compacted,
            })) => {
                assert_eq!((requested, compacted), (from, second));
            }
            other => panic!("{other:?}"),
        }
        assert!(
            soon("the end", watch.next()).await.is_none(),
            "it ends after an error"
        );
    }
    let mut watch = store.watch("", third).await.unwrap();
    assert_eq!(next(&mut watch).await.revision, third);
}

/// A reader who falls behind gets everything all the same.
async fn slow(store: &dyn Store) {
    const WRITES: usize = 1500;
    let mut watch = store.watch("k", Revision(1)).await.unwrap();
    for number in 0..WRITES {
        write(store, vec![Operation::put(format!("k{number}"), "x")]).await;
    }
    let mut last = Revision(1);
    for number in 0..WRITES {
        let batch = next(&mut watch).await;
        assert_eq!(keys(&batch), [format!("k{number}")]);
        assert!(batch.revision > last);
        last = batch.revision;
    }
}

/// A range, and a watch from the revision after it, together show everything: also when the
/// store went down in between.
async fn resumed(subject: &impl Subject) {
    let store = subject.open().await;
    write(
        &*store,
        vec![Operation::put("a", "1"), Operation::put("b", "1")],
    )
    .await;
    let page = store.range(Range::new("", 10)).await.unwrap();
    let mut seen: BTreeMap<String, Vec<u8>> = page
        .entries
        .into_iter()
        .map(|entry| (entry.key, entry.value.to_vec()))
        .collect();
    write(
        &*store,
        vec![Operation::put("b", "2"), Operation::delete("a")],
    )
    .await;
    drop(store);
    let store = subject.reopen().await;
    let last = write(&*store, vec![Operation::put("c", "3")]).await;
    let mut watch = store.watch("", page.revision.next()).await.unwrap();
    loop {
        let batch = next(&mut watch).await;
        for change in batch.changes {
            match change {
                Change::Put(entry) => drop(seen.insert(entry.key, entry.value.to_vec())),
                Change::Deleted { key } => drop(seen.remove(&key)),
            }
        }
        if batch.revision == last {
            break;
        }
    }
    let expected: BTreeMap<String, Vec<u8>> =
        [("b".into(), b"2".to_vec()), ("c".into(), b"3".to_vec())].into();
    assert_eq!(seen, expected);
}
