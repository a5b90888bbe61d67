//! What happened in the sandbox, for the node: processes that start and end, and what they print.
//!
//! A ring, bounded in lines and bytes; a process that floods is logged at a bounded rate and the
//! number of lines left out is said.

use api::{
    envd::{files::NumberedLine, process::OutputStream},
    node::{LogLevel, LogLine},
};
use bytes::Bytes;
use jiff::Timestamp;
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// The longest line kept; the rest of it is cut off.
pub const LINE_LIMIT: usize = 4096;
const LINES_LIMIT: usize = 1000;
const BYTES_LIMIT: usize = 256 << 10;
/// Lines per process and second, averaged; and how many may come at once.
const RATE: f64 = 100.0;
const BURST: f64 = 500.0;

/// The ring.
#[derive(Debug, Default)]
pub struct Logs {
    lines: RefCell<VecDeque<NumberedLine>>,
    bytes: Cell<usize>,
    next: Cell<u64>,
    added: Notify,
}

impl Logs {
    /// Adds a line.
    pub fn add(&self, level: LogLevel, message: String, fields: &[(&str, String)]) {
        let fields: BTreeMap<String, String> = fields
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect();
        let seq = self.next.get() + 1;
        self.next.set(seq);
        let line = LogLine {
            at: Timestamp::now(),
            level,
            message,
            fields,
        };
        let mut lines = self.lines.borrow_mut();
        let mut bytes = self.bytes.get() + size(&line);
        lines.push_back(NumberedLine { seq, line });
        while lines.len() > LINES_LIMIT || bytes > BYTES_LIMIT {
            match lines.pop_front() {
                Some(old) => bytes -= size(&old.line),
                None => break,
            }
        }
        self.bytes.set(bytes);
        drop(lines);
        self.added.notify_waiters();
    }

    /// Forgets all lines. Numbers go on.
    pub fn clear(&self) {
        self.lines.take();
        self.bytes.set(0);
    }

    /// Lines behind `after` as JSON, one a line, at most about 64 KiB, and the last one's number.
    pub fn read(&self, after: u64) -> (Bytes, u64) {
        let lines = self.lines.borrow();
        let mut text = Vec::new();
        let mut last = after;
        let from = lines.partition_point(|line| line.seq <= after);
        for line in lines.range(from..) {
            if text.len() > 64 << 10 {
                break;
            }
            // Cannot fail: there are only strings and numbers in a line.
            if serde_json::to_writer(&mut text, line).is_ok() {
                text.push(b'\n');
            }
            last = line.seq;
        }
        (text.into(), last)
    }

    /// Returns when there are lines behind `after`.
    pub async fn wait(&self, after: u64) {
        loop {
            let added = self.added.notified();
            // Not `next`: lines that were forgotten are behind nobody.
            if self
                .lines
                .borrow()
                .back()
                .is_some_and(|line| line.seq > after)
            {
                return;
            }
            added.await;
        }
    }
}

fn size(line: &LogLine) -> usize {
    let fields: usize = line
        .fields
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    128 + line.message.len() + fields
}

/// Cuts a process's output into log lines.
#[derive(Debug)]
pub struct LineLog {
    pid: u32,
    /// The unfinished line of standard output or the terminal, and of standard error.
    partial: [Vec<u8>; 2],
    allowance: f64,
    refilled: Instant,
    left_out: u64,
}

impl LineLog {
    /// For a process that was just started.
    pub fn new(pid: u32) -> Self {
        let partial = [Vec::new(), Vec::new()];
        Self {
            pid,
            partial,
            allowance: BURST,
            refilled: Instant::now(),
            left_out: 0,
        }
    }

    /// Takes what the process printed.
    pub fn push(&mut self, logs: &Logs, stream: OutputStream, data: &[u8]) {
        let elapsed = self.refilled.elapsed();
        if self.allowance < 1.0 {
            if elapsed < Duration::from_millis(200) {
                // Not even looked at: a flood must not cost more than its delivery.
                self.left_out += 1;
                return;
            }
            for partial in &mut self.partial {
                partial.clear();
            }
        }
        self.allowance = BURST.min(self.allowance + elapsed.as_secs_f64() * RATE);
        self.refilled = Instant::now();
        let slot = usize::from(stream == OutputStream::Stderr);
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            if self.allowance < 1.0 {
                self.left_out += 1;
                return;
            }
            let Some(partial) = self.partial.get_mut(slot) else {
                return;
            };
            let room = LINE_LIMIT.saturating_sub(partial.len());
            partial.extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.ends_with(b"\n") {
                let line = std::mem::take(partial);
                self.emit(logs, stream, &line);
            }
        }
    }

    /// To be called when the process has ended.
    pub fn finish(&mut self, logs: &Logs, terminal: bool) {
        let first = if terminal {
            OutputStream::Pty
        } else {
            OutputStream::Stdout
        };
        for (slot, stream) in [(0, first), (1, OutputStream::Stderr)] {
            let rest = self
                .partial
                .get_mut(slot)
                .map(std::mem::take)
                .unwrap_or_default();
            if !rest.is_empty() {
                self.emit(logs, stream, &rest);
            }
        }
        self.tell_left_out(logs);
    }

    /// Forgets the unfinished lines.
    pub fn forget(&mut self) {
        self.partial = Default::default();
        self.left_out = 0;
    }

    fn emit(&mut self, logs: &Logs, stream: OutputStream, line: &[u8]) {
        self.allowance -= 1.0;
        self.tell_left_out(logs);
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let level = if stream == OutputStream::Stderr {
            LogLevel::Warn
        } else {
            LogLevel::Info
        };
        let message = String::from_utf8_lossy(line).into_owned();
        let fields = [
            ("pid", self.pid.to_string()),
            ("stream", stream.name().to_owned()),
        ];
        logs.add(level, message, &fields);
    }

    fn tell_left_out(&mut self, logs: &Logs) {
        if std::mem::take(&mut self.left_out) > 0 {
            let message = "output came too fast and was left out of the log here".to_owned();
            logs.add(LogLevel::Warn, message, &[("pid", self.pid.to_string())]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(logs: &Logs) -> Vec<String> {
        logs.lines
            .borrow()
            .iter()
            .map(|line| line.line.message.clone())
            .collect()
    }

    #[tokio::test]
    async fn who_follows_waits_for_new_lines_when_all_were_forgotten() {
        let logs = Logs::default();
        logs.add(LogLevel::Info, "of the parent".into(), &[]);
        logs.clear();
        assert_eq!(logs.read(0), (Bytes::new(), 0));
        let soon = tokio::time::timeout(Duration::from_millis(20), logs.wait(0)).await;
        assert!(soon.is_err(), "there is nothing to read");
        logs.add(LogLevel::Info, "of the child".into(), &[]);
        logs.wait(0).await;
        assert_eq!(logs.read(0).1, 2);
    }

    #[test]
    fn output_becomes_lines() {
        let logs = Logs::default();
        let mut log = LineLog::new(7);
        log.push(&logs, OutputStream::Stdout, b"one\r\ntw");
        log.push(&logs, OutputStream::Stderr, b"err\n");
        log.push(&logs, OutputStream::Stdout, b"o\nthree");
        log.finish(&logs, false);
        assert_eq!(messages(&logs), ["one", "err", "two", "three"]);
        let (text, last) = logs.read(1);
        assert_eq!(last, 4);
        assert!(text.starts_with(b"{\"seq\":2,"));
    }

    #[test]
    fn a_flood_stays_bounded() {
        let logs = Logs::default();
        let mut log = LineLog::new(7);
        for _ in 0..1000 {
            log.push(&logs, OutputStream::Stdout, &b"y\n".repeat(10_000));
        }
        log.push(&logs, OutputStream::Stdout, &vec![b'x'; 1 << 20]);
        log.finish(&logs, false);
        assert!(logs.lines.borrow().len() < 600);
        assert!(logs.bytes.get() <= BYTES_LIMIT);
        assert!(
            messages(&logs)
                .iter()
                .any(|message| message.contains("left out"))
        );
    }
}
