//! One registry, one repository: authenticated requests with retries.

use super::{
    challenge::{Challenge, parse_challenges},
    credentials::{self, Credentials},
    reach::{self, Judge, Resolver, Unreachable},
    reference::Reference,
};
use crate::{error::ImageError, source::manifest, store::Inner};
use api::{Secret, template::Requester};
use reqwest::{
    Method, Response, StatusCode,
    header::{ACCEPT, AUTHORIZATION, HeaderValue, RANGE, RETRY_AFTER, WWW_AUTHENTICATE},
};
use serde::Deserialize;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// Tries of a request that fails for a reason that may pass.
pub(super) const TRIES: u32 = 5;
/// The longest wait that a registry may ask for.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// The largest answer of a token server.
const TOKEN_MAX: u64 = 1 << 20;
const REDIRECTS_MAX: usize = 5;

/// A repository in a registry.
pub(crate) struct Repository {
    http: reqwest::Client,
    reference: Reference,
    base: String,
    insecure: bool,
    requester: Requester,
    /// Which addresses may be reached; all if absent.
    judge: Option<Judge>,
    credentials: Credentials,
    /// The `Authorization` header that worked last.
    authorization: Mutex<Option<Secret>>,
}

/// How a request ended that did not succeed.
#[derive(Debug)]
pub(super) enum RequestError {
    /// It may succeed later, or after the given wait.
    Passing(String, Option<Duration>),
    /// It won't.
    Lasting(ImageError),
}

impl From<ImageError> for RequestError {
    fn from(error: ImageError) -> Self {
        Self::Lasting(error)
    }
}

impl Repository {
    /// Makes ready to speak to a registry. For a tenant it is spoken to without credentials, and
    /// only if it is on the internet.
    pub(crate) async fn open(
        store: &Inner,
        reference: Reference,
        requester: Requester,
    ) -> Result<Self, ImageError> {
        let (client, judge) = match requester {
            Requester::Administrator => (&store.http, None),
            Requester::Tenant => (&store.tenants_http, Some(reach::is_public as Judge)),
        };
        let http = match client.get() {
            Some(http) => http.clone(),
            None => {
                let made = tokio::task::spawn_blocking(move || make_client(judge))
                    .await
                    .map_err(|error| ImageError::Internal(error.to_string()))??;
                client.get_or_init(|| made).clone()
            }
        };
        let insecure = store
            .options
            .insecure_registries
            .contains(&reference.registry);
        let scheme = if insecure { "http" } else { "https" };
        let config = store.options.docker_config.as_deref();
        Ok(Self {
            http,
            base: format!(
                "{scheme}://{}/v2/{}",
                reference.api_host(),
                reference.repository
            ),
            insecure,
            requester,
            judge,
            credentials: match requester {
                Requester::Administrator => {
                    credentials::of_registry(config, &reference.registry).await?
                }
                Requester::Tenant => Credentials::Anonymous,
            },
            authorization: Mutex::new(None),
            reference,
        })
    }

    /// The manifest or index that `name` (a tag or a digest) names, at most
    /// [`manifest::MANIFEST_MAX`] bytes.
    pub(crate) async fn manifest(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        self.small(&format!("manifests/{name}"), manifest::MANIFEST_MAX)
            .await
    }

    /// A small document.
    pub(crate) async fn small(&self, path: &str, limit: u64) -> Result<Vec<u8>, ImageError> {
        let mut tries = 0;
        loop {
            let attempt = async {
                let response = self.get(path, None).await?;
                read_bounded(response, limit).await
            };
            match attempt.await {
                Ok(content) => return Ok(content),
                Err(error) => self.wait_or_fail(error, &mut tries).await?,
            }
        }
    }

    /// Waits before another try, or gives up.
    pub(super) async fn wait_or_fail(
        &self,
        error: RequestError,
        tries: &mut u32,
    ) -> Result<(), ImageError> {
        let (cause, wait) = match error {
            RequestError::Lasting(error) => return Err(error),
            RequestError::Passing(cause, wait) => (cause, wait),
        };
        *tries += 1;
        if *tries >= TRIES {
            return Err(ImageError::Registry {
                cause: format!("{}: {cause}", self.reference.registry),
                remedy: "check the network and the registry, then build again: what was fetched \
                         is kept"
                    .into(),
            });
        }
        tracing::debug!(
            registry = self.reference.registry,
            cause,
            tries,
            "trying again"
        );
        let back_off = Duration::from_millis(250 << *tries);
        tokio::time::sleep(wait.unwrap_or(back_off).min(WAIT_MAX)).await;
        Ok(())
    }

    /// Asks for `path` in the repository, from byte `from` on.
    pub(super) async fn get(
        &self,
        path: &str,
        from: Option<u64>,
    ) -> Result<Response, RequestError> {
        let url = self.reachable(&format!("{}/{path}", self.base))?;
        let send = || {
            let mut request = self
                .http
                .request(Method::GET, url.clone())
                .header(ACCEPT, manifest::ACCEPTED);
            if let Some(from) = from {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let known = self
                .authorization
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            if let Some(value) = known.and_then(|known| HeaderValue::from_str(known.expose()).ok())
            {
                let mut value = value;
                value.set_sensitive(true);
                request = request.header(AUTHORIZATION, value);
            }
            request.send()
        };
        let mut response = send().await.map_err(passing)?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let challenges: Vec<Challenge> = response
                .headers()
                .get_all(WWW_AUTHENTICATE)
                .iter()
                .filter_map(|value| value.to_str().ok())
                .flat_map(parse_challenges)
                .collect();
            let authorization = self.authorize(&challenges).await?;
            *self
                .authorization
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = authorization;
            response = send().await.map_err(passing)?;
        }
        self.judge(response)
    }

    /// A URL, unless its host may not be reached.
    fn reachable(&self, text: &str) -> Result<reqwest::Url, RequestError> {
        let url = reqwest::Url::parse(text).map_err(|error| {
            ImageError::Internal(format!("a registry's address cannot be used: {error}"))
        })?;
        match self.judge.map(|judge| reach::check(&url, judge)) {
            Some(Err(error)) => Err(unreachable(&error).into()),
            _ => Ok(url),
        }
    }

    fn judge(&self, response: Response) -> Result<Response, RequestError> {
        let status = response.status();
        let registry = &self.reference.registry;
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        let wait = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        let lasting = |cause: String, remedy: String| {
            Err(RequestError::Lasting(ImageError::Registry {
                cause,
                remedy,
            }))
        };
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => lasting(
                format!("{registry} does not let us pull {}", self.reference),
                match self.requester {
                    Requester::Administrator => format!(
                        "check the name; if it is private, run `docker login {registry}` first"
                    ),
                    Requester::Tenant => {
                        "check the name; if it is private, build with an admin key, which may use \
                         the node's credentials"
                            .into()
                    }
                },
            ),
            StatusCode::NOT_FOUND => lasting(
                format!("{registry} has no {}", self.reference),
                "check the name and the tag".into(),
            ),
            _ if status == StatusCode::TOO_MANY_REQUESTS
                || status == StatusCode::REQUEST_TIMEOUT
                || status.is_server_error() =>
            {
                Err(RequestError::Passing(format!("it answers {status}"), wait))
            }
            _ => lasting(
                format!("{registry} answers {status} for {}", self.reference),
                "check that it is an OCI registry".into(),
            ),
        }
    }

    /// What to send so that a challenge is met.
    async fn authorize(&self, challenges: &[Challenge]) -> Result<Option<Secret>, RequestError> {
        let of = |scheme: &str| {
            challenges
                .iter()
                .find(|challenge| challenge.scheme == scheme)
        };
        if let Some(challenge) = of("bearer") {
            let token = self.fetch_token(challenge).await?;
            return Ok(Some(Secret::new(format!("Bearer {}", token.expose()))));
        }
        match (&self.credentials, of("basic")) {
            (Credentials::Password { user, password }, Some(_)) => {
                use base64::{Engine, engine::general_purpose::STANDARD};
                let encoded = STANDARD.encode(format!("{user}:{}", password.expose()));
                Ok(Some(Secret::new(format!("Basic {encoded}"))))
            }
            _ => Ok(None),
        }
    }

    async fn fetch_token(&self, challenge: &Challenge) -> Result<Secret, RequestError> {
        let registry = &self.reference.registry;
        let refuse = |why: &str| {
            RequestError::Lasting(ImageError::Registry {
                cause: format!("{registry} asks for a token in a way that {why}"),
                remedy: "check the registry's configuration".into(),
            })
        };
        let realm = challenge
            .parameters
            .get("realm")
            .ok_or_else(|| refuse("names no server"))?;
        let url = reqwest::Url::parse(realm).map_err(|_| refuse("names no server"))?;
        if url.scheme() != "https" && !(self.insecure && url.scheme() == "http") {
            return Err(refuse("would send credentials without TLS"));
        }
        let url = self.reachable(url.as_str())?;
        let scope = challenge
            .parameters
            .get("scope")
            .cloned()
            .unwrap_or_else(|| format!("repository:{}:pull", self.reference.repository));
        let service = challenge
            .parameters
            .get("service")
            .cloned()
            .unwrap_or_default();
        let query = [("service", service.as_str()), ("scope", scope.as_str())];
        let request = match &self.credentials {
            Credentials::Anonymous => self.http.get(url).query(&query),
            Credentials::Password { user, password } => self
                .http
                .get(url)
                .query(&query)
                .basic_auth(user, Some(password.expose())),
            Credentials::Identity(token) => self.http.post(url).form(&[
                ("grant_type", "refresh_token"),
                ("client_id", "atoll"),
                ("refresh_token", token.expose()),
                query[0],
                query[1],
            ]),
        };
        let response = self.judge(request.send().await.map_err(passing)?)?;
        #[derive(Deserialize)]
        struct Answer {
            token: Option<Secret>,
            access_token: Option<Secret>,
        }
        let content = read_bounded(response, TOKEN_MAX).await?;
        let answer: Answer =
            serde_json::from_slice(&content).map_err(|_| refuse("leads to no token"))?;
        answer
            .token
            .or(answer.access_token)
            .ok_or_else(|| refuse("leads to no token"))
    }
}

async fn read_bounded(mut response: Response, limit: u64) -> Result<Vec<u8>, RequestError> {
    let mut content = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(passing)? {
        if (content.len() + chunk.len()) as u64 > limit {
            return Err(RequestError::Lasting(ImageError::Registry {
                cause: format!("a document is longer than {limit} bytes"),
                remedy: "ask the image's publisher for a sound one".into(),
            }));
        }
        content.extend_from_slice(&chunk);
    }
    Ok(content)
}

/// A failure of the network, with all its causes and without the address, which may hold a
/// signature.
pub(super) fn passing(error: reqwest::Error) -> RequestError {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<Unreachable>() {
            return unreachable(error).into();
        }
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    RequestError::Passing(text, None)
}

/// A host that may not be reached stays so: trying again is of no use.
fn unreachable(error: &Unreachable) -> ImageError {
    ImageError::Registry {
        cause: error.to_string(),
        remedy: "build with an admin key, or name a registry on the internet".into(),
    }
}

fn make_client(judge: Option<Judge>) -> Result<reqwest::Client, ImageError> {
    // On another host or port the library sends no `Authorization`.
    let redirects = reqwest::redirect::Policy::custom(move |attempt| {
        let refused = judge.and_then(|judge| reach::check(attempt.url(), judge).err());
        let from_tls = attempt
            .previous()
            .last()
            .is_some_and(|url| url.scheme() == "https");
        if attempt.previous().len() > REDIRECTS_MAX {
            attempt.error("too many redirects")
        } else if from_tls && attempt.url().scheme() != "https" {
            attempt.error("a redirect leaves TLS")
        } else if let Some(refused) = refused {
            attempt.error(refused)
        } else {
            attempt.follow()
        }
    });
    let mut client = reqwest::Client::builder();
    if let Some(judge) = judge {
        // A proxy would resolve names itself, and may be in a private network.
        client = client.no_proxy().dns_resolver(Arc::new(Resolver(judge)));
    }
    client
        .redirect(redirects)
        .connect_timeout(Duration::from_secs(20))
        .read_timeout(Duration::from_secs(60))
        .user_agent(concat!("atoll/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| ImageError::Internal(format!("no HTTP client: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{IpAddr, Ipv4Addr};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    /// A server that redirects everybody to `location`, once.
    async fn redirect(location: &str) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = format!(
            "HTTP/1.1 307 Temporary Redirect\r\nlocation: {location}\r\ncontent-length: 0\r\n\
             connection: close\r\n\r\n"
        );
        tokio::spawn(async move {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                client.read_buf(&mut head).await.unwrap();
            }
            client.write_all(answer.as_bytes()).await.unwrap();
        });
        address
    }

    #[tokio::test]
    async fn a_tenants_pull_follows_no_redirect_into_a_private_network() {
        // For this test the one loopback address plays the internet.
        let judge: Judge = |address| address == IpAddr::V4(Ipv4Addr::LOCALHOST);
        let client = make_client(Some(judge)).unwrap();
        for location in [
            "http://127.0.0.2:1/x",
            "http://[::1]:1/x",
            "http://0x7f000003:1/x",
        ] {
            let address = redirect(location).await;
            let sent = client.get(format!("http://{address}/")).send().await;
            match passing(sent.unwrap_err()) {
                RequestError::Lasting(error) => {
                    assert!(error.to_string().contains("private network"), "{error}");
                }
                other => panic!("{location}: {other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_tenants_names_are_judged_by_what_they_resolve_to() {
        let client = make_client(Some(reach::is_public)).unwrap();
        let sent = client.get("http://localhost:1/").send().await;
        assert!(matches!(
            passing(sent.unwrap_err()),
            RequestError::Lasting(ImageError::Registry { .. })
        ));
    }
}
