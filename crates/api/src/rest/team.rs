//! Tenants, as E2B's clients see them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A tenant that the caller belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Team {
    /// Its id.
    #[serde(rename = "teamID")]
    pub team_id: String,
    /// Its name.
    pub name: String,
    /// The beginning of the caller's key: only its digest is kept, so the rest is not known.
    pub api_key: String,
    /// Whether it is the one used by default.
    pub is_default: bool,
}
