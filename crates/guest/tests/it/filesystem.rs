//! `filesystem.Filesystem`, as clients see it.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use crate::support;

use api::envd::filesystem::{EventType, FilesystemEvent};
use serde_json::{Value, json};
use std::{fs, os::unix::fs::MetadataExt as _};
use support::{Guest, Refused, basic};

async fn call(guest: &Guest, method: &str, message: Value) -> Result<Value, Refused> {
    guest
        .call(&format!("/filesystem.Filesystem/{method}"), message)
        .await
}

#[tokio::test]
async fn entries_are_described() {
    let guest = Guest::start();
    fs::write(guest.path("file"), "hello").unwrap();
    std::os::unix::fs::symlink("file", guest.path("link")).unwrap();
    let answer = call(&guest, "Stat", json!({"path": guest.path("file")}))
        .await
        .unwrap();
    let entry = &answer["entry"];
    assert_eq!(entry["name"], "file");
    assert_eq!(entry["type"], "FILE_TYPE_FILE");
    assert_eq!(entry["path"], guest.path("file"));
    assert_eq!(entry["size"], "5");
    assert_eq!(entry["mode"], 0o644);
    assert_eq!(entry["permissions"], "-rw-r--r--");
    assert_eq!(
        (&entry["owner"], &entry["group"]),
        (&json!("root"), &json!("root"))
    );
    assert!(entry["modifiedTime"].as_str().unwrap().ends_with('Z'));
    let answer = call(&guest, "Stat", json!({"path": guest.path("link")}))
        .await
        .unwrap();
    assert_eq!(answer["entry"]["isSymlink"], true);
    assert_eq!(answer["entry"]["type"], "FILE_TYPE_FILE");
    let missing = call(&guest, "Stat", json!({"path": guest.path("none")}))
        .await
        .unwrap_err();
    assert_eq!((missing.status, missing.code.as_str()), (404, "not_found"));
    assert!(missing.message.starts_with("file not found"));
    let home = call(&guest, "Stat", json!({"path": "~"})).await.unwrap();
    assert_eq!(home["entry"]["path"], "/root");
}

#[tokio::test]
async fn directories_are_made_listed_moved_and_removed() {
    let guest = Guest::start();
    let user = basic("nobody");
    let path = guest.path("a/b/c");
    let headers = [("authorization", user.as_str())];
    let made = guest
        .call_with(
            "/filesystem.Filesystem/MakeDir",
            json!({"path": path}),
            &headers,
        )
        .await
        .unwrap();
    assert_eq!(made["entry"]["type"], "FILE_TYPE_DIRECTORY");
    assert_eq!(made["entry"]["owner"], "nobody");
    assert_eq!(fs::metadata(guest.path("a")).unwrap().uid(), 65534);
    let again = call(&guest, "MakeDir", json!({"path": path}))
        .await
        .unwrap_err();
    assert_eq!((again.status, again.code.as_str()), (409, "already_exists"));
    fs::write(guest.path("a/file"), "").unwrap();
    let file = call(&guest, "MakeDir", json!({"path": guest.path("a/file")}))
        .await
        .unwrap_err();
    assert_eq!(file.code, "invalid_argument");

    let list = async |message: Value| {
        let answer = call(&guest, "ListDir", message).await?;
        let entries = answer["entries"].as_array().cloned().unwrap_or_default();
        let paths = entries
            .iter()
            .map(|entry| entry["path"].as_str().unwrap().to_owned());
        Ok::<_, Refused>(paths.collect::<Vec<_>>())
    };
    let expect = |names: &[&str]| {
        names
            .iter()
            .map(|name| guest.path(name))
            .collect::<Vec<_>>()
    };
    let found = list(json!({"path": guest.path("a"), "depth": 0}))
        .await
        .unwrap();
    assert_eq!(found, expect(&["a/b", "a/file"]));
    let found = list(json!({"path": guest.path("a"), "depth": 2}))
        .await
        .unwrap();
    assert_eq!(found, expect(&["a/b", "a/b/c", "a/file"]));
    std::os::unix::fs::symlink("a", guest.path("link")).unwrap();
    let found = list(json!({"path": guest.path("link")})).await.unwrap();
    assert_eq!(found, expect(&["link/b", "link/file"]));
    let refused = list(json!({"path": guest.path("a/file")}))
        .await
        .unwrap_err();
    assert_eq!(refused.code, "invalid_argument");
    let refused = list(json!({"path": guest.path("none")})).await.unwrap_err();
    assert_eq!(refused.code, "not_found");
    std::os::unix::fs::symlink("loop", guest.path("loop")).unwrap();
    let refused = list(json!({"path": guest.path("loop")})).await.unwrap_err();
    assert_eq!(refused.code, "failed_precondition");

    let request =
        json!({"source": guest.path("a/file"), "destination": guest.path("new/deep/file")});
    let moved = call(&guest, "Move", request.clone()).await.unwrap();
    assert_eq!(moved["entry"]["path"], guest.path("new/deep/file"));
    let refused = call(&guest, "Move", request).await.unwrap_err();
    assert_eq!(refused.code, "not_found");

    for _ in 0..2 {
        let removed = call(&guest, "Remove", json!({"path": guest.path("a")}))
            .await
            .unwrap();
        assert_eq!(removed, json!({}));
        assert!(!fs::exists(guest.path("a")).unwrap());
    }
}

fn events(answer: &Value) -> Vec<(String, EventType)> {
    let events = answer.get("events").cloned().unwrap_or_else(|| json!([]));
    let events: Vec<FilesystemEvent> = serde_json::from_value(events).unwrap();
    events
        .into_iter()
        .map(|event| (event.name, event.event_type))
        .collect()
}

#[tokio::test]
async fn a_watcher_has_every_event_that_happened() {
    let guest = Guest::start();
    let folder = guest.path("");
    let answer = call(&guest, "CreateWatcher", json!({"path": folder}))
        .await
        .unwrap();
    let id = &answer["watcherId"];
    let take = async || {
        events(
            &call(&guest, "GetWatcherEvents", json!({"watcherId": id}))
                .await
                .unwrap(),
        )
    };
    assert_eq!(take().await, []);
    let target = format!("/files?path={}", guest.path("file"));
    let stream = [("content-type", "application/octet-stream")];
    guest.request("POST", &target, &stream, "text").await;
    let named = |event| ("file".to_owned(), event);
    // What the official clients' own tests expect of an upload.
    assert_eq!(
        take().await,
        [
            named(EventType::Create),
            named(EventType::Chmod),
            named(EventType::Write)
        ]
    );
    fs::rename(guest.path("file"), guest.path("other")).unwrap();
    fs::remove_file(guest.path("other")).unwrap();
    let moved = take().await;
    assert!(moved.contains(&named(EventType::Rename)));
    assert!(moved.contains(&("other".to_owned(), EventType::Create)));
    assert!(moved.contains(&("other".to_owned(), EventType::Remove)));
    fs::create_dir(guest.path("below")).unwrap();
    fs::write(guest.path("below/unseen"), "").unwrap();
    assert_eq!(take().await, [("below".to_owned(), EventType::Create)]);
    call(&guest, "RemoveWatcher", json!({"watcherId": id}))
        .await
        .unwrap();
    let refused = call(&guest, "GetWatcherEvents", json!({"watcherId": id}))
        .await
        .unwrap_err();
    assert_eq!(refused.code, "not_found");
    let refused = call(&guest, "RemoveWatcher", json!({"watcherId": "nope"}))
        .await
        .unwrap_err();
    assert_eq!(refused.message, "watcher with id nope not found");
}

#[tokio::test]
async fn a_recursive_watcher_follows_new_directories() {
    let guest = Guest::start();
    fs::create_dir_all(guest.path("a/b")).unwrap();
    let request = json!({"path": guest.path(""), "recursive": true});
    let answer = call(&guest, "CreateWatcher", request).await.unwrap();
    let id = &answer["watcherId"];
    let take = async || {
        events(
            &call(&guest, "GetWatcherEvents", json!({"watcherId": id}))
                .await
                .unwrap(),
        )
    };
    fs::write(guest.path("a/b/one"), "").unwrap();
    assert!(
        take()
            .await
            .contains(&("a/b/one".to_owned(), EventType::Create))
    );
    fs::create_dir_all(guest.path("new/deep")).unwrap();
    fs::write(guest.path("new/deep/two"), "").unwrap();
    let seen = take().await;
    for name in ["new", "new/deep", "new/deep/two"] {
        assert!(
            seen.contains(&(name.to_owned(), EventType::Create)),
            "{name} not in {seen:?}"
        );
    }
    fs::rename(guest.path("new"), guest.path("renamed")).unwrap();
    take().await;
    fs::remove_file(guest.path("renamed/deep/two")).unwrap();
    assert!(
        take()
            .await
            .contains(&("renamed/deep/two".to_owned(), EventType::Remove))
    );
}

#[tokio::test]
async fn a_stream_of_events_starts_with_start() {
    let guest = Guest::start();
    let request = json!({"path": guest.path(""), "includeEntry": true});
    let headers = [("keepalive-ping-interval", "1")];
    let mut stream = guest
        .stream("/filesystem.Filesystem/WatchDir", request, &headers)
        .await;
    assert_eq!(stream.message().await.unwrap(), json!({"start": {}}));
    assert_eq!(stream.message().await.unwrap(), json!({"keepalive": {}}));
    fs::write(guest.path("file"), "x").unwrap();
    let first = stream.message().await.unwrap();
    assert_eq!(first["filesystem"]["name"], "file");
    assert_eq!(first["filesystem"]["type"], "EVENT_TYPE_CREATE");
    assert_eq!(first["filesystem"]["entry"]["path"], guest.path("file"));
}

#[tokio::test]
async fn what_cannot_be_watched_is_refused() {
    let guest = Guest::start();
    fs::write(guest.path("file"), "").unwrap();
    for (path, code) in [("none", "not_found"), ("file", "invalid_argument")] {
        let request = json!({"path": guest.path(path)});
        let refused = call(&guest, "CreateWatcher", request.clone())
            .await
            .unwrap_err();
        assert_eq!(refused.code, code);
        let mut stream = guest
            .stream("/filesystem.Filesystem/WatchDir", request, &[])
            .await;
        assert!(stream.message().await.unwrap_err().starts_with(code));
    }
}

#[tokio::test]
async fn watchers_are_bounded() {
    let guest = Guest::start();
    let mut last = Ok(json!({}));
    for _ in 0..65 {
        last = call(&guest, "CreateWatcher", json!({"path": guest.path("")})).await;
    }
    assert_eq!(last.unwrap_err().code, "resource_exhausted");
}
