//! Snapshots over the API: taken, named, used, listed, deleted; and what is left of those that
//! failed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Helpers of tests too.

use crate::common;

use api::{ErrorCode, Problem};
use common::{Answer, FIRST_KEY, Plane, node::SavedState};
use serde_json::{Value, json};
use store::{Operation, Range, Transaction};

async fn start() -> Plane {
    let plane = Plane::start().await;
    plane.node.let_save();
    plane
}

async fn take(plane: &Plane, id: &str, body: Value) -> Answer {
    plane
        .post(&format!("/sandboxes/{id}/snapshots"), body)
        .await
}

async fn delete(plane: &Plane, snapshot: &str) -> Answer {
    let path = format!("/templates/{}", snapshot.replace('/', "%2F"));
    plane.call("DELETE", &path, FIRST_KEY, None).await
}

fn snapshot_ids(list: &Value) -> Vec<&str> {
    let rows = list.as_array().unwrap().iter();
    rows.map(|row| row["snapshotID"].as_str().unwrap())
        .collect()
}

async fn list(plane: &Plane, query: &str) -> Value {
    plane
        .get(&format!("/snapshots{query}"))
        .await
        .expect(200)
        .json()
}

/// The builds that sandboxes were started from, in order.
fn started_from(plane: &Plane) -> Vec<String> {
    let requests = plane.node.requests();
    requests
        .iter()
        .map(|request| request.template.build.to_string())
        .collect()
}

#[tokio::test]
async fn a_snapshot_without_a_name_can_be_started_by_its_id() {
    let plane = start().await;
    let id = plane.sandbox(FIRST_KEY, json!({})).await;
    let answer = take(&plane, &id, json!({})).await.expect(201).json();
    assert_eq!(answer["names"], json!([]));
    let snapshot = answer["snapshotID"].as_str().unwrap();
    let (template, tag) = snapshot.split_once(':').unwrap();
    assert_eq!(tag, "default");
    let states = plane.node.states();
    let (build, state) = states.first_key_value().unwrap();
    assert!(state.memory && state.of.as_str() == id);
    assert_eq!(state.described.template.as_str(), template);

    for reference in [snapshot, template] {
        let started = plane
            .sandbox(FIRST_KEY, json!({"templateID": reference}))
            .await;
        let detail = plane.get(&format!("/sandboxes/{started}")).await.json();
        assert_eq!(detail["templateID"], template);
    }
    assert_eq!(
        started_from(&plane)[1..],
        [build.to_string(), build.to_string()]
    );
    let request = &plane.node.requests()[1];
    assert_eq!(request.template.user, "user");
    assert_eq!(request.template.environment["PATH"], "/bin");

    let without = take(&plane, &id, json!({"memory": false}))
        .await
        .expect(201);
    assert_ne!(
        without.json()["snapshotID"],
        snapshot,
        "each has its own id"
    );
    assert_eq!(
        plane
            .node
            .states()
            .values()
            .filter(|state| !state.memory)
            .count(),
        1
    );
}

#[tokio::test]
async fn a_name_leads_to_its_newest_version_in_all_written_forms() {
    let plane = start().await;
    let id = plane.sandbox(FIRST_KEY, json!({})).await;
    let first = take(&plane, &id, json!({"name": "Work"}))
        .await
        .expect(201)
        .json();
    let full = first["snapshotID"].as_str().unwrap().to_owned();
    assert_eq!(first["names"], json!([full]));
    assert!(full.ends_with("/work:default"), "{full}");
    let old = plane.node.states().into_keys().next().unwrap();
    let second = take(&plane, &id, json!({"name": full}))
        .await
        .expect(201)
        .json();
    assert_eq!(second["snapshotID"], full);
    // Nothing leads to the old one any more.
    plane
        .until("the old state is freed", async || {
            !plane.node.states().contains_key(&old)
        })
        .await;
    let new = plane.node.states().into_keys().next().unwrap().to_string();
    let owner = full.split_once('/').unwrap().0;
    let with_tag = take(&plane, &id, json!({"name": "work:v2"}))
        .await
        .expect(201)
        .json();
    assert_eq!(with_tag["snapshotID"], format!("{owner}/work:v2"));
    for reference in ["work", "WORK:default", &full, &format!("{owner}/work")] {
        plane
            .sandbox(FIRST_KEY, json!({"templateID": reference}))
            .await;
        assert_eq!(started_from(&plane).last(), Some(&new), "{reference}");
    }
    plane
        .sandbox(FIRST_KEY, json!({"templateID": "work:v2"}))
        .await;
    assert_ne!(started_from(&plane).last(), Some(&new));
    let absent = json!({"templateID": "work:v3"});
    plane.post("/v2/sandboxes", absent).await.expect(404);

    // A version goes without the others, and the last one takes the name with it.
    delete(&plane, "work:v2").await.expect(204);
    delete(&plane, "work:v2").await.expect(404);
    plane
        .sandbox(FIRST_KEY, json!({"templateID": "work"}))
        .await;
    assert_eq!(snapshot_ids(&list(&plane, "").await), [&*full]);
    delete(&plane, &full).await.expect(204);
    assert_eq!(plane.node.states().len(), 0);
    plane.get("/templates/aliases/work").await.expect(404);
}

#[tokio::test]
async fn names_of_snapshots_and_templates_never_clash() {
    let plane = start().await;
    let id = plane.sandbox(FIRST_KEY, json!({})).await;
    let build = async |name: &str| {
        let body = json!({"name": name, "source": "debian:x"});
        plane.post("/v1/templates", body).await
    };
    build("web").await.expect(200);
    take(&plane, &id, json!({"name": "web"})).await.expect(409);
    take(&plane, &id, json!({"name": "base"})).await.expect(403);
    take(&plane, &id, json!({"name": "another/web2"}))
        .await
        .expect(403);
    take(&plane, &id, json!({"name": "no such name"}))
        .await
        .expect(400);
    assert_eq!(plane.node.states().len(), 0);
    take(&plane, &id, json!({"name": "work"})).await.expect(201);
    build("work").await.expect(409);
    // No list of templates shows it.
    for path in ["/templates", "/v1/templates"] {
        let text = plane.get(path).await.expect(200).text;
        assert!(text.contains("web") && !text.contains("work"), "{text}");
    }
}

#[tokio::test]
async fn lists_are_filtered_and_paged() {
    let plane = start().await;
    let first = plane.sandbox(FIRST_KEY, json!({})).await;
    let second = plane.sandbox(FIRST_KEY, json!({})).await;
    let mut all = Vec::new();
    for (sandbox, body) in [
        (&first, json!({"name": "one:a__b"})),
        (&second, json!({"name": "two"})),
        (&first, json!({})),
        (&first, json!({"name": "one:c"})),
    ] {
        let taken = take(&plane, sandbox, body).await.expect(201).json();
        all.insert(0, taken["snapshotID"].as_str().unwrap().to_owned());
    }
    assert_eq!(snapshot_ids(&list(&plane, "").await), all, "newest first");
    let check = async |query: String, expected: &[&String]| {
        assert_eq!(
            snapshot_ids(&list(&plane, &query).await),
            expected,
            "{query}"
        );
    };
    check(format!("?sandboxID={first}"), &[&all[0], &all[1], &all[3]]).await;
    check(format!("?sandboxID={second}-00000000"), &[&all[2]]).await;
    check("?sandboxID=nonsense".into(), &[]).await;
    check("?name=one".into(), &[&all[0], &all[3]]).await;
    check("?name=one:c".into(), &[&all[0]]).await;
    check(format!("?name={}", all[2].replace('/', "%2F")), &[&all[2]]).await;
    check(format!("?name={}", all[1]), &[&all[1]]).await;
    check("?name=three".into(), &[]).await;
    let mut paged = Vec::new();
    let mut token = None;
    loop {
        let after = token.map_or_else(String::new, |token| format!("&nextToken={token}"));
        let page = plane
            .get(&format!("/snapshots?limit=1{after}"))
            .await
            .expect(200);
        paged.push(snapshot_ids(&page.json())[0].to_owned());
        token = page.header("x-next-token").map(str::to_owned);
        if token.is_none() {
            break;
        }
    }
    assert_eq!(paged, all);
    for query in ["?limit=0", "?limit=101", "?nextToken=x"] {
        plane.get(&format!("/snapshots{query}")).await.expect(400);
    }
}

#[tokio::test]
async fn deleting_frees_the_state_and_what_runs_goes_on() {
    let plane = start().await;
    let id = plane.sandbox(FIRST_KEY, json!({})).await;
    let taken = take(&plane, &id, json!({})).await.expect(201).json();
    let snapshot = taken["snapshotID"].as_str().unwrap();
    let build = plane.node.states().into_keys().next().unwrap();
    let child = plane
        .sandbox(FIRST_KEY, json!({"templateID": snapshot}))
        .await;
    delete(&plane, snapshot).await.expect(204);
    assert_eq!(plane.node.removed_states(), [build]);
    assert_eq!(snapshot_ids(&list(&plane, "").await), [""; 0]);
    delete(&plane, snapshot).await.expect(404);
    let new = json!({"templateID": snapshot});
    plane.post("/v2/sandboxes", new).await.expect(404);
    plane.get(&format!("/sandboxes/{child}")).await.expect(200);
}

#[tokio::test]
async fn snapshots_are_their_tenants_alone() {
    let plane = start().await;
    let stranger = plane.stranger().await;
    let id = plane.sandbox(FIRST_KEY, json!({})).await;
    let mut references = vec!["work".to_owned()];
    for body in [json!({}), json!({"name": "work"})] {
        let taken = take(&plane, &id, body).await.expect(201).json();
        references.push(taken["snapshotID"].as_str().unwrap().to_owned());
    }
    for reference in &references {
        let encoded = reference.replace('/', "%2F");
        let new = json!({"templateID": reference});
        plane
            .call("POST", "/v2/sandboxes", &stranger, Some(new))
            .await
            .expect(404);
        let path = format!("/templates/{encoded}");
        for method in ["GET", "DELETE"] {
            plane.call(method, &path, &stranger, None).await.expect(404);
        }
        let query = format!("/snapshots?name={encoded}");
        let seen = plane.call("GET", &query, &stranger, None).await.expect(200);
        assert_eq!(seen.json(), json!([]));
    }
    let query = format!("/snapshots?sandboxID={id}");
    for query in ["/snapshots", &query] {
        let seen = plane.call("GET", query, &stranger, None).await.expect(200);
        assert_eq!(seen.json(), json!([]));
    }
    let theirs = plane.sandbox(&stranger, json!({})).await;
    let path = format!("/sandboxes/{theirs}/snapshots");
    let taken = json!({"name": "work"});
    plane
        .call("POST", &path, &stranger, Some(taken))
        .await
        .expect(409);
    assert_eq!(plane.node.states().len(), 2);
}

#[tokio::test]
async fn a_snapshot_that_fails_leaves_nothing() {
    let plane = start().await;
    let id = plane.sandbox(FIRST_KEY, json!({})).await;
    for body in [json!({}), json!({"name": "work"})] {
        let full = Problem::new(ErrorCode::OutOfDisk, "the disk is full", "");
        plane.node.refuse_next(full);
        let failed = take(&plane, &id, body).await.expect(507);
        assert_eq!(failed.message(), "the disk is full");
    }
    let range = Range::new("atoll/templates/", 10);
    let records = plane.store.range(range).await.unwrap().entries;
    assert_eq!(records.len(), 1, "only base");
    plane.get("/templates/aliases/work").await.expect(404);
    take(&plane, &id, json!({"name": "work"})).await.expect(201);
    // A version that fails leaves the one before.
    let full = Problem::new(ErrorCode::OutOfDisk, "the disk is full", "");
    plane.node.refuse_next(full);
    take(&plane, &id, json!({"name": "work"})).await.expect(507);
    plane
        .sandbox(FIRST_KEY, json!({"templateID": "work"}))
        .await;
}

#[tokio::test]
async fn it_is_finished_even_if_nobody_waits_for_it() {
    let plane = start().await;
    let id = plane.sandbox(FIRST_KEY, json!({})).await;
    plane.node.door.send_replace(false);
    let path = format!("/sandboxes/{id}/snapshots");
    let waits = async || plane.node.door.receiver_count() > 0;
    plane
        .leave(&path, json!({"name": "work"}), "the node saves", waits)
        .await;
    let early = plane
        .post("/v2/sandboxes", json!({"templateID": "work"}))
        .await;
    early.expect(503);
    plane.node.door.send_replace(true);
    plane
        .until("it is there", async || {
            list(&plane, "").await.as_array().unwrap().len() == 1
        })
        .await;
    let status = plane.get("/templates/work").await.expect(200).json();
    assert_eq!(status["buildStatus"], "ready");
}

/// As if the program had died between a snapshot's record and its state, or after both.
#[tokio::test]
async fn what_a_crash_left_half_made_is_removed_at_the_next_start() {
    let plane = start().await;
    let id = plane.sandbox(FIRST_KEY, json!({})).await;
    for name in ["kept", "lost"] {
        take(&plane, &id, json!({"name": name})).await.expect(201);
    }
    let (kept, lost) = {
        let states = plane.node.states();
        let build = |name: &str| {
            let named = |state: &SavedState| state.described.alias.as_deref() == Some(name);
            let found = states.iter().find(|(_, state)| named(state)).unwrap();
            found.0.clone()
        };
        (build("kept"), build("lost"))
    };
    let template = plane.get("/templates/lost").await.expect(200).json();
    let key = format!(
        "atoll/templates/{}",
        template["templateID"].as_str().unwrap()
    );
    // A state that no record ever named.
    let orphan = "01234567-89ab-4def-8123-456789abcdef".parse().unwrap();
    let state = plane.node.states()[&kept].clone();
    plane.node.add_state(orphan, state);
    let report = plane
        .post("/v1/gc?dryRun=true", json!({}))
        .await
        .expect(200)
        .json();
    assert_eq!(plane.node.states().len(), 3, "only asked: {report}");
    let going: Vec<&Value> = report[0]["garbage"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|garbage| garbage["removed"] == true)
        .collect();
    assert_eq!(going.len(), 1);
    assert_eq!(going[0]["reason"], "no template has this build");

    let store = plane.store.clone();
    let stored = store.get(&key).await.unwrap().unwrap();
    let mut record: Value = serde_json::from_slice(&stored.value).unwrap();
    record["builds"][0]["status"] = "building".into();
    record["builds"][0]["product"] = Value::Null;
    record["tags"] = json!({});
    let put = Operation::put(key, record.to_string());
    store.transact(Transaction::always([put])).await.unwrap();
    drop(store);
    let plane = plane.restart(|_| {}).await;
    plane
        .until("the half-made one is gone", async || {
            let states = plane.node.states();
            states.len() == 1 && states.contains_key(&kept) && !states.contains_key(&lost)
        })
        .await;
    plane.get("/templates/lost").await.expect(404);
    plane.get("/templates/kept").await.expect(200);
}

#[tokio::test]
async fn garbage_is_for_administrators() {
    let plane = start().await;
    let stranger = plane.stranger().await;
    plane
        .call("POST", "/v1/gc?dryRun=true", &stranger, None)
        .await
        .expect(403);
    plane
        .call("POST", "/v1/gc?dryRun=perhaps", FIRST_KEY, None)
        .await
        .expect(400);
    let orphan = "01234567-89ab-4def-8123-456789abcdef".parse().unwrap();
    let id = plane.sandbox(FIRST_KEY, json!({})).await;
    take(&plane, &id, json!({})).await.expect(201);
    let state = plane.node.states().into_values().next().unwrap();
    plane.node.add_state(orphan, state);
    let report = plane
        .call("POST", "/v1/gc", FIRST_KEY, None)
        .await
        .expect(200)
        .json();
    assert_eq!(report[0]["node"], "n0de");
    assert_eq!(report[0]["garbage"].as_array().unwrap().len(), 2);
    assert_eq!(plane.node.states().len(), 1);
}

/// A build whose ready command does not succeed has failed.
#[tokio::test]
async fn templates_are_prepared_before_they_are_ready() {
    let plane = start().await;
    let body = json!({"name": "web", "source": "debian:x", "startCommand": "serve",
        "readyCommand": "curl localhost"});
    plane.post("/v1/templates", body).await.expect(200);
    let prepared = plane.node.prepared().pop().unwrap();
    assert_eq!(prepared.start_command.as_deref(), Some("serve"));
    assert_eq!(prepared.ready_command.as_deref(), Some("curl localhost"));
    let body = json!({"name": "bad", "source": "debian:x", "readyCommand": "false"});
    let lines = plane.build(FIRST_KEY, body).await;
    let last = lines.last().unwrap();
    assert_eq!(last["cause"], "the ready command did not succeed");
    let answer = plane
        .post("/v2/sandboxes", json!({"templateID": "bad"}))
        .await;
    answer.expect(409);
}
