//! Who the guest is at the moment: what it answers to, and what processes inherit.
//!
//! A guest in a container has one role for life. One in a microVM gets a new one each time that
//! it is resumed; whoever needs a role holds it only while answering one question.

use api::{Secret, boot::Identity};
use std::collections::BTreeMap;

/// What of an [`Identity`] holds for as long as the guest is it.
#[derive(Debug)]
pub struct Role {
    /// Whether it is somebody; if not, it waits for its identity and does nothing else.
    pub claimed: bool,
    /// The token that opens the guest's API to users; none means open.
    pub access_token: Option<Secret>,
    /// The node's own token.
    pub control_token: Secret,
    /// Variables of every process.
    pub environment: BTreeMap<String, String>,
    /// The user whom commands run as by default.
    pub default_user: String,
    /// Where they run by default; the user's home if empty.
    pub working_directory: String,
}

impl Role {
    /// Nobody yet: only the node's token opens anything.
    pub fn waiting(control_token: Secret) -> Self {
        Self {
            claimed: false,
            access_token: None,
            control_token,
            environment: BTreeMap::new(),
            default_user: "root".to_owned(),
            working_directory: String::new(),
        }
    }
}

impl From<&Identity> for Role {
    fn from(identity: &Identity) -> Self {
        let mut environment = BTreeMap::from([
            ("E2B_SANDBOX".to_owned(), "true".to_owned()),
            ("E2B_SANDBOX_ID".to_owned(), identity.sandbox.to_string()),
            ("E2B_TEMPLATE_ID".to_owned(), identity.template.to_string()),
        ]);
        environment.extend(identity.environment.clone());
        Self {
            claimed: true,
            access_token: identity.access_token.clone(),
            control_token: identity.control_token.clone(),
            environment,
            default_user: identity.default_user.clone(),
            working_directory: identity.working_directory.clone(),
        }
    }
}
