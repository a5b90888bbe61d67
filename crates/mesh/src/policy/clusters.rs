//! Clusters in a policy's text.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

use super::text::{Reader, Selector};
use super::{Mistake, Policy};
use crate::clusters::{Cluster, MOST_CLUSTERS, MOST_RANGES, Overlap, Range, SHORTEST, overlaps};
use crate::coordination::label;
use crate::prefix::Prefix;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClusterText {
    nodes: Vec<Spanned<String>>,
    ranges: Vec<Spanned<String>>,
    #[serde(default, rename = "as")]
    outside: Option<Spanned<Vec<Spanned<String>>>>,
}

/// A cluster with who leads to it.
#[derive(Debug, Clone)]
pub(super) struct Behind {
    pub(super) nodes: Vec<Selector>,
    pub(super) cluster: Cluster,
}

#[derive(Deserialize)]
struct Only {
    #[serde(default)]
    clusters: BTreeMap<String, Spanned<ClusterText>>,
}

impl Policy {
    /// The clusters that a policy's text describes, also if they overlap or other things are wrong with it.
    ///
    /// # Errors
    /// What is wrong with them, besides.
    pub fn clusters_in(text: &str) -> Result<Vec<Cluster>, Vec<Mistake>> {
        // What cannot be read at all is told as for the whole policy.
        let Ok(file) = toml::from_str::<Only>(text) else {
            return Self::parse(text).map(|policy| policy.clusters().cloned().collect());
        };
        let mut reader = Reader::new(text);
        let behind = reader.read_clusters(file.clusters);
        if reader.mistakes.is_empty() {
            Ok(behind.into_iter().map(|behind| behind.cluster).collect())
        } else {
            Err(reader.mistakes)
        }
    }
}

impl From<&Overlap> for Mistake {
    fn from(overlap: &Overlap) -> Self {
        Self {
            line: overlap.line,
            cause: overlap.cause(),
            remedy: overlap.remedy(),
        }
    }
}

impl Reader<'_> {
    fn range(&mut self, text: &Spanned<String>) -> Option<Prefix> {
        let range: Option<Prefix> = text.get_ref().parse().ok();
        let (cause, remedy) = match range {
            Some(range) if !range.address().is_ipv4() => (
                format!("{range} is a range of IPv6, which clusters cannot have yet"),
                "leave it out: only ranges of IPv4 are carried",
            ),
            Some(range) if range.length() < SHORTEST => (
                format!("{range} has too many addresses"),
                "write ranges of /8 and smaller",
            ),
            // `10.1.2.3/16` is more often a slip than meant.
            Some(range) if range.to_string() != *text.get_ref() => (
                format!("{:?} does not begin where its range does", text.get_ref()),
                "write the range's first address and its length: 10.42.0.0/16",
            ),
            Some(range) => return Some(range),
            None => (
                format!("{:?} is not a range of addresses", text.get_ref()),
                "write one as 10.42.0.0/16",
            ),
        };
        self.complain(text.span(), cause, remedy);
        None
    }

    fn ranges(&mut self, texts: &[Spanned<String>]) -> Vec<Prefix> {
        texts.iter().filter_map(|text| self.range(text)).collect()
    }

    /// Reads all clusters, in the order of the text, and complains of those that overlap.
    pub(super) fn clusters(
        &mut self,
        texts: BTreeMap<String, Spanned<ClusterText>>,
    ) -> Vec<Behind> {
        let all = self.read_clusters(texts);
        let clusters: Vec<_> = all.iter().map(|behind| behind.cluster.clone()).collect();
        let found = overlaps(&clusters);
        self.mistakes.extend(found.iter().map(Mistake::from));
        all
    }

    fn read_clusters(&mut self, texts: BTreeMap<String, Spanned<ClusterText>>) -> Vec<Behind> {
        if texts.len() > MOST_CLUSTERS {
            let cause = format!("there are more than {MOST_CLUSTERS} clusters");
            self.complain(0..0, cause, "describe larger ones");
            return Vec::new();
        }
        let mut texts: Vec<_> = texts.into_iter().collect();
        texts.sort_by_key(|(_, text)| text.span().start);
        let mut all = Vec::new();
        for (name, text) in texts {
            let span = text.span();
            let text = text.into_inner();
            if label(&name) != name {
                self.complain(
                    span.clone(),
                    format!("{name:?} cannot be a cluster's name"),
                    "use lower case letters, digits and hyphens",
                );
            }
            if text.ranges.is_empty() || text.ranges.len() > MOST_RANGES {
                self.complain(
                    span.clone(),
                    format!("cluster {name:?} has {} ranges", text.ranges.len()),
                    "write between 1 and 16",
                );
                continue;
            }
            let nodes = self.selectors(&text.nodes, super::text::Known::Nodes);
            let before = self.mistakes.len();
            let inside = self.ranges(&text.ranges);
            let outside = match &text.outside {
                Some(texts) => self.ranges(texts.get_ref()),
                None => inside.clone(),
            };
            if self.mistakes.len() > before {
                continue;
            }
            let same = inside.len() == outside.len()
                && inside
                    .iter()
                    .zip(&outside)
                    .all(|(inside, outside)| inside.length() == outside.length());
            if !same {
                let at = text.outside.as_ref().map_or(span, Spanned::span);
                self.complain(
                    at,
                    format!("`as` of cluster {name:?} has other sizes than `ranges`"),
                    "write one range of the same length for each, in the same order",
                );
                continue;
            }
            let ranges = inside.into_iter().zip(outside);
            let cluster = Cluster {
                name,
                line: self.line(span.start),
                ranges: ranges
                    .map(|(inside, outside)| Range { inside, outside })
                    .collect(),
            };
            all.push(Behind { nodes, cluster });
        }
        all
    }
}
