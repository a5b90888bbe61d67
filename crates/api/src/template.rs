//! Where a template's root file system comes from.

use serde::{Deserialize, Serialize};
use std::{fmt, path::PathBuf, str::FromStr};

/// A source of a root file system, as users write it.
///
/// | text | meaning |
/// | --- | --- |
/// | `docker://registry.example/name:tag` | an image pulled from a registry (OCI distribution) |
/// | `oci:PATH` or `oci:PATH:TAG` | an OCI layout: a folder, or an archive of one |
/// | `dir:PATH` | a folder, copied |
/// | `tar:PATH` | a tarball, plain or compressed with gzip or zstd |
/// | `debian:SUITE` or `debian:SUITE+package,package` | Debian, through mmdebstrap |
/// | `base` | the built-in template that E2B's SDKs expect |
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum TemplateSource {
    /// An image reference without `docker://`.
    Registry(String),
    /// An OCI layout and the tag or index entry to take.
    OciLayout {
        /// A folder or an archive.
        path: PathBuf,
        /// The reference name; the only image in the layout if absent.
        tag: Option<String>,
    },
    /// A folder.
    Directory(PathBuf),
    /// A tarball.
    Tarball(PathBuf),
    /// A Debian suite with extra packages.
    Debian {
        /// For example `bookworm`.
        suite: String,
        /// Packages beside the minimal base.
        packages: Vec<String>,
    },
    /// The built-in template.
    Base,
}

/// On whose behalf a root file system is built: it decides what the node lends to the build.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Requester {
    /// An administrator, or Atoll itself: the node's credentials for registries, and any host.
    Administrator,
    /// A tenant: no credentials, and no host in a private network.
    #[default]
    Tenant,
}

impl TemplateSource {
    /// Whether building reads the node's own files, which only an administrator may ask for.
    pub fn reads_local_files(&self) -> bool {
        matches!(
            self,
            Self::OciLayout { .. } | Self::Directory(_) | Self::Tarball(_)
        )
    }
}

/// Why a text is not a template source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a template source: write docker://IMAGE, oci:PATH, dir:PATH, tar:PATH, \
     debian:SUITE or base"
)]
pub struct ParseSourceError(String);

impl FromStr for TemplateSource {
    type Err = ParseSourceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ParseSourceError(text.chars().take(200).collect());
        let word = |word: &str| {
            !word.is_empty()
                && word
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
                && word.as_bytes()[0].is_ascii_alphanumeric()
        };
        if text == "base" {
            return Ok(Self::Base);
        }
        let (scheme, rest) = text.split_once(':').ok_or_else(refuse)?;
        if rest.is_empty() {
            return Err(refuse());
        }
        match scheme {
            "docker" => match rest.strip_prefix("//") {
                Some(reference) if !reference.is_empty() => {
                    Ok(Self::Registry(reference.to_owned()))
                }
                _ => Err(refuse()),
            },
            "oci" => Ok(match rest.rsplit_once(':') {
                Some((path, tag)) if !tag.contains('/') && !path.is_empty() => Self::OciLayout {
                    path: path.into(),
                    tag: Some(tag.to_owned()),
                },
                _ => Self::OciLayout {
                    path: rest.into(),
                    tag: None,
                },
            }),
            "dir" => Ok(Self::Directory(rest.into())),
            "tar" => Ok(Self::Tarball(rest.into())),
            "debian" => {
                let (suite, packages) = rest.split_once('+').unwrap_or((rest, ""));
                let packages: Vec<String> = packages
                    .split(',')
                    .filter(|name| !name.is_empty())
                    .map(String::from)
                    .collect();
                if !word(suite) || !packages.iter().all(|name| word(name)) {
                    return Err(refuse());
                }
                Ok(Self::Debian {
                    suite: suite.to_owned(),
                    packages,
                })
            }
            _ => Err(refuse()),
        }
    }
}

impl fmt::Display for TemplateSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => write!(formatter, "docker://{reference}"),
            Self::OciLayout { path, tag: None } => write!(formatter, "oci:{}", path.display()),
            Self::OciLayout {
                path,
                tag: Some(tag),
            } => {
                write!(formatter, "oci:{}:{tag}", path.display())
            }
            Self::Directory(path) => write!(formatter, "dir:{}", path.display()),
            Self::Tarball(path) => write!(formatter, "tar:{}", path.display()),
            Self::Debian { suite, packages } if packages.is_empty() => {
                write!(formatter, "debian:{suite}")
            }
            Self::Debian { suite, packages } => {
                write!(formatter, "debian:{suite}+{}", packages.join(","))
            }
            Self::Base => formatter.write_str("base"),
        }
    }
}

impl TryFrom<String> for TemplateSource {
    type Error = ParseSourceError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<TemplateSource> for String {
    fn from(source: TemplateSource) -> Self {
        source.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_round_trip() {
        for text in [
            "base",
            "docker://ghcr.io/owner/name:1.2",
            "oci:/srv/image",
            "oci:/srv/image.tar:latest",
            "dir:/srv/root",
            "tar:/srv/root.tar.zst",
            "debian:bookworm",
            "debian:bookworm+python3,git",
        ] {
            assert_eq!(text.parse::<TemplateSource>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_package_name_is_never_an_option() {
        assert!("debian:bookworm+--help".parse::<TemplateSource>().is_err());
        assert!("debian:-x".parse::<TemplateSource>().is_err());
        assert!("docker:image".parse::<TemplateSource>().is_err());
    }
}
