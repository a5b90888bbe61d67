//! Image references, by Docker's rules. Pure.

use crate::digest::Digest;
use std::{fmt, str::FromStr};

/// Where an image lies: `[host[:port]/]repository[:tag][@digest]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    /// The registry as users name it: `docker.io` if they name none.
    pub registry: String,
    /// The repository: `library/…` for Docker Hub's own images.
    pub repository: String,
    /// The tag; `latest` if neither tag nor digest was given.
    pub tag: Option<String>,
    /// The manifest's digest, if it was given: then the tag is of no account.
    pub digest: Option<Digest>,
}

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an image reference: {why}")]
pub struct ParseReferenceError {
    text: String,
    why: &'static str,
}

/// Docker Hub, as users name it.
pub const DOCKER_HUB: &str = "docker.io";

impl Reference {
    /// Where the registry's API is served.
    pub fn api_host(&self) -> &str {
        match self.registry.as_str() {
            DOCKER_HUB => "registry-1.docker.io",
            other => other,
        }
    }

    /// What names the manifest in the API: the digest or the tag.
    pub fn manifest(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |why| ParseReferenceError {
            text: text.chars().take(200).collect(),
            why,
        };
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => {
                let digest = digest
                    .parse()
                    .map_err(|_| refuse("after @ stands sha256: and 64 hexadecimal digits"))?;
                (name, Some(digest))
            }
            None => (text, None),
        };
        let (registry, rest) = match name.split_once('/') {
            Some((host, rest))
                if host.contains(['.', ':']) || host == "localhost" || has_upper(host) =>
            {
                (host, rest)
            }
            _ => (DOCKER_HUB, name),
        };
        let registry = match registry {
            "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB,
            other => other,
        };
        if !is_host(registry) {
            return Err(refuse(
                "the registry is not a host name with an optional port",
            ));
        }
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(refuse(
                "a tag has at most 128 letters, digits, `_`, `.` and `-`",
            ));
        }
        let repository = match registry == DOCKER_HUB && !repository.contains('/') {
            true => format!("library/{repository}"),
            false => repository.to_owned(),
        };
        if repository.len() > 255 || !repository.split('/').all(is_component) {
            return Err(refuse(
                "a repository's name is made of lower-case letters, digits and single \
                 separators `.`, `_`, `__`, `-`, in parts divided by `/`",
            ));
        }
        let tag = match (tag, &digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self {
            registry: registry.to_owned(),
            repository,
            tag,
            digest,
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(formatter, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(formatter, "@{digest}")?;
        }
        Ok(())
    }
}

fn has_upper(text: &str) -> bool {
    text.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            (
                "v6",
                rest.strip_prefix(':').or(rest.is_empty().then_some("0")),
            )
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, Some("0")),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let port = port.is_some_and(|port| {
        port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
    });
    host.len() <= 253 && host.split('.').all(label) && port
}

fn is_tag(text: &str) -> bool {
    let mut bytes = text.bytes();
    let first = bytes
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    first
        && text.len() <= 128
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// Lower-case letters and digits, joined by `.`, `_`, `__` or any number of `-`.
fn is_component(text: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends = bytes.first().is_some_and(alphanumeric) && bytes.last().is_some_and(alphanumeric);
    ends && bytes.split(alphanumeric).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        assert_eq!(text.parse::<Reference>().unwrap().to_string(), expected);
    }

    #[test]
    fn dockers_rules() {
        check("debian", "docker.io/library/debian:latest");
        check("owner/name:1.2", "docker.io/owner/name:1.2");
        check("localhost/name", "localhost/name:latest");
        check("127.0.0.1:5000/a/b__c:x", "127.0.0.1:5000/a/b__c:x");
        check("[::1]:5000/a", "[::1]:5000/a:latest");
        check("index.docker.io/debian:12", "docker.io/library/debian:12");
        let digest = Digest::of(b"");
        check(
            &format!("ghcr.io/o/n@{digest}"),
            &format!("ghcr.io/o/n@{digest}"),
        );
        assert_eq!(
            "debian".parse::<Reference>().unwrap().api_host(),
            "registry-1.docker.io"
        );
    }

    #[test]
    fn nothing_that_could_become_another_url() {
        for text in [
            "",
            "/",
            "a//b",
            "../x",
            "host.example/../x",
            "host.example/a?b",
            "user@host.example/x",
            "host.example:port/x",
            "host.example:99999/x",
            "UPPER",
            "a:",
            "a:b:c",
            "a@sha256:0",
            "host .example/x",
            "a.example:80:80/x",
            "[::1/x",
            "a/b#c",
            "-a.example/b",
            "a..b",
            "a\n",
            "a%2f..",
            // Too long once `library/` stands before it.
            &"a".repeat(250),
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }
}
