//! Asking an `atoll fleet serve`.

use crate::failure::Failure;
use anyhow::Context;
use api::{ErrorCode, Problem, Secret, error::ProblemBody};
use fleet::moment::{Moment, Span};
use jiff::Timestamp;
use reqwest::{StatusCode, Url};
use serde::de::DeserializeOwned;
use std::{path::PathBuf, time::Duration};

/// Where `atoll fleet serve` listens unless told otherwise.
pub(super) const DEFAULT_LISTEN: &str = "127.0.0.1:3301";
/// The variable that holds the token.
pub(super) const TOKEN: &str = "ATOLL_FLEET_TOKEN";
const DEADLINE: Duration = Duration::from_secs(60);

/// Options by which a command finds the `atoll fleet serve` that it asks.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Connection")]
pub(super) struct Connection {
    /// Address of `atoll fleet serve` [default: http://127.0.0.1:3301]
    #[arg(
        long,
        value_name = "URL",
        env = "ATOLL_FLEET_URL",
        hide_env_values = true
    )]
    url: Option<String>,

    /// File that holds the token [default: ATOLL_FLEET_TOKEN]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// The token, from the file or from the environment.
///
/// # Errors
/// When the file cannot be read or is empty.
pub(super) fn token(file: Option<&PathBuf>) -> anyhow::Result<Option<Secret>> {
    if let Some(path) = file {
        return Ok(Some(
            fleet::config::SecretSource::File(path.clone()).read()?,
        ));
    }
    let variable = std::env::var(TOKEN).ok().filter(|one| !one.is_empty());
    Ok(variable.map(Secret::new))
}

/// A connection.
pub(super) struct Asker {
    client: reqwest::Client,
    url: Url,
    token: Option<Secret>,
}

impl Connection {
    /// Opens it; nothing is sent yet.
    ///
    /// # Errors
    /// When the address or the token file cannot be used.
    pub(super) fn open(&self) -> anyhow::Result<Asker> {
        let text = self.url.clone();
        let text = text.unwrap_or_else(|| format!("http://{DEFAULT_LISTEN}"));
        let url = Url::parse(&text)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.host().is_some());
        let url = url.ok_or_else(|| {
            Failure::new(
                format!("`{text}` is not an address"),
                "write http://HOST:PORT",
            )
        })?;
        let mut builder = reqwest::Client::builder().timeout(DEADLINE).no_proxy();
        if url.scheme() == "http" {
            builder = builder.tls_built_in_root_certs(false);
        }
        Ok(Asker {
            client: builder.build().context("cannot set up the HTTP client")?,
            url,
            token: token(self.token_file.as_ref())?,
        })
    }
}

impl Asker {
    /// Asks for something.
    ///
    /// # Errors
    /// When nothing answers, or with the problem that is answered.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> anyhow::Result<T> {
        let mut url = self.url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["v1", "fleet"]).extend(path);
        }
        let mut request = self.client.get(url).query(query);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose());
        }
        let response = request.send().await.map_err(|error| {
            if error.is_connect() {
                let hint = "start `atoll fleet serve`, or name its address with --url";
                return Failure::new(format!("nothing answers at {}", self.url), hint).into();
            }
            anyhow::Error::from(error.without_url())
        })?;
        let status = response.status();
        let body = response.bytes().await.context("the answer broke off")?;
        if status == StatusCode::OK {
            return serde_json::from_slice(&body).context("the answer is not understood");
        }
        let problem: Option<ProblemBody> = serde_json::from_slice(&body).ok();
        let problem = problem.map(|one| {
            let code = one.error_code.unwrap_or(ErrorCode::Internal);
            Problem::new(code, one.message, one.remedy.unwrap_or_default())
        });
        match problem {
            Some(problem) => Err(problem.into()),
            None => Err(Failure::new(
                format!("{} answered {status}", self.url),
                "check that `atoll fleet serve` listens there",
            )
            .into()),
        }
    }
}

/// A moment on the command line: `2026-05-01T12:00:00Z`, seconds since 1970, or `2h` for two hours ago.
#[derive(Debug, Clone, Copy)]
pub(super) struct When(pub(super) Moment);

impl std::str::FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let moment = |seconds: i64| u64::try_from(seconds).ok().map(Moment);
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let found = if text == "now" {
            Some(now())
        } else if digits {
            text.parse().ok().map(Moment)
        } else if let Ok(ago) = text.parse::<Span>() {
            Some(now().minus(ago))
        } else {
            let parsed: Option<Timestamp> = text.parse().ok();
            parsed.and_then(|one| moment(one.as_second()))
        };
        found.map(Self).ok_or_else(|| {
            format!("`{text}` is no time: write 2026-05-01T12:00:00Z, or 2h for two hours ago")
        })
    }
}

/// The time.
pub(super) fn now() -> Moment {
    Moment(u64::try_from(Timestamp::now().as_second()).unwrap_or(0))
}

/// A moment for people.
pub(super) fn show(moment: Moment) -> String {
    let seconds = i64::try_from(moment.0).ok();
    let stamp = seconds.and_then(|one| Timestamp::from_second(one).ok());
    stamp.map_or_else(|| moment.0.to_string(), |one| one.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_three_ways() {
        let at = |text: &str| text.parse::<When>().unwrap().0;
        assert_eq!(at("2026-05-01T12:00:00Z"), Moment(1_777_636_800));
        assert_eq!(at("1777636800"), Moment(1_777_636_800));
        assert!(now().since(at("2h")).0.abs_diff(7200) <= 1);
        assert!("yesterday".parse::<When>().is_err());
        assert_eq!(show(Moment(1_777_636_800)), "2026-05-01T12:00:00Z");
    }
}
