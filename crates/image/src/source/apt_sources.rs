//! The host's choice of Debian mirror. Pure but for [`of_host`].
//!
//! Only entries for Debian's own archive are taken: the suite, its updates and its security
//! suite, component `main`. A third party's repository on the host is nothing for an image.

use std::path::Path;

/// Lines for apt's `sources.list`.
#[derive(Clone, PartialEq, Eq)]
pub struct Sources {
    /// As the host has them, perhaps with a mirror's user and password.
    pub lines: String,
    /// Without user and password: these stay in the image.
    pub public_lines: String,
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.public_lines)
    }
}

/// One repository.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Repository {
    uri: String,
    suite: String,
}

/// The host's sources for `suite`; `None` if the host has none for it.
pub fn of_host(suite: &str) -> Option<Sources> {
    let directory = Path::new("/etc/apt");
    let mut files = vec![directory.join("sources.list")];
    let parts = std::fs::read_dir(directory.join("sources.list.d"));
    let mut parts: Vec<_> = parts
        .into_iter()
        .flatten()
        .flatten()
        .map(|part| part.path())
        .collect();
    parts.sort();
    files.extend(parts);
    let mut repositories = Vec::new();
    for file in files {
        let Ok(content) = std::fs::read_to_string(&file) else {
            continue;
        };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => repositories.extend(read_lines(&content)),
            Some("sources") => repositories.extend(read_stanzas(&content)),
            _ => {}
        }
    }
    choose(repositories, suite)
}

fn choose(repositories: Vec<Repository>, suite: &str) -> Option<Sources> {
    let wanted = [
        suite.to_owned(),
        format!("{suite}-updates"),
        format!("{suite}-security"),
    ];
    let mut chosen: Vec<Repository> = Vec::new();
    for repository in repositories {
        if wanted.contains(&repository.suite) && !chosen.contains(&repository) {
            chosen.push(repository);
        }
    }
    if !chosen.iter().any(|repository| repository.suite == suite) {
        return None;
    }
    let lines = |uri: fn(&str) -> String| {
        chosen
            .iter()
            .map(|repository| format!("deb {} {} main\n", uri(&repository.uri), repository.suite))
            .collect()
    };
    Some(Sources {
        lines: lines(str::to_owned),
        public_lines: lines(without_user),
    })
}

/// A URI without user and password.
fn without_user(uri: &str) -> String {
    let Some((scheme, rest)) = uri.split_once("://") else {
        return uri.to_owned();
    };
    let host_end = rest.find('/').unwrap_or(rest.len());
    match rest[..host_end].rfind('@') {
        Some(at) => format!("{scheme}://{}", &rest[at + 1..]),
        None => uri.to_owned(),
    }
}

/// Whether an entry is Debian's own archive, as far as its options tell.
fn is_debian(uri: &str, suite: &str, components: &[&str], signed_by: Option<&str>) -> bool {
    let remote = uri.starts_with("http://") || uri.starts_with("https://");
    remote
        && !uri.contains(char::is_control)
        && !suite.is_empty()
        && components.contains(&"main")
        && signed_by.is_none_or(|key| key.contains("debian-archive"))
}

/// One entry a line: `deb [options] uri suite components`.
fn read_lines(content: &str) -> Vec<Repository> {
    let mut found = Vec::new();
    for line in content.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some(rest) = line
            .strip_prefix("deb")
            .filter(|rest| rest.starts_with([' ', '\t', '[']))
        else {
            continue;
        };
        let mut rest = rest.trim();
        let mut signed_by = None;
        if let Some((options, after)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']'))
        {
            let mut options = options.split_ascii_whitespace();
            signed_by = options.find_map(|option| option.strip_prefix("signed-by="));
            rest = after.trim();
        }
        let words: Vec<&str> = rest.split_ascii_whitespace().collect();
        if let [uri, suite, components @ ..] = words.as_slice()
            && is_debian(uri, suite, components, signed_by)
        {
            found.push(Repository {
                uri: (*uri).to_owned(),
                suite: (*suite).to_owned(),
            });
        }
    }
    found
}

/// Stanzas of fields (deb822).
fn read_stanzas(content: &str) -> Vec<Repository> {
    let mut found = Vec::new();
    // Comments may stand anywhere, also between the lines of a stanza.
    let lines: Vec<&str> = content
        .lines()
        .filter(|line| !line.starts_with('#'))
        .collect();
    for stanza in lines.split(|line| line.trim().is_empty()) {
        let field = |name: &str| {
            let mut lines = stanza.iter().skip_while(move |line| {
                line.split_once(':')
                    .is_none_or(|(key, _)| !key.eq_ignore_ascii_case(name))
            });
            let first = lines.next()?.split_once(':')?.1;
            let more = lines.take_while(|line| line.starts_with([' ', '\t']));
            Some(
                std::iter::once(first)
                    .chain(more.copied())
                    .collect::<Vec<_>>()
                    .join(" "),
            )
        };
        let words = |name: &str| -> Vec<String> {
            field(name)
                .unwrap_or_default()
                .split_ascii_whitespace()
                .map(str::to_owned)
                .collect()
        };
        let enabled = field("Enabled").is_none_or(|value| {
            !["no", "false", "0", "off", "without", "disable"]
                .contains(&value.trim().to_ascii_lowercase().as_str())
        });
        if !enabled || !words("Types").iter().any(|kind| kind == "deb") {
            continue;
        }
        let components = words("Components");
        let components: Vec<&str> = components.iter().map(String::as_str).collect();
        let signed_by = field("Signed-By");
        for uri in words("URIs") {
            for suite in words("Suites") {
                if is_debian(&uri, &suite, &components, signed_by.as_deref()) {
                    found.push(Repository {
                        uri: uri.clone(),
                        suite,
                    });
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_are_read() {
        let stanzas = "Types: deb\n# a comment\nURIs: http://mirror/debian\nSuites: bookworm \
                       bookworm-updates\nComponents: main contrib\nSigned-By: \
                       /usr/share/keyrings/debian-archive-keyring.gpg\n\nTypes: deb\nEnabled: no\n\
                       URIs: http://off/debian\nSuites: bookworm\nComponents: main\n\n\
                       Types: deb\nURIs: https://third/party\nSuites: bookworm\nComponents: main\n\
                       Signed-By: /usr/share/keyrings/third.gpg\n";
        let found = choose(read_stanzas(stanzas), "bookworm").unwrap();
        assert_eq!(
            found.lines,
            "deb http://mirror/debian bookworm main\n\
             deb http://mirror/debian bookworm-updates main\n"
        );
        let lines = "# deb http://no/debian bookworm main\n\
                     deb [arch=amd64 signed-by=/x/debian-archive-keyring.gpg] \
                     http://user:secret@mirror/debian bookworm main # yes\n\
                     deb-src http://mirror/debian bookworm main\n\
                     deb https://docker.example/linux/debian bookworm stable\n";
        let found = choose(read_lines(lines), "bookworm").unwrap();
        assert_eq!(
            found.lines,
            "deb http://user:secret@mirror/debian bookworm main\n"
        );
        assert_eq!(
            found.public_lines,
            "deb http://mirror/debian bookworm main\n"
        );
        assert!(!format!("{found:?}").contains("secret"));
        assert_eq!(choose(read_lines(lines), "trixie"), None);
    }
}
