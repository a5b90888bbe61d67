//! A policy's text: read, checked, tested, compiled.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;

use super::clusters::{Behind, ClusterText};
use super::filter::{Beyond, Filter, FilterPeer};
use super::ports::{Allowance, Ports};
use crate::clusters::Cluster;
use crate::coordination::label;
use crate::key::PublicKey;
use crate::prefix::Prefix;

/// What names end with unless the policy says otherwise.
pub const DEFAULT_DOMAIN: &str = "mesh.internal";
/// The longest text, in bytes.
const LONGEST: usize = 512 << 10;
/// The most rules, tests or services.
const MOST: usize = 10_000;

/// Something wrong with a policy, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The line, from 1 on.
    pub line: usize,
    /// What is wrong.
    pub cause: String,
    /// What would be right.
    pub remedy: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "line {}: {}; {}",
            self.line, self.cause, self.remedy
        )
    }
}

/// A node as policy sees it.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Its name; absent for one that is only thought of.
    pub name: Option<&'a str>,
    /// Its tags.
    pub tags: &'a BTreeSet<String>,
}

/// Who sends or receives: a node, or a cluster behind one.
#[derive(Debug, Clone, Copy)]
enum Party<'a> {
    Node(Subject<'a>),
    Cluster(&'a str),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Selector {
    /// Any node; clusters are named.
    Anyone,
    Tag(String),
    Node(String),
    Service(String),
    Cluster(String),
}

/// What may be named besides nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    Nodes,
    Clusters,
    ClustersAndServices,
}

/// Nodes that are found under one name.
#[derive(Debug, Clone)]
pub struct Service {
    pub(super) nodes: Vec<Selector>,
    /// On which ports.
    pub ports: Vec<Ports>,
}

#[derive(Debug)]
pub(super) struct Rule {
    pub(super) from: Vec<Selector>,
    pub(super) to: Vec<Selector>,
    ports: Vec<Ports>,
    line: u32,
}

/// Somebody who is thought of.
#[derive(Debug, Default)]
struct Thought {
    tags: BTreeSet<String>,
    name: Option<String>,
    cluster: Option<String>,
}

impl Thought {
    fn party(&self) -> Party<'_> {
        match &self.cluster {
            Some(cluster) => Party::Cluster(cluster),
            None => Party::Node(Subject {
                name: self.name.as_deref(),
                tags: &self.tags,
            }),
        }
    }
}

#[derive(Debug)]
struct Test {
    from: Thought,
    to: Thought,
    port: Ports,
    allow: bool,
    line: usize,
}

/// A policy that was understood.
#[derive(Debug)]
pub struct Policy {
    domain: String,
    pub(super) services: BTreeMap<String, Service>,
    clusters: Vec<Behind>,
    pub(super) rules: Vec<Rule>,
    tests: Vec<Test>,
    split: Vec<(String, Vec<IpAddr>)>,
    pub(super) relays: Vec<Selector>,
    /// The tags that a tenant may give to its sandboxes.
    pub(super) sandboxes: BTreeMap<String, BTreeSet<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    domain: Option<Spanned<String>>,
    #[serde(default)]
    relays: Vec<Spanned<String>>,
    #[serde(default)]
    services: BTreeMap<String, ServiceText>,
    #[serde(default)]
    clusters: BTreeMap<String, Spanned<ClusterText>>,
    #[serde(default)]
    allow: Vec<Spanned<RuleText>>,
    #[serde(default)]
    test: Vec<Spanned<TestText>>,
    #[serde(default)]
    dns: DnsText,
    #[serde(default)]
    sandboxes: BTreeMap<String, Vec<Spanned<String>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceText {
    nodes: Vec<Spanned<String>>,
    ports: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleText {
    from: Vec<Spanned<String>>,
    to: Vec<Spanned<String>>,
    #[serde(default)]
    ports: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TestText {
    from: Vec<Spanned<String>>,
    to: Vec<Spanned<String>>,
    port: Spanned<String>,
    expect: Spanned<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct DnsText {
    #[serde(default)]
    split: BTreeMap<String, Vec<Spanned<String>>>,
}

pub(super) struct Reader<'a> {
    text: &'a str,
    pub(super) mistakes: Vec<Mistake>,
    services: BTreeSet<String>,
    clusters: BTreeSet<String>,
}

impl<'a> Reader<'a> {
    pub(super) const fn new(text: &'a str) -> Self {
        Self {
            text,
            mistakes: Vec::new(),
            services: BTreeSet::new(),
            clusters: BTreeSet::new(),
        }
    }

    pub(super) fn line(&self, at: usize) -> usize {
        let before = self.text.as_bytes().get(..at).unwrap_or_default();
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }

    pub(super) fn complain(&mut self, span: Range<usize>, cause: String, remedy: &str) {
        let line = self.line(span.start);
        self.mistakes.push(Mistake {
            line,
            cause,
            remedy: remedy.to_owned(),
        });
    }

    pub(super) fn selectors(&mut self, texts: &[Spanned<String>], known: Known) -> Vec<Selector> {
        let services = known == Known::ClustersAndServices;
        let mut selectors = Vec::new();
        for text in texts {
            let word = text.get_ref();
            let proper = |name: &str| !name.is_empty() && label(name) == name;
            match word.split_once(':') {
                None if word == "*" => selectors.push(Selector::Anyone),
                Some(("tag", name)) if proper(name) => {
                    selectors.push(Selector::Tag(name.to_owned()))
                }
                Some(("node", name)) if proper(name) => {
                    selectors.push(Selector::Node(name.to_owned()))
                }
                Some(("service", name)) if services => {
                    if self.services.contains(name) {
                        selectors.push(Selector::Service(name.to_owned()));
                    } else {
                        let cause = format!("there is no service {name:?}");
                        self.complain(
                            text.span(),
                            cause,
                            "describe it: [services.NAME] with nodes and ports",
                        );
                    }
                }
                Some(("cluster", name)) if known != Known::Nodes => {
                    if self.clusters.contains(name) {
                        selectors.push(Selector::Cluster(name.to_owned()));
                    } else {
                        let cause = format!("there is no cluster {name:?}");
                        self.complain(
                            text.span(),
                            cause,
                            "describe it: [clusters.NAME] with nodes and ranges",
                        );
                    }
                }
                _ => {
                    let remedy = match known {
                        Known::Nodes => "write tag:NAME, node:NAME or *",
                        Known::Clusters => "write tag:NAME, node:NAME, cluster:NAME or *",
                        Known::ClustersAndServices => {
                            "write tag:NAME, node:NAME, service:NAME, cluster:NAME or *"
                        }
                    };
                    self.complain(text.span(), format!("{word:?} names no nodes"), remedy);
                }
            }
        }
        selectors
    }

    fn ports(&mut self, texts: &[Spanned<String>]) -> Vec<Ports> {
        let mut all = Vec::new();
        for text in texts {
            match text.get_ref().parse() {
                Ok(ports) => all.push(ports),
                Err(()) => self.complain(
                    text.span(),
                    format!("{:?} is not a protocol with ports", text.get_ref()),
                    "write tcp/5432, udp/8000-8100, tcp/*, icmp or *",
                ),
            }
        }
        all
    }

    /// A node that is thought of: with these tags, and maybe a name. Or a cluster.
    fn imagined(&mut self, texts: &[Spanned<String>]) -> Thought {
        let mut thought = Thought::default();
        for text in texts {
            match text.get_ref().split_once(':') {
                Some(("tag", tag)) => {
                    thought.tags.insert(tag.to_owned());
                }
                Some(("node", node)) => thought.name = Some(node.to_owned()),
                Some(("cluster", cluster))
                    if texts.len() == 1 && self.clusters.contains(cluster) =>
                {
                    thought.cluster = Some(cluster.to_owned());
                }
                _ => self.complain(
                    text.span(),
                    format!("{:?} describes no node", text.get_ref()),
                    "name its tags, and its name if it matters: [\"tag:web\", \"node:web-1\"]; or one cluster",
                ),
            }
        }
        thought
    }
}

fn domain_is_proper(domain: &str) -> bool {
    domain.len() <= 200
        && domain.split('.').all(|part| {
            !part.is_empty() && part.len() <= 63 && label(part) == part && part.len() <= 56
        })
}

impl Policy {
    /// Reads a policy. Its tests are not run.
    ///
    /// # Errors
    /// All mistakes that were found, each with its line.
    pub fn parse(text: &str) -> Result<Self, Vec<Mistake>> {
        let mut reader = Reader::new(text);
        if text.len() > LONGEST {
            reader.complain(
                0..0,
                format!("the text has more than {LONGEST} bytes"),
                "use tags instead of names",
            );
            return Err(reader.mistakes);
        }
        let file: File = match toml::from_str(text) {
            Ok(file) => file,
            Err(error) => {
                let span = error.span().unwrap_or(0..0);
                let cause = error.message().lines().collect::<Vec<_>>().join(": ");
                reader.complain(
                    span,
                    cause,
                    "see `atoll mesh policy test --help` for the format",
                );
                return Err(reader.mistakes);
            }
        };
        if file
            .allow
            .len()
            .max(file.test.len())
            .max(file.services.len())
            > MOST
        {
            reader.complain(
                0..0,
                format!("there are more than {MOST} rules, tests or services"),
                "use tags instead of names",
            );
            return Err(reader.mistakes);
        }
        reader.services = file.services.keys().cloned().collect();
        reader.clusters = file.clusters.keys().cloned().collect();
        let domain = file.domain.map_or_else(
            || DEFAULT_DOMAIN.to_owned(),
            |domain| {
                if !domain_is_proper(domain.get_ref()) {
                    let cause = format!("{:?} is not a domain", domain.get_ref());
                    reader.complain(
                        domain.span(),
                        cause,
                        "write lower case labels with dots, as in mesh.internal",
                    );
                }
                domain.into_inner()
            },
        );
        let relays = reader.selectors(&file.relays, Known::Nodes);
        let clusters = reader.clusters(file.clusters);
        let mut services = BTreeMap::new();
        for (name, service) in file.services {
            if label(&name) != name {
                let span = service.nodes.first().map_or(0..0, Spanned::span);
                reader.complain(
                    span,
                    format!("{name:?} cannot be a service's name"),
                    "use lower case letters, digits and hyphens",
                );
            }
            let service = Service {
                nodes: reader.selectors(&service.nodes, Known::Nodes),
                ports: reader.ports(&service.ports),
            };
            services.insert(name, service);
        }
        let mut rules = Vec::new();
        for rule in file.allow {
            let span = rule.span();
            let rule = rule.into_inner();
            let found = Rule {
                from: reader.selectors(&rule.from, Known::Clusters),
                to: reader.selectors(&rule.to, Known::ClustersAndServices),
                ports: reader.ports(&rule.ports),
                line: u32::try_from(reader.line(span.start)).unwrap_or(u32::MAX),
            };
            let needs = found
                .to
                .iter()
                .any(|to| !matches!(to, Selector::Service(_)));
            if rule.ports.is_empty() && needs {
                reader.complain(
                    span,
                    "the rule names no ports".to_owned(),
                    "add ports = [\"tcp/5432\"]; only services bring their own",
                );
            }
            rules.push(found);
        }
        let mut tests = Vec::new();
        for test in file.test {
            let line = reader.line(test.span().start);
            let test = test.into_inner();
            let from = reader.imagined(&test.from);
            let to = reader.imagined(&test.to);
            let allow = match test.expect.get_ref().as_str() {
                "allow" => true,
                "deny" => false,
                other => {
                    let cause = format!("{other:?} cannot be expected");
                    reader.complain(test.expect.span(), cause, "write allow or deny");
                    continue;
                }
            };
            let port = test
                .port
                .get_ref()
                .parse::<Ports>()
                .ok()
                .filter(|port| port.sample().is_some());
            let Some(port) = port else {
                let cause = format!("{:?} is not one port", test.port.get_ref());
                reader.complain(test.port.span(), cause, "write tcp/5432, udp/53 or icmp");
                continue;
            };
            tests.push(Test {
                from,
                to,
                port,
                allow,
                line,
            });
        }
        let mut split = Vec::new();
        for (suffix, texts) in file.dns.split {
            let mut servers = Vec::new();
            for text in &texts {
                match text.get_ref().parse() {
                    Ok(server) => servers.push(server),
                    Err(_) => reader.complain(
                        text.span(),
                        format!("{:?} is not an address", text.get_ref()),
                        "write the address of a name server",
                    ),
                }
            }
            split.push((suffix.trim_matches('.').to_ascii_lowercase(), servers));
        }
        let sandboxes = reader.sandboxes(file.sandboxes);
        if !reader.mistakes.is_empty() {
            reader.mistakes.sort_by_key(|mistake| mistake.line);
            return Err(reader.mistakes);
        }
        Ok(Self {
            domain,
            services,
            clusters,
            rules,
            tests,
            split,
            relays,
            sandboxes,
        })
    }

    /// One that allows nothing.
    pub fn none() -> Self {
        Self {
            domain: DEFAULT_DOMAIN.to_owned(),
            services: BTreeMap::new(),
            clusters: Vec::new(),
            rules: Vec::new(),
            tests: Vec::new(),
            split: Vec::new(),
            relays: Vec::new(),
            sandboxes: BTreeMap::new(),
        }
    }

    /// Runs the policy's own tests; how many there are.
    ///
    /// # Errors
    /// Those that do not hold.
    pub fn test(&self) -> Result<usize, Vec<Mistake>> {
        let mut failed = Vec::new();
        for test in &self.tests {
            let Some((protocol, port)) = test.port.sample() else {
                continue;
            };
            let allowed = self
                .between(test.from.party(), test.to.party())
                .iter()
                .any(|allowed| allowed.ports.contains(protocol, port));
            if allowed != test.allow {
                let (is, wanted) = if allowed {
                    ("allowed", "denied")
                } else {
                    ("denied", "allowed")
                };
                failed.push(Mistake {
                    line: test.line,
                    cause: format!(
                        "the test fails: {} is {is}, and should be {wanted}",
                        test.port
                    ),
                    remedy: if allowed {
                        "narrow the rule that allows it, or change what is expected".to_owned()
                    } else {
                        "add a rule that allows it, or change what is expected".to_owned()
                    },
                });
            }
        }
        if failed.is_empty() {
            Ok(self.tests.len())
        } else {
            Err(failed)
        }
    }

    /// What names end with.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The services by name.
    pub const fn services(&self) -> &BTreeMap<String, Service> {
        &self.services
    }

    /// Name servers for other domains.
    pub fn split(&self) -> &[(String, Vec<IpAddr>)] {
        &self.split
    }

    /// How many rules there are.
    pub fn rules(&self) -> usize {
        self.rules.len()
    }

    /// Whether a node is one of a service's.
    pub fn serves(&self, service: &Service, node: Subject<'_>) -> bool {
        service
            .nodes
            .iter()
            .any(|selector| self.matches(selector, node))
    }

    /// Whether a node that is a relay is one for this mesh.
    pub fn relays(&self, node: Subject<'_>) -> bool {
        let mut relays = self.relays.iter();
        relays.any(|selector| self.matches(selector, node))
    }

    /// The clusters, in the order of the text.
    pub fn clusters(&self) -> impl Iterator<Item = &Cluster> {
        self.clusters.iter().map(|behind| &behind.cluster)
    }

    /// The clusters that a node leads to.
    pub fn behind(&self, node: Subject<'_>) -> impl Iterator<Item = &Cluster> {
        let leads = move |behind: &&Behind| {
            let mut nodes = behind.nodes.iter();
            nodes.any(|selector| self.matches(selector, node))
        };
        self.clusters
            .iter()
            .filter(leads)
            .map(|behind| &behind.cluster)
    }

    /// Whether anything may pass between a node and a cluster.
    pub fn speaks(&self, node: Subject<'_>, cluster: &str) -> bool {
        let (node, cluster) = (Party::Node(node), Party::Cluster(cluster));
        !self.between(node, cluster).is_empty() || !self.between(cluster, node).is_empty()
    }

    fn means(&self, selector: &Selector, party: Party<'_>) -> bool {
        match (selector, party) {
            (Selector::Cluster(name), Party::Cluster(cluster)) => name == cluster,
            (_, Party::Cluster(_)) => false,
            (selector, Party::Node(node)) => self.matches(selector, node),
        }
    }

    fn matches(&self, selector: &Selector, node: Subject<'_>) -> bool {
        match selector {
            Selector::Anyone => true,
            Selector::Cluster(_) => false,
            Selector::Tag(tag) => node.tags.contains(tag),
            Selector::Node(name) => node.name == Some(name),
            // A service has no services for nodes, so this ends.
            Selector::Service(name) => self
                .services
                .get(name)
                .is_some_and(|s| self.serves(s, node)),
        }
    }

    /// The ports of `to` that `from` may use, each with the first rule that says so.
    pub fn ports(&self, from: Subject<'_>, to: Subject<'_>) -> Vec<Allowance> {
        self.between(Party::Node(from), Party::Node(to))
    }

    fn between(&self, from: Party<'_>, to: Party<'_>) -> Vec<Allowance> {
        let mut all: Vec<Allowance> = Vec::new();
        for rule in &self.rules {
            if !rule.from.iter().any(|selector| self.means(selector, from)) {
                continue;
            }
            for selector in rule.to.iter().filter(|selector| self.means(selector, to)) {
                let ports = match selector {
                    Selector::Service(name) if rule.ports.is_empty() => self
                        .services
                        .get(name)
                        .map_or(&[][..], |service| &service.ports),
                    _ => &rule.ports,
                };
                for ports in ports {
                    if !all.iter().any(|known| known.ports == *ports) {
                        all.push(Allowance {
                            ports: *ports,
                            line: rule.line,
                        });
                    }
                }
            }
        }
        all
    }

    /// The filter of one node.
    pub fn compile<'a>(
        &self,
        me: Subject<'_>,
        own: (Ipv4Addr, Ipv6Addr),
        peers: impl IntoIterator<Item = (PublicKey, Subject<'a>, Ipv4Addr, Ipv6Addr)>,
    ) -> Filter {
        let mine: Vec<_> = self.behind(me).collect();
        let mut beyond = Vec::new();
        let peers: Vec<_> = peers
            .into_iter()
            .map(|(key, peer, v4, v6)| {
                beyond.push((key, self.beyond(me, &mine, peer)));
                let rules = FilterPeer {
                    v4,
                    v6,
                    inbound: self.ports(peer, me).into(),
                    outbound: self.ports(me, peer).into(),
                };
                (key, rules)
            })
            .collect();
        Filter::new(own, peers).with_clusters(beyond)
    }

    /// What may pass between this node and a peer from or to clusters that they lead to.
    fn beyond(&self, me: Subject<'_>, mine: &[&Cluster], peer: Subject<'_>) -> Vec<Beyond> {
        let theirs: Vec<_> = self.behind(peer).collect();
        let mut all = Vec::new();
        for here in std::iter::once(None).chain(mine.iter().map(Some)) {
            for there in std::iter::once(None).chain(theirs.iter().map(Some)) {
                let same = here.is_some() && here == there;
                if same || (here.is_none() && there.is_none()) {
                    continue;
                }
                let (near, far) = (end(here, me), end(there, peer));
                let beyond = Beyond {
                    mine: here.map(|cluster| outside(cluster)),
                    theirs: there.map(|cluster| outside(cluster)),
                    inbound: self.between(far, near).into(),
                    outbound: self.between(near, far).into(),
                };
                if !beyond.inbound.is_empty() || !beyond.outbound.is_empty() {
                    all.push(beyond);
                }
            }
        }
        all
    }
}

/// A cluster, or the node that leads to it.
fn end<'a>(cluster: Option<&&'a Cluster>, node: Subject<'a>) -> Party<'a> {
    cluster.map_or(Party::Node(node), |cluster| Party::Cluster(&cluster.name))
}

fn outside(cluster: &Cluster) -> Box<[Prefix]> {
    let ranges = cluster.ranges.iter();
    ranges.map(|range| range.outside).collect()
}
