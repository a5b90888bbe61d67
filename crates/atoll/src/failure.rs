//! What the person at the terminal sees when something fails, and the exit status that goes with
//! it.
//!
//! Every fallible function of the program returns [`anyhow::Result`]. Somewhere in the chain may
//! be a [`Failure`] or an [`api::Problem`]: they bring the hint.

use crate::style::{Paint, Stream};
use api::{ErrorCode, Problem};
use std::fmt;

/// Exit status of a command that failed.
pub(crate) const FAILED: u8 = 1;
/// Exit status of `run` and `exec` when it was Atoll that failed and not the command inside.
pub(crate) const ATOLL_FAILED: u8 = 125;
/// Exit status after Ctrl-C, as shells have it.
pub(crate) const INTERRUPTED: u8 = 130;

/// An error with a hint of what to do.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    hint: Option<String>,
}

impl Failure {
    /// What happened, in one sentence without a full stop, and what to do about it.
    pub(crate) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        Self {
            message: message.into(),
            hint: (!hint.is_empty()).then_some(hint),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// Whether the error says that the thing does not exist.
pub(crate) fn is_not_found(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<Problem>()
        .is_some_and(|problem| problem.code == ErrorCode::NotFound)
}

/// The hint that the error carries, if any.
fn find_hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return failure.hint.clone();
        }
        let problem = cause.downcast_ref::<Problem>()?;
        (!problem.remedy.is_empty()).then(|| problem.remedy.clone())
    })
}

/// The error as text: `error: …`, and `hint: …` if there is one.
fn describe(error: &anyhow::Error, paint: Paint) -> String {
    let mut text = format!("{} {error:#}\n", paint.error("error:"));
    if let Some(hint) = find_hint(error) {
        text.push_str(&format!("{} {hint}\n", paint.hint("hint:")));
    }
    text
}

/// Prints the error to standard error.
pub(crate) fn report(error: &anyhow::Error) {
    crate::style::to_stderr(&describe(error, Paint::of(Stream::Error)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn an_error_names_its_causes_and_the_remedy() {
        let problem = Problem::new(
            ErrorCode::NotFound,
            "template `x` does not exist",
            "build it",
        );
        let error = Err::<(), _>(problem)
            .context("cannot create the sandbox")
            .unwrap_err();
        assert_eq!(
            describe(&error, Paint::plain()),
            "error: cannot create the sandbox: template `x` does not exist\nhint: build it\n"
        );
        assert!(is_not_found(&error));
    }

    #[test]
    fn no_hint_no_line() {
        let error = anyhow::Error::from(Failure::new("it broke", ""));
        assert_eq!(describe(&error, Paint::plain()), "error: it broke\n");
    }
}
