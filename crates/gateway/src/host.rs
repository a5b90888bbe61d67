//! Where a request goes, read from its host name and routing headers.
//!
//! | host | goes to |
//! | --- | --- |
//! | `{port}-{id}.anything`, `{port}-{id}-legacy.anything` | that port of that sandbox |
//! | `api.anything` | the API |
//! | `localhost`, an IP address, a name without dots, the gateway's own domain | the sandbox named by `E2b-Sandbox-Id` and `E2b-Sandbox-Port`; the one that signed, for a signed `/files`; else the API |
//! | `sandbox.anything` | the same, but never the API |
//! | anything else | nowhere |

use std::net::IpAddr;

/// Longest sandbox id that is looked at; ours have 21 characters.
const LONGEST_ID: usize = 64;

/// A port of a sandbox. The id has the right alphabet but may not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Lower-case letters and digits.
    pub sandbox: String,
    /// 1 to 65535.
    pub port: u16,
}

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// To the API.
    Api,
    /// To a sandbox.
    Sandbox(Target),
    /// To the guest of the sandbox whose token reproduces the URL's signature.
    Signed,
}

/// Why a request goes nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecideError {
    /// Only one of the two routing headers is there, or none where they are needed.
    #[error("missing header")]
    MissingHeader,
    /// A routing header is not an id or not a port.
    #[error("Invalid header")]
    InvalidHeader,
    /// The host name names neither a sandbox nor the API.
    #[error("Invalid host")]
    InvalidHost,
}

/// What of a request decides where it goes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clues<'a> {
    /// The host with or without port, from the request's target or its Host header.
    pub host: &'a str,
    /// The header `E2b-Sandbox-Id`.
    pub sandbox_id: Option<&'a [u8]>,
    /// The header `E2b-Sandbox-Port`.
    pub sandbox_port: Option<&'a [u8]>,
    /// Whether it is for `/files` and carries `signature=`.
    pub signed: bool,
}

/// Decides where a request goes. `domain` is the gateway's own, if it has one.
pub fn decide(clues: Clues<'_>, domain: Option<&str>) -> Result<Destination, DecideError> {
    let name = name_of(clues.host).ok_or(DecideError::InvalidHost)?;
    let sandboxes_only = starts_with_label(name, "sandbox");
    if !sandboxes_only && !is_neutral(name, domain) {
        if starts_with_label(name, "api") {
            return Ok(Destination::Api);
        }
        return parse_label(name)
            .map(Destination::Sandbox)
            .ok_or(DecideError::InvalidHost);
    }
    match (clues.sandbox_id, clues.sandbox_port) {
        (Some(id), Some(port)) => {
            let sandbox = std::str::from_utf8(id).ok().and_then(parse_id);
            let port = std::str::from_utf8(port).ok().and_then(parse_port);
            match (sandbox, port) {
                (Some(sandbox), Some(port)) => Ok(Destination::Sandbox(Target { sandbox, port })),
                _ => Err(DecideError::InvalidHeader),
            }
        }
        (None, None) if clues.signed => Ok(Destination::Signed),
        (None, None) if !sandboxes_only => Ok(Destination::Api),
        _ => Err(DecideError::MissingHeader),
    }
}

/// The host name without port, brackets and the root's dot; `None` if it cannot be one.
pub fn name_of(host: &str) -> Option<&str> {
    if let Some(rest) = host.strip_prefix('[') {
        let (address, after) = rest.split_once(']')?;
        let port = after.strip_prefix(':').unwrap_or(after);
        let good = address.parse::<std::net::Ipv6Addr>().is_ok()
            && (after.is_empty() || after.starts_with(':'))
            && port.bytes().all(|byte| byte.is_ascii_digit());
        return good.then_some(address);
    }
    let name = match host.split_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        Some(_) => return None,
        None => host,
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    let good = !name.is_empty()
        && name.len() <= 253
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        && !name.starts_with('.')
        && !name.contains("..");
    good.then_some(name)
}

/// Reads `{port}-{id}` and ignores what follows a further dash, off the left-most label.
fn parse_label(name: &str) -> Option<Target> {
    let label = name.split('.').next()?;
    let (port, rest) = label.split_once('-')?;
    Some(Target {
        port: parse_port(port)?,
        sandbox: parse_id(rest)?,
    })
}

/// Reads a sandbox id, and ignores what older clients append after a dash.
fn parse_id(text: &str) -> Option<String> {
    let id = text.split('-').next()?;
    let good = !id.is_empty()
        && id.len() <= LONGEST_ID
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    good.then(|| id.to_ascii_lowercase())
}

fn parse_port(text: &str) -> Option<u16> {
    let digits = (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits {
        return None;
    }
    text.parse().ok().filter(|port| *port != 0)
}

/// Whether the name stands for the gateway itself, so that headers say more.
fn is_neutral(name: &str, domain: Option<&str>) -> bool {
    if domain.is_some_and(|domain| name.eq_ignore_ascii_case(domain)) {
        return true;
    }
    let last = name.as_bytes().last();
    // Only what ends in a digit or has a colon can be an address: spares most names the parsing.
    let perhaps = last.is_some_and(u8::is_ascii_digit) || name.contains(':');
    if perhaps && name.parse::<IpAddr>().is_ok() {
        return true;
    }
    !name.contains('.') && parse_label(name).is_none()
}

fn starts_with_label(name: &str, label: &str) -> bool {
    name.len() > label.len()
        && name.as_bytes()[label.len()] == b'.'
        && name.as_bytes()[..label.len()].eq_ignore_ascii_case(label.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(host: &str, headers: (Option<&str>, Option<&str>), signed: bool, expected: &str) {
        let clues = Clues {
            host,
            sandbox_id: headers.0.map(str::as_bytes),
            sandbox_port: headers.1.map(str::as_bytes),
            signed,
        };
        let found = match decide(clues, Some("example.org")) {
            Ok(Destination::Api) => "api".to_owned(),
            Ok(Destination::Signed) => "signed".to_owned(),
            Ok(Destination::Sandbox(target)) => format!("{}:{}", target.sandbox, target.port),
            Err(error) => error.to_string(),
        };
        assert_eq!(found, expected, "{host} {headers:?} {signed}");
    }

    #[test]
    fn the_name_carries_the_route() {
        let none = (None, None);
        check("3000-iabc.example.org", none, false, "iabc:3000");
        check("3000-iabc.example.org:8443", none, false, "iabc:3000");
        check("3000-IABC.EXAMPLE.ORG.", none, false, "iabc:3000");
        check("49983-iabc-00000000.other", none, false, "iabc:49983");
        check("3000-iabc.localhost:3000", none, false, "iabc:3000");
        check("3000-iabc", none, false, "iabc:3000");
        check(
            "3000-iabc.example.org",
            (Some("iother"), Some("1")),
            false,
            "iabc:3000",
        );
        for bad in [
            "",
            ".",
            "..",
            "a..b",
            "0-iabc.x",
            "70000-iabc.x",
            "+1-iabc.x",
            "3000-.x",
            "3000.x",
            "3000-i_b.x",
            "-iabc.x",
            "other.example.net",
            "user@3000-iabc.x",
            "3000-iabc.x:y",
            "[::1",
            "[::1]x",
            "[1.2.3.4]",
            "3000-iabc.x/../y",
            "::1",
            "123456-iabc.x",
        ] {
            check(bad, none, false, "Invalid host");
        }
    }

    #[test]
    fn neutral_hosts_are_routed_by_headers() {
        for host in [
            "localhost",
            "LOCALHOST:1",
            "127.0.0.1:3000",
            "[::1]:3000",
            "atoll:80",
            "example.org",
        ] {
            check(host, (Some("iabc"), Some("8080")), false, "iabc:8080");
            check(host, (Some("iabc-legacy"), Some("8080")), true, "iabc:8080");
            check(host, (Some("iabc"), None), false, "missing header");
            check(host, (None, Some("8080")), true, "missing header");
            check(host, (Some("iabc"), Some("0")), false, "Invalid header");
            check(host, (Some("../x"), Some("1")), false, "Invalid header");
            check(host, (None, None), true, "signed");
            check(host, (None, None), false, "api");
        }
        check(
            "sandbox.example.org",
            (Some("iabc"), Some("1")),
            false,
            "iabc:1",
        );
        check("sandbox.example.org", (None, None), false, "missing header");
        check("sandbox.example.org", (None, None), true, "signed");
        check("api.example.org", (Some("iabc"), Some("1")), true, "api");
        check("API.other", (None, None), false, "api");
    }
}
