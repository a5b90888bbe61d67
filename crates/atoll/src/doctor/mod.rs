//! What this machine can do for sandboxes: facts, judged one by one.
//!
//! [`machine`] reads facts; [`checks`] judges them, and is pure, so that every judgement is tested
//! with machines that are not there.

pub(crate) mod checks;
pub(crate) mod machine;

use serde::Serialize;

/// What a fact means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing depends on it.
    Note,
    /// Sandboxes run, but something will not work or not well.
    Warn,
    /// Sandboxes cannot run.
    Fail,
}

/// One fact, judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    /// What was looked at.
    pub(crate) name: &'static str,
    /// What it means.
    pub(crate) verdict: Verdict,
    /// What was found.
    pub(crate) found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) remedy: Option<String>,
}

impl Check {
    fn new(name: &'static str, verdict: Verdict, found: impl Into<String>) -> Self {
        Self {
            name,
            verdict,
            found: found.into(),
            remedy: None,
        }
    }

    fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}
