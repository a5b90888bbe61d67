//! Who may ask for what, and as whom.

use super::{Guest, reply::Failure};
use crate::{
    accounts::{User, find_user},
    signature::{self, Claim, Operation},
};
use api::envd::connect::{Code, ConnectError};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, header};

/// Carries the sandbox's token.
const ACCESS_TOKEN: &str = "x-access-token";
/// Carries the node's own token.
const CONTROL_TOKEN: &str = "x-atoll-control";

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Whether the request carries the sandbox's token, or needs none.
pub fn has_token(guest: &Guest, headers: &HeaderMap) -> bool {
    match &guest.role().access_token {
        Some(token) => signature::equal(
            token.expose(),
            text(headers, ACCESS_TOKEN).unwrap_or_default(),
        ),
        None => true,
    }
}

/// Whether the request carries the node's own token.
pub fn has_control_token(guest: &Guest, headers: &HeaderMap) -> bool {
    let role = guest.role();
    let token = role.control_token.expose();
    !token.is_empty() && signature::equal(token, text(headers, CONTROL_TOKEN).unwrap_or_default())
}

/// What the query of `/files` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilesQuery {
    /// `path`.
    pub path: Option<String>,
    /// `username`.
    pub username: Option<String>,
    /// `signature`.
    pub signature: Option<String>,
    /// `signature_expiration`.
    pub expiration: Option<String>,
}

impl FilesQuery {
    /// Parses a query string; of a name that comes twice the first counts.
    pub fn parse(query: &str) -> Self {
        let mut parsed = Self::default();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let field = match name {
                "path" => &mut parsed.path,
                "username" => &mut parsed.username,
                "signature" => &mut parsed.signature,
                "signature_expiration" => &mut parsed.expiration,
                _ => continue,
            };
            if field.is_none() {
                // In queries a plus sign is a blank.
                let value = value.replace('+', " ");
                let value = percent_encoding::percent_decode_str(&value).decode_utf8_lossy();
                *field = Some(value.into_owned());
            }
        }
        parsed
    }
}

/// Checks that a request for `/files` carries the token, or a signature for what it asks.
pub fn check_files(
    guest: &Guest,
    headers: &HeaderMap,
    query: &FilesQuery,
    operation: Operation,
) -> Result<(), Failure> {
    let role = guest.role();
    let Some(token) = &role.access_token else {
        return Ok(());
    };
    if text(headers, ACCESS_TOKEN).is_some_and(|sent| !sent.is_empty()) {
        return if has_token(guest, headers) {
            Ok(())
        } else {
            Err(Failure::unauthorized(
                "access token present in header but does not match",
            ))
        };
    }
    let Some(signature) = &query.signature else {
        return Err(Failure::unauthorized("missing signature query parameter"));
    };
    let expiration = match query.expiration.as_deref() {
        Some(text) => Some(text.parse().map_err(|_| {
            Failure::bad_request("invalid format for parameter signature_expiration")
        })?),
        None => None,
    };
    let claim = Claim {
        path: query.path.as_deref().unwrap_or_default(),
        operation,
        user: query.username.as_deref().unwrap_or_default(),
        expiration,
    };
    let now = jiff::Timestamp::now().as_second();
    signature::verify(claim, token.expose(), signature, now)
        .map_err(|error| Failure::unauthorized(error.to_string()))
}

/// The user of a request for files: the one it names, else the default.
pub fn files_user(guest: &Guest, name: Option<&str>) -> Result<User, Failure> {
    let role = guest.role();
    let name = name
        .filter(|name| !name.is_empty())
        .unwrap_or(&role.default_user);
    find_user(name).ok_or_else(|| {
        Failure::unauthorized(format!(
            "error looking up user '{name}': user: unknown user {name}"
        ))
    })
}

/// The user of a call: the one that `Authorization: Basic` names, else the default.
pub fn call_user(guest: &Guest, headers: &HeaderMap) -> Result<User, ConnectError> {
    let unauthenticated = |message: String| ConnectError::new(Code::Unauthenticated, message);
    match basic_user(text(headers, header::AUTHORIZATION.as_str()).unwrap_or_default()) {
        Some(name) => {
            find_user(&name).ok_or_else(|| unauthenticated(format!("invalid username: '{name}'")))
        }
        None => {
            let role = guest.role();
            let name = &role.default_user;
            find_user(name)
                .ok_or_else(|| unauthenticated(format!("invalid default user: '{name}'")))
        }
    }
}

/// The user's name in a `Basic` credential; `None` if the header holds none.
pub fn basic_user(header: &str) -> Option<String> {
    let (scheme, credential) = header.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = STANDARD.decode(credential.trim()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    text.split_once(':').map(|(name, _)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_comes_from_basic_credentials() {
        assert_eq!(basic_user("Basic dXNlcjo="), Some("user".into()));
        assert_eq!(basic_user("basic  dXNlcjpwYXNz"), Some("user".into()));
        for header in ["", "Basic", "Basic !", "Bearer dXNlcjo=", "Basic dXNlcg=="] {
            assert_eq!(basic_user(header), None, "{header}");
        }
    }

    #[test]
    fn queries_are_decoded() {
        let query = FilesQuery::parse("path=%2Fa+b%2Bc&signature=v1_%2B&x=1&path=second&username=");
        assert_eq!(query.path.as_deref(), Some("/a b+c"));
        assert_eq!(query.signature.as_deref(), Some("v1_+"));
        assert_eq!(query.username.as_deref(), Some(""));
        assert_eq!(query.expiration, None);
    }
}
