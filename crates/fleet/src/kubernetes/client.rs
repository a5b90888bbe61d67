//! Requests to the API server.

use api::{ErrorCode, Problem, Secret};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url};
use serde::de::DeserializeOwned;
use std::{path::PathBuf, time::Duration};

/// An answer takes no longer; a watch may, and has a deadline of its own.
const DEADLINE: Duration = Duration::from_secs(15);
const CONNECT: Duration = Duration::from_secs(5);
/// A longer answer is refused, in bytes.
const LONGEST: usize = 64 << 20;
/// Where a pod finds who it is.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Where an API server is, and who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// Its address; that of the cluster which this process runs in if absent.
    pub url: Option<String>,
    /// The file that holds the token. It is read anew with every request, as tokens are replaced.
    pub token: Option<PathBuf>,
    /// The authority that signed its certificate, as PEM; those of the system if absent.
    pub certificate_authority: Option<PathBuf>,
}

/// Why a request was not answered as it should be.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// What was asked for is not there, or no longer.
    #[error("it is not there")]
    Missing,
    /// It is not as it was any more.
    #[error("it has changed meanwhile")]
    Changed,
    /// A disruption budget, or the server's own limits, forbid it for now.
    #[error("{0}")]
    NotNow(String),
    /// The server keeps no history so far back.
    #[error("the API server no longer knows what came after that")]
    TooOld,
    /// All else.
    #[error("{0}")]
    Failed(String),
}

/// An API server.
#[derive(Clone)]
pub struct Api {
    client: Client,
    url: Url,
    token: Option<PathBuf>,
}

impl Api {
    /// The API server at this place. Reads the authority's certificate.
    ///
    /// # Errors
    /// When there is none, or the certificate cannot be used.
    pub fn open(place: &Place) -> Result<Self, Problem> {
        let refuse = |cause: String| {
            Problem::new(
                ErrorCode::InvalidArgument,
                cause,
                "write `url`, `token` and `certificate_authority` in `[demand]`, or run Atoll in the cluster",
            )
        };
        let (mut token, mut authority) = (place.token.clone(), place.certificate_authority.clone());
        let url = match &place.url {
            Some(url) => url.clone(),
            None => {
                let variable = |name: &str| std::env::var(name).ok();
                let host =
                    variable("KUBERNETES_SERVICE_HOST").zip(variable("KUBERNETES_SERVICE_PORT"));
                let (host, port) = host.ok_or_else(|| {
                    refuse("this process does not run in a Kubernetes cluster".to_owned())
                })?;
                let inside = |name: &str| Some(PathBuf::from(ACCOUNT).join(name));
                token = token.or_else(|| inside("token"));
                authority = authority.or_else(|| inside("ca.crt"));
                match host.contains(':') {
                    true => format!("https://[{host}]:{port}"),
                    false => format!("https://{host}:{port}"),
                }
            }
        };
        let parsed = Url::parse(&url).ok();
        let parsed = parsed.filter(|one| matches!(one.scheme(), "http" | "https"));
        let parsed = parsed.ok_or_else(|| refuse(format!("`{url}` is no address")))?;
        let mut builder = Client::builder()
            .connect_timeout(CONNECT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy();
        if let Some(path) = authority {
            let pem = std::fs::read(&path)
                .map_err(|error| refuse(format!("cannot read {}: {error}", path.display())))?;
            let unusable = |error: reqwest::Error| refuse(format!("{}: {error}", path.display()));
            let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(unusable)?;
            builder = builder.tls_built_in_root_certs(false);
            for one in certificates {
                builder = builder.add_root_certificate(one);
            }
        }
        let client = builder.build().map_err(|error| refuse(error.to_string()))?;
        Ok(Self {
            client,
            url: parsed,
            token,
        })
    }

    async fn request(&self, method: Method, path: &str) -> Result<RequestBuilder, ApiError> {
        let failed = |cause: String| ApiError::Failed(cause);
        let base = self.url.as_str().trim_end_matches('/');
        let mut request = self.client.request(method, format!("{base}{path}"));
        if let Some(path) = &self.token {
            let text = tokio::fs::read_to_string(path).await;
            let text = text.map_err(|error| failed(format!("{}: {error}", path.display())))?;
            let token = Secret::new(text.trim());
            request = request.bearer_auth(token.expose());
        }
        Ok(request)
    }

    /// Asks for something once.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, ApiError> {
        let request = self.request(Method::GET, path).await?;
        let response = send(request.query(query).timeout(DEADLINE)).await?;
        let body = read(response).await?;
        serde_json::from_slice(&body)
            .map_err(|error| ApiError::Failed(format!("the answer is not understood: {error}")))
    }

    /// Begins to watch; the answer is read piece by piece.
    pub(super) async fn watch(
        &self,
        path: &str,
        query: &[(&str, &str)],
        deadline: Duration,
    ) -> Result<Response, ApiError> {
        let request = self.request(Method::GET, path).await?;
        send(request.query(query).timeout(deadline)).await
    }

    /// Merges something into what is there.
    pub(super) async fn patch(&self, path: &str, body: &serde_json::Value) -> Result<(), ApiError> {
        let request = self.request(Method::PATCH, path).await?;
        let request = request.header("content-type", "application/merge-patch+json");
        send(request.body(body.to_string()).timeout(DEADLINE)).await?;
        Ok(())
    }

    /// Merges something into what is there, list by list: entries of a list are told apart by their
    /// own key, such as the type of a condition.
    pub(super) async fn patch_lists(
        &self,
        path: &str,
        body: &serde_json::Value,
    ) -> Result<(), ApiError> {
        let request = self.request(Method::PATCH, path).await?;
        let request = request.header("content-type", "application/strategic-merge-patch+json");
        send(request.body(body.to_string()).timeout(DEADLINE)).await?;
        Ok(())
    }

    /// Deletes something, if it is still as it was at this version.
    pub(super) async fn delete(&self, path: &str, version: &str) -> Result<(), ApiError> {
        let request = self.request(Method::DELETE, path).await?;
        let body = serde_json::json!({
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": { "resourceVersion": version },
        });
        send(request.json(&body).timeout(DEADLINE)).await?;
        Ok(())
    }

    /// Makes something.
    pub(super) async fn post(&self, path: &str, body: &serde_json::Value) -> Result<(), ApiError> {
        let request = self.request(Method::POST, path).await?;
        send(request.json(body).timeout(DEADLINE)).await?;
        Ok(())
    }
}

async fn send(request: RequestBuilder) -> Result<Response, ApiError> {
    let response = request.send().await.map_err(failed)?;
    match response.status() {
        status if status.is_success() => Ok(response),
        StatusCode::NOT_FOUND => Err(ApiError::Missing),
        StatusCode::GONE => Err(ApiError::TooOld),
        status => {
            let body = read(response).await.unwrap_or_default();
            let said: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            let message = said["message"].as_str().unwrap_or_default();
            let message: String = message
                .chars()
                .filter(|c| !c.is_control())
                .take(300)
                .collect();
            let cause = format!("the API server answered {status}: {message}");
            match status {
                StatusCode::CONFLICT => Err(ApiError::Changed),
                StatusCode::TOO_MANY_REQUESTS => Err(ApiError::NotNow(cause)),
                _ => Err(ApiError::Failed(cause)),
            }
        }
    }
}

async fn read(mut response: Response) -> Result<Vec<u8>, ApiError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        body.extend_from_slice(&chunk);
        if body.len() > LONGEST {
            return Err(ApiError::Failed("the answer is too long".to_owned()));
        }
    }
    Ok(body)
}

pub(super) fn failed(error: reqwest::Error) -> ApiError {
    ApiError::Failed(error.without_url().to_string())
}
