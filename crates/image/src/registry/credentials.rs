//! Credentials from Docker's configuration file and its helpers.

use super::reference::DOCKER_HUB;
use crate::error::ImageError;
use api::Secret;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The name under which Docker files Docker Hub's credentials.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// The largest configuration, or answer of a helper, that is read.
const FILE_MAX: u64 = 1 << 20;
/// How long a helper may take: it may ask a key ring, or a cloud.
const HELPER_DEADLINE: Duration = Duration::from_secs(30);

/// What convinces a registry.
#[derive(Debug, Clone, PartialEq)]
pub enum Credentials {
    /// Nothing.
    Anonymous,
    /// A user and a password.
    Password {
        /// The user.
        user: String,
        /// The password, or a token used as one.
        password: Secret,
    },
    /// A token to be exchanged for an access token (OAuth 2 refresh token).
    Identity(Secret),
}

/// Where Docker's configuration says that a registry's credentials are.
#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    /// Here.
    Here(Credentials),
    /// With the helper `docker-credential-NAME`, filed under `key`.
    Helper {
        /// The helper's name.
        name: String,
        /// What to ask it for.
        key: String,
    },
}

#[derive(Deserialize, Default)]
struct ConfigFile {
    #[serde(default)]
    auths: BTreeMap<String, Option<AuthEntry>>,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

#[derive(Deserialize, Default)]
struct AuthEntry {
    auth: Option<Secret>,
    username: Option<String>,
    password: Option<Secret>,
    #[serde(rename = "identitytoken")]
    identity: Option<Secret>,
}

#[derive(Deserialize)]
struct HelperAnswer {
    #[serde(rename = "Username")]
    user: String,
    #[serde(rename = "Secret")]
    secret: Secret,
}

/// Looks a registry up in the text of Docker's configuration file. The error is what is wrong
/// with the text; it never repeats any of it.
pub fn look_up(config: &[u8], registry: &str) -> Result<Found, &'static str> {
    let config: ConfigFile =
        serde_json::from_slice(config).map_err(|_| "it is not JSON of the known form")?;
    let key = if registry == DOCKER_HUB {
        DOCKER_HUB_KEY
    } else {
        registry
    };
    let helper = config
        .helpers
        .get(registry)
        .or_else(|| config.helpers.get(key));
    if let Some(name) = helper.or(config.store.as_ref().filter(|name| !name.is_empty())) {
        let harmless =
            |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' || byte == b'.';
        if !name.bytes().all(harmless) || name.len() > 100 {
            return Err("a credential helper has an impossible name");
        }
        return Ok(Found::Helper {
            name: name.clone(),
            key: key.to_owned(),
        });
    }
    let entry = config
        .auths
        .iter()
        .find(|(name, _)| *name == key || host_of(name) == registry);
    let Some((_, Some(entry))) = entry else {
        return Ok(Found::Here(Credentials::Anonymous));
    };
    if let Some(token) = entry
        .identity
        .as_ref()
        .filter(|token| !token.expose().is_empty())
    {
        return Ok(Found::Here(Credentials::Identity(token.clone())));
    }
    if let (Some(user), Some(password)) = (&entry.username, &entry.password) {
        let (user, password) = (user.clone(), password.clone());
        return Ok(Found::Here(Credentials::Password { user, password }));
    }
    let Some(auth) = entry.auth.as_ref().filter(|auth| !auth.expose().is_empty()) else {
        return Ok(Found::Here(Credentials::Anonymous));
    };
    const MALFORMED: &str = "an `auth` is not base64 of user:password";
    let decoded = STANDARD
        .decode(auth.expose().trim())
        .map_err(|_| MALFORMED)?;
    let decoded = String::from_utf8(decoded).map_err(|_| MALFORMED)?;
    let (user, password) = decoded.split_once(':').ok_or(MALFORMED)?;
    Ok(Found::Here(Credentials::Password {
        user: user.to_owned(),
        password: Secret::new(password.trim_end_matches('\0')),
    }))
}

/// The host in a key such as `https://registry.example/v1/`.
fn host_of(key: &str) -> &str {
    let key = key.split_once("://").map_or(key, |(_, rest)| rest);
    key.split('/').next().unwrap_or_default()
}

/// Where Docker's configuration lies.
fn default_path() -> Option<PathBuf> {
    let directory = match std::env::var_os("DOCKER_CONFIG").filter(|path| !path.is_empty()) {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".docker"),
    };
    Some(directory.join("config.json"))
}

/// The credentials for a registry; anonymous if there is no configuration.
pub async fn of_registry(config: Option<&Path>, registry: &str) -> Result<Credentials, ImageError> {
    let Some(path) = config.map(Path::to_owned).or_else(default_path) else {
        return Ok(Credentials::Anonymous);
    };
    let mut content = Vec::new();
    match tokio::fs::File::open(&path).await {
        Ok(file) => {
            let read = file.take(FILE_MAX).read_to_end(&mut content).await;
            read.map_err(ImageError::path("read", &path))?;
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Credentials::Anonymous);
        }
        Err(error) => return Err(ImageError::path("read", &path)(error)),
    }
    let found = look_up(&content, registry).map_err(|what| ImageError::Registry {
        cause: format!(
            "Docker's configuration `{}` can't be used: {what}",
            path.display()
        ),
        remedy: "repair it, or log in again with `docker login`".into(),
    })?;
    match found {
        Found::Here(credentials) => Ok(credentials),
        Found::Helper { name, key } => ask_helper(&name, &key).await,
    }
}

async fn ask_helper(name: &str, key: &str) -> Result<Credentials, ImageError> {
    let program = format!("docker-credential-{name}");
    let failed = |why: String| ImageError::Registry {
        cause: format!("`{program}`, which Docker's configuration names, {why}"),
        remedy: "install or repair it, or remove it from Docker's configuration".into(),
    };
    let mut child = tokio::process::Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(format!("can't be started: {error}")))?;
    let talk = async {
        if let Some(mut input) = child.stdin.take() {
            input.write_all(key.as_bytes()).await?;
            input.shutdown().await?;
        }
        let mut answer = Vec::new();
        if let Some(output) = child.stdout.take() {
            output.take(FILE_MAX).read_to_end(&mut answer).await?;
        }
        std::io::Result::Ok((child.wait().await?, answer))
    };
    let (status, answer) = tokio::time::timeout(HELPER_DEADLINE, talk)
        .await
        .map_err(|_| failed("does not answer".into()))?
        .map_err(|error| failed(format!("can't be talked to: {error}")))?;
    if !status.success() {
        // That is how helpers say that they have nothing.
        return Ok(Credentials::Anonymous);
    }
    let answer: HelperAnswer =
        serde_json::from_slice(&answer).map_err(|_| failed("does not answer in JSON".into()))?;
    Ok(match answer.user.as_str() {
        "<token>" => Credentials::Identity(answer.secret),
        _ => Credentials::Password {
            user: answer.user,
            password: answer.secret,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(user: &str, password: &str) -> Found {
        Found::Here(Credentials::Password {
            user: user.into(),
            password: Secret::new(password),
        })
    }

    #[test]
    fn dockers_configuration_is_understood() {
        let config = br#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "dXNlcjpwYTpzcw=="},
            "https://r.example/v2/": {"username": "u", "password": "p"},
            "t.example": {"auth": "", "identitytoken": "tok"}, "e.example": {}
        }, "credHelpers": {"h.example": "cloud"}, "HttpHeaders": {"x": "y"}}"#;
        assert_eq!(look_up(config, "docker.io"), Ok(password("user", "pa:ss")));
        assert_eq!(look_up(config, "r.example"), Ok(password("u", "p")));
        let identity = Found::Here(Credentials::Identity(Secret::new("tok")));
        assert_eq!(look_up(config, "t.example"), Ok(identity));
        for unknown in ["e.example", "other.example", "example"] {
            let found = look_up(config, unknown);
            assert_eq!(found, Ok(Found::Here(Credentials::Anonymous)));
        }
        let helper = Found::Helper {
            name: "cloud".into(),
            key: "h.example".into(),
        };
        assert_eq!(look_up(config, "h.example"), Ok(helper));
    }

    #[test]
    fn a_helper_is_a_name_and_not_a_path() {
        for name in ["../../bin/sh", "a b", "x/y"] {
            let config = format!(r#"{{"credsStore": "{name}"}}"#);
            assert!(look_up(config.as_bytes(), "docker.io").is_err());
        }
        assert!(look_up(b"nonsense", "docker.io").is_err());
    }
}
