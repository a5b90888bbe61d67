//! How output looks: data to standard output, all else to standard error, colour only where a
//! person sees it, and nothing that is said by colour alone.

use serde::Serialize;
use std::io::{IsTerminal, Write};

/// Where text goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Data.
    Output,
    /// Everything else.
    Error,
}

/// Whether and how to colour.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paint {
    coloured: bool,
}

impl Paint {
    /// Colour if the stream is a terminal and neither `NO_COLOR` nor `TERM=dumb` forbids it.
    pub(crate) fn of(stream: Stream) -> Self {
        let terminal = match stream {
            Stream::Output => std::io::stdout().is_terminal(),
            Stream::Error => std::io::stderr().is_terminal(),
        };
        let forbidden = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self {
            coloured: terminal && !forbidden,
        }
    }

    /// No colour.
    #[cfg(test)]
    pub(crate) fn plain() -> Self {
        Self { coloured: false }
    }

    /// Whether there is colour.
    pub(crate) fn is_coloured(self) -> bool {
        self.coloured
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.coloured {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    pub(crate) fn error(self, text: &str) -> String {
        self.with("1;31", text)
    }

    pub(crate) fn hint(self, text: &str) -> String {
        self.with("1;36", text)
    }

    pub(crate) fn warning(self, text: &str) -> String {
        self.with("1;33", text)
    }

    pub(crate) fn good(self, text: &str) -> String {
        self.with("32", text)
    }

    pub(crate) fn heading(self, text: &str) -> String {
        self.with("1", text)
    }
}

/// Writes to standard error; a reader that went away is no error.
pub(crate) fn to_stderr(text: &str) {
    let mut stream = std::io::stderr().lock();
    let _ = stream
        .write_all(text.as_bytes())
        .and_then(|()| stream.flush());
}

/// One line to standard error.
pub(crate) fn note(text: &str) {
    to_stderr(&format!("{text}\n"));
}

/// Writes data to standard output.
///
/// # Errors
/// When standard output is closed or full.
pub(crate) fn to_stdout(text: &str) -> anyhow::Result<()> {
    let mut stream = std::io::stdout().lock();
    match stream
        .write_all(text.as_bytes())
        .and_then(|()| stream.flush())
    {
        // `atoll ls | head -1` is no fault.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Prints data as JSON, one value in readable form.
///
/// # Errors
/// When standard output is closed or full.
pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    to_stdout(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Rows under headings, columns padded, two spaces between them.
#[derive(Debug)]
pub(crate) struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(headings: &[&'static str]) -> Self {
        Self {
            headings: headings.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row: one cell for each heading. Control characters are made harmless, as names come
    /// from others.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows
            .push(cells.into_iter().map(|cell| harmless(&cell)).collect());
    }

    fn render(&self, paint: Paint) -> String {
        let mut widths: Vec<usize> = self.headings.iter().map(|text| text.len()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let line = |cells: Vec<&str>| -> String {
            let mut text = String::new();
            for (at, cell) in cells.iter().enumerate() {
                text.push_str(cell);
                if at + 1 < cells.len() {
                    let gap = widths[at].saturating_sub(cell.chars().count()) + 2;
                    text.extend(std::iter::repeat_n(' ', gap));
                }
            }
            text.trim_end().to_owned()
        };
        let mut text = paint.heading(&line(self.headings.clone()));
        text.push('\n');
        for row in &self.rows {
            text.push_str(&line(row.iter().map(String::as_str).collect()));
            text.push('\n');
        }
        text
    }

    /// Prints the table to standard output.
    ///
    /// # Errors
    /// When standard output is closed or full.
    pub(crate) fn print(&self) -> anyhow::Result<()> {
        to_stdout(&self.render(Paint::of(Stream::Output)))
    }
}

/// The text without control characters, so that a name or log line cannot drive the terminal.
pub(crate) fn harmless(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() && c != '\t' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

/// How long ago or how long until, as people say it: `42s`, `7m`, `3h12m`, `5d`.
pub(crate) fn span(seconds: i64) -> String {
    let seconds = seconds.max(0);
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7_199 => format!("{}m", seconds / 60),
        7_200..=172_799 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_lines_up_without_colour() {
        let mut table = Table::new(&["ID", "STATE", "NAME"]);
        table.row(["i1".into(), "running".into(), "a".into()]);
        table.row(["i22222".into(), "paused".into(), "evil\x1b[2Jname".into()]);
        assert_eq!(
            table.render(Paint::plain()),
            "ID      STATE    NAME\ni1      running  a\ni22222  paused   evil\u{fffd}[2Jname\n"
        );
    }

    #[test]
    fn spans_are_short() {
        assert_eq!(
            [span(-3), span(42), span(600), span(11_520)],
            ["0s", "42s", "10m", "3h12m"]
        );
    }
}
