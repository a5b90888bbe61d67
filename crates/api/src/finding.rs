//! What a check of the machine found, as `doctor` prints it.

use serde::{Deserialize, Serialize};

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FindingStatus {
    /// It is there and works.
    Ok,
    /// Atoll works, but less well; or something optional is absent.
    Warning,
    /// Something that Atoll needs is absent.
    Missing,
}

/// One thing that a check of the machine found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was checked, in a word or two, such as `loop devices`.
    pub name: String,
    /// How it came out.
    pub status: FindingStatus,
    /// What was found, in half a sentence.
    pub detail: String,
    /// What the reader can do about it; empty if nothing needs doing.
    pub remedy: String,
}

impl Finding {
    /// Something that is there and works.
    pub fn ok(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(name, FindingStatus::Ok, detail, "")
    }

    /// Something that is absent or hampered, but not needed.
    pub fn warning(
        name: impl Into<String>,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(name, FindingStatus::Warning, detail, remedy)
    }

    /// Something that is needed and absent.
    pub fn missing(
        name: impl Into<String>,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(name, FindingStatus::Missing, detail, remedy)
    }

    fn new(
        name: impl Into<String>,
        status: FindingStatus,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            name: name.into(),
            status,
            detail: detail.into(),
            remedy: remedy.into(),
        }
    }
}
