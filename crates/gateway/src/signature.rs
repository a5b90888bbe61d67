//! Signed URLs of `/files`: which sandbox was one made for?
//!
//! A signature is `v1_` and the unpadded standard base64 of SHA-256 over
//! `path:operation:user:token`, with `:expiration` at the end if there is one.

use api::{Secret, route::Route};
use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use http::Method;
use percent_encoding::percent_decode_str;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

/// Longest value of a query parameter that is looked at: a path's limit, percent-encoded.
const LONGEST_VALUE: usize = 3 * 4096;

/// What a URL says was signed, and the signature.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SignedUrl {
    /// The file, as the URL has it.
    pub path: String,
    /// The user, empty if the URL has none.
    pub user: String,
    /// When it ends, as the URL has it.
    pub expiration: Option<String>,
    /// `v1_…`.
    pub signature: String,
}

impl SignedUrl {
    /// Reads the parameters off a query string; `None` if there is no signature, or a value is
    /// too long or not text.
    pub fn parse(query: &str) -> Option<Self> {
        let mut url = Self::default();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let place = match name {
                "path" => &mut url.path,
                "username" => &mut url.user,
                "signature" => &mut url.signature,
                "signature_expiration" => url.expiration.get_or_insert_default(),
                _ => continue,
            };
            *place = decode(value)?;
        }
        (!url.signature.is_empty()).then_some(url)
    }

    /// The signature that a token gives this URL for an operation, `read` or `write`.
    pub fn sign(&self, operation: &str, token: &Secret) -> String {
        let mut hash = Sha256::new();
        for part in [
            self.path.as_str(),
            ":",
            operation,
            ":",
            &self.user,
            ":",
            token.expose(),
        ] {
            hash.update(part);
        }
        if let Some(expiration) = &self.expiration {
            hash.update(":");
            hash.update(expiration);
        }
        format!("v1_{}", STANDARD_NO_PAD.encode(hash.finalize()))
    }

    /// The index of the route whose token made the signature.
    ///
    /// All are tried and each is compared in constant time, so that the time taken tells nothing
    /// about which came close.
    pub fn find<'a>(
        &self,
        method: &Method,
        routes: impl Iterator<Item = &'a Route>,
    ) -> Option<usize> {
        let operation = operation(method)?;
        let mut found = u64::MAX;
        for (index, route) in routes.enumerate() {
            if let Some(token) = &route.access_token {
                let expected = self.sign(operation, token);
                let same: Choice = expected.as_bytes().ct_eq(self.signature.as_bytes());
                found.conditional_assign(&(index as u64), same);
            }
        }
        usize::try_from(found).ok().filter(|_| found != u64::MAX)
    }
}

/// What a method does to a file; `None` if it does nothing to files.
fn operation(method: &Method) -> Option<&'static str> {
    match *method {
        Method::GET | Method::HEAD => Some("read"),
        Method::POST | Method::PUT => Some("write"),
        _ => None,
    }
}

fn decode(value: &str) -> Option<String> {
    if value.len() > LONGEST_VALUE {
        return None;
    }
    let spaced = value.replace('+', " ");
    percent_decode_str(&spaced)
        .decode_utf8()
        .ok()
        .map(|text| text.into_owned())
}

/// Whether a query string has the parameter `signature`.
pub fn is_signed(query: &str) -> bool {
    query.split('&').any(|pair| pair.starts_with("signature="))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{IpAddr, Ipv4Addr};

    fn route(token: &str) -> Route {
        Route {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            traffic_token: None,
            mask_request_host: None,
            access_token: Some(Secret::new(token)),
        }
    }

    #[test]
    fn finds_the_sandbox_that_signed() {
        let mut url = SignedUrl {
            path: "/a b".into(),
            ..SignedUrl::default()
        };
        url.signature = url.sign("read", &Secret::new("two"));
        let routes = [route("one"), route("two"), route("three")];
        assert_eq!(url.find(&Method::GET, routes.iter()), Some(1));
        assert_eq!(url.find(&Method::POST, routes.iter()), None);
        assert_eq!(url.find(&Method::DELETE, routes.iter()), None);
        url.expiration = Some("99".into());
        assert_eq!(url.find(&Method::GET, routes.iter()), None);
    }

    /// Digest computed apart: `printf '/home/user/x:read::secret' | openssl sha256 -binary | base64`.
    #[test]
    fn signs_as_clients_do() {
        let url = SignedUrl::parse("path=%2Fhome/user%2Fx&signature=v1_x").unwrap();
        assert_eq!(
            url.sign("read", &Secret::new("secret")),
            "v1_EUSzXGK2P1RNc1t42/nCKWQ4WCLuHXWJ9RLUYAcGjOY"
        );
    }

    #[test]
    fn reads_queries_as_clients_write_them() {
        let url = SignedUrl::parse("path=%2Fa+b%20c&username=root&signature=v1_a%2Bb&x=1").unwrap();
        assert_eq!((url.path.as_str(), url.user.as_str()), ("/a b c", "root"));
        assert_eq!(url.signature, "v1_a+b");
        assert!(SignedUrl::parse("path=x").is_none());
        assert!(SignedUrl::parse("path=%ff&signature=x").is_none());
        assert!(is_signed("a=1&signature=x") && !is_signed("asignature=x"));
    }
}
