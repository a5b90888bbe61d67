//! `/files`, as clients see it.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use crate::support;

use bytes::Bytes;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use http::{HeaderMap, StatusCode, header};
use serde_json::{Value, json};
use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::fs::MetadataExt as _,
};
use support::Guest;

const OCTETS: (&str, &str) = ("content-type", "application/octet-stream");

async fn get(
    guest: &Guest,
    name: &str,
    headers: &[(&str, &str)],
) -> (StatusCode, HeaderMap, Bytes) {
    guest
        .request(
            "GET",
            &format!("/files?path={}", guest.path(name)),
            headers,
            "",
        )
        .await
}

async fn put(
    guest: &Guest,
    query: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> (StatusCode, Value) {
    let (status, _, body) = guest
        .request("POST", &format!("/files?{query}"), headers, body)
        .await;
    (status, serde_json::from_slice(&body).unwrap())
}

fn message(body: &[u8]) -> String {
    let body: Value = serde_json::from_slice(body).unwrap();
    body["message"].as_str().unwrap().to_owned()
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn a_file_goes_in_and_comes_out() {
    let guest = Guest::start();
    for size in [0, 5, (128 << 10) - 1, 128 << 10, 3_000_000] {
        let data: Vec<u8> = (0..size).map(|number: u32| (number % 251) as u8).collect();
        let query = format!("path={}&username=nobody", guest.path("new/folder/file"));
        let (status, written) = put(&guest, &query, &[OCTETS], data.clone()).await;
        let path = guest.path("new/folder/file");
        assert_eq!(
            (status, written),
            (
                StatusCode::OK,
                json!([{"path": path, "name": "file", "type": "file"}])
            )
        );
        assert_eq!(fs::metadata(&path).unwrap().uid(), 65534);
        assert_eq!(fs::metadata(guest.path("new")).unwrap().uid(), 65534);
        let (status, headers, body) = get(&guest, "new/folder/file", &[]).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(headers[header::CONTENT_LENGTH], data.len().to_string());
        assert_eq!(headers[header::VARY], "Accept-Encoding");
        assert_eq!(
            headers[header::CONTENT_DISPOSITION],
            "inline; filename=\"file\""
        );
        assert!(body == data, "what came back is not what went in");
    }
}

#[tokio::test]
async fn parts_of_a_file_can_be_had() {
    let guest = Guest::start();
    let data: Vec<u8> = (0..300_000u32).map(|number| (number % 251) as u8).collect();
    fs::write(guest.path("file"), &data).unwrap();
    for (range, start, end) in [
        ("bytes=0-9", 0, 10),
        ("bytes=200000-", 200_000, 300_000),
        ("bytes=-5", 299_995, 300_000),
    ] {
        let headers = [("range", range), ("accept-encoding", "gzip")];
        let (status, headers, body) = get(&guest, "file", &headers).await;
        assert_eq!(status, StatusCode::PARTIAL_CONTENT);
        let content_range = format!("bytes {start}-{}/300000", end - 1);
        assert_eq!(headers[header::CONTENT_RANGE], content_range);
        assert!(!headers.contains_key(header::CONTENT_ENCODING));
        assert!(body == data[start..end]);
    }
    let (status, headers, _) = get(&guest, "file", &[("range", "bytes=300000-")]).await;
    assert_eq!(status, StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(headers[header::CONTENT_RANGE], "bytes */300000");
    let (_, headers, _) = get(&guest, "file", &[]).await;
    let tag = headers[header::ETAG].to_str().unwrap().to_owned();
    let modified = headers[header::LAST_MODIFIED].to_str().unwrap().to_owned();
    let (status, _, body) = get(&guest, "file", &[("if-none-match", &tag)]).await;
    assert_eq!((status, body.len()), (StatusCode::NOT_MODIFIED, 0));
    let (status, ..) = get(&guest, "file", &[("if-modified-since", &modified)]).await;
    assert_eq!(status, StatusCode::NOT_MODIFIED);
    let headers = [("range", "bytes=0-9"), ("if-range", "\"other\"")];
    let (status, _, body) = get(&guest, "file", &headers).await;
    assert_eq!((status, body.len()), (StatusCode::OK, 300_000));
}

#[tokio::test]
async fn compression_only_if_asked_for() {
    let guest = Guest::start();
    let data = b"compressible ".repeat(100_000);
    fs::write(guest.path("file.txt"), &data).unwrap();
    let (status, headers, body) = get(&guest, "file.txt", &[("accept-encoding", "gzip")]).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(headers[header::CONTENT_ENCODING], "gzip");
    assert_eq!(headers[header::CONTENT_TYPE], "text/plain; charset=utf-8");
    let mut plain = Vec::new();
    GzDecoder::new(&body[..]).read_to_end(&mut plain).unwrap();
    assert!(plain == data && body.len() < data.len() / 10);
    let (_, headers, body) = get(&guest, "file.txt", &[("accept-encoding", "br")]).await;
    assert!(!headers.contains_key(header::CONTENT_ENCODING) && body == data);
    let (status, _, body) = get(
        &guest,
        "file.txt",
        &[("accept-encoding", "identity;q=0, br")],
    )
    .await;
    assert_eq!(status, StatusCode::NOT_ACCEPTABLE);
    assert_eq!(
        message(&body),
        "no acceptable encoding found, supported: [gzip]"
    );

    let query = format!("path={}", guest.path("up"));
    let headers = [OCTETS, ("content-encoding", "gzip")];
    let (status, _) = put(&guest, &query, &headers, gzip(&data)).await;
    assert_eq!(status, StatusCode::OK);
    assert!(fs::read(guest.path("up")).unwrap() == data);
    let (status, answer) = put(&guest, &query, &headers, &b"not gzip at all"[..]).await;
    assert_eq!(
        (status, &answer["code"]),
        (StatusCode::BAD_REQUEST, &json!(400))
    );
    let cut = gzip(&data)[..200].to_vec();
    assert_eq!(
        put(&guest, &query, &headers, cut).await.0,
        StatusCode::BAD_REQUEST
    );
    let headers = [OCTETS, ("content-encoding", "zstd")];
    assert_eq!(
        put(&guest, &query, &headers, "x").await.0,
        StatusCode::BAD_REQUEST
    );
}

fn form(parts: &[(&str, &str)]) -> (Vec<u8>, &'static str) {
    let mut body = Vec::new();
    for (name, content) in parts {
        let head = format!(
            "--frontier\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        );
        body.extend([head.as_bytes(), content.as_bytes(), b"\r\n"].concat());
    }
    body.extend(b"--frontier--\r\n");
    (body, "multipart/form-data; boundary=frontier")
}

#[tokio::test]
async fn a_form_brings_several_files() {
    let guest = Guest::start();
    let large = "x".repeat(1 << 20);
    let (body, content_type) = form(&[
        (&guest.path("a/one"), "1"),
        (&guest.path("b/two"), &large),
        (&guest.path("é"), ""),
    ]);
    let headers = [("content-type", content_type)];
    let (status, written) = put(&guest, "", &headers, body.clone()).await;
    assert_eq!(status, StatusCode::OK, "{written}");
    assert_eq!(written.as_array().unwrap().len(), 3);
    assert_eq!(fs::read_to_string(guest.path("a/one")).unwrap(), "1");
    assert!(fs::read_to_string(guest.path("b/two")).unwrap() == large);
    assert_eq!(written[2]["name"], "é");
    let headers = [("content-type", content_type), ("content-encoding", "gzip")];
    let (status, _) = put(&guest, "", &headers, gzip(&body)).await;
    assert_eq!(status, StatusCode::OK);

    // The query's path beats the part's own name.
    let (body, content_type) = form(&[("elsewhere", "text")]);
    let headers = [("content-type", content_type)];
    let query = format!("path={}", guest.path("here"));
    let (_, written) = put(&guest, &query, &headers, body).await;
    assert_eq!(written[0]["path"], guest.path("here"));
    let (body, content_type) = form(&[(&guest.path("twice"), "1"), (&guest.path("twice"), "2")]);
    let (status, answer) = put(&guest, "", &[("content-type", content_type)], body).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(
        answer["message"]
            .as_str()
            .unwrap()
            .starts_with("you cannot upload multiple files to")
    );
    assert_eq!(fs::read_to_string(guest.path("twice")).unwrap(), "1");
}

#[tokio::test]
async fn labels_travel_with_a_file() {
    let guest = Guest::start();
    // Not every file system that holds temporary files keeps extended attributes.
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = folder.path().join("file").to_str().unwrap().to_owned();
    let query = format!("path={path}");
    let headers = [
        OCTETS,
        ("X-Metadata-Author", "me"),
        ("X-Metadata-Kind", "a b"),
    ];
    let (_, written) = put(&guest, &query, &headers, "x").await;
    assert_eq!(
        written[0]["metadata"],
        json!({"author": "me", "kind": "a b"})
    );
    let entry = guest
        .call("/filesystem.Filesystem/Stat", json!({"path": path}))
        .await
        .unwrap();
    assert_eq!(
        entry["entry"]["metadata"],
        json!({"author": "me", "kind": "a b"})
    );
    put(&guest, &query, &[OCTETS, ("X-Metadata-New", "1")], "x").await;
    let entry = guest
        .call("/filesystem.Filesystem/Stat", json!({"path": path}))
        .await
        .unwrap();
    assert_eq!(entry["entry"]["metadata"], json!({"new": "1"}));
    let large = "v".repeat(4100);
    let (status, _) = put(&guest, &query, &[OCTETS, ("X-Metadata-Large", &large)], "x").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn requests_that_cannot_be_met_say_why() {
    let guest = Guest::start();
    let (status, _, body) = get(&guest, "none", &[]).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(
        message(&body),
        format!("path '{}' does not exist", guest.path("none"))
    );
    let (status, _, body) = guest.request("GET", "/files?path=/tmp", &[], "").await;
    assert_eq!(
        (status, message(&body).as_str()),
        (StatusCode::BAD_REQUEST, "path '/tmp' is a directory")
    );
    let (status, ..) = guest.request("GET", "/files?path=/dev/zero", &[], "").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let (status, _, body) = guest
        .request("GET", "/files?path=/etc/passwd&username=root123", &[], "")
        .await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert_eq!(
        message(&body),
        "error looking up user 'root123': user: unknown user root123"
    );
    let (status, answer) = put(&guest, "path=/tmp", &[OCTETS], "x").await;
    assert_eq!(
        (status, answer["message"].as_str()),
        (StatusCode::BAD_REQUEST, Some("path is a directory: /tmp"))
    );
    let (status, _) = put(&guest, "", &[OCTETS], "x").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let (status, _) = put(
        &guest,
        "path=/tmp/x",
        &[("content-type", "text/plain")],
        "x",
    )
    .await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let (status, ..) = guest.request("DELETE", "/files?path=/tmp/x", &[], "").await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn a_full_disk_is_507() {
    let guest = Guest::start();
    // A small file system of the test's own, seen by the guest through its own namespace's path.
    let mount = guest.path("small");
    fs::create_dir(&mount).unwrap();
    rustix::mount::mount(
        "tmpfs",
        &mount,
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        c"size=64k",
    )
    .unwrap();
    let query = format!("path={mount}/file");
    let (status, answer) = put(&guest, &query, &[OCTETS], vec![0; 1 << 20]).await;
    // A client that reads only when it has sent everything must not be cut off.
    let port = guest.port;
    let head = format!(
        "POST /files?{query} HTTP/1.1\r\nhost: guest\r\nconnection: close\r\n\
         content-type: application/octet-stream\r\ncontent-length: {}\r\n\r\n",
        32 << 20
    );
    let stubborn = tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&vec![0; 32 << 20]).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let stubborn = stubborn.await.unwrap();
    assert!(stubborn.starts_with("HTTP/1.1 507 "), "{stubborn}");
    rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert_eq!(status, StatusCode::INSUFFICIENT_STORAGE);
    assert_eq!(
        answer["message"],
        "attempted to write 1048576 bytes: not enough disk space available"
    );
}

#[tokio::test]
async fn parts_are_composed_into_one() {
    let guest = Guest::start();
    fs::write(guest.path("1"), "one ").unwrap();
    fs::write(guest.path("2"), "two").unwrap();
    let compose = async |message: Value| {
        let headers = [("content-type", "application/json")];
        let (status, _, body) = guest
            .request("POST", "/files/compose", &headers, message.to_string())
            .await;
        (
            status.as_u16(),
            serde_json::from_slice::<Value>(&body).unwrap(),
        )
    };
    let request = json!({
        "source_paths": [guest.path("1"), guest.path("2")],
        "destination": guest.path("out/whole"),
        "username": "nobody",
    });
    let (status, written) = compose(request.clone()).await;
    assert_eq!(
        (status, &written["path"]),
        (200, &json!(guest.path("out/whole")))
    );
    assert_eq!(
        fs::read_to_string(guest.path("out/whole")).unwrap(),
        "one two"
    );
    assert_eq!(fs::metadata(guest.path("out/whole")).unwrap().uid(), 65534);
    assert!(!fs::exists(guest.path("1")).unwrap());
    let (status, answer) = compose(request).await;
    assert_eq!(
        (status, answer["message"].as_str()),
        (
            404,
            Some(format!("source file not found: {}", guest.path("1")).as_str())
        )
    );
    let (status, _) = compose(json!({"source_paths": [], "destination": "/x"})).await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn files_of_the_kernel_are_read_to_their_end() {
    let guest = Guest::start();
    let (status, _, body) = guest
        .request("GET", "/files?path=/proc/version", &[], "")
        .await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(body, fs::read("/proc/version").unwrap());
}
