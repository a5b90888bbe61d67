//! Templates through the API: built, tagged, shared, deleted.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Helpers of tests too.

use crate::common;

use api::template::Requester;
use common::{FIRST_KEY, FakeNode, Plane};
use http::StatusCode;
use serde_json::{Value, json};
use std::time::Duration;

fn last(lines: &[Value]) -> &Value {
    lines.last().expect("at least one line")
}

#[tokio::test]
async fn the_api_serves_while_base_is_built() {
    let node = FakeNode::new("n0de");
    node.gate.send_replace(false);
    let plane = Plane::start_in(tempfile::tempdir().unwrap(), node, |_| {}).await;
    let create = async || {
        plane
            .post("/v2/sandboxes", json!({"templateID": "base"}))
            .await
    };
    // Known as soon as the reconciler has looked once.
    plane
        .until("base is known", async || {
            plane.get("/templates/base").await.status == 200
        })
        .await;
    plane
        .until("progress is told", async || {
            create().await.message().contains("unpacking, 40 %")
        })
        .await;
    let answer = create().await.expect(503);
    assert_eq!(
        answer.message(),
        "Template \"base\" is still being built (unpacking, 40 %)"
    );
    assert_eq!(answer.header("should-retry"), Some("true"));
    assert!(answer.header("retry-after").is_some());

    plane.node.gate.send_replace(true);
    plane.until_base_is_ready().await;
    create().await.expect(201);
}

#[tokio::test]
async fn an_interrupted_build_of_base_goes_on_after_a_restart() {
    let node = FakeNode::new("n0de");
    node.gate.send_replace(false);
    let plane = Plane::start_in(tempfile::tempdir().unwrap(), node, |_| {}).await;
    plane
        .until("it is being built", async || {
            !plane.node.builds().is_empty()
        })
        .await;
    // Another one, of a user, that nobody resumes.
    let body = json!({"name": "slow", "source": "debian:slow"});
    let asked = plane.post("/v1/templates", body);
    assert!(
        tokio::time::timeout(Duration::from_millis(300), asked)
            .await
            .is_err()
    );
    plane
        .until("it is known", async || {
            plane.get("/templates/slow").await.status == 200
        })
        .await;
    let node = plane.node.clone();
    let plane = plane
        .restart(|_| {
            node.gate.send_replace(true);
        })
        .await;
    plane.until_base_is_ready().await;
    plane
        .until("the other is given up", async || {
            plane.get("/templates/slow").await.json()["buildStatus"] == "error"
        })
        .await;
    let refused = plane
        .post("/v2/sandboxes", json!({"templateID": "slow"}))
        .await
        .expect(409);
    assert!(
        refused.message().contains("interrupted"),
        "{}",
        refused.text
    );
}

#[tokio::test]
async fn a_template_is_built_used_and_deleted() {
    let plane = Plane::start().await;
    let lines = plane
        .build(
            FIRST_KEY,
            json!({
                "name": "My-App", "source": "debian:bookworm", "cpuCount": 1, "memoryMB": 128,
                "startCommand": "serve", "environment": {"A": "1"}, "user": "app",
                "workingDirectory": "/srv",
            }),
        )
        .await;
    assert_eq!(
        lines[0],
        json!({"event": "step", "name": "unpacking", "total": 100})
    );
    assert_eq!(last(&lines)["event"], "template");
    let template = &last(&lines)["template"];
    assert_eq!(template["builds"][0]["status"], "ready");
    assert_eq!(template["own"], true);
    let line: api::rest::v1::BuildLine = serde_json::from_value(last(&lines).clone()).unwrap();
    assert!(
        matches!(line, api::rest::v1::BuildLine::Template(_)),
        "clients read it back"
    );

    plane
        .sandbox(FIRST_KEY, json!({"templateID": "my-app"}))
        .await;
    let asked = plane.node.requests().pop().unwrap();
    assert_eq!(asked.template.start_command.as_deref(), Some("serve"));
    assert_eq!(
        (asked.template.user.as_str(), asked.resources.vcpus),
        ("app", 1)
    );
    assert_eq!(asked.template.environment["A"], "1");
    assert_eq!(
        asked.template.environment["PATH"], "/bin",
        "the image's own stays"
    );
    let row = &plane.get("/templates").await.expect(200).json()[0];
    assert_eq!(
        (&row["aliases"][0], &row["spawnCount"]),
        (&json!("my-app"), &json!(1))
    );
    let id = template["id"].as_str().unwrap();
    let tenant = plane.get("/teams").await.json()[0]["teamID"]
        .as_str()
        .unwrap()
        .to_owned();
    for reference in [
        id.to_owned(),
        format!("{tenant}%2Fmy-app"),
        "MY-APP".to_owned(),
    ] {
        plane
            .get(&format!("/templates/{reference}"))
            .await
            .expect(200);
    }
    plane.get("/templates/tother%2Fmy-app").await.expect(404);

    let alias = plane
        .get("/templates/aliases/my-app")
        .await
        .expect(200)
        .json();
    assert_eq!(alias, json!({"templateID": id, "public": false}));
    plane
        .call("DELETE", "/templates/my-app", FIRST_KEY, None)
        .await
        .expect(204);
    plane
        .call("DELETE", "/templates/my-app", FIRST_KEY, None)
        .await
        .expect(404);
    plane.get("/templates/aliases/my-app").await.expect(404);
    plane
        .post("/v2/sandboxes", json!({"templateID": "my-app"}))
        .await
        .expect(404);
    let image = asked.template.image;
    plane
        .until("its image is removed", async || {
            plane.node.removed() == [image.clone()]
        })
        .await;
}

#[tokio::test]
async fn an_image_stays_as_long_as_any_template_uses_it() {
    let plane = Plane::start().await;
    for name in ["one", "two"] {
        plane
            .build(
                FIRST_KEY,
                json!({"name": name, "source": "debian:bookworm"}),
            )
            .await;
    }
    plane
        .call("DELETE", "/templates/one", FIRST_KEY, None)
        .await
        .expect(204);
    // The other one's deletion is worked on after the first one's.
    plane
        .build(
            FIRST_KEY,
            json!({"name": "three", "source": "debian:trixie"}),
        )
        .await;
    plane
        .call("DELETE", "/templates/three", FIRST_KEY, None)
        .await
        .expect(204);
    plane
        .until("an image is removed", async || {
            !plane.node.removed().is_empty()
        })
        .await;
    plane.sandbox(FIRST_KEY, json!({"templateID": "two"})).await;
    let used = plane.node.requests().pop().unwrap().template.image;
    assert!(!plane.node.removed().contains(&used));
    plane
        .call("DELETE", "/templates/two", FIRST_KEY, None)
        .await
        .expect(204);
    plane
        .until("it is removed", async || {
            plane.node.removed().contains(&used)
        })
        .await;
}

#[tokio::test]
async fn a_failed_build_says_why() {
    let plane = Plane::start().await;
    let lines = plane
        .build(FIRST_KEY, json!({"name": "bad", "source": "debian:bad"}))
        .await;
    assert_eq!(
        last(&lines),
        &json!({
            "event": "failed", "cause": "the suite `bad` does not exist",
            "remedy": "name one that does",
        })
    );
    let refused = plane
        .post("/v2/sandboxes", json!({"templateID": "bad"}))
        .await
        .expect(409);
    assert!(refused.message().contains("does not exist"));
    let template = plane.get("/templates/bad").await.expect(200).json();
    let build = template["builds"][0]["buildID"].as_str().unwrap();
    let status = format!("/templates/bad/builds/{build}/status");
    let status = plane.get(&status).await.expect(200).json();
    assert_eq!(status["status"], "error");
    assert_eq!(
        status["reason"]["message"],
        "the suite `bad` does not exist"
    );

    // A new build under the same name heals it; a failed one after that breaks nothing.
    for source in ["debian:bookworm", "debian:bad"] {
        plane
            .build(FIRST_KEY, json!({"name": "bad", "source": source}))
            .await;
        plane.sandbox(FIRST_KEY, json!({"templateID": "bad"})).await;
    }
}

#[tokio::test]
async fn tags_name_builds() {
    let plane = Plane::start().await;
    let build = async |name: &str, source: &str| {
        let lines = plane
            .build(FIRST_KEY, json!({"name": name, "source": source}))
            .await;
        last(&lines)["template"]["builds"][0]["id"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let first = build("app", "debian:one").await;
    let assigned = plane
        .post(
            "/templates/tags",
            json!({"target": "app", "tags": ["v1", "Stable"]}),
        )
        .await
        .expect(201);
    assert_eq!(assigned.json()["buildID"], first);
    let second = build("app", "debian:two").await;
    let third = build("app:next", "debian:three").await;
    let tags = plane.get("/templates/app/tags").await.expect(200).json();
    let tags: Vec<(&str, &str)> = tags
        .as_array()
        .unwrap()
        .iter()
        .map(|tag| {
            (
                tag["tag"].as_str().unwrap(),
                tag["buildID"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        tags,
        [
            ("default", &*second),
            ("next", &third),
            ("stable", &first),
            ("v1", &first)
        ]
    );
    for (reference, expected) in [
        ("app", &second),
        ("app:v1", &first),
        ("app:NEXT", &third),
        ("app:stable", &first),
    ] {
        plane
            .sandbox(FIRST_KEY, json!({"templateID": reference}))
            .await;
        let asked = plane.node.requests().pop().unwrap();
        assert_eq!(asked.template.build.as_str(), expected, "{reference}");
    }
    for body in [
        json!({"target": "app", "tags": [""]}),
        json!({"target": "app", "tags": []}),
        json!({"target": "", "tags": ["x"]}),
        json!({"target": ":v1", "tags": ["x"]}),
        json!({"target": "app:", "tags": ["x"]}),
        json!({"target": "app", "tags": [first]}),
        json!({"target": "app", "tags": ["a b"]}),
    ] {
        plane.post("/templates/tags", body).await.expect(400);
    }
    plane
        .post(
            "/templates/tags",
            json!({"target": "app:no", "tags": ["x"]}),
        )
        .await
        .expect(404);
    plane
        .post("/templates/tags", json!({"target": "no", "tags": ["x"]}))
        .await
        .expect(404);

    let delete = async |tags: Value| {
        let body = json!({"name": "app", "tags": tags});
        plane
            .call("DELETE", "/templates/tags", FIRST_KEY, Some(body))
            .await
    };
    delete(json!(["default"])).await.expect(400);
    delete(json!(["nothing"])).await.expect(404);
    delete(json!(["v1"])).await.expect(204);
    plane
        .sandbox(FIRST_KEY, json!({"templateID": "app:stable"}))
        .await;
    delete(json!(["stable"])).await.expect(204);
    plane
        .until("the build that no tag names is gone", async || {
            plane.get("/templates/app").await.json()["builds"]
                .as_array()
                .unwrap()
                .len()
                == 2
        })
        .await;
    plane
        .until("and its image", async || plane.node.removed().len() == 1)
        .await;
}

#[tokio::test]
async fn names_belong_to_whoever_was_first() {
    let plane = Plane::start().await;
    let stranger = plane.stranger().await;
    plane
        .build(FIRST_KEY, json!({"name": "mine", "source": "debian:x"}))
        .await;
    let alias = async |name: &str, key: &str| {
        plane
            .call("GET", &format!("/templates/aliases/{name}"), key, None)
            .await
            .status
    };
    assert_eq!(alias("mine", &stranger).await, StatusCode::FORBIDDEN);
    assert_eq!(alias("nobodys", &stranger).await, StatusCode::NOT_FOUND);
    assert_eq!(alias("base", &stranger).await, StatusCode::OK);
    let take = async |name: &str| {
        let body = json!({"name": name, "source": "debian:x"});
        plane
            .call("POST", "/v1/templates", &stranger, Some(body))
            .await
    };
    take("mine").await.expect(403);
    // The built-in template's name is nobody's, also where there is none yet.
    let refused = take("base").await.expect(409);
    assert!(refused.message().contains("Atoll comes with"));
    plane
        .call("DELETE", "/templates/base", FIRST_KEY, None)
        .await
        .expect(403);

    // Shared, others may use it and nothing else.
    let share = json!({"public": true});
    let shared = plane
        .call("PATCH", "/v2/templates/mine", FIRST_KEY, Some(share))
        .await;
    assert!(
        shared.expect(200).json()["names"][0]
            .as_str()
            .unwrap()
            .ends_with("/mine")
    );
    plane
        .sandbox(&stranger, json!({"templateID": "mine"}))
        .await;
    assert_eq!(alias("mine", &stranger).await, StatusCode::OK);
    plane
        .call("DELETE", "/templates/mine", &stranger, None)
        .await
        .expect(403);
    let unshare = json!({"public": false});
    plane
        .call("PATCH", "/templates/mine", FIRST_KEY, Some(unshare))
        .await
        .expect(200);
    let gone = json!({"templateID": "mine"});
    plane
        .call("POST", "/v2/sandboxes", &stranger, Some(gone))
        .await
        .expect(404);
}

#[tokio::test]
async fn what_cannot_be_built_is_refused() {
    let plane = Plane::start().await;
    let stranger = plane.stranger().await;
    for source in ["dir:/etc", "tar:/root/x.tar", "oci:/srv/image"] {
        let body = json!({"name": "local", "source": source});
        plane
            .call("POST", "/v1/templates", &stranger, Some(body))
            .await
            .expect(403);
    }
    plane
        .build(
            FIRST_KEY,
            json!({"name": "local", "source": "dir:/srv/root"}),
        )
        .await;
    for body in [
        json!({"name": "", "source": "debian:x"}),
        json!({"name": "a b", "source": "debian:x"}),
        json!({"name": "0123456789abcdefghij", "source": "debian:x"}),
        json!({"name": "x", "source": "nonsense"}),
        json!({"name": "x", "source": "debian:x", "cpuCount": 0}),
        json!({"name": "x", "source": "debian:x", "memoryMB": 1}),
        json!({"name": "x", "source": "debian:x", "diskSizeMB": 1_u64 << 40}),
        json!({"name": "x", "source": "debian:x", "user": "a\nb"}),
        json!({"name": "x", "source": "debian:x", "environment": {"A=B": "c"}}),
    ] {
        plane.post("/v1/templates", body).await.expect(400);
    }
}

/// A member could otherwise put a template of its own in the place of the one that E2B's clients
/// start from.
#[tokio::test]
async fn no_member_takes_the_name_of_the_built_in_template() {
    let plane = Plane::start_with(|options| options.base = false).await;
    let stranger = plane.stranger().await;
    for name in ["base", "Base:v1"] {
        let body = json!({"name": name, "source": "debian:x"});
        let refused = plane
            .call("POST", "/v1/templates", &stranger, Some(body))
            .await
            .expect(409);
        assert!(refused.message().contains("Atoll comes with"));
    }
    // An administrator who wants none of Atoll's may make one.
    plane
        .build(FIRST_KEY, json!({"name": "base", "source": "debian:x"}))
        .await;
}

#[tokio::test]
async fn a_member_builds_as_a_tenant_and_an_administrator_as_one() {
    let plane = Plane::start_with(|options| options.base = false).await;
    let stranger = plane.stranger().await;
    for (key, name) in [(&*stranger, "theirs"), (FIRST_KEY, "mine")] {
        let body = json!({"name": name, "source": "docker://registry.example/app"});
        plane.build(key, body).await;
    }
    let requesters: Vec<Requester> = plane
        .node
        .builds()
        .into_iter()
        .map(|(_, who)| who)
        .collect();
    assert_eq!(requesters, [Requester::Tenant, Requester::Administrator]);
}

#[tokio::test]
async fn a_rebuild_changes_who_may_use_the_template_if_it_says_so() {
    let plane = Plane::start().await;
    let mut public = Vec::new();
    for wanted in [None, Some(true), None, Some(false)] {
        let mut body = json!({"name": "app", "source": "debian:x"});
        if let Some(wanted) = wanted {
            body["public"] = wanted.into();
        }
        let lines = plane.build(FIRST_KEY, body).await;
        public.push(last(&lines)["template"]["public"].as_bool().unwrap());
    }
    assert_eq!(public, [false, true, true, false]);
}

/// Asked for at the same moment, too, no more builds are begun than are allowed.
#[tokio::test(flavor = "multi_thread")]
async fn concurrent_requests_do_not_exceed_the_limit_of_builds() {
    let node = FakeNode::new("n0de");
    let plane = Plane::start_in(tempfile::tempdir().unwrap(), node, |options| {
        options.base = false;
        options.limits.builds = 4;
    })
    .await;
    plane.node.gate.send_replace(false);
    let asked = (0..24).map(|number| {
        let body = json!({"name": format!("t{number}"), "source": "debian:slow"});
        let plane = &plane;
        async move {
            let asked = plane.post("/v1/templates", body);
            // A build that was begun answers only when it is done.
            match tokio::time::timeout(Duration::from_secs(2), asked).await {
                Ok(answer) => {
                    answer.expect(429);
                    false
                }
                Err(_) => true,
            }
        }
    });
    let begun = futures::future::join_all(asked).await;
    assert_eq!(begun.into_iter().filter(|begun| *begun).count(), 4);
    assert_eq!(plane.node.builds().len(), 4);
    plane.node.gate.send_replace(true);
    plane
        .until("there is room again", async || {
            let body = json!({"name": "next", "source": "debian:x"});
            plane.post("/v1/templates", body).await.status == 200
        })
        .await;
}
