//! Sandboxes through the API, as E2B's clients ask for them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Helpers of tests too.

use crate::common;

use api::{ErrorCode, Problem, node::EndReason};
use axum::body::Body;
use common::{FIRST_KEY, FakeNode, Plane, mask};
use futures::stream;
use http::Request;
use serde_json::{Value, json};
use std::time::Duration;

#[tokio::test]
async fn a_sandbox_is_created_read_and_killed() {
    let plane = Plane::start().await;
    let body = json!({
        "templateID": "base", "timeout": 60, "metadata": {"a": "b c"}, "envVars": {"X": "1"},
    });
    let created = plane.post("/v2/sandboxes", body).await.expect(201).json();
    let id = created["sandboxID"].as_str().unwrap().to_owned();
    assert!(id.starts_with("ic1un0de"), "the id carries its route: {id}");
    let masked = mask(created.clone(), &["sandboxID", "envdAccessToken"]);
    insta::assert_json_snapshot!(masked, @r###"
    {
      "alias": "base",
      "clientID": "n0de",
      "envdAccessToken": "…",
      "envdVersion": "0.6.13",
      "sandboxID": "…",
      "templateID": "base0000000000000000"
    }
    "###);

    let detail = plane
        .get(&format!("/sandboxes/{id}"))
        .await
        .expect(200)
        .json();
    assert_eq!(detail["envdAccessToken"], created["envdAccessToken"]);
    let masked = mask(
        detail,
        &["sandboxID", "envdAccessToken", "startedAt", "endAt"],
    );
    insta::assert_json_snapshot!(masked, @r###"
    {
      "alias": "base",
      "allowInternetAccess": true,
      "clientID": "n0de",
      "cpuCount": 2,
      "diskSizeMB": 10240,
      "endAt": "…",
      "envdAccessToken": "…",
      "envdVersion": "0.6.13",
      "lifecycle": {
        "autoResume": false,
        "onTimeout": "kill"
      },
      "memoryMB": 512,
      "metadata": {
        "a": "b c"
      },
      "network": {
        "allowPublicTraffic": true
      },
      "sandboxID": "…",
      "startedAt": "…",
      "state": "running",
      "templateID": "base0000000000000000"
    }
    "###);

    let asked = plane.node.requests().remove(0);
    assert_eq!(asked.timeout.as_secs(), 60);
    assert_eq!(asked.environment["X"], "1");
    assert_eq!(asked.template.user, "user");
    assert_eq!(asked.template.working_directory, "/home/user");
    assert_eq!(
        asked.access_token.unwrap().expose(),
        created["envdAccessToken"]
    );

    let path = format!("/sandboxes/{id}");
    let legacy = plane.get(&format!("{path}-00000000")).await.expect(200);
    assert_eq!(
        legacy.json()["sandboxID"],
        id,
        "an obsolete client id is ignored"
    );
    plane
        .call("DELETE", &path, FIRST_KEY, None)
        .await
        .expect(204);
    for (method, path) in [("GET", path.clone()), ("DELETE", path.clone())] {
        let gone = plane.call(method, &path, FIRST_KEY, None).await.expect(404);
        assert_eq!(
            gone.message(),
            format!("Sandbox \"{id}\" doesn't exist or you don't have access to it")
        );
    }
    let ended = plane
        .get(&format!("/v1/sandboxes/{id}"))
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&ended["state"]["state"], &ended["state"]["reason"]["kind"]),
        (&json!("ended"), &json!("killed"))
    );
}

#[tokio::test]
async fn the_two_families_differ() {
    let plane = Plane::start().await;
    let plain = plane
        .post("/sandboxes", json!({"templateID": "base"}))
        .await
        .expect(201)
        .json();
    assert_eq!(plain["envdAccessToken"], Value::Null);
    let secure = json!({"templateID": "base", "secure": true});
    let secure = plane.post("/sandboxes", secure).await.expect(201).json();
    assert!(secure["envdAccessToken"].is_string());
    let timeouts: Vec<u64> = plane
        .node
        .requests()
        .iter()
        .map(|request| request.timeout.as_secs())
        .collect();
    assert_eq!(timeouts, [15, 15]);

    let id = plain["sandboxID"].as_str().unwrap();
    plane
        .post(&format!("/sandboxes/{id}/connect"), json!({}))
        .await
        .expect(400);
    plane
        .post(&format!("/v2/sandboxes/{id}/connect"), json!({}))
        .await
        .expect(200);
}

#[tokio::test]
async fn private_ports_have_a_token() {
    let plane = Plane::start().await;
    let body = json!({
        "templateID": "base",
        "network": {"allowPublicTraffic": false, "maskRequestHost": "localhost:${PORT}"},
    });
    let created = plane.post("/v2/sandboxes", body).await.expect(201).json();
    let asked = plane.node.requests().remove(0);
    assert_eq!(
        asked.traffic_token.unwrap().expose(),
        created["trafficAccessToken"]
    );
    assert_ne!(created["trafficAccessToken"], created["envdAccessToken"]);
    assert_eq!(
        asked.network.mask_request_host.as_deref(),
        Some("localhost:${PORT}")
    );
}

#[tokio::test]
async fn its_time_is_set_extended_and_up() {
    let plane = Plane::start().await;
    let id = plane.sandbox(FIRST_KEY, json!({"timeout": 1000})).await;
    let left = async || {
        let detail = plane
            .get(&format!("/sandboxes/{id}"))
            .await
            .expect(200)
            .json();
        let end: jiff::Timestamp = detail["endAt"].as_str().unwrap().parse().unwrap();
        (end.duration_since(jiff::Timestamp::now()).as_secs_f64()).round() as i64
    };
    assert_eq!(left().await, 1000);
    let path = format!("/sandboxes/{id}");
    plane
        .post(&format!("{path}/timeout"), json!({"timeout": 50}))
        .await
        .expect(204);
    assert_eq!(left().await, 50, "it may be shortened");
    let answer = plane
        .post(&format!("/v2{path}/connect"), json!({"timeout": 10}))
        .await;
    assert!(answer.expect(200).json()["envdAccessToken"].is_string());
    assert_eq!(left().await, 50, "connecting only extends");
    plane
        .post(&format!("{path}/connect"), json!({"timeout": 100}))
        .await
        .expect(200);
    assert_eq!(left().await, 100);
    plane
        .call("POST", &format!("/v2{path}/connect"), FIRST_KEY, None)
        .await
        .expect(200);
    assert_eq!(left().await, 300, "the default of the second family");
    plane
        .post(&format!("{path}/refreshes"), json!({"duration": 400}))
        .await
        .expect(204);
    assert_eq!(left().await, 400);
    plane
        .call("POST", &format!("{path}/refreshes"), FIRST_KEY, None)
        .await
        .expect(204);
    assert_eq!(left().await, 400);

    for (path, body) in [
        (format!("{path}/timeout"), json!({"timeout": -1})),
        (format!("{path}/timeout"), json!({"timeout": 86_401})),
        (format!("{path}/timeout"), json!({})),
        (format!("{path}/connect"), json!({"timeout": 86_401})),
        (format!("{path}/refreshes"), json!({"duration": 3601})),
    ] {
        plane.post(&path, body).await.expect(400);
    }
    plane
        .post(&format!("{path}/timeout"), json!({"timeout": 0}))
        .await
        .expect(204);
    plane.get(&path).await.expect(404);
    let ended = plane
        .get("/v1/sandboxes?state=ended")
        .await
        .expect(200)
        .json();
    assert_eq!(ended[0]["state"]["reason"]["kind"], "timed_out");
}

#[tokio::test]
async fn the_wrong_is_refused() {
    let plane = Plane::start().await;
    let check = async |body: &str, status: u16, message: &str| {
        let request = Request::post("/v2/sandboxes").header("X-API-KEY", FIRST_KEY);
        let answer = plane
            .send(request.body(Body::from(body.to_owned())).unwrap())
            .await;
        let answer = answer.expect(status);
        assert!(answer.message().contains(message), "{}", answer.text);
        assert_eq!(answer.json()["code"], status);
    };
    check("", 400, "Invalid request body").await;
    check("{", 400, "Invalid request body").await;
    check("{}", 400, "templateID").await;
    check(
        r#"{"templateID": "base", "timeout": 0}"#,
        400,
        "Timeout must be greater than 0",
    )
    .await;
    check(
        r#"{"templateID": "base", "timeout": 90000}"#,
        400,
        "Timeout cannot be greater than 24 hours",
    )
    .await;
    check(
        r#"{"templateID": "base", "metadata": {"a": 1}}"#,
        400,
        "Invalid request body",
    )
    .await;
    check(r#"{"templateID": "nothing"}"#, 404, "Template \"nothing\"").await;
    check(r#"{"templateID": "base:nothing"}"#, 404, "no tag").await;
    check(
        r#"{"templateID": "base", "autoResume": {"enabled": true}}"#,
        400,
        "autoPause",
    )
    .await;
    check(
        r#"{"templateID": "base", "network": {"denyOut": ["a.b"]}}"#,
        400,
        "CIDR",
    )
    .await;
    check(&"x".repeat(2 << 20), 400, "larger than").await;
    assert!(plane.node.requests().is_empty());
}

#[tokio::test]
async fn without_a_key_there_is_nothing() {
    let plane = Plane::start().await;
    for key in ["", "e2b_ffffffffffffffffffffffffffffffffffffffff", "x"] {
        let answer = plane
            .call("GET", "/v2/sandboxes", key, None)
            .await
            .expect(401);
        assert_eq!(answer.json()["error_code"], "unauthenticated");
    }
    let bearer =
        Request::get("/v2/sandboxes").header("Authorization", format!("Bearer {FIRST_KEY}"));
    plane
        .send(bearer.body(Body::empty()).unwrap())
        .await
        .expect(200);
    plane.call("GET", "/health", "", None).await.expect(204);
    plane
        .call("GET", "/v1/openapi.json", "", None)
        .await
        .expect(200);
}

#[tokio::test]
async fn chunked_bodies_are_read() {
    let plane = Plane::start().await;
    let parts = [r#"{"templ"#, r#"ateID": "#, r#""base"}"#].map(Ok::<_, std::io::Error>);
    let request = Request::post("/v2/sandboxes").header("x-api-key", FIRST_KEY);
    let body = Body::from_stream(stream::iter(parts));
    plane.send(request.body(body).unwrap()).await.expect(201);
}

#[tokio::test]
async fn unknown_paths_and_methods_answer_in_json() {
    let plane = Plane::start().await;
    assert_eq!(plane.get("/nowhere").await.expect(404).json()["code"], 404);
    assert_eq!(
        plane.post("/health", json!({})).await.expect(405).json()["code"],
        405
    );
}

#[tokio::test]
async fn lists_have_pages_filters_and_order() {
    let plane = Plane::start().await;
    let mut ids = Vec::new();
    for number in 0..5 {
        let metadata = json!({"number": number.to_string(), "kind": "a=b c"});
        ids.push(
            plane
                .sandbox(FIRST_KEY, json!({"metadata": metadata}))
                .await,
        );
    }
    let listed = async |query: &str| {
        let answer = plane
            .get(&format!("/v2/sandboxes?{query}"))
            .await
            .expect(200);
        let rows = answer.json();
        let rows = rows.as_array().unwrap().iter();
        let ids: Vec<String> = rows
            .map(|row| row["sandboxID"].as_str().unwrap().to_owned())
            .collect();
        let next = answer.header("x-next-token").map(String::from);
        (
            ids,
            next,
            answer.header("x-total-running").unwrap().to_owned(),
        )
    };
    let newest_first: Vec<String> = ids.iter().rev().cloned().collect();
    assert_eq!(
        listed("").await,
        (newest_first.clone(), None, "5".to_owned())
    );
    assert_eq!(listed("order=asc&limit=5").await.0, ids);
    assert_eq!(listed("metadata=number%3D3").await.0, [ids[3].clone()]);
    // `kind` is `a=b c`, encoded as the SDKs do: quoted, then as a query string, then in the URL.
    assert_eq!(listed("metadata=kind%3Da%25253Db%252520c").await.0.len(), 5);
    assert_eq!(listed("metadata=kind%3Da").await.0.len(), 0);
    assert_eq!(listed("template=nothing").await.0.len(), 0);
    assert_eq!(listed("template=base&state=running").await.0.len(), 5);
    assert_eq!(listed("state=paused").await.0.len(), 0);
    let (first, next, total) = listed("limit=3").await;
    assert_eq!((first, total.as_str()), (newest_first[..3].to_vec(), "5"));
    let next = next.unwrap();
    let (second, end, _) = listed(&format!("limit=3&nextToken={next}")).await;
    assert_eq!((second, end), (newest_first[3..].to_vec(), None));
    plane.get("/v2/sandboxes?limit=0").await.expect(400);
    plane.get("/v2/sandboxes?nextToken=x").await.expect(400);
    plane
        .get(&format!("/v2/sandboxes?order=asc&nextToken={next}"))
        .await
        .expect(400);

    plane
        .node
        .end(&ids[0], EndReason::Crashed("signal 11".to_owned()));
    assert_eq!(
        plane
            .get("/sandboxes")
            .await
            .expect(200)
            .json()
            .as_array()
            .unwrap()
            .len(),
        4
    );
    let ended = plane
        .get("/v1/sandboxes?state=ended")
        .await
        .expect(200)
        .json();
    assert_eq!(
        ended[0]["state"],
        json!({
            "state": "ended", "reason": {"kind": "crashed", "detail": "signal 11"},
            "at": "2026-01-02T03:04:05Z",
        })
    );
}

#[tokio::test]
async fn metrics_and_logs_are_passed_on() {
    let plane = Plane::start().await;
    let id = plane.sandbox(FIRST_KEY, json!({})).await;
    let path = format!("/sandboxes/{id}");
    let all = plane
        .get(&format!("{path}/metrics"))
        .await
        .expect(200)
        .json();
    assert_eq!(all.as_array().unwrap().len(), 3);
    insta::assert_json_snapshot!(all[0], @r###"
    {
      "cpuCount": 2,
      "cpuUsedPct": 12.5,
      "diskTotal": 10737418240,
      "diskUsed": 4096,
      "memCache": 0,
      "memTotal": 536870912,
      "memUsed": 1000,
      "timestamp": "2023-11-14T22:13:20Z",
      "timestampUnix": 1700000000
    }
    "###);
    let window = format!("{path}/metrics?start=1700000001&end=1700000005");
    assert_eq!(
        plane
            .get(&window)
            .await
            .expect(200)
            .json()
            .as_array()
            .unwrap()
            .len(),
        1
    );
    plane
        .get(&format!("{path}/metrics?start=9&end=1"))
        .await
        .expect(400);
    plane
        .get(&format!("{path}/metrics?start=x"))
        .await
        .expect(400);
    let many = format!("/sandboxes/metrics?sandbox_ids={id},i0000000000000000000a");
    let many = plane.get(&many).await.expect(200).json();
    assert_eq!(many["sandboxes"].as_object().unwrap().len(), 1);
    assert_eq!(many["sandboxes"][&id]["memUsed"], 1002, "the newest");

    let logs = plane
        .get(&format!("{path}/logs?limit=2"))
        .await
        .expect(200)
        .json();
    insta::assert_json_snapshot!(logs, @r###"
    {
      "logEntries": [
        {
          "fields": {
            "pid": "7"
          },
          "level": "info",
          "message": "line 0",
          "timestamp": "2023-11-14T22:13:20Z"
        },
        {
          "fields": {
            "pid": "7"
          },
          "level": "error",
          "message": "line 1",
          "timestamp": "2023-11-14T22:13:21Z"
        }
      ],
      "logs": [
        {
          "line": "line 0",
          "timestamp": "2023-11-14T22:13:20Z"
        },
        {
          "line": "line 1",
          "timestamp": "2023-11-14T22:13:21Z"
        }
      ]
    }
    "###);
    let lines = async |query: &str| {
        let logs = plane
            .get(&format!("/v2{path}/logs?{query}"))
            .await
            .expect(200)
            .json();
        let logs = logs["logs"].as_array().unwrap().iter();
        logs.map(|line| line["message"].as_str().unwrap().to_owned())
            .collect::<Vec<String>>()
    };
    assert_eq!(
        lines("direction=backward&limit=2").await,
        ["line 2", "line 1"]
    );
    assert_eq!(
        lines("direction=backward&cursor=1700000001000").await,
        ["line 1", "line 0"]
    );
    assert_eq!(lines("cursor=1700000001000").await, ["line 1", "line 2"]);
    assert_eq!(lines("level=warn").await, ["line 1"]);
    assert_eq!(lines("search=2").await, ["line 2"]);
    plane
        .call("DELETE", &path, FIRST_KEY, None)
        .await
        .expect(204);
    // What it used and what it logged can still be read.
    let metrics = plane.get(&format!("{path}/metrics")).await.expect(200);
    assert_eq!(metrics.json().as_array().unwrap().len(), 3);
    plane.get(&format!("{path}/logs")).await.expect(200);
}

#[tokio::test]
async fn what_it_may_reach_is_replaced() {
    let plane = Plane::start().await;
    let id = plane
        .sandbox(FIRST_KEY, json!({"network": {"allowPublicTraffic": false}}))
        .await;
    let path = format!("/sandboxes/{id}");
    let set = async |body: Value| {
        plane
            .call("PUT", &format!("{path}/network"), FIRST_KEY, Some(body))
            .await
    };
    let internet = async || plane.get(&path).await.json()["allowInternetAccess"].clone();
    set(json!({"allow_internet_access": false}))
        .await
        .expect(204);
    assert_eq!(internet().await, false);
    set(json!({})).await.expect(204);
    assert_eq!(internet().await, true, "what is left out is cleared");
    set(json!({"denyOut": ["0.0.0.0/0"]})).await.expect(204);
    assert_eq!(internet().await, false);
    set(json!({"allowOut": ["8.8.8.8"], "denyOut": ["0.0.0.0/0"]}))
        .await
        .expect(501);
    set(json!({"allowOut": ["example.com"]})).await.expect(400);
    let detail = plane.get(&path).await.json();
    assert_eq!(
        detail["network"]["allowPublicTraffic"], false,
        "that is not what was set"
    );
}

#[tokio::test]
async fn what_no_driver_can_is_refused_in_words() {
    let plane = Plane::start().await;
    let id = plane.sandbox(FIRST_KEY, json!({})).await;
    for (method, path) in [
        ("POST", format!("/sandboxes/{id}/pause")),
        ("POST", format!("/sandboxes/{id}/fork")),
        ("POST", format!("/sandboxes/{id}/snapshots")),
        ("POST", "/v3/templates".to_owned()),
    ] {
        let answer = plane
            .call(method, &path, FIRST_KEY, Some(json!({})))
            .await
            .expect(501);
        assert_eq!(answer.json()["error_code"], "unsupported", "{path}");
        assert!(
            !answer.json()["remedy"].as_str().unwrap().is_empty(),
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_repeated_creation_creates_once() {
    let plane = Plane::start().await;
    let send = async |key: &str, body: Value| {
        let request = Request::post("/v2/sandboxes")
            .header("x-api-key", FIRST_KEY)
            .header("Idempotency-Key", key)
            .body(Body::from(body.to_string()));
        plane.send(request.unwrap()).await
    };
    let body = json!({"templateID": "base"});
    let first = send("once", body.clone()).await.expect(201).json();
    let second = send("once", body.clone()).await.expect(201).json();
    assert_eq!(first, second);
    assert_eq!(plane.node.requests().len(), 1);
    let other = send("once", json!({"templateID": "base", "timeout": 9}))
        .await
        .expect(422);
    assert_eq!(other.json()["error_code"], "idempotency_request_mismatch");
    send("Not Valid", body.clone()).await.expect(400);

    let full = Problem::new(ErrorCode::Internal, "it broke", "");
    plane.node.refuse_next(full);
    send("twice", body.clone()).await.expect(500);
    send("twice", body).await.expect(201);
}

/// Nobody would know of it, and it would live to its end.
#[tokio::test]
async fn a_sandbox_whose_creator_went_away_is_ended() {
    let plane = Plane::start().await;
    plane.node.door.send_replace(false);
    let body = json!({"templateID": "base"});
    let asked = plane.post("/v2/sandboxes", body.clone());
    assert!(
        tokio::time::timeout(Duration::from_millis(200), asked)
            .await
            .is_err()
    );
    // With a key he may come back and ask again: then it is his.
    let keyed = || keyed_request(&body);
    let asked = plane.send(keyed());
    assert!(
        tokio::time::timeout(Duration::from_millis(200), asked)
            .await
            .is_err()
    );
    let busy = plane.send(keyed()).await.expect(409);
    assert_eq!(busy.json()["error_code"], "idempotency_in_progress");
    assert_eq!(busy.header("should-retry"), Some("true"));

    plane.node.door.send_replace(true);
    plane
        .until("the first is ended, the second lives", async || {
            let ended = plane.get("/v1/sandboxes?state=ended").await.json();
            let living = plane.get("/v1/sandboxes?state=running").await.json();
            ended.as_array().unwrap().len() == 1 && living.as_array().unwrap().len() == 1
        })
        .await;
    let again = plane.send(keyed()).await.expect(201).json();
    let living = plane.get("/v1/sandboxes").await.json();
    assert_eq!(again["sandboxID"], living[0]["id"]);
    assert_eq!(plane.node.requests().len(), 2);
}

fn keyed_request(body: &Value) -> Request<Body> {
    Request::post("/v2/sandboxes")
        .header("x-api-key", FIRST_KEY)
        .header("Idempotency-Key", "mine")
        .body(Body::from(body.to_string()))
        .unwrap()
}

#[tokio::test]
async fn a_tenants_sandboxes_are_limited_and_counted() {
    let plane = Plane::start_with(|options| options.limits.sandboxes = 2).await;
    plane.until_base_is_ready().await;
    let stranger = plane.stranger().await;
    let first = plane.sandbox(FIRST_KEY, json!({})).await;
    let second = plane.sandbox(FIRST_KEY, json!({})).await;
    let body = json!({"templateID": "base"});
    let refused = plane.post("/v2/sandboxes", body.clone()).await.expect(429);
    assert_eq!(refused.json()["error_code"], "limit_reached");
    plane.sandbox(&stranger, json!({})).await;
    plane
        .call("DELETE", &format!("/sandboxes/{first}"), FIRST_KEY, None)
        .await
        .expect(204);
    plane.sandbox(FIRST_KEY, json!({})).await;
    plane.post("/v2/sandboxes", body).await.expect(429);
    plane.node.end(&second, EndReason::OutOfMemory);
    plane.sandbox(FIRST_KEY, json!({})).await;
}

#[tokio::test]
async fn another_node_takes_what_one_refuses() {
    let (first, second) = (FakeNode::new("aaaa"), FakeNode::small("bbbb", 1));
    let other = second.clone();
    let folder = tempfile::tempdir().unwrap();
    let plane = Plane::start_in(folder, first.clone(), |options| options.nodes.push(other)).await;
    plane.until_base_is_ready().await;
    let full = || Problem::new(ErrorCode::OutOfCapacity, "no slot is left", "");
    // Whichever is asked first refuses; the other one takes it.
    first.refuse_next(full());
    plane.sandbox(FIRST_KEY, json!({})).await;
    let asked = first.requests().len() + second.requests().len();
    assert!((1..=2).contains(&asked));
    for node in [&first, &second] {
        for _ in 0..4 {
            node.refuse_next(full());
        }
    }
    let refused = plane
        .post("/v2/sandboxes", json!({"templateID": "base"}))
        .await
        .expect(503);
    assert_eq!(refused.header("should-retry"), Some("true"));
    assert_eq!(refused.header("retry-after"), Some("1"));
}

#[tokio::test]
async fn a_restarted_control_plane_knows_everything_again() {
    let plane = Plane::start().await;
    let id = plane.sandbox(FIRST_KEY, json!({})).await;
    let token = plane.get(&format!("/sandboxes/{id}")).await.json()["envdAccessToken"].clone();
    let stranger = plane.stranger().await;
    let builds = plane.node.builds().len();
    let plane = plane.restart(|options| options.first_key = None).await;
    let detail = plane
        .get(&format!("/sandboxes/{id}"))
        .await
        .expect(200)
        .json();
    assert_eq!(
        detail["envdAccessToken"], token,
        "tokens are derived, not kept"
    );
    plane
        .call("GET", "/v2/sandboxes", &stranger, None)
        .await
        .expect(200);
    plane.sandbox(FIRST_KEY, json!({})).await;
    assert_eq!(plane.node.builds().len(), builds, "nothing was built again");
}
