//! Typed ids. A sandbox id carries its route: which cluster and node it lives on.

use rand::Rng;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

fn random_text(length: usize, random: &mut impl Rng) -> String {
    (0..length)
        .map(|_| ALPHABET[random.random_range(0..ALPHABET.len())] as char)
        .collect()
}

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {kind} id: expected {expected}")]
pub struct ParseIdError {
    text: String,
    kind: &'static str,
    expected: &'static str,
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $expected:literal, |$text:ident| $valid:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str($text: &str) -> Result<Self, Self::Err> {
                if $valid {
                    Ok(Self($text.to_owned()))
                } else {
                    Err(ParseIdError {
                        text: $text.chars().take(80).collect(),
                        kind: $kind,
                        expected: $expected,
                    })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseIdError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }
    };
}

fn is_base36(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase())
}

text_id!(
    /// A cluster: three characters of base 36, chosen when its control plane is first started.
    ClusterId, "cluster", "3 characters of 0-9 and a-z",
    |text| text.len() == 3 && is_base36(text)
);

text_id!(
    /// A node, unique within its cluster: four characters of base 36.
    NodeId, "node", "4 characters of 0-9 and a-z",
    |text| text.len() == 4 && is_base36(text)
);

text_id!(
    /// A sandbox: `i`, the cluster (3), the node (4), then 13 random characters of base 36.
    ///
    /// So gateway and API find a sandbox without a look-up, and 67 random bits make ids
    /// unguessable enough for host names; what protects a sandbox is its token, not its id.
    SandboxId, "sandbox", "`i` and 20 characters of 0-9 and a-z",
    |text| text.len() == 21 && text.starts_with('i') && is_base36(text)
);

text_id!(
    /// A template: 20 random characters of base 36.
    TemplateId, "template", "20 characters of 0-9 and a-z",
    |text| text.len() == 20 && is_base36(text)
);

text_id!(
    /// One build (version) of a template: a UUID in lower case, as E2B's clients expect.
    BuildId, "build", "a UUID in lower case",
    |text| text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
        })
);

text_id!(
    /// Who owns things. `t` and 12 random characters of base 36.
    TenantId, "tenant", "`t` and 12 characters of 0-9 and a-z",
    |text| text.len() == 13 && text.starts_with('t') && is_base36(text)
);

text_id!(
    /// The content of a root file system: `sha256:` and 64 hexadecimal digits.
    ImageDigest, "image", "`sha256:` and 64 hexadecimal digits in lower case",
    |text| text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64
            && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    })
);

impl ClusterId {
    /// A new random cluster id.
    pub fn random(random: &mut impl Rng) -> Self {
        Self(random_text(3, random))
    }
}

impl NodeId {
    /// A new random node id.
    pub fn random(random: &mut impl Rng) -> Self {
        Self(random_text(4, random))
    }
}

impl TemplateId {
    /// A new random template id.
    pub fn random(random: &mut impl Rng) -> Self {
        Self(random_text(20, random))
    }
}

impl TenantId {
    /// A new random tenant id.
    pub fn random(random: &mut impl Rng) -> Self {
        Self(format!("t{}", random_text(12, random)))
    }
}

impl BuildId {
    /// A new random build id: a version 4 UUID (RFC 9562).
    pub fn random(random: &mut impl Rng) -> Self {
        let mut bytes: [u8; 16] = random.random();
        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Self(format!(
            "{}-{}-{}-{}-{}",
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..]
        ))
    }
}

impl SandboxId {
    /// A new id for a sandbox that will live on `node` of `cluster`.
    pub fn random(cluster: &ClusterId, node: &NodeId, random: &mut impl Rng) -> Self {
        Self(format!("i{cluster}{node}{}", random_text(13, random)))
    }

    /// The cluster that the id names.
    pub fn cluster(&self) -> ClusterId {
        ClusterId(self.0[1..4].to_owned())
    }

    /// The node that the id names.
    pub fn node(&self) -> NodeId {
        NodeId(self.0[4..8].to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_id_carries_its_route() {
        let random = &mut rand::rng();
        let (cluster, node) = (ClusterId::random(random), NodeId::random(random));
        let id = SandboxId::random(&cluster, &node, random);
        let parsed: SandboxId = id.as_str().parse().unwrap();
        assert_eq!((parsed.cluster(), parsed.node()), (cluster, node));
    }

    #[test]
    fn ids_refuse_what_is_not_theirs() {
        assert!("../../etc/passwd".parse::<SandboxId>().is_err());
        assert!("I0000000000000000000a".parse::<SandboxId>().is_err());
        assert!("sha256:xyz".parse::<ImageDigest>().is_err());
        assert!(
            BuildId::random(&mut rand::rng())
                .as_str()
                .parse::<BuildId>()
                .is_ok()
        );
    }
}
