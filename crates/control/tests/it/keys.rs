//! The first key: given, kept, deleted.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Helpers of tests too.

use crate::common;

use api::Secret;
use common::{FIRST_KEY, FakeNode, Plane};
use control::FirstKey;
use serde_json::json;

/// A key that was deleted must not come back because a file still names it.
#[tokio::test]
async fn a_deleted_first_key_stays_deleted_unless_it_is_given_again() {
    let (given, kept) = (
        FirstKey::Given(Secret::new(FIRST_KEY)),
        FirstKey::Kept(Secret::new(FIRST_KEY)),
    );
    let bootstrap = kept.clone();
    let folder = tempfile::tempdir().unwrap();
    let plane = Plane::start_in(folder, FakeNode::new("n0de"), |options| {
        options.first_key = Some(bootstrap);
        options.base = false;
    })
    .await;
    let first = plane.get("/v1/keys").await.expect(200).json()[0]["id"].clone();
    let other = plane.post("/v1/keys", json!({"role": "admin"})).await;
    let other = other.expect(201).json()["secret"].clone();
    let other = other.as_str().unwrap();
    let path = format!("/v1/keys/{}", first.as_str().unwrap());
    plane.call("DELETE", &path, other, None).await.expect(204);

    let plane = plane
        .restart(|options| options.first_key = Some(kept))
        .await;
    plane.get("/v1/keys").await.expect(401);
    plane.call("GET", "/v1/keys", other, None).await.expect(200);
    assert!(!plane.control.knows(&Secret::new(FIRST_KEY)));

    let plane = plane
        .restart(|options| options.first_key = Some(given))
        .await;
    plane.get("/v1/keys").await.expect(200);
    assert!(plane.control.knows(&Secret::new(FIRST_KEY)));
}

/// The form of a key is the same for all that check it.
#[tokio::test]
async fn a_first_key_in_capitals_is_taken_as_it_is_written() {
    let key = FIRST_KEY.to_uppercase().replace("E2B_", "e2b_");
    let first = FirstKey::Given(Secret::new(&*key));
    let plane = Plane::start_with(|options| options.first_key = Some(first)).await;
    plane.call("GET", "/v1/keys", &key, None).await.expect(200);
    plane.get("/v1/keys").await.expect(401);
}
