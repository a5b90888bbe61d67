//! References to templates as users write them: `[namespace/]name[:tag]`, or an id.

use crate::{
    error::{invalid, shorten},
    records::DEFAULT_TAG,
};
use api::{BuildId, Problem, TemplateId};

/// The longest name and the longest tag.
const MAX_LENGTH: usize = 128;

/// A reference, taken apart and in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reference {
    /// The owner that it names.
    pub(crate) namespace: Option<String>,
    /// A template's name or id.
    pub(crate) name: String,
    /// A tag.
    pub(crate) tag: Option<String>,
}

impl Reference {
    /// Takes a reference apart.
    pub(crate) fn parse(text: &str) -> Result<Self, Problem> {
        let lower = text.trim().to_lowercase();
        let (path, tag) = match lower.split_once(':') {
            Some((path, tag)) => (path, Some(check_tag(tag)?)),
            None => (lower.as_str(), None),
        };
        let (namespace, name) = match path.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, path),
        };
        for part in namespace.iter().chain([&name]) {
            if !is_name(part) {
                return Err(invalid(format!(
                    "Invalid template reference `{}`: expected [namespace/]name[:tag] of letters, \
                     digits, `-`, `_` and `.`",
                    shorten(text)
                )));
            }
        }
        Ok(Self {
            namespace: namespace.map(String::from),
            name: name.to_owned(),
            tag,
        })
    }

    /// The tag, or the one that none means.
    pub(crate) fn tag(&self) -> &str {
        self.tag.as_deref().unwrap_or(DEFAULT_TAG)
    }

    /// The id, if it is one.
    pub(crate) fn id(&self) -> Option<TemplateId> {
        self.name.parse().ok()
    }
}

fn is_name(text: &str) -> bool {
    (1..=MAX_LENGTH).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b))
}

/// Checks a tag and puts it in lower case.
pub(crate) fn check_tag(text: &str) -> Result<String, Problem> {
    let tag = text.trim().to_lowercase();
    let valid = (1..=MAX_LENGTH).contains(&tag.len())
        && tag
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b));
    if !valid {
        return Err(invalid(format!(
            "Invalid tag `{}`: expected letters, digits, `-`, `_` and `.`",
            shorten(text)
        )));
    }
    if tag.parse::<BuildId>().is_ok() {
        return Err(invalid(format!(
            "Invalid tag `{tag}`: a tag cannot be a UUID"
        )));
    }
    Ok(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_taken_apart() {
        let check = |text: &str, namespace: Option<&str>, name: &str, tag: &str| {
            let reference = Reference::parse(text).unwrap();
            let found = (
                reference.namespace.as_deref(),
                reference.name.as_str(),
                reference.tag(),
            );
            assert_eq!(found, (namespace, name, tag));
        };
        check("base", None, "base", "default");
        check("Base:V1.2", None, "base", "v1.2");
        check("team/my_app:x", Some("team"), "my_app", "x");
    }

    #[test]
    fn bad_references_are_refused() {
        for text in [
            "",
            ":tag",
            "name:",
            "/name",
            "a/b/c",
            "name:a:b",
            "-x",
            "na me",
            "../x",
            "name:a/b",
            "x:01234567-89ab-cdef-0123-456789abcdef",
        ] {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
        assert!(Reference::parse(&"x".repeat(129)).is_err());
    }
}
