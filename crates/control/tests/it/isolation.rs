//! No endpoint tells a tenant anything about another one's things. The endpoints are those of the
//! OpenAPI document, so that one that is added later is tested too.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Helpers of tests too.

use crate::common;

use common::{FIRST_KEY, Plane};
use serde_json::{Value, json};

/// Bodies that are right, so that nothing is refused for another reason.
fn body(operation: &str, template: &str) -> Value {
    match operation {
        "setTimeout" | "connectSandboxV1" | "connectSandbox" => json!({"timeout": 60}),
        "updateTemplate" | "updateTemplateV1" => json!({"public": true}),
        "assignTags" => json!({"target": template, "tags": ["x"]}),
        "deleteTags" => json!({"name": template, "tags": ["v1"]}),
        "createSandbox" | "createSandboxV1" => json!({"templateID": template}),
        _ => json!({}),
    }
}

#[tokio::test]
async fn foreign_and_unknown_are_the_same() {
    let plane = Plane::start().await;
    let stranger = plane.stranger().await;
    let sandbox = plane.sandbox(FIRST_KEY, json!({})).await;
    plane
        .build(FIRST_KEY, json!({"name": "mine", "source": "debian:x"}))
        .await;
    plane
        .post("/templates/tags", json!({"target": "mine", "tags": ["v1"]}))
        .await
        .expect(201);
    let template = plane.get("/templates/mine").await.expect(200).json();
    let (build, template) = (
        template["buildID"].as_str().unwrap(),
        template["templateID"].as_str().unwrap(),
    );

    let document: Value = serde_json::from_str(&control::openapi()).unwrap();
    let mut checked = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let name = operation["operationId"].as_str().unwrap();
            let concerns = path.contains("{sandboxID}")
                || path.contains("{templateID}")
                || [
                    "assignTags",
                    "deleteTags",
                    "createSandbox",
                    "createSandboxV1",
                ]
                .contains(&name);
            if !concerns {
                continue;
            }
            let mut answers = Vec::new();
            for (sandbox, template) in [
                (&*sandbox, template),
                ("ic1un0dezzzzzzzzzzzzz", "zzzzzzzzzzzzzzzzzzzz"),
            ] {
                let path = path
                    .replace("{sandboxID}", sandbox)
                    .replace("{templateID}", template)
                    .replace("{buildID}", build)
                    .replace("{hash}", "0");
                let body = body(name, template);
                let answer = plane
                    .call(&method.to_uppercase(), &path, &stranger, Some(body))
                    .await;
                assert_eq!(answer.status, 404, "{method} {path}: {}", answer.text);
                answers.push(answer.text.replace(sandbox, "ID").replace(template, "ID"));
            }
            assert_eq!(answers[0], answers[1], "{method} {path}");
            checked += 1;
        }
    }
    assert!(checked >= 25, "only {checked} endpoints were checked");
    plane
        .get(&format!("/sandboxes/{sandbox}"))
        .await
        .expect(200);
    plane.get("/templates/mine").await.expect(200);
}

#[tokio::test]
async fn lists_hold_only_ones_own() {
    let plane = Plane::start().await;
    let stranger = plane.stranger().await;
    let sandbox = plane.sandbox(FIRST_KEY, json!({})).await;
    plane
        .build(FIRST_KEY, json!({"name": "mine", "source": "debian:x"}))
        .await;
    for path in [
        "/sandboxes".to_owned(),
        "/v2/sandboxes".to_owned(),
        "/v1/sandboxes?state=running,paused,ended".to_owned(),
        "/templates".to_owned(),
        "/v1/templates".to_owned(),
        format!("/sandboxes/metrics?sandbox_ids={sandbox}"),
    ] {
        let theirs = plane
            .call("GET", &path, &stranger, None)
            .await
            .expect(200)
            .text;
        assert!(
            !theirs.contains(&sandbox) && !theirs.contains("mine"),
            "{path}: {theirs}"
        );
        let ours = plane.get(&path).await.expect(200).text;
        assert!(
            ours.contains(&sandbox) || ours.contains("mine"),
            "{path}: {ours}"
        );
    }
}

#[tokio::test]
async fn every_endpoint_wants_a_key() {
    let plane = Plane::start().await;
    let document: Value = serde_json::from_str(&control::openapi()).unwrap();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            let path = path.replace(['{', '}'], "");
            let answer = plane
                .call(&method.to_uppercase(), &path, "", Some(json!({})))
                .await;
            let expected = match &*path {
                "/health" => 204,
                // Nodes of the mesh sign what they ask, and have no key.
                "/v1/mesh/join" | "/v1/mesh/record" | "/v1/mesh/watch" | "/v1/mesh/certificate" => {
                    400
                }
                _ => 401,
            };
            assert_eq!(answer.status, expected, "{method} {path}: {}", answer.text);
        }
    }
}

#[tokio::test]
async fn keys_and_nodes_are_the_administrators() {
    let plane = Plane::start().await;
    let member = plane.stranger().await;
    for (method, path) in [
        ("GET", "/v1/keys"),
        ("POST", "/v1/keys"),
        ("DELETE", "/v1/keys/kx"),
        ("GET", "/v1/nodes"),
    ] {
        plane
            .call(method, path, &member, Some(json!({})))
            .await
            .expect(403);
    }
    assert_eq!(
        plane.get("/v1/nodes").await.expect(200).json()[0]["id"],
        "n0de"
    );
    let keys = plane.get("/v1/keys").await.expect(200);
    assert!(
        !keys.text.contains(FIRST_KEY) && !keys.text.contains(&member),
        "never the keys"
    );
    let keys = keys.json();
    let id = |role: &str| {
        let mut keys = keys.as_array().unwrap().iter();
        let key = keys.find(|key| key["role"] == role).unwrap();
        key["id"].as_str().unwrap().to_owned()
    };
    let delete = async |id: &str| {
        plane
            .call("DELETE", &format!("/v1/keys/{id}"), FIRST_KEY, None)
            .await
    };
    delete("knothing").await.expect(404);
    delete(&id("admin")).await.expect(409);
    plane
        .call("GET", "/v2/sandboxes", &member, None)
        .await
        .expect(200);
    delete(&id("member")).await.expect(204);
    plane
        .call("GET", "/v2/sandboxes", &member, None)
        .await
        .expect(401);

    let second = plane
        .post("/v1/keys", json!({"name": "b", "role": "admin"}))
        .await
        .expect(201);
    let second = second.json()["secret"].as_str().unwrap().to_owned();
    delete(&id("admin")).await.expect(204);
    plane.get("/v1/keys").await.expect(401);
    plane
        .call("GET", "/v1/keys", &second, None)
        .await
        .expect(200);
    for body in [
        json!({"tenant": "tnobodynobody"}),
        json!({"tenant": "nonsense"}),
    ] {
        plane
            .call("POST", "/v1/keys", &second, Some(body))
            .await
            .expect(404);
    }
}
