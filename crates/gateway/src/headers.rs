//! What happens to heads on their way through: hop-by-hop fields go, secrets of other layers go,
//! and the sandbox learns who asked.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CONNECTION, COOKIE, HOST, TE, UPGRADE},
};
use percent_encoding::percent_decode_str;

/// The token that opens a sandbox's ports.
pub const TRAFFIC_TOKEN: HeaderName = HeaderName::from_static("e2b-traffic-access-token");
/// Names the sandbox.
pub const SANDBOX_ID: HeaderName = HeaderName::from_static("e2b-sandbox-id");
/// Names the port.
pub const SANDBOX_PORT: HeaderName = HeaderName::from_static("e2b-sandbox-port");

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Nobody honest encodes a path more often than this.
const MOST_DECODINGS: usize = 6;

/// Paths of the guest that only the node may ask for.
const CONTROL_ROUTES: [&str; 8] = [
    "init", "freeze", "unfreeze", "fsfreeze", "fsthaw", "collapse", "upgrade", "_atoll",
];

/// The protocol that a request or an answer wants to change to, if it says so properly.
///
/// HTTP/2 over plain text is not one of them (RFC 9113, section 3.1): servers that accept it
/// would take requests that the gateway has not looked at.
pub fn upgrade_of(headers: &HeaderMap) -> Option<HeaderValue> {
    let protocol = headers.get(UPGRADE)?;
    let asked = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|word| word.trim().eq_ignore_ascii_case("upgrade"));
    let text = protocol.to_str().ok()?.trim();
    let plain_http2 = text.split(',').any(|word| {
        let word = word.trim();
        word.len() >= 3 && word.is_char_boundary(3) && word[..3].eq_ignore_ascii_case("h2c")
    });
    (asked && !text.is_empty() && !plain_http2).then(|| protocol.clone())
}

/// Removes the fields that concern one connection only (RFC 9110, section 7.6.1).
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    remove(headers, is_hop_by_hop);
}

fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authorization"
            | "proxy-authenticate"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
    )
}

/// Removes the fields that `unwanted` names and those that `Connection` names.
///
/// Most heads have none of them: looking at each name once costs less than a look-up for each
/// that could be there.
fn remove(headers: &mut HeaderMap, unwanted: impl Fn(&str) -> bool) {
    if !headers.keys().any(|name| unwanted(name.as_str())) {
        return;
    }
    let mut names: Vec<HeaderName> = headers
        .keys()
        .filter(|name| unwanted(name.as_str()))
        .cloned()
        .collect();
    let listed = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let listed = listed.flat_map(|value| value.split(','));
    names.extend(
        listed
            .filter_map(|word| word.trim().parse().ok())
            .filter(|name| name != TE),
    );
    for name in names {
        headers.remove(name);
    }
}

/// What the request looks like from outside; goes into the head that the sandbox sees.
#[derive(Debug, Clone)]
pub struct Arrival<'a> {
    /// The client's address as text.
    pub client: &'a HeaderValue,
    /// Whether the client used TLS.
    pub secure: bool,
    /// The Host that the server in the sandbox sees.
    pub host: HeaderValue,
    /// The protocol to change to, if the client asked for it.
    pub upgrade: Option<HeaderValue>,
}

/// Makes of a client's head the one that the sandbox gets.
pub fn prepare_request(headers: &mut HeaderMap, arrival: Arrival<'_>) {
    let trailers = headers
        .get(TE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.split(',').any(|word| word.trim() == "trailers"));
    remove(headers, |name| {
        is_hop_by_hop(name)
            || matches!(
                name,
                "te" | "expect" | "x-api-key" | "x-atoll-control" | "e2b-traffic-access-token"
            )
    });
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if let Some(protocol) = arrival.upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    }
    join_cookies(headers);
    headers.insert(HOST, arrival.host);
    headers.append(FORWARDED_FOR, arrival.client.clone());
    let scheme = if arrival.secure { "https" } else { "http" };
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static(scheme));
}

/// HTTP/2 may send cookies one by one, HTTP/1.1 wants one field (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(COOKIE).iter();
    if cookies.next().is_none() || cookies.next().is_none() {
        return;
    }
    let values: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if let Ok(joined) = HeaderValue::from_bytes(&values.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

/// Whether a path may be one of the guest's that only the node may ask for, however it is spelt.
///
/// A path that can be read in several ways (dots, escapes, backslashes, parameters) counts as one
/// if any of its parts is such a name: honest clients have no use for it.
pub fn is_guest_control(path: &str) -> bool {
    let plain = path.starts_with('/')
        && !path.contains(['%', '\\', ';'])
        && !path.contains("//")
        && !path.contains("/.");
    if plain {
        let first = path.trim_start_matches('/').split('/').next();
        return first.is_some_and(is_control_segment);
    }
    let mut reading = path.to_owned();
    for _ in 0..MOST_DECODINGS {
        if reading.split(['/', '\\', ';']).any(is_control_segment) {
            return true;
        }
        let decoded = percent_decode_str(&reading)
            .decode_utf8_lossy()
            .into_owned();
        if decoded == reading {
            return false;
        }
        reading = decoded;
    }
    true
}

fn is_control_segment(segment: &str) -> bool {
    CONTROL_ROUTES
        .iter()
        .any(|route| segment.eq_ignore_ascii_case(route))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    #[test]
    fn control_routes_are_found_however_spelt() {
        for path in [
            "/init",
            "/init/",
            "/INIT",
            "//init",
            "/./init",
            "/a/../init",
            "/%69nit",
            "/%2569nit",
            "/a/%2e%2e/init",
            "/init;x=1",
            "\\init",
            "/_atoll/logs",
            "/_atoll",
            "/%5fatoll/logs",
            "/../freeze",
            "/x\\a/../init",
            "/x\\a/../%69nit",
            "/%25252525252525252569nit",
            "/upgrade",
            "/collapse",
            "/fsthaw",
            "/fsfreeze",
            "/unfreeze",
        ] {
            assert!(is_guest_control(path), "{path}");
        }
        for path in [
            "/",
            "/health",
            "/files",
            "/initial",
            "/files/init",
            "/files%20/x",
            "/process.Process/List",
        ] {
            assert!(!is_guest_control(path), "{path}");
        }
    }

    #[test]
    fn only_what_concerns_the_sandbox_reaches_it() {
        let mut headers = head(&[
            ("connection", "keep-alive, X-Private, TE"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("te", "gzip, trailers"),
            ("x-api-key", "e2b_0"),
            ("e2b-traffic-access-token", "t"),
            ("x-atoll-control", "c"),
            ("proxy-authorization", "p"),
            ("x-access-token", "a"),
            ("x-forwarded-for", "9.9.9.9"),
            ("x-forwarded-proto", "gopher"),
        ]);
        let client = HeaderValue::from_static("192.0.2.1");
        let host = HeaderValue::from_static("3000-i.example.org");
        prepare_request(
            &mut headers,
            Arrival {
                client: &client,
                secure: true,
                host,
                upgrade: None,
            },
        );
        let mut left: Vec<String> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        left.sort();
        assert_eq!(
            left,
            [
                "host: 3000-i.example.org",
                "te: trailers",
                "x-access-token: a",
                "x-forwarded-for: 192.0.2.1",
                "x-forwarded-for: 9.9.9.9",
                "x-forwarded-proto: https",
            ]
        );
    }

    #[test]
    fn upgrades_are_asked_for_properly_or_not_at_all() {
        let asked = head(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
        ]);
        assert_eq!(upgrade_of(&asked).unwrap(), "websocket");
        assert!(upgrade_of(&head(&[("upgrade", "websocket")])).is_none());
        assert!(upgrade_of(&head(&[("connection", "upgrade"), ("upgrade", "H2C")])).is_none());
        assert!(upgrade_of(&head(&[("connection", "upgrade"), ("upgrade", "a, h2c")])).is_none());
    }
}
