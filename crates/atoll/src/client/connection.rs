//! Which Atoll to talk to, and with which key.

use crate::{client::Client, data_dir, failure::Failure};
use api::Secret;
use reqwest::Url;
use std::path::{Path, PathBuf};

/// Where `atoll up` listens and where clients look, unless told otherwise.
pub(crate) const DEFAULT_ADDRESS: &str = "127.0.0.1:3000";

/// Options by which a command finds its Atoll.
///
/// A key is never an argument, because arguments are visible to every user of the machine.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct Connection {
    /// Address of the API [default: the Atoll of --data-dir, else http://127.0.0.1:3000; also
    /// E2B_API_URL]
    #[arg(long, value_name = "URL", env = "ATOLL_URL", hide_env_values = true)]
    url: Option<String>,

    /// File that holds the API key [default: ATOLL_API_KEY, E2B_API_KEY, or `api-key` in
    /// --data-dir]
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,

    /// Data directory of an Atoll on this machine: its address and key are taken from there
    #[arg(
        long,
        value_name = "DIR",
        env = "ATOLL_DATA_DIR",
        hide_env_values = true
    )]
    data_dir: Option<PathBuf>,
}

impl Connection {
    /// The client that the options describe.
    ///
    /// # Errors
    /// When an address or a key file cannot be read.
    pub(crate) fn open(&self) -> anyhow::Result<Client> {
        let places = match &self.data_dir {
            Some(dir) => vec![dir.clone()],
            None => data_dir::candidates(),
        };
        let url = match self.url.clone().or_else(|| variable("E2B_API_URL")) {
            Some(text) => parse_url(&text)?,
            None => match places.iter().find_map(|dir| data_dir::read_address(dir)) {
                Some(text) => parse_url(&text)?,
                None => parse_url(&format!("http://{DEFAULT_ADDRESS}"))?,
            },
        };
        let sandbox_url = match variable("E2B_SANDBOX_URL") {
            Some(text) => parse_url(&text)?,
            None => sandbox_url(&url),
        };
        let key = find_key(self.api_key_file.as_deref(), &url, &places)?;
        Client::new(url, sandbox_url, key)
    }
}

/// The variable's value, if it is set and not empty.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn parse_url(text: &str) -> anyhow::Result<Url> {
    let with_scheme = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    match Url::parse(&with_scheme) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.host().is_some() => Ok(url),
        _ => Err(Failure::new(
            format!("`{text}` is not an address"),
            "write http://HOST:PORT or https://HOST",
        )
        .into()),
    }
}

/// Whether the address is this machine's own.
pub(crate) fn is_local(url: &Url) -> bool {
    let Some(host) = url.host_str() else {
        return false;
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

/// Sandboxes are behind the same door as the API; where the API has a name of its own
/// (`api.example.com`), the shared name of the sandboxes stands beside it.
fn sandbox_url(api: &Url) -> Url {
    let mut url = api.clone();
    if let Some(rest) = api.host_str().and_then(|host| host.strip_prefix("api.")) {
        let shared = format!("sandbox.{rest}");
        if url.set_host(Some(&shared)).is_err() {
            return api.clone();
        }
    }
    url
}

/// The key: from the file named, from the environment, or, for an Atoll on this machine only, from
/// its data directory. A local key is never sent to a stranger.
fn find_key(file: Option<&Path>, url: &Url, places: &[PathBuf]) -> anyhow::Result<Option<Secret>> {
    if let Some(path) = file {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Failure::new(
                format!("cannot read the key from {}: {error}", path.display()),
                "name a readable file that holds the key on its first line",
            )
        })?;
        return Ok(text.lines().next().map(|line| Secret::new(line.trim())));
    }
    if let Some(key) = variable("ATOLL_API_KEY").or_else(|| variable("E2B_API_KEY")) {
        return Ok(Some(Secret::new(key)));
    }
    if !is_local(url) {
        return Ok(None);
    }
    Ok(places.iter().find_map(|dir| data_dir::read_key(dir)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_key_stays_on_this_machine() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("api-key"), "e2b_0\n").unwrap();
        let places = [dir.path().to_owned()];
        let local = parse_url("http://127.0.0.1:3000").unwrap();
        let remote = parse_url("https://api.example.com").unwrap();
        assert_eq!(
            find_key(None, &local, &places).unwrap().unwrap().expose(),
            "e2b_0"
        );
        assert!(find_key(None, &remote, &places).unwrap().is_none());
    }

    #[test]
    fn addresses_are_understood() {
        assert_eq!(
            parse_url("localhost:3000").unwrap().as_str(),
            "http://localhost:3000/"
        );
        assert!(parse_url("ftp://x").is_err());
        assert!(is_local(&parse_url("http://[::1]:1").unwrap()));
        assert!(!is_local(&parse_url("http://10.0.0.1").unwrap()));
        let api = parse_url("https://api.example.com").unwrap();
        assert_eq!(sandbox_url(&api).as_str(), "https://sandbox.example.com/");
        let plain = parse_url("http://10.0.0.1:3000").unwrap();
        assert_eq!(sandbox_url(&plain), plain);
    }
}
