//! Shows how a build gets on: a bar with its rate where a person watches, plain lines elsewhere.

use crate::style::harmless;
use api::{Bytes, node::BuildEvent};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use std::{
    io::{IsTerminal, Write},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Without a terminal, a step that takes long says so this often.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);
/// Amounts from here on are bytes; below, they are counted in pieces.
const BYTES_FROM: u64 = 1 << 14;

const BAR: &str =
    "{prefix} {msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
const BAR_OF_PIECES: &str = "{prefix} {msg} {wide_bar} {pos}/{len} {rate} {eta}";
const SPINNER: &str = "{prefix} {msg} {spinner} {elapsed}";
const SPINNER_OF_BYTES: &str =
    "{prefix} {msg} {spinner} {binary_bytes} {binary_bytes_per_sec} {elapsed}";

/// The bar that is on the screen, so that other lines go around it.
static ON_SCREEN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Writes to standard error without disturbing the bar that is on the screen, if one is.
pub(crate) fn write_around(bytes: &[u8]) {
    let bar = ON_SCREEN
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    // A reader that went away is no error.
    let write = || drop(std::io::stderr().lock().write_all(bytes));
    match bar {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

/// One build's progress on standard error.
#[derive(Debug)]
pub(crate) struct Progress {
    /// What is built, named at the start of each line.
    subject: String,
    bar: Option<ProgressBar>,
    step: Option<Step>,
}

#[derive(Debug)]
struct Step {
    name: String,
    total: Option<u64>,
    done: u64,
    began: Instant,
    told: Instant,
}

impl Step {
    fn amount(&self) -> String {
        let bytes = self.total.unwrap_or(self.done) >= BYTES_FROM;
        let show = |amount: u64| {
            if bytes {
                Bytes(amount).to_string()
            } else {
                amount.to_string()
            }
        };
        let seconds = self.began.elapsed().as_secs_f64().max(0.001);
        let rate = (self.done as f64 / seconds) as u64;
        let mut text = show(self.done);
        if let Some(total) = self.total {
            text.push_str(&format!(" of {}", show(total)));
        }
        format!("{text}, {}/s", show(rate))
    }
}

impl Progress {
    /// Shows a build of `subject`.
    pub(crate) fn new(subject: &str) -> Self {
        let watched = std::io::stderr().is_terminal()
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let bar = watched.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_prefix(subject.to_owned());
            bar.enable_steady_tick(Duration::from_millis(100));
            *ON_SCREEN.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.clone());
            bar
        });
        Self {
            subject: subject.to_owned(),
            bar,
            step: None,
        }
    }

    /// Shows what happened.
    pub(crate) fn show(&mut self, event: &BuildEvent) {
        match event {
            BuildEvent::Step { name, total } => self.begin(harmless(name), *total),
            BuildEvent::Progress { done } => self.advance(*done),
            BuildEvent::Log(line) => {
                tracing::debug!(target: "build", "{}", harmless(&line.message))
            }
            BuildEvent::Ready(image) => {
                self.end_step();
                self.line(&format!("root file system ready, {}", image.size));
            }
            BuildEvent::Failed { .. } => self.finish(),
        }
    }

    /// Prints a line without disturbing the bar.
    pub(crate) fn line(&self, text: &str) {
        write_around(format!("{}: {text}\n", self.subject).as_bytes());
    }

    /// Takes the bar away.
    pub(crate) fn finish(&mut self) {
        self.step = None;
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
            *ON_SCREEN.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    fn begin(&mut self, name: String, total: Option<u64>) {
        self.end_step();
        let now = Instant::now();
        match &self.bar {
            Some(bar) => {
                bar.reset();
                let template = match total {
                    Some(total) if total >= BYTES_FROM => BAR,
                    Some(_) => BAR_OF_PIECES,
                    None => SPINNER,
                };
                set_style(bar, template);
                bar.set_message(name.clone());
                match total {
                    Some(total) => bar.set_length(total),
                    None => bar.unset_length(),
                }
            }
            None => self.line(&name),
        }
        self.step = Some(Step {
            name,
            total,
            done: 0,
            began: now,
            told: now,
        });
    }

    fn advance(&mut self, done: u64) {
        let Some(step) = &mut self.step else { return };
        let first = step.done == 0;
        step.done = done;
        if let Some(bar) = &self.bar {
            if first && step.total.is_none() && done > 0 {
                set_style(bar, SPINNER_OF_BYTES);
            }
            bar.set_position(done);
        } else if step.told.elapsed() >= PLAIN_INTERVAL {
            step.told = Instant::now();
            let text = format!("{}: {}", step.name, step.amount());
            self.line(&text);
        }
    }

    fn end_step(&mut self) {
        let Some(step) = self.step.take() else { return };
        let seconds = step.began.elapsed().as_secs_f64();
        let amount = if step.done > 0 {
            format!(" ({})", step.amount())
        } else {
            String::new()
        };
        if self.bar.is_some() || seconds >= 1.0 {
            self.line(&format!("{} done in {seconds:.1} s{amount}", step.name));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

fn set_style(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        // The usual rate of pieces has four decimals.
        let rate = |state: &ProgressState, text: &mut dyn std::fmt::Write| {
            let _ = write!(text, "{:.1}/s", state.per_sec());
        };
        bar.set_style(style.with_key("rate", rate));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_style_is_understood() {
        for template in [BAR, BAR_OF_PIECES, SPINNER, SPINNER_OF_BYTES] {
            ProgressStyle::with_template(template).unwrap();
        }
    }

    #[test]
    fn amounts_say_bytes_or_pieces() {
        let step = |total, done| Step {
            name: String::new(),
            total,
            done,
            began: Instant::now(),
            told: Instant::now(),
        };
        assert!(
            step(Some(1 << 20), 1 << 19)
                .amount()
                .starts_with("512 KiB of 1 MiB, ")
        );
        assert!(step(Some(40), 7).amount().starts_with("7 of 40, "));
    }
}
