//! What a client of an HTTP proxy says (CONNECT, RFC 9110 section 9.3.6), and what it is answered. No I/O.
//!
//! Only this method is known, and what could be read in two ways is refused: folded lines, bare line feeds, two of a header that
//! may be there once, a body.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::credentials::Credentials;
use super::header::Refusal;
use super::socks::name;

/// The longest head, in bytes.
pub const LONGEST: usize = 8192;

/// What a client wants.
#[derive(Debug, Clone)]
pub struct Connect {
    /// The name or address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Who it says it is.
    pub credentials: Option<Credentials>,
}

/// What a head is.
#[derive(Debug, Clone)]
pub enum Head {
    /// A connection is wanted.
    Connect(Connect),
    /// It is another method.
    Method,
}

/// It is no head that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no request for a connection")]
pub struct Malformed;

/// Reads a head from what came so far: `Ok(None)` if more has to come, else what it says and how many bytes it is.
///
/// # Errors
/// It is none.
pub fn head(bytes: &[u8]) -> Result<Option<(Head, usize)>, Malformed> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = bytes.get(..end).ok_or(Malformed)?;
    // Nothing outside of ASCII is needed.
    let plain = |byte: &u8| matches!(byte, b'\t' | b'\r' | b'\n' | 0x20..=0x7e);
    if !text.iter().all(plain) {
        return Err(Malformed);
    }
    let text = std::str::from_utf8(text).map_err(|_| Malformed)?;
    let mut lines = text.split("\r\n");
    let first = lines.next().ok_or(Malformed)?;
    if text.split("\r\n").any(|line| line.contains(['\r', '\n'])) {
        return Err(Malformed);
    }
    let mut parts = first.split(' ');
    let (Some(method), Some(target), Some("HTTP/1.1" | "HTTP/1.0"), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Malformed);
    };
    let mut authorization = None;
    for line in lines {
        let (field, value) = line.split_once(':').ok_or(Malformed)?;
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if field.is_empty() || !field.bytes().all(token) {
            return Err(Malformed);
        }
        let value = value.trim_matches([' ', '\t']);
        if field.eq_ignore_ascii_case("proxy-authorization") {
            if authorization.replace(value).is_some() {
                return Err(Malformed);
            }
        } else if field.eq_ignore_ascii_case("transfer-encoding")
            || (field.eq_ignore_ascii_case("content-length") && value != "0")
        {
            return Err(Malformed);
        }
    }
    let length = end + 4;
    if method != "CONNECT" {
        return Ok(Some((Head::Method, length)));
    }
    let (host, port) = authority(target).ok_or(Malformed)?;
    let credentials = authorization.and_then(basic);
    let connect = Connect {
        host,
        port,
        credentials,
    };
    Ok(Some((Head::Connect(connect), length)))
}

/// The host, without brackets, and the port of an authority.
fn authority(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    if port.len() > 5 || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').filter(|host| host.contains(':'))?,
        None => Some(host).filter(|host| !host.contains(':'))?,
    };
    let port = port.parse().ok().filter(|port| *port > 0)?;
    Some((name(host.as_bytes())?, port))
}

/// User and password (RFC 7617); none if the scheme is another.
fn basic(value: &str) -> Option<Credentials> {
    let (scheme, text) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = zeroize::Zeroizing::new(STANDARD.decode(text.trim()).ok()?);
    let at = text.iter().position(|byte| *byte == b':')?;
    Some(Credentials::new(text.get(..at)?, text.get(at + 1..)?))
}

/// What is answered to who may not, or did not say who it is.
pub const UNKNOWN_USER: (u16, &str) = (407, "Proxy Authentication Required");
/// What is answered to another method.
pub const OTHER_METHOD: (u16, &str) = (405, "Method Not Allowed");
/// What is answered to what is no head.
pub const NO_HEAD: (u16, &str) = (400, "Bad Request");
/// What is answered to a head that is too long.
pub const TOO_LONG: (u16, &str) = (431, "Request Header Fields Too Large");
/// What is answered to who is slow.
pub const TOO_SLOW: (u16, &str) = (408, "Request Timeout");

/// The answer when there is a flow; what follows it is the flow's.
pub const CONNECTED: &[u8] = b"HTTP/1.1 200 Connected\r\n\r\n";

/// The status for a refusal.
pub const fn status(refusal: Refusal) -> (u16, &'static str) {
    match refusal {
        Refusal::Denied | Refusal::Undeclared => (403, "Forbidden"),
        Refusal::Unknown => (404, "Not Found"),
        Refusal::Closed | Refusal::Unreachable | Refusal::Confused | Refusal::NoDatagrams => {
            (502, "Bad Gateway")
        }
        Refusal::Silent => (504, "Gateway Timeout"),
        Refusal::Busy => (503, "Service Unavailable"),
    }
}

/// An answer without a flow, after which the connection ends. The text is for people.
pub fn answer(status: (u16, &str), text: &str) -> Vec<u8> {
    let (code, reason) = status;
    let more = match code {
        407 => "Proxy-Authenticate: Basic realm=\"mesh\"\r\n",
        405 => "Allow: CONNECT\r\n",
        _ => "",
    };
    let mut head = String::new();
    // Writing to a string does not fail.
    let _ = write!(
        head,
        "HTTP/1.1 {code} {reason}\r\n{more}Content-Type: text/plain\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{text}\n",
        text.len() + 1
    );
    head.into_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn connect(text: &str) -> Option<Connect> {
        match head(text.as_bytes()) {
            Ok(Some((Head::Connect(connect), length))) => {
                assert!(length <= text.len());
                Some(connect)
            }
            _ => None,
        }
    }

    #[test]
    fn heads_are_read_as_clients_write_them() {
        let read = connect(
            "CONNECT db.mesh.internal:5432 HTTP/1.1\r\nHost: db.mesh.internal:5432\r\n\
             Proxy-Authorization: Basic dXNlcjp3OnJk\r\nUser-Agent: curl/8\r\n\r\nrest",
        )
        .unwrap();
        assert_eq!((&*read.host, read.port), ("db.mesh.internal", 5432));
        let right = Credentials::new(b"user", b"w:rd");
        assert!(read.credentials.unwrap().matches(&right));
        let read = connect("CONNECT [fd00::1]:80 HTTP/1.0\r\n\r\n").unwrap();
        assert_eq!((&*read.host, read.port), ("fd00::1", 80));
        assert!(read.credentials.is_none());
        let other = head(b"GET http://db/ HTTP/1.1\r\n\r\n");
        assert!(matches!(other, Ok(Some((Head::Method, 27)))));
        assert!(matches!(head(b"CONNECT db:80 HTTP/1.1\r\n\r"), Ok(None)));
    }

    #[test]
    fn what_is_ambiguous_is_refused() {
        for text in [
            "CONNECT db:80\r\n\r\n",
            "CONNECT  db:80 HTTP/1.1\r\n\r\n",
            "CONNECT db:80 HTTP/2\r\n\r\n",
            "CONNECT db HTTP/1.1\r\n\r\n",
            "CONNECT db:0 HTTP/1.1\r\n\r\n",
            "CONNECT db:+80 HTTP/1.1\r\n\r\n",
            "CONNECT db:65536 HTTP/1.1\r\n\r\n",
            "CONNECT :80 HTTP/1.1\r\n\r\n",
            "CONNECT fd00::1:80 HTTP/1.1\r\n\r\n",
            "CONNECT [db]:80 HTTP/1.1\r\n\r\n",
            "CONNECT u@db:80 HTTP/1.1\r\n\r\n",
            "CONNECT db:80 HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
            "CONNECT db:80 HTTP/1.1\r\nA : b\r\n\r\n",
            "CONNECT db:80 HTTP/1.1\r\nA: b\nB: c\r\n\r\n",
            "CONNECT db:80 HTTP/1.1\r\nA: \u{e9}\r\n\r\n",
            "CONNECT db:80 HTTP/1.1\r\nA: \0\r\n\r\n",
            "CONNECT db:80 HTTP/1.1\r\nContent-Length: 5\r\n\r\n",
            "CONNECT db:80 HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n",
            "CONNECT db:80 HTTP/1.1\r\nProxy-Authorization: a\r\nProxy-Authorization: b\r\n\r\n",
        ] {
            assert_eq!(head(text.as_bytes()).err(), Some(Malformed), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(
            pieces in proptest::collection::vec(
                prop_oneof![
                    Just(b"CONNECT ".to_vec()),
                    Just(b"[fd00::1]:80 HTTP/1.1\r\n".to_vec()),
                    Just(b"Proxy-Authorization: Basic ".to_vec()),
                    Just(b"\r\n".to_vec()),
                    Just(b":".to_vec()),
                    proptest::collection::vec(any::<u8>(), 0..20),
                    "[ -~]{0,20}".prop_map(String::into_bytes),
                ],
                0..12,
            ),
        ) {
            let bytes = pieces.concat();
            if let Ok(Some((_, length))) = head(&bytes) {
                prop_assert!(length <= bytes.len());
                prop_assert!(matches!(head(&bytes[..length - 1]), Ok(None)));
            }
        }
    }
}
