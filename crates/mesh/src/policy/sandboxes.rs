//! Which tags sandboxes may have: the table `[sandboxes]` of a policy.
//!
//! It is for who makes sandboxes and for nobody else, so nodes are told the policy without it ([`for_nodes`]); those of versions that do not know the table go on.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use toml::Spanned;

use super::text::{Known, Policy, Reader, Selector};

/// Every tenant.
const ANYONE: &str = "*";

impl Reader<'_> {
    pub(super) fn sandboxes(
        &mut self,
        table: BTreeMap<String, Vec<Spanned<String>>>,
    ) -> BTreeMap<String, BTreeSet<String>> {
        let mut sandboxes = BTreeMap::new();
        for (tenant, texts) in table {
            let id = |rest: &str| {
                rest.len() == 12
                    && (rest.bytes()).all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase())
            };
            if tenant != ANYONE && !tenant.strip_prefix('t').is_some_and(id) {
                let span = texts.first().map_or(0..0, Spanned::span);
                self.complain(
                    span,
                    format!("{tenant:?} is not a tenant"),
                    "write a tenant's id, as `atoll key ls` shows it, or \"*\" for all",
                );
            }
            let mut tags = BTreeSet::new();
            for text in &texts {
                match &self.selectors(std::slice::from_ref(text), Known::Nodes)[..] {
                    [Selector::Tag(tag)] => {
                        tags.insert(tag.clone());
                    }
                    // What is no selector was complained about.
                    [] => {}
                    _ => self.complain(
                        text.span(),
                        format!("{:?} is not a tag", text.get_ref()),
                        "write tag:NAME: sandboxes are known by tags",
                    ),
                }
            }
            sandboxes.insert(tenant, tags);
        }
        sandboxes
    }
}

impl Policy {
    /// The tags that a tenant may give to its sandboxes.
    pub fn sandbox_tags(&self, tenant: &str) -> BTreeSet<&str> {
        let own = [tenant, ANYONE].map(|who| self.sandboxes.get(who));
        own.into_iter()
            .flatten()
            .flatten()
            .map(|tag| &**tag)
            .collect()
    }

    fn selectors(&self) -> impl Iterator<Item = &Selector> {
        let services = self.services.values().flat_map(|service| &service.nodes);
        let rules = self.rules.iter();
        let rules = rules.flat_map(|rule| rule.from.iter().chain(&rule.to));
        services.chain(rules).chain(&self.relays)
    }

    /// All tags that the policy names.
    pub fn tags(&self) -> BTreeSet<&str> {
        let named = self.selectors().filter_map(|selector| match selector {
            Selector::Tag(tag) => Some(&**tag),
            _ => None,
        });
        let sandboxes = self.sandboxes.values().flatten().map(|tag| &**tag);
        named.chain(sandboxes).collect()
    }

    /// Whether a name means something to the policy: a node's or a service's.
    pub fn names(&self, name: &str) -> bool {
        let mut selectors = self.selectors();
        let node =
            selectors.any(|selector| matches!(selector, Selector::Node(node) if node == name));
        node || self.services.contains_key(name)
    }
}

/// A policy as nodes are told of it: without the table, and with every other line where it was. A text that says it in another way than under a header of its own
/// is told as it is.
pub fn for_nodes(text: &str) -> Cow<'_, str> {
    let header = |line: &str| line.trim_start().starts_with("[sandboxes]");
    if !text.lines().any(header) {
        return text.into();
    }
    let mut inside = false;
    let mut shown = String::with_capacity(text.len());
    for line in text.lines() {
        inside = header(line) || (inside && !line.trim_start().starts_with('['));
        if !inside {
            shown.push_str(line);
        }
        shown.push('\n');
    }
    match Policy::parse(&shown) {
        Ok(policy) if policy.sandboxes.is_empty() => shown.into(),
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
[services.db]
nodes = ["tag:db"]
ports = ["tcp/5432"]

[sandboxes]
tabcdefghijk1 = [
    "tag:ci",
    "tag:web",
]
"*" = ["tag:guest"]

[[allow]]
from = ["tag:ci", "node:laptop"]
to = ["service:db"]
"#;

    #[test]
    fn tenants_have_the_tags_that_they_are_given() {
        let policy = Policy::parse(TEXT).unwrap();
        let tags = |tenant| policy.sandbox_tags(tenant).into_iter().collect::<Vec<_>>();
        assert_eq!(tags("tabcdefghijk1"), ["ci", "guest", "web"]);
        assert_eq!(tags("tabcdefghijk2"), ["guest"]);
        assert!(Policy::none().sandbox_tags("tabcdefghijk1").is_empty());
        let all: Vec<_> = policy.tags().into_iter().collect();
        assert_eq!(all, ["ci", "db", "guest", "web"]);
        assert!(policy.names("laptop") && policy.names("db") && !policy.names("ci"));
    }

    #[test]
    fn mistakes_are_told_with_their_lines() {
        for (text, line, cause) in [
            ("[sandboxes]\nann = [\"tag:ci\"]\n", 2, "not a tenant"),
            ("[sandboxes]\n\"*\" = [\"node:a\"]\n", 2, "not a tag"),
            ("[sandboxes]\n\"*\" = [\"ci\"]\n", 2, "names no nodes"),
        ] {
            let mistakes = Policy::parse(text).unwrap_err();
            assert_eq!(mistakes.len(), 1, "{mistakes:?}");
            assert_eq!(mistakes[0].line, line);
            assert!(mistakes[0].cause.contains(cause), "{mistakes:?}");
        }
    }

    #[test]
    fn nodes_are_told_the_rest_with_every_line_in_its_place() {
        let shown = for_nodes(TEXT);
        assert!(!shown.contains("sandboxes") && !shown.contains("web"));
        let line = |text: &str| text.lines().position(|line| line == "[[allow]]");
        assert_eq!(line(&shown), line(TEXT));
        assert_eq!(Policy::parse(&shown).unwrap().rules(), 1);
        // Nothing to leave out, and what is said in another way.
        let inline = "sandboxes = { \"*\" = [\"tag:ci\"] }\n";
        for text in ["", "[[allow]]\n", inline] {
            assert_eq!(for_nodes(text), text);
        }
    }
}
