//! Sandboxes over the REST API.

use crate::{
    client::{Client, encode},
    failure::{Failure, is_not_found},
};
use anyhow::bail;
use api::{
    SandboxId, Secret,
    rest::{
        log::{LogEntry, LogsV2},
        sandbox::{
            Lifecycle, ListedSandbox, ListedState, MeshIdentity, NewSandbox, TimeoutRequest,
        },
    },
};
use jiff::Timestamp;
use serde::Deserialize;

/// A sandbox that one may talk to.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Opened {
    #[serde(rename = "sandboxID")]
    pub(crate) id: SandboxId,
    pub(crate) envd_access_token: Option<Secret>,
    pub(crate) mesh: Option<MeshIdentity>,
    state: Option<ListedState>,
    lifecycle: Option<Lifecycle>,
}

impl Opened {
    /// Whether it is paused and the traffic for it does not wake it.
    fn sleeps(&self) -> bool {
        let wakes = self.lifecycle.as_ref().is_some_and(|life| life.auto_resume);
        self.state == Some(ListedState::Paused) && !wakes
    }
}

/// The most pages that a list is followed for.
const PAGES_MAX: usize = 10_000;

impl Client {
    /// Creates a sandbox.
    ///
    /// # Errors
    /// [`api::Problem`] when it is refused.
    pub(crate) async fn create(&self, sandbox: &NewSandbox) -> anyhow::Result<Opened> {
        self.post("/v2/sandboxes", sandbox).await
    }

    /// All sandboxes that run or are paused, the latest first.
    ///
    /// # Errors
    /// [`api::Problem`] when it is refused.
    pub(crate) async fn sandboxes(&self) -> anyhow::Result<Vec<ListedSandbox>> {
        let mut all = Vec::new();
        let mut next: Option<String> = None;
        for _ in 0..PAGES_MAX {
            let path = match &next {
                Some(token) => format!("/v2/sandboxes?nextToken={}", encode(token)),
                None => "/v2/sandboxes".to_owned(),
            };
            let (items, token) = self.page::<ListedSandbox>(&path).await?;
            all.extend(items);
            match token {
                Some(token) => next = Some(token),
                None => return Ok(all),
            }
        }
        bail!("the list of sandboxes has no end")
    }

    /// The id that `text` stands for: an id, or the beginning of exactly one.
    ///
    /// # Errors
    /// When there is none or more than one.
    pub(crate) async fn resolve(&self, text: &str) -> anyhow::Result<SandboxId> {
        if let Ok(id) = text.parse() {
            return Ok(id);
        }
        let all = self.sandboxes().await?;
        let found = pick(text, all.iter(), |sandbox| &sandbox.sandbox_id);
        Ok(found
            .only("sandbox", text, "atoll ls")?
            .sandbox_id
            .parse()?)
    }

    /// What opens the sandbox's guest.
    ///
    /// # Errors
    /// [`api::Problem`] when there is no such sandbox; a [`Failure`] when it is paused and what is
    /// sent to it does not wake it.
    pub(crate) async fn open(&self, id: &SandboxId) -> anyhow::Result<Opened> {
        let opened: Opened = self.get(&format!("/sandboxes/{id}")).await?;
        if opened.sleeps() {
            return Err(Failure::new(
                format!("sandbox {id} is paused"),
                format!("bring it back with `atoll resume {id}`"),
            )
            .into());
        }
        Ok(opened)
    }

    /// Sets how long the sandbox still lives, counted from now.
    ///
    /// # Errors
    /// [`api::Problem`] when the sandbox does not run.
    pub(crate) async fn set_timeout(&self, id: &SandboxId, seconds: u64) -> anyhow::Result<()> {
        let body = TimeoutRequest {
            timeout: i64::try_from(seconds)?,
        };
        self.tell(&format!("/sandboxes/{id}/timeout"), &body).await
    }

    /// Ends the sandbox; false if it was not there.
    ///
    /// # Errors
    /// [`api::Problem`] when it is refused.
    pub(crate) async fn kill(&self, id: &SandboxId) -> anyhow::Result<bool> {
        match self.delete(&format!("/sandboxes/{id}")).await {
            Ok(()) => Ok(true),
            Err(error) if is_not_found(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// At most `limit` log lines at or after `from`, oldest first.
    ///
    /// # Errors
    /// [`api::Problem`] when the sandbox is not known.
    pub(crate) async fn logs(
        &self,
        id: &SandboxId,
        from: Option<Timestamp>,
        limit: usize,
    ) -> anyhow::Result<Vec<LogEntry>> {
        let mut path = format!("/v2/sandboxes/{id}/logs?direction=forward&limit={limit}");
        if let Some(from) = from {
            path.push_str(&format!("&cursor={}", from.as_millisecond()));
        }
        Ok(self.get::<LogsV2>(&path).await?.logs)
    }
}

/// The one item that `text` names or begins; `None` if there is none or it is not unique.
pub(crate) fn pick<'a, T>(
    text: &str,
    items: impl Iterator<Item = &'a T>,
    name: impl Fn(&T) -> &str,
) -> Pick<'a, T> {
    let mut found = Vec::new();
    for item in items {
        if name(item) == text {
            return Pick::One(item);
        }
        if !text.is_empty() && name(item).starts_with(text) {
            found.push(item);
        }
    }
    match found.as_slice() {
        [] => Pick::None,
        [one] => Pick::One(one),
        many => Pick::Many(many.len()),
    }
}

/// What a prefix stands for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pick<'a, T> {
    None,
    One(&'a T),
    Many(usize),
}

impl<'a, T> Pick<'a, T> {
    /// The one, or an error that says what to do.
    ///
    /// # Errors
    /// When there is none or more than one.
    pub(crate) fn only(self, kind: &str, text: &str, list: &str) -> anyhow::Result<&'a T> {
        match self {
            Self::One(item) => Ok(item),
            Self::None => Err(Failure::new(
                format!("there is no {kind} `{text}`"),
                format!("`{list}` shows what there is"),
            )
            .into()),
            Self::Many(count) => Err(Failure::new(
                format!("`{text}` stands for {count} {kind}s"),
                "write more of the id",
            )
            .into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_must_be_unique() {
        let ids = ["iabc1".to_owned(), "iabd2".to_owned(), "iab".to_owned()];
        let pick = |text: &str| pick(text, ids.iter(), |id| id).only("thing", text, "atoll ls");
        assert_eq!(pick("iabc").unwrap(), "iabc1");
        assert_eq!(
            pick("iab").unwrap(),
            "iab",
            "an exact name wins over longer ones"
        );
        assert_eq!(
            pick("ia").unwrap_err().to_string(),
            "`ia` stands for 3 things"
        );
        assert!(pick("x").is_err());
        assert!(pick("").is_err());
    }
}
