//! Host names, routing headers, signed URLs and paths, as the gateway reads them.
#![no_main]

use api::{Secret, route::Route};
use gateway::{
    headers::{is_guest_control, remove_hop_by_hop, upgrade_of},
    host::{Clues, Destination, decide, name_of},
    signature::{SignedUrl, is_signed},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use libfuzzer_sys::fuzz_target;
use std::net::{IpAddr, Ipv4Addr};

fuzz_target!(|data: &[u8]| {
    let Some([host, id, port, path, query, head]) = fuzz::texts(data) else { return };
    check_host(host, id, port);
    check_path(path);
    check_query(query);
    check_head(head);
});

fn check_host(host: &str, id: &str, port: &str) {
    if let Some(name) = name_of(host) {
        assert!(host.contains(name) && !name.contains(['/', '@', '#', '?', '\\', ' ']));
    }
    let some = |text: &'static [u8]| Some(text);
    for headers in [(None, None), (Some(id.as_bytes()), Some(port.as_bytes())), (some(b"i"), None)] {
        for signed in [false, true] {
            let clues =
                Clues { host, sandbox_id: headers.0, sandbox_port: headers.1, signed };
            let Ok(destination) = decide(clues, Some("example.org")) else { continue };
            let Destination::Sandbox(target) = destination else { continue };
            assert!(target.port > 0);
            let sandbox = &target.sandbox;
            assert!(!sandbox.is_empty() && sandbox.len() <= 64);
            assert!(sandbox.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase()));
            // The name that the gateway would give it leads back to it.
            let again = format!("{}-{sandbox}.example.org", target.port);
            let clues = Clues { host: &again, ..Clues::default() };
            assert_eq!(decide(clues, None), Ok(Destination::Sandbox(target)));
        }
    }
}

/// What an honest server makes of a path: dots resolved, empty parts gone.
fn resolve(path: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    parts
}

fn check_path(path: &str) {
    let decoded = percent_encoding::percent_decode_str(path).decode_utf8_lossy();
    for reading in [path, &decoded] {
        let first = resolve(reading).first().copied().unwrap_or("");
        if first == "init" || first == "_atoll" {
            assert!(is_guest_control(path), "{path:?} reaches /{first}");
        }
    }
}

fn check_query(query: &str) {
    let Some(mut url) = SignedUrl::parse(query) else { return };
    assert!(is_signed(query));
    let route = |token: &str| Route {
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        traffic_token: None,
        mask_request_host: None,
        access_token: Some(Secret::new(token)),
    };
    let routes = [route("one"), route("two")];
    assert_eq!(url.find(&Method::GET, routes.iter()), None, "a forged signature");
    url.signature = url.sign("read", &Secret::new("two"));
    assert_eq!(url.find(&Method::GET, routes.iter()), Some(1));
    assert_eq!(url.find(&Method::POST, routes.iter()), None);
}

fn check_head(head: &str) {
    let mut headers = HeaderMap::new();
    for line in head.lines().take(64) {
        let Some((name, value)) = line.split_once(':') else { continue };
        let name = HeaderName::from_bytes(name.trim().as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value.trim())) {
            headers.append(name, value);
        }
    }
    if let Some(protocol) = upgrade_of(&headers) {
        assert!(!protocol.to_str().is_ok_and(|text| text.eq_ignore_ascii_case("h2c")));
    }
    remove_hop_by_hop(&mut headers);
    for name in ["connection", "transfer-encoding", "upgrade", "keep-alive"] {
        assert!(!headers.contains_key(name));
    }
}
