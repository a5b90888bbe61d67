//! What creating a sandbox does not do, and what it refuses.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Helpers of tests too.

use crate::common;

use api::{ErrorCode, Problem};
use common::{FIRST_KEY, Plane};
use serde_json::json;

#[tokio::test]
async fn creating_a_sandbox_writes_nothing_to_the_store() {
    let plane = Plane::start().await;
    // The first use of anything is over.
    plane.sandbox(FIRST_KEY, json!({})).await;
    let before = plane.store.revision().await.unwrap();
    for family in ["/sandboxes", "/v2/sandboxes"] {
        let body = json!({"templateID": "base", "metadata": {"a": "b"}, "envVars": {"X": "1"}});
        plane.post(family, body).await.expect(201);
    }
    assert_eq!(plane.store.revision().await.unwrap(), before);
}

#[tokio::test]
async fn too_large_an_environment_is_refused() {
    let plane = Plane::start().await;
    let check = async |variables: serde_json::Value, says: &str| {
        let body = json!({"templateID": "base", "envVars": variables});
        let answer = plane.post("/v2/sandboxes", body).await.expect(400);
        assert!(answer.message().contains(says), "{}", answer.text);
        assert_eq!(answer.json()["code"], 400);
    };
    check(json!({"LONG": "x".repeat((64 << 10) + 1)}), "LONG").await;
    check(json!({"x".repeat(300): ""}), "256 bytes").await;
    let many = (0..300).map(|number| (format!("V{number}"), json!("")));
    check(serde_json::Value::Object(many.collect()), "256 entries").await;
    assert!(plane.node.requests().is_empty());
    // All of it together may still be more than a node can tell its sandbox.
    let cause = "environment and start command come to 300 KiB";
    plane
        .node
        .refuse_next(Problem::new(ErrorCode::InvalidArgument, cause, ""));
    let some = (0..5).map(|number| (format!("V{number}"), json!("x".repeat(60 << 10))));
    check(serde_json::Value::Object(some.collect()), cause).await;
}
