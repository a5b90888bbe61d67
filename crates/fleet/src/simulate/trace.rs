//! What was, or will be, asked for: requests with their time of arrival and their length.

use crate::{
    amount::Amount,
    inventory::Moving,
    moment::{Moment, Span},
};
use std::fmt::Write;

/// One request for a place to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// When it arrives.
    pub arrival: Moment,
    /// For how long it runs once it has a place.
    pub duration: Span,
    /// What it asks for.
    pub amount: Amount,
    /// Whether it may be moved.
    pub moving: Moving,
}

/// Requests in the order of their arrival.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    requests: Vec<Request>,
}

/// Why a file is not a trace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the trace: {cause}")]
pub struct TraceError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub cause: String,
}

const HEADER: &str = "arrival_seconds,duration_seconds,cpu_millis,memory_mebibytes,moving";

/// A trace of more requests than this is refused.
const MOST_REQUESTS: usize = 20_000_000;

impl Trace {
    /// Requests in any order.
    pub fn new(mut requests: Vec<Request>) -> Self {
        requests.sort_by_key(|one| one.arrival);
        Self { requests }
    }

    /// The requests, the first to arrive first.
    pub fn requests(&self) -> &[Request] {
        &self.requests
    }

    /// When the first arrives; the beginning of time if there is none.
    pub fn start(&self) -> Moment {
        self.requests.first().map_or(Moment(0), |one| one.arrival)
    }

    /// When the last arrives.
    pub fn end(&self) -> Moment {
        self.requests.last().map_or(Moment(0), |one| one.arrival)
    }

    /// Reads comma-separated values: `arrival_seconds,duration_seconds,cpu_millis,
    /// memory_mebibytes,moving` with that header, where `moving` is `free`, `on_completion`,
    /// `local_state` or `never`, and may be left out.
    pub fn parse(text: &str) -> Result<Self, TraceError> {
        let mut requests = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let refuse = |cause: String| TraceError {
                line: at + 1,
                cause,
            };
            let trimmed = line.trim();
            if trimmed.is_empty() || trimmed.starts_with('#') || at == 0 && trimmed == HEADER {
                continue;
            }
            if requests.len() == MOST_REQUESTS {
                return Err(refuse(format!(
                    "there are more than {MOST_REQUESTS} requests"
                )));
            }
            requests.push(parse_line(trimmed).map_err(refuse)?);
        }
        Ok(Self::new(requests))
    }

    /// The trace as [`Trace::parse`] reads it.
    pub fn print(&self) -> String {
        let mut text = format!("{HEADER}\n");
        for one in &self.requests {
            let moving = match one.moving {
                Moving::Free => "free",
                Moving::OnCompletion => "on_completion",
                Moving::LocalState => "local_state",
                Moving::Never => "never",
            };
            let _ = writeln!(
                text,
                "{},{},{},{},{moving}",
                one.arrival.0,
                one.duration.0,
                one.amount.cpu_millis,
                one.amount.memory_bytes >> 20,
            );
        }
        text
    }
}

fn parse_line(line: &str) -> Result<Request, String> {
    let fields: Vec<&str> = line.split(',').map(str::trim).collect();
    if !(4..=5).contains(&fields.len()) {
        return Err(format!("it has {} fields; write {HEADER}", fields.len()));
    }
    let number = |at: usize, most: u64| -> Result<u64, String> {
        let name = HEADER.split(',').nth(at).unwrap_or_default();
        let value: u64 = fields[at]
            .parse()
            .map_err(|_| format!("`{}` is no whole number for {name}", fields[at]))?;
        if value > most {
            return Err(format!("{value} is too much for {name}"));
        }
        Ok(value)
    };
    let moving = match fields.get(4).copied().unwrap_or("free") {
        "free" | "" => Moving::Free,
        "on_completion" => Moving::OnCompletion,
        "local_state" => Moving::LocalState,
        "never" => Moving::Never,
        other => {
            return Err(format!(
                "`{other}` is not free, on_completion, local_state or never"
            ));
        }
    };
    Ok(Request {
        arrival: Moment(number(0, 1 << 40)?),
        duration: Span(number(1, 1 << 32)?),
        amount: Amount::workload(number(2, 1 << 40)?, number(3, 1 << 40)?),
        moving,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_read_as_it_was_printed() {
        let text = format!("{HEADER}\n60,30,1000,512,on_completion\n0,30,500,256\n");
        let trace = Trace::parse(&text).unwrap();
        assert_eq!(trace.start(), Moment(0));
        assert_eq!(trace.requests()[1].moving, Moving::OnCompletion);
        assert_eq!(Trace::parse(&trace.print()).unwrap(), trace);
    }

    #[test]
    fn mistakes_name_their_line() {
        for (line, word) in [
            ("1,2,3", "fields"),
            ("a,2,3,4", "arrival_seconds"),
            ("1,2,3,4,maybe", "maybe"),
            ("1,-2,3,4", "duration_seconds"),
            ("1,2,3,99999999999999999", "memory_mebibytes"),
        ] {
            let error = Trace::parse(&format!("{HEADER}\n{line}\n")).unwrap_err();
            assert_eq!(error.line, 2);
            assert!(error.cause.contains(word), "{error}");
        }
    }
}
