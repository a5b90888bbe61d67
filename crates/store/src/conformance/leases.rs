//! Leases: what is attached lives as long as somebody keeps it alive.

use super::{Subject, soon};
use crate::{Change, LeaseId, Operation, Revision, Store, StoreError, Transaction};
use futures::StreamExt;
use std::{future::Future, time::Duration};

const LIFE: Duration = Duration::from_secs(4);

pub(super) async fn run<S: Subject, F: Future<Output = S>>(make: &impl Fn() -> F) {
    let subject = make().await;
    expiry(&subject).await;
    let subject = make().await;
    kept_alive(&subject).await;
    revoked(&*make().await.open().await).await;
    detached(&*make().await.open().await).await;
    refused(&*make().await.open().await).await;
    let subject = make().await;
    restarted(&subject).await;
}

fn attached(key: &str, lease: LeaseId) -> Operation {
    Operation::Put {
        key: key.into(),
        value: "x".into(),
        lease: Some(lease),
    }
}

async fn write(store: &dyn Store, operation: Operation) -> Revision {
    store
        .transact(Transaction::always([operation]))
        .await
        .unwrap()
        .revision()
}

/// Waits until a key is deleted. Returns the keys that the same revision deleted.
async fn deleted(store: &dyn Store, from: Revision, key: &str) -> Vec<String> {
    let mut watch = store.watch("", from).await.unwrap();
    loop {
        let batch = soon("the end of a lease", watch.next())
            .await
            .unwrap()
            .unwrap();
        let gone: Vec<String> = batch
            .changes
            .iter()
            .filter(|change| matches!(change, Change::Deleted { .. }))
            .map(|change| change.key().to_owned())
            .collect();
        if gone.iter().any(|gone| gone == key) {
            return gone;
        }
    }
}

async fn expiry(subject: &impl Subject) {
    let store = subject.open().await;
    let lease = store.grant(LIFE).await.unwrap();
    write(&*store, attached("a", lease)).await;
    write(&*store, attached("b", lease)).await;
    let last = write(&*store, Operation::put("c", "x")).await;
    assert_eq!(store.get("a").await.unwrap().unwrap().lease, Some(lease));
    subject.pass(LIFE + Duration::from_secs(1)).await;
    assert_eq!(
        deleted(&*store, last.next(), "a").await,
        ["a", "b"],
        "in one revision"
    );
    assert_eq!(store.get("a").await.unwrap(), None);
    assert!(
        store.get("c").await.unwrap().is_some(),
        "what has no lease stays"
    );
    let late = store.keep_alive(lease).await;
    assert!(
        matches!(late, Err(StoreError::LeaseNotFound(_))),
        "{late:?}"
    );
}

async fn kept_alive(subject: &impl Subject) {
    let store = subject.open().await;
    let lease = store.grant(LIFE).await.unwrap();
    let revision = write(&*store, attached("a", lease)).await;
    for _ in 0..3 {
        subject.pass(LIFE / 2).await;
        store.keep_alive(lease).await.unwrap();
    }
    assert!(
        store.get("a").await.unwrap().is_some(),
        "longer than its time to live"
    );
    subject.pass(LIFE + Duration::from_secs(1)).await;
    deleted(&*store, revision, "a").await;
}

async fn revoked(store: &dyn Store) {
    let lease = store.grant(LIFE).await.unwrap();
    let other = store.grant(LIFE).await.unwrap();
    assert_ne!(lease, other);
    write(store, attached("a", lease)).await;
    let before = write(store, attached("b", other)).await;
    store.revoke(lease).await.unwrap();
    assert_eq!(store.get("a").await.unwrap(), None);
    assert!(store.get("b").await.unwrap().is_some());
    assert_eq!(store.revision().await.unwrap(), before.next());
    let twice = store.revoke(lease).await;
    assert!(
        matches!(twice, Err(StoreError::LeaseNotFound(_))),
        "{twice:?}"
    );
    let empty = store.grant(LIFE).await.unwrap();
    store.revoke(empty).await.unwrap();
    assert_eq!(
        store.revision().await.unwrap(),
        before.next(),
        "it changed no key"
    );
}

/// A key belongs to the lease of its last put, and to none if that named none.
async fn detached(store: &dyn Store) {
    let first = store.grant(LIFE).await.unwrap();
    let second = store.grant(LIFE).await.unwrap();
    for key in ["moved", "freed", "remade"] {
        write(store, attached(key, first)).await;
    }
    write(store, attached("moved", second)).await;
    write(store, Operation::put("freed", "x")).await;
    write(store, Operation::delete("remade")).await;
    write(store, Operation::put("remade", "x")).await;
    store.revoke(first).await.unwrap();
    for key in ["moved", "freed", "remade"] {
        assert!(store.get(key).await.unwrap().is_some(), "{key}");
    }
    store.revoke(second).await.unwrap();
    assert_eq!(store.get("moved").await.unwrap(), None);
}

async fn refused(store: &dyn Store) {
    for life in [
        Duration::ZERO,
        Duration::from_millis(500),
        Duration::from_millis(1500),
    ] {
        let answer = store.grant(life).await;
        assert!(
            matches!(answer, Err(StoreError::Invalid(_))),
            "{life:?}: {answer:?}"
        );
    }
    let lease = store.grant(LIFE).await.unwrap();
    store.revoke(lease).await.unwrap();
    let transaction = Transaction::always([
        Operation::put("a", "1"),
        attached("b", lease),
        Operation::put("c", "1"),
    ]);
    let answer = store.transact(transaction).await;
    assert!(
        matches!(answer, Err(StoreError::LeaseNotFound(id)) if id == lease),
        "{answer:?}"
    );
    assert_eq!(
        store.revision().await.unwrap(),
        Revision(1),
        "nothing of it was done"
    );
}

/// After a restart a lease lives for its full time again, and ends then.
async fn restarted(subject: &impl Subject) {
    let store = subject.open().await;
    let lease = store.grant(LIFE).await.unwrap();
    let revision = write(&*store, attached("a", lease)).await;
    drop(store);
    let store = subject.reopen().await;
    assert_eq!(store.get("a").await.unwrap().unwrap().lease, Some(lease));
    store.keep_alive(lease).await.unwrap();
    let other = store.grant(LIFE).await.unwrap();
    assert_ne!(other, lease, "ids are not used twice");
    subject.pass(LIFE + Duration::from_secs(1)).await;
    deleted(&*store, revision, "a").await;
}
