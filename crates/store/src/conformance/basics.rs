//! Keys, ranges, transactions, history.

use super::Subject;
use crate::{Condition, Operation, Outcome, Page, Range, Revision, Store, StoreError, Transaction};
use std::future::Future;

pub(super) async fn run<S: Subject, F: Future<Output = S>>(make: &impl Fn() -> F) {
    keys(&*make().await.open().await).await;
    transactions(&*make().await.open().await).await;
    soon(&make().await).await;
    ranges(&*make().await.open().await).await;
    history(&*make().await.open().await).await;
    limits(&*make().await.open().await).await;
    let subject = make().await;
    survives(&subject).await;
}

async fn put(store: &dyn Store, key: &str, value: &'static str) -> Revision {
    let outcome = store
        .transact(Transaction::always([Operation::put(key, value)]))
        .await
        .unwrap();
    assert!(outcome.committed());
    outcome.revision()
}

async fn delete(store: &dyn Store, key: &str) -> Revision {
    let outcome = store
        .transact(Transaction::always([Operation::delete(key)]))
        .await
        .unwrap();
    outcome.revision()
}

fn keys_of(page: &Page) -> Vec<&str> {
    page.entries
        .iter()
        .map(|entry| entry.key.as_str())
        .collect()
}

async fn keys(store: &dyn Store) {
    assert_eq!(
        store.revision().await.unwrap(),
        Revision(1),
        "an empty store"
    );
    assert_eq!(store.get("a").await.unwrap(), None);
    let first = put(store, "a", "1").await;
    assert_eq!(first, Revision(2), "each change makes the next revision");
    let second = put(store, "a", "2").await;
    let entry = store.get("a").await.unwrap().unwrap();
    assert_eq!((entry.key.as_str(), entry.value.as_ref()), ("a", &b"2"[..]));
    assert_eq!(
        (entry.created, entry.modified, entry.lease),
        (first, second, None)
    );
    assert_eq!(delete(store, "a").await, second.next());
    assert_eq!(store.get("a").await.unwrap(), None);
    assert_eq!(
        delete(store, "a").await,
        second.next(),
        "what changes nothing is no revision"
    );
    let again = put(store, "a", "3").await;
    assert_eq!(
        store.get("a").await.unwrap().unwrap().created,
        again,
        "it came into being anew"
    );
}

async fn transactions(store: &dyn Store) {
    let transaction = Transaction {
        conditions: vec![Condition::Absent("a".into()), Condition::Absent("b".into())],
        then: vec![Operation::put("a", "1"), Operation::put("b", "2")],
    };
    let revision = match store.transact(transaction.clone()).await.unwrap() {
        Outcome::Committed { revision } => revision,
        refused => panic!("refused: {refused:?}"),
    };
    let a = store.get("a").await.unwrap().unwrap();
    let b = store.get("b").await.unwrap().unwrap();
    assert_eq!(
        (a.modified, b.modified),
        (revision, revision),
        "one revision for all of it"
    );

    match store.transact(transaction).await.unwrap() {
        Outcome::Refused {
            revision: now,
            current,
        } => {
            assert_eq!(now, revision);
            assert_eq!(
                current,
                [Some(a.clone()), Some(b.clone())],
                "it says what is there"
            );
        }
        committed => panic!("committed: {committed:?}"),
    }

    // One condition of several that does not hold is enough, and then nothing is done.
    for conditions in [
        vec![
            Condition::Unchanged("a".into(), revision),
            Condition::Absent("b".into()),
        ],
        vec![Condition::Exists("a".into()), Condition::Exists("c".into())],
        vec![Condition::Unchanged("a".into(), Revision(1))],
        vec![Condition::Unchanged("c".into(), Revision(0))],
    ] {
        let then = vec![Operation::put("c", "3"), Operation::delete("a")];
        let outcome = store
            .transact(Transaction { conditions, then })
            .await
            .unwrap();
        assert!(!outcome.committed());
        assert_eq!(store.get("c").await.unwrap(), None);
        assert!(store.get("a").await.unwrap().is_some());
    }

    let outcome = store
        .transact(Transaction {
            conditions: vec![
                Condition::Unchanged("a".into(), revision),
                Condition::Exists("b".into()),
                Condition::Absent("c".into()),
            ],
            then: vec![
                Operation::delete("a"),
                Operation::put("b", "4"),
                Operation::delete("nothing"),
            ],
        })
        .await
        .unwrap();
    assert_eq!(
        outcome,
        Outcome::Committed {
            revision: revision.next()
        }
    );
    assert_eq!(store.get("a").await.unwrap(), None);
    assert_eq!(
        store.get("b").await.unwrap().unwrap().created,
        revision,
        "it was there before"
    );

    // A transaction that only asks.
    let asks = Transaction {
        conditions: vec![Condition::Exists("b".into())],
        then: vec![],
    };
    let outcome = store.transact(asks).await.unwrap();
    assert_eq!(
        outcome,
        Outcome::Committed {
            revision: revision.next()
        }
    );
}

/// Whoever does not wait for the disk gets the same answers, in one order with those who do.
async fn soon<S: Subject>(subject: &S) {
    let store = subject.open().await;
    let mut last = put(&*store, "a", "0").await;
    for round in 0..40 {
        let transaction = Transaction {
            conditions: vec![Condition::Unchanged("a".into(), last)],
            then: vec![Operation::put("a", round.to_string())],
        };
        let stale = transaction.clone();
        let outcome = match round % 3 {
            0 => store.transact(transaction).await.unwrap(),
            _ => store.transact_soon(transaction).await.unwrap(),
        };
        assert!(outcome.committed());
        assert_eq!(outcome.revision(), last.next());
        last = outcome.revision();
        assert!(!store.transact_soon(stale).await.unwrap().committed());
        let entry = store.get("a").await.unwrap().unwrap();
        assert_eq!(
            (entry.modified, entry.value),
            (last, round.to_string().into())
        );
    }
    let invalid = Transaction::always([Operation::put("", "1")]);
    assert!(matches!(
        store.transact_soon(invalid).await,
        Err(StoreError::Invalid(_))
    ));
    drop(store);
    let store = subject.reopen().await;
    let entry = store.get("a").await.unwrap().unwrap();
    assert_eq!((entry.modified, entry.value), (last, "39".into()));
}

async fn ranges(store: &dyn Store) {
    for key in ["p/b", "p/a", "p/é", "p", "p0", "q", "p/c", "o"] {
        put(store, key, "x").await;
    }
    let page = store.range(Range::new("p/", 10)).await.unwrap();
    assert_eq!(
        keys_of(&page),
        ["p/a", "p/b", "p/c", "p/é"],
        "in the order of bytes"
    );
    assert!(!page.more);
    let all = store.range(Range::new("", 100)).await.unwrap();
    assert_eq!(
        keys_of(&all),
        ["o", "p", "p/a", "p/b", "p/c", "p/é", "p0", "q"]
    );

    let first = store.range(Range::new("p/", 2)).await.unwrap();
    assert_eq!((keys_of(&first), first.more), (vec!["p/a", "p/b"], true));
    // The second page is of the same moment as the first, whatever happens in between.
    put(store, "p/aa", "x").await;
    delete(store, "p/c").await;
    put(store, "p/é", "changed").await;
    let second = Range {
        prefix: "p/".into(),
        after: Some("p/b".into()),
        limit: 2,
        at: Some(first.revision),
    };
    let second = store.range(second).await.unwrap();
    assert_eq!((keys_of(&second), second.more), (vec!["p/c", "p/é"], false));
    assert_eq!(second.entries[1].value.as_ref(), b"x");
    assert_eq!(second.revision, first.revision);
    let now = store.range(Range::new("p/", 10)).await.unwrap();
    assert_eq!(keys_of(&now), ["p/a", "p/aa", "p/b", "p/é"]);
    let exact = store.range(Range::new("p/", 4)).await.unwrap();
    assert!(!exact.more, "a full last page is the last");
}

async fn history(store: &dyn Store) {
    let mut revisions = Vec::new();
    for value in ["1", "2", "3"] {
        revisions.push(put(store, "a", value).await);
    }
    let gone = delete(store, "a").await;
    let back = put(store, "a", "4").await;
    let at = |revision| Range {
        at: Some(revision),
        ..Range::new("a", 1)
    };
    let value = |page: Page| page.entries.first().map(|entry| entry.value.to_vec());
    let values = |page| value(page).map(|value| String::from_utf8(value).unwrap());
    for (revision, expected) in [
        (Revision(1), None),
        (revisions[0], Some("1")),
        (revisions[1], Some("2")),
        (revisions[2], Some("3")),
        (gone, None),
        (back, Some("4")),
    ] {
        let page = store.range(at(revision)).await.unwrap();
        assert_eq!(values(page).as_deref(), expected, "at {revision}");
    }
    let future = store.range(at(back.next())).await;
    assert!(
        matches!(future, Err(StoreError::Future { .. })),
        "{future:?}"
    );

    store.compact(revisions[1]).await.unwrap();
    let early = store.range(at(revisions[0])).await;
    assert!(
        matches!(early, Err(StoreError::Compacted { .. })),
        "{early:?}"
    );
    assert_eq!(
        values(store.range(at(revisions[1])).await.unwrap()).as_deref(),
        Some("2")
    );
    store.compact(gone).await.unwrap();
    assert_eq!(
        values(store.range(at(gone)).await.unwrap()),
        None,
        "what was deleted stays so"
    );
    assert_eq!(
        values(store.range(at(back)).await.unwrap()).as_deref(),
        Some("4")
    );
    let twice = store.compact(gone).await;
    assert!(
        matches!(twice, Err(StoreError::Compacted { .. })),
        "{twice:?}"
    );
    let future = store.compact(back.next()).await;
    assert!(
        matches!(future, Err(StoreError::Future { .. })),
        "{future:?}"
    );
    assert_eq!(store.get("a").await.unwrap().unwrap().modified, back);
}

async fn limits(store: &dyn Store) {
    let long = "k".repeat(crate::MAX_KEY_BYTES + 1);
    let large = vec![0_u8; crate::MAX_VALUE_BYTES + 1];
    let many: Vec<Operation> = (0..=crate::MAX_OPERATIONS)
        .map(|n| Operation::delete(format!("k{n}")))
        .collect();
    for operations in [
        vec![Operation::put("", "x")],
        vec![Operation::put("a\0b", "x")],
        vec![Operation::put(long, "x")],
        vec![Operation::put("a", large)],
        vec![Operation::put("a", "1"), Operation::delete("a")],
        many,
    ] {
        let refused = store.transact(Transaction::always(operations)).await;
        assert!(
            matches!(refused, Err(StoreError::Invalid(_))),
            "{refused:?}"
        );
    }
    assert!(matches!(
        store.range(Range::new("", 0)).await,
        Err(StoreError::Invalid(_))
    ));
    assert_eq!(
        store.revision().await.unwrap(),
        Revision(1),
        "nothing was done"
    );
    let largest = vec![7_u8; crate::MAX_VALUE_BYTES];
    let key = "k".repeat(crate::MAX_KEY_BYTES);
    let operation = Operation::put(key.clone(), largest.clone());
    store
        .transact(Transaction::always([operation]))
        .await
        .unwrap();
    assert_eq!(store.get(&key).await.unwrap().unwrap().value, largest);
}

async fn survives(subject: &impl Subject) {
    let store = subject.open().await;
    let first = put(&*store, "a", "1").await;
    put(&*store, "b", "2").await;
    let last = delete(&*store, "b").await;
    drop(store);
    let store = subject.reopen().await;
    assert_eq!(store.revision().await.unwrap(), last);
    let entry = store.get("a").await.unwrap().unwrap();
    assert_eq!((entry.value.as_ref(), entry.modified), (&b"1"[..], first));
    assert_eq!(store.get("b").await.unwrap(), None);
    let at = Range {
        at: Some(first.next()),
        ..Range::new("", 10)
    };
    assert_eq!(
        keys_of(&store.range(at).await.unwrap()),
        ["a", "b"],
        "history too"
    );
}
