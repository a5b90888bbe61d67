//! `atoll logs`: what a sandbox's processes printed.

use crate::{client::connection::Connection, failure::is_not_found, signals::Signals, style};
use api::{node::LogLevel, rest::log::LogEntry};
use jiff::Timestamp;
use std::time::Duration;

/// How many lines are asked for at once.
const PAGE: usize = 1000;
/// How often a followed log is asked for news.
const INTERVAL: Duration = Duration::from_millis(300);

const EXAMPLES: &str = "\
Examples:
  atoll logs i0ab
  atoll logs i0ab -f
  atoll logs i0ab --json | jq -r .message";

/// Show what a sandbox's processes printed
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Sandbox: its id, or the beginning of it
    #[arg(value_name = "SANDBOX")]
    sandbox: String,

    /// Go on with what comes, until the sandbox ends
    #[arg(short, long)]
    follow: bool,

    /// Print times
    #[arg(short, long)]
    timestamps: bool,

    /// Print one JSON object a line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    connection: Connection,
}

/// Which lines were shown already, as a log is asked for by time and many lines share one.
#[derive(Debug, Default)]
struct Reader {
    from: Option<Timestamp>,
    shown: Vec<LogEntry>,
}

impl Reader {
    /// The lines of a page that were not shown yet.
    fn fresh(&mut self, page: Vec<LogEntry>) -> Vec<LogEntry> {
        let mut seen = std::mem::take(&mut self.shown);
        let mut fresh = Vec::new();
        for entry in page {
            let moment = entry.timestamp.as_millisecond();
            if self.from.is_none_or(|from| from.as_millisecond() < moment) {
                self.from = Some(entry.timestamp);
                self.shown.clear();
            }
            match seen.iter().position(|other| *other == entry) {
                Some(at) => drop(seen.swap_remove(at)),
                None => fresh.push(entry.clone()),
            }
            if self
                .from
                .is_some_and(|from| from.as_millisecond() == moment)
            {
                self.shown.push(entry);
            }
        }
        fresh
    }
}

/// Does it.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    let mut signals = Signals::listen()?;
    let client = arguments.connection.open()?;
    let id = client.resolve(&arguments.sandbox).await?;
    let mut reader = Reader::default();
    let mut ended = false;
    loop {
        let page = client.logs(&id, reader.from, PAGE).await?;
        let full = page.len() >= PAGE;
        let before = reader.from;
        let fresh = reader.fresh(page);
        let mut text = String::new();
        for entry in &fresh {
            text.push_str(&line(entry, &arguments)?);
        }
        style::to_stdout(&text)?;
        if full && (reader.from != before || !fresh.is_empty()) {
            continue;
        }
        if !arguments.follow || ended {
            return Ok(0);
        }
        tokio::select! {
            status = signals.stop() => return Ok(status),
            () = tokio::time::sleep(INTERVAL) => {}
        }
        // Once more after its end, for what it printed last.
        ended = match client.open(&id).await {
            Ok(_) => false,
            Err(error) if is_not_found(&error) => true,
            Err(error) => return Err(error),
        };
    }
}

fn line(entry: &LogEntry, arguments: &Arguments) -> anyhow::Result<String> {
    if arguments.json {
        return Ok(format!("{}\n", serde_json::to_string(entry)?));
    }
    let mut text = String::new();
    if arguments.timestamps {
        text.push_str(&format!("{:.3} ", entry.timestamp));
    }
    text.push_str(match entry.level {
        LogLevel::Error => "error: ",
        LogLevel::Warn => "warning: ",
        LogLevel::Info | LogLevel::Debug => "",
    });
    text.push_str(&style::harmless(entry.message.trim_end_matches('\n')));
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(millisecond: i64, message: &str) -> LogEntry {
        LogEntry {
            timestamp: Timestamp::from_millisecond(millisecond).unwrap(),
            message: message.to_owned(),
            level: LogLevel::Info,
            fields: Default::default(),
        }
    }

    fn messages(entries: Vec<LogEntry>) -> Vec<String> {
        entries.into_iter().map(|entry| entry.message).collect()
    }

    #[test]
    fn lines_of_one_moment_are_shown_once() {
        let mut reader = Reader::default();
        let first = vec![entry(1, "a"), entry(2, "b"), entry(2, "b")];
        assert_eq!(messages(reader.fresh(first)), ["a", "b", "b"]);
        let second = vec![entry(2, "b"), entry(2, "b"), entry(2, "c"), entry(3, "d")];
        assert_eq!(messages(reader.fresh(second)), ["c", "d"]);
        assert_eq!(
            messages(reader.fresh(vec![entry(3, "d")])),
            Vec::<String>::new()
        );
        assert_eq!(
            messages(reader.fresh(vec![entry(3, "d"), entry(4, "e")])),
            ["e"]
        );
    }
}
