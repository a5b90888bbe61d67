//! Filters, order and pages of sandboxes: a pure function of all sandboxes and the query.
//!
//! Start at [`Selection::parse`], then [`Selection::apply`].

use super::{
    query::{invalid, number, shorten},
    sandbox::ListQuery,
};
use crate::{
    Problem,
    node::{SandboxState, SandboxStatus},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::{Timestamp, civil::DateTime, tz::TimeZone};
use percent_encoding::percent_decode_str;
use std::{borrow::Borrow, cmp::Ordering};

/// The most sandboxes on a page, and how many if the query does not say.
const MOST: i64 = 100;

/// The longest filter by labels.
const MAX_FILTER: usize = 16 << 10;

/// A query that can be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    running: bool,
    paused: bool,
    ascending: bool,
    metadata: Vec<(String, String)>,
    started_after: Option<Timestamp>,
    /// A template's id, or its name in full; none means all.
    pub template: Option<String>,
    after: Option<Cursor>,
    limit: usize,
}

/// The last sandbox of the page before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// When it started.
    pub started_at: Timestamp,
    /// Its id, as several may have started at the same moment.
    pub id: String,
}

/// The same moment to the microsecond: finer than that, not every client can read it.
pub fn microseconds(moment: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(moment.as_microsecond()).unwrap_or(moment)
}

/// Whether clients are told that it is paused.
pub fn is_paused(status: &SandboxStatus) -> bool {
    matches!(status.state, SandboxState::Paused | SandboxState::Pausing)
}

/// One page.
#[derive(Debug)]
pub struct Listing<'a> {
    /// Its sandboxes, in order.
    pub page: Vec<&'a SandboxStatus>,
    /// Where the next page starts, if there is one.
    pub next_token: Option<String>,
    /// How many of all that match run.
    pub running: usize,
}

impl Selection {
    /// Checks a query.
    ///
    /// # Errors
    ///
    /// [`crate::ErrorCode::InvalidArgument`], with what is wrong.
    pub fn parse(query: &ListQuery) -> Result<Self, Problem> {
        let (mut running, mut paused) = (false, false);
        for state in query.state.as_deref().unwrap_or_default().split(',') {
            match state.trim() {
                "" => {}
                "running" => running = true,
                "paused" => paused = true,
                other => {
                    return Err(invalid(format!(
                        "Invalid state `{}`: expected running or paused",
                        shorten(other)
                    )));
                }
            }
        }
        if !running && !paused {
            (running, paused) = (true, true);
        }
        let ascending = match query.order.as_deref() {
            None | Some("" | "desc") => false,
            Some("asc") => true,
            Some(other) => {
                return Err(invalid(format!(
                    "Invalid order `{}`: expected asc or desc",
                    shorten(other)
                )));
            }
        };
        let limit = number("limit", query.limit.as_deref(), MOST, 1..=MOST)?;
        let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let after = match text(&query.next_token) {
            None => None,
            Some(token) => Some(Cursor::parse(&token, ascending)?),
        };
        Ok(Self {
            running,
            paused,
            ascending,
            metadata: parse_metadata(query.metadata.as_deref().unwrap_or_default())?,
            started_after: text(&query.started_after)
                .map(|t| parse_moment(&t))
                .transpose()?,
            template: text(&query.template).map(|template| template.to_lowercase()),
            after,
            limit: usize::try_from(limit).unwrap_or(1),
        })
    }

    fn matches(&self, status: &SandboxStatus) -> bool {
        let state = match status.state {
            SandboxState::Starting | SandboxState::Running | SandboxState::Resuming => self.running,
            SandboxState::Pausing | SandboxState::Paused => self.paused,
            SandboxState::Stopping { .. } | SandboxState::Ended { .. } => false,
        };
        let template = self.template.as_ref().is_none_or(|wanted| {
            status.template.template.as_str() == wanted
                || status.template.alias.as_ref() == Some(wanted)
        });
        let started = self
            .started_after
            .is_none_or(|after| microseconds(status.started_at) >= microseconds(after));
        let mut labels = self.metadata.iter();
        state
            && template
            && started
            && labels.all(|(name, value)| status.metadata.get(name) == Some(value))
    }

    fn compare(&self, a: (Timestamp, &str), b: (Timestamp, &str)) -> Ordering {
        if self.ascending { a.cmp(&b) } else { b.cmp(&a) }
    }

    /// The page that the query asks for.
    pub fn apply<'a, S: Borrow<SandboxStatus>>(&self, all: &'a [S]) -> Listing<'a> {
        let place = |status: &'a SandboxStatus| (status.started_at, status.id.as_str());
        let mut matching: Vec<&SandboxStatus> = all
            .iter()
            .map(Borrow::borrow)
            .filter(|status| self.matches(status))
            .collect();
        matching.sort_by(|a, b| self.compare(place(a), place(b)));
        let running = matching.iter().filter(|s| !is_paused(s)).count();
        let start = match &self.after {
            None => 0,
            Some(Cursor { started_at, id }) => matching.partition_point(|status| {
                self.compare(place(status), (*started_at, id)) != Ordering::Greater
            }),
        };
        let page: Vec<&SandboxStatus> =
            matching[start..].iter().take(self.limit).copied().collect();
        let more = matching.len() > start + page.len();
        let next_token = page.last().filter(|_| more).map(|last| {
            let cursor = Cursor {
                started_at: last.started_at,
                id: last.id.as_str().to_owned(),
            };
            cursor.token(self.ascending)
        });
        Listing {
            page,
            next_token,
            running,
        }
    }
}

impl Cursor {
    /// The token of the page that starts after it; it is good for one order only.
    pub fn token(&self, ascending: bool) -> String {
        let order = if ascending { "__asc" } else { "" };
        URL_SAFE_NO_PAD.encode(format!("{}__{}{order}", self.started_at, self.id))
    }

    /// Reads a token.
    ///
    /// # Errors
    ///
    /// [`crate::ErrorCode::InvalidArgument`] if it is none, or one of the other order.
    pub fn parse(token: &str, ascending: bool) -> Result<Self, Problem> {
        let refuse = || invalid("Invalid next token");
        if token.len() > 256 {
            return Err(refuse());
        }
        let text = URL_SAFE_NO_PAD
            .decode(token.trim_end_matches('='))
            .map_err(|_| refuse())?;
        let text = String::from_utf8(text).map_err(|_| refuse())?;
        // What comes between may hold the separator too.
        let (text, ascends) = match text.strip_suffix("__asc") {
            Some(text) => (text, true),
            None => (text.as_str(), false),
        };
        if ascends != ascending {
            return Err(invalid("The next token belongs to the other order"));
        }
        let (moment, id) = text.split_once("__").ok_or_else(refuse)?;
        let started_at = moment.parse().map_err(|_| refuse())?;
        Ok(Self {
            started_at,
            id: id.to_owned(),
        })
    }
}

/// Labels as clients send them: a query string whose names and values are percent-encoded once
/// more.
///
/// # Errors
///
/// [`crate::ErrorCode::InvalidArgument`] if it is longer than 16 KiB or not UTF-8.
pub fn parse_metadata(text: &str) -> Result<Vec<(String, String)>, Problem> {
    if text.len() > MAX_FILTER {
        return Err(invalid("The metadata filter is too long"));
    }
    let decode = |text: &str| {
        // As a value of a query string, then once more.
        let once = percent_decode_str(&text.replace('+', " "))
            .decode_utf8()
            .map(|t| t.into_owned());
        let twice = once.and_then(|once| {
            percent_decode_str(&once)
                .decode_utf8()
                .map(|text| text.into_owned())
        });
        twice.map_err(|_| invalid("The metadata filter is not valid UTF-8"))
    };
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(name)?, decode(value)?))
        })
        .collect()
}

/// A moment in RFC 3339; without an offset, in UTC. A plus sign may have become a space.
fn parse_moment(text: &str) -> Result<Timestamp, Problem> {
    let refuse = || {
        invalid(format!(
            "Invalid moment `{}`: expected RFC 3339",
            shorten(text)
        ))
    };
    let restored = match text.rsplit_once(' ') {
        Some((moment, offset)) if moment.contains('T') => format!("{moment}+{offset}"),
        _ => text.to_owned(),
    };
    if let Ok(moment) = restored.parse::<Timestamp>() {
        return Ok(moment);
    }
    let local: DateTime = restored.parse().map_err(|_| refuse())?;
    local
        .to_zoned(TimeZone::UTC)
        .map(|zoned| zoned.timestamp())
        .map_err(|_| refuse())
}

#[cfg(test)]
#[path = "listing_tests.rs"]
mod tests;
