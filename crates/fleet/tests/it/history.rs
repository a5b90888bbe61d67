//! Decisions are kept for 30 days, and survive a restart.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may stop at what it did not expect"
)]

use crate::support;

use fleet::{
    explain::{History, KEPT},
    inventory::Moving,
    moment::Span,
};
use std::sync::Arc;
use store::{SqliteStore, Store};
use support::Fixture;

#[tokio::test]
async fn every_moment_has_an_answer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.sqlite");
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&path).await.unwrap());
    let mut fixture = Fixture::new(&[4, 4]);
    fixture.workload(3800, Some(0), Moving::Never);
    let mut history = History::new(store.clone());
    let start = fixture.now;
    for _ in 0..60 {
        let plan = fixture.plan();
        history.note(&fixture.inventory, &plan).await.unwrap();
        fleet::counterfactual::carry_out(&mut fixture.inventory, &plan, fixture.now);
        fixture.now = fixture.now.plus(Span(30));
    }
    let first = history
        .at("m1", start.plus(Span(60)))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(first.reason, "NotUnneededLongEnough");
    assert!(first.would.unwrap().starts_with("would sleep in"));
    let all = history.between("m1", start, fixture.now).await.unwrap();
    let actions: Vec<String> = all.iter().map(|one| one.action.to_string()).collect();
    assert_eq!(actions, ["keep", "power off", "keep"]);
    assert_eq!(history.at("nobody", start).await.unwrap(), None);

    // After a restart nothing is written twice.
    let mut again = History::new(store.clone());
    let plan = fixture.plan();
    assert_eq!(again.note(&fixture.inventory, &plan).await.unwrap(), 0);

    // A month later only what still holds is left.
    let later = fixture.now.plus(KEPT);
    assert_eq!(again.prune(later).await.unwrap(), 2);
    let kept = again.at("m1", later).await.unwrap().unwrap();
    assert_eq!(kept.reason, "Unneeded");
    assert_eq!(again.prune(later).await.unwrap(), 0);
}
