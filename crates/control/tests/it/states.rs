//! Pausing, resuming and forking over the API.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Helpers of tests too.

use crate::common;

use common::{Answer, FIRST_KEY, FakeNode, Plane};
use jiff::Timestamp;
use serde_json::{Value, json};

async fn start() -> Plane {
    let plane = Plane::start().await;
    plane.node.let_save();
    plane
}

async fn pause(plane: &Plane, id: &str) -> Answer {
    plane
        .call("POST", &format!("/sandboxes/{id}/pause"), FIRST_KEY, None)
        .await
}

fn ids(list: &Value) -> Vec<&str> {
    let rows = list.as_array().unwrap().iter();
    rows.map(|row| row["sandboxID"].as_str().unwrap()).collect()
}

async fn seconds_left(plane: &Plane, id: &str) -> i64 {
    let detail = plane.get(&format!("/sandboxes/{id}")).await.expect(200);
    let end: Timestamp = detail.json()["endAt"].as_str().unwrap().parse().unwrap();
    end.duration_since(Timestamp::now()).as_secs_f64().round() as i64
}

#[tokio::test]
async fn a_sandbox_is_paused_once() {
    let plane = start().await;
    let id = plane.sandbox(FIRST_KEY, json!({})).await;
    pause(&plane, &id).await.expect(204);
    let again = pause(&plane, &id).await.expect(409).json();
    assert_eq!(again["error_code"], "conflict");
    pause(&plane, "c1un0dexxxxxxxxxxxxxx").await.expect(404);

    let detail = plane.get(&format!("/sandboxes/{id}")).await.expect(200);
    let detail = detail.json();
    assert_eq!(
        (&detail["state"], &detail["pauseMode"]),
        (&json!("paused"), &json!("full"))
    );
    let other = plane.sandbox(FIRST_KEY, json!({})).await;
    let path = format!("/sandboxes/{other}/pause");
    let body = json!({"memory": false, "requireHealthyGuest": false});
    plane.post(&path, body).await.expect(204);
    let detail = plane.get(&format!("/sandboxes/{other}")).await.json();
    assert_eq!(detail["pauseMode"], "filesystem");
}

#[tokio::test]
async fn a_node_that_cannot_save_says_so_and_the_sandbox_goes_on() {
    let plane = Plane::start().await;
    let id = plane.sandbox(FIRST_KEY, json!({})).await;
    for (what, body) in [("pause", json!({})), ("fork", json!({}))] {
        let path = format!("/sandboxes/{id}/{what}");
        let answer = plane.post(&path, body).await.expect(501).json();
        assert_eq!(answer["error_code"], "unsupported", "{what}");
    }
    let detail = plane.get(&format!("/sandboxes/{id}")).await.json();
    assert_eq!(detail["state"], "running");
}

/// It could not be paused when its time is up, and would live for ever.
#[tokio::test]
async fn what_no_node_could_pause_with_its_memory_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let node = FakeNode::forgetful("n0de");
    let plane = Plane::start_in(folder, node, |_| {}).await;
    plane.until_base_is_ready().await;
    let body = json!({"templateID": "base", "autoPause": true});
    let refused = plane.post("/v2/sandboxes", body).await.expect(501);
    assert!(
        refused.json()["remedy"]
            .as_str()
            .unwrap()
            .contains("autoPauseMemory")
    );
    let body = json!({"templateID": "base", "autoPause": true, "autoPauseMemory": false});
    plane.post("/v2/sandboxes", body).await.expect(201);
}

#[tokio::test]
async fn lists_show_paused_ones_among_the_others() {
    let plane = start().await;
    let mut all = Vec::new();
    for _ in 0..4 {
        all.push(plane.sandbox(FIRST_KEY, json!({})).await);
    }
    pause(&plane, &all[0]).await.expect(204);
    pause(&plane, &all[2]).await.expect(204);
    let list = async |query: &str| {
        let answer = plane.get(query).await.expect(200);
        let running = answer.header("x-total-running").map(str::to_owned);
        (answer.json(), running)
    };
    let newest_first: Vec<&str> = all.iter().rev().map(String::as_str).collect();
    let (both, running) = list("/v2/sandboxes").await;
    assert_eq!(ids(&both), newest_first, "by start alone");
    assert_eq!(running.as_deref(), Some("2"));
    let states: Vec<&str> = both
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["state"].as_str().unwrap())
        .collect();
    assert_eq!(states, ["running", "paused", "running", "paused"]);
    assert_eq!(both[1]["pauseMode"], "full");

    let running = [&*all[3], &*all[1]];
    let paused = [&*all[2], &*all[0]];
    for (query, expected) in [
        ("/v2/sandboxes?state=running,paused", &newest_first[..]),
        ("/v2/sandboxes?state=paused", &paused),
        ("/v2/sandboxes?state=running", &running),
        ("/sandboxes", &running),
        ("/sandboxes?state=paused", &paused),
        ("/v1/sandboxes", &newest_first),
    ] {
        let (list, _) = list(query).await;
        let found: Vec<&str> = list
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["sandboxID"].as_str().or(row["id"].as_str()).unwrap())
            .collect();
        assert_eq!(found, expected, "{query}");
    }
    let oldest_first: Vec<&str> = all.iter().map(String::as_str).collect();
    let first = plane.get("/v2/sandboxes?limit=3&order=asc").await;
    let token = first.header("x-next-token").unwrap().to_owned();
    assert_eq!(ids(&first.json()), oldest_first[..3]);
    let path = format!("/v2/sandboxes?order=asc&nextToken={token}");
    assert_eq!(ids(&list(&path).await.0), oldest_first[3..]);
}

#[tokio::test]
async fn connecting_resumes_a_paused_one_and_only_extends_a_running_one() {
    let plane = start().await;
    let created = plane.post(
        "/v2/sandboxes",
        json!({"templateID": "base", "timeout": 1000}),
    );
    let created = created.await.expect(201).json();
    let id = created["sandboxID"].as_str().unwrap();
    for family in ["", "/v2"] {
        let connect = format!("{family}/sandboxes/{id}/connect");
        let body = json!({"timeout": 10});
        plane.post(&connect, body.clone()).await.expect(200);
        pause(&plane, id).await.expect(204);
        let answer = plane.post(&connect, body).await.expect(201).json();
        assert_eq!(answer["sandboxID"], id);
        assert_eq!(answer["envdAccessToken"], created["envdAccessToken"]);
        assert_eq!(seconds_left(&plane, id).await, 10, "its time begins anew");
        let answer = plane.post(&connect, json!({"timeout": 1000})).await;
        answer.expect(200);
    }
    let resume = format!("/sandboxes/{id}/resume");
    plane.post(&resume, json!({})).await.expect(409);
    pause(&plane, id).await.expect(204);
    plane.post(&resume, json!({})).await.expect(201);
    assert_eq!(seconds_left(&plane, id).await, 15);
}

#[tokio::test]
async fn the_time_of_a_paused_one_does_not_count() {
    let plane = start().await;
    let id = plane.sandbox(FIRST_KEY, json!({"timeout": 1000})).await;
    pause(&plane, &id).await.expect(204);
    for (what, body) in [
        ("timeout", json!({"timeout": 0})),
        ("timeout", json!({"timeout": 50})),
        ("refreshes", json!({"duration": 50})),
    ] {
        let answer = plane.post(&format!("/sandboxes/{id}/{what}"), body).await;
        assert!(answer.expect(409).message().contains("is paused"), "{what}");
    }
    assert_eq!(seconds_left(&plane, &id).await, 1000);

    let body = json!({"autoPause": true, "timeout": 1000});
    let id = plane.sandbox(FIRST_KEY, body).await;
    let path = format!("/sandboxes/{id}/timeout");
    plane.post(&path, json!({"timeout": 0})).await.expect(204);
    let detail = plane.get(&format!("/sandboxes/{id}")).await.json();
    assert_eq!(
        (&detail["state"], &detail["lifecycle"]["onTimeout"]),
        (&json!("paused"), &json!("pause"))
    );
}

#[tokio::test]
async fn a_paused_one_can_be_killed() {
    let plane = start().await;
    let id = plane.sandbox(FIRST_KEY, json!({})).await;
    pause(&plane, &id).await.expect(204);
    let path = format!("/sandboxes/{id}");
    plane
        .call("DELETE", &path, FIRST_KEY, None)
        .await
        .expect(204);
    plane
        .call("DELETE", &path, FIRST_KEY, None)
        .await
        .expect(404);
    plane.get(&path).await.expect(404);
    assert_eq!(ids(&plane.get("/v2/sandboxes").await.json()), [""; 0]);
    let connect = format!("/v2{path}/connect");
    plane.post(&connect, json!({})).await.expect(404);
}

#[tokio::test]
async fn paused_ones_are_outside_of_the_limit_until_they_are_resumed() {
    let plane = Plane::start_with(|options| options.limits.sandboxes = 2).await;
    plane.node.let_save();
    plane.until_base_is_ready().await;
    let first = plane.sandbox(FIRST_KEY, json!({})).await;
    plane.sandbox(FIRST_KEY, json!({})).await;
    let new = json!({"templateID": "base"});
    plane.post("/v2/sandboxes", new.clone()).await.expect(429);
    pause(&plane, &first).await.expect(204);
    let third = plane.post("/v2/sandboxes", new).await.expect(201).json();
    let connect = format!("/v2/sandboxes/{first}/connect");
    let refused = plane.post(&connect, json!({})).await.expect(429);
    assert_eq!(refused.json()["error_code"], "limit_reached");
    let third = third["sandboxID"].as_str().unwrap();
    pause(&plane, third).await.expect(204);
    plane.post(&connect, json!({})).await.expect(201);
    plane.post(&connect, json!({})).await.expect(200);
    // A fork needs a place for every child.
    let fork = format!("/sandboxes/{first}/fork");
    plane.post(&fork, json!({"count": 1})).await.expect(429);
    assert_eq!(plane.node.forks().len(), 0);
}

#[tokio::test]
async fn a_fork_answers_for_each_child() {
    let plane = start().await;
    let body = json!({
        "metadata": {"owner": "ann"},
        "network": {"allowPublicTraffic": false},
    });
    let parent = plane.sandbox(FIRST_KEY, body).await;
    let parent_token = plane.get(&format!("/sandboxes/{parent}")).await.json();
    let parent_token = parent_token["envdAccessToken"].clone();
    plane.node.lose_children(&[1]);
    let path = format!("/sandboxes/{parent}/fork");
    let body = json!({"count": 3, "timeout": 77});
    let results = plane.post(&path, body).await.expect(201).json();
    assert_eq!(results.as_array().unwrap().len(), 3);
    assert_eq!(results[1]["sandbox"], Value::Null);
    assert_eq!(results[1]["error"]["code"], 503);
    assert_eq!(results[1]["error"]["message"], "the node is full");
    let asked = plane.node.forks().remove(0);
    for place in [0, 2] {
        let child = &results[place]["sandbox"];
        assert_eq!(results[place]["error"], Value::Null);
        let id = child["sandboxID"].as_str().unwrap();
        let (own, traffic) = (&child["envdAccessToken"], &child["trafficAccessToken"]);
        assert!(own.is_string() && traffic.is_string() && own != &parent_token);
        let access = asked[place].access_token.as_ref().unwrap();
        let door = asked[place].traffic_token.as_ref().unwrap();
        assert_eq!(
            (access.expose(), door.expose()),
            (own.as_str().unwrap(), traffic.as_str().unwrap())
        );
        assert_eq!(seconds_left(&plane, id).await, 77);
        let detail = plane.get(&format!("/sandboxes/{id}")).await.json();
        assert_eq!(detail["metadata"]["owner"], "ann");
    }
    // One child, 300 seconds, if the request does not say.
    let results = plane.call("POST", &path, FIRST_KEY, None).await.expect(201);
    let results = results.json();
    assert_eq!(results.as_array().unwrap().len(), 1);
    let id = results[0]["sandbox"]["sandboxID"].as_str().unwrap();
    assert_eq!(seconds_left(&plane, id).await, 300);

    for count in [0, -1, 101] {
        plane.post(&path, json!({"count": count})).await.expect(400);
    }
    pause(&plane, &parent).await.expect(204);
    plane.post(&path, json!({"count": 1})).await.expect(409);
}

#[tokio::test]
async fn children_that_nobody_waits_for_are_ended() {
    let plane = start().await;
    let parent = plane.sandbox(FIRST_KEY, json!({})).await;
    plane.node.door.send_replace(false);
    let path = format!("/sandboxes/{parent}/fork");
    let waits = async || plane.node.door.receiver_count() > 0;
    plane
        .leave(&path, json!({"count": 3}), "the node forks", waits)
        .await;
    plane.node.door.send_replace(true);
    plane
        .until("the children have ended", async || {
            let list = plane.get("/v1/sandboxes?state=ended").await.json();
            list.as_array().unwrap().len() == 3
        })
        .await;
    let list = plane.get("/v2/sandboxes").await.json();
    assert_eq!(ids(&list), [&*parent]);
}

#[tokio::test]
async fn nobody_touches_the_states_of_others() {
    let plane = start().await;
    let stranger = plane.stranger().await;
    let id = plane.sandbox(FIRST_KEY, json!({})).await;
    for what in ["pause", "fork", "snapshots", "resume", "connect", "timeout"] {
        let path = format!("/sandboxes/{id}/{what}");
        let body = json!({"timeout": 60});
        plane
            .call("POST", &path, &stranger, Some(body))
            .await
            .expect(404);
    }
    let detail = plane.get(&format!("/sandboxes/{id}")).await.json();
    assert_eq!(detail["state"], "running");
    assert_eq!(plane.node.states().len() + plane.node.forks().len(), 0);
}
