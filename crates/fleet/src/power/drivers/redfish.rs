//! Redfish (DMTF DSP0266): sessions or basic authentication, a pinned certificate, the reset action.

use super::command::no_suspension;
use crate::{
    config::PowerEntry,
    power::{PowerDriver, PowerError, Reading, Switch},
};
use api::{ErrorCode, Problem, Secret};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, header};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::sync::Mutex;

/// One request takes no longer, unless the configuration says less.
const DEADLINE: Duration = Duration::from_secs(10);
/// No answer is read further.
const LONGEST: usize = 1 << 20;
const SESSIONS: &str = "/redfish/v1/SessionService/Sessions";
const SYSTEMS: &str = "/redfish/v1/Systems";

/// How requests say who asks.
#[derive(Clone, Default)]
enum Access {
    /// Nothing was tried yet.
    #[default]
    None,
    /// A session's token.
    Token(Secret),
    /// Name and password with each request, as the controller has no sessions.
    Basic,
}

/// Switches through a Redfish service.
pub struct RedfishDriver {
    client: Client,
    address: String,
    system: Mutex<Option<String>>,
    user: String,
    password: Secret,
    access: Mutex<Access>,
    timeout: Duration,
}

impl RedfishDriver {
    /// The service that a configuration describes. Its password is read now.
    ///
    /// # Errors
    /// When the entry is another driver's, the secret cannot be read or TLS cannot be set up.
    pub fn open(entry: &PowerEntry) -> Result<Self, Problem> {
        let refuse = |cause: String| Problem::new(ErrorCode::InvalidArgument, cause, "");
        let PowerEntry::Redfish {
            address,
            system,
            user,
            password,
            certificate_sha256,
            timeout,
        } = entry
        else {
            return Err(refuse("this is no Redfish driver".to_owned()));
        };
        let timeout = timeout.map_or(DEADLINE, |span| Duration::from_secs(span.0));
        let mut builder = Client::builder()
            .timeout(timeout)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy();
        if let Some(pin) = certificate_sha256 {
            let tls = pinned::configuration(pin).map_err(refuse)?;
            builder = builder.use_preconfigured_tls(tls);
        }
        let client = builder
            .build()
            .map_err(|error| refuse(format!("TLS cannot be set up: {error}")))?;
        Ok(Self {
            client,
            address: address.trim_end_matches('/').to_owned(),
            system: Mutex::new(system.clone()),
            user: user.clone(),
            password: password.read()?,
            access: Mutex::default(),
            timeout,
        })
    }

    /// Sends a request with what says who asks; once more with a new session if that has ended.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        tag: Option<&str>,
    ) -> Result<Response, PowerError> {
        let mut fresh = false;
        loop {
            let access = self.access(fresh).await?;
            let mut request = self
                .client
                .request(method.clone(), format!("{}{path}", self.address));
            request = match &access {
                Access::Token(token) => request.header("X-Auth-Token", token.expose()),
                Access::Basic | Access::None => {
                    request.basic_auth(&self.user, Some(self.password.expose()))
                }
            };
            if let Some(tag) = tag {
                request = request.header(header::IF_MATCH, tag);
            }
            if let Some(body) = body {
                request = request.json(body);
            }
            let response = self.send(request).await?;
            match response.status() {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if fresh => {
                    return Err(PowerError::Denied);
                }
                StatusCode::UNAUTHORIZED => fresh = true,
                _ => return Ok(response),
            }
        }
    }

    /// What says who asks: a session if the service has them.
    async fn access(&self, fresh: bool) -> Result<Access, PowerError> {
        let mut access = self.access.lock().await;
        if fresh {
            *access = Access::None;
        }
        if !matches!(*access, Access::None) {
            return Ok(access.clone());
        }
        let body = json!({ "UserName": self.user, "Password": self.password.expose() });
        let url = format!("{}{SESSIONS}", self.address);
        let response = self.send(self.client.post(url).json(&body)).await?;
        let token = response.headers().get("X-Auth-Token");
        let token = token.and_then(|value| value.to_str().ok());
        *access = match (response.status(), token) {
            (status, Some(token)) if status.is_success() => Access::Token(Secret::new(token)),
            // It may have sessions and not accept this user, or have none: basic decides.
            _ => Access::Basic,
        };
        Ok(access.clone())
    }

    /// The path of the system: as configured, or the only one that there is.
    async fn path(&self) -> Result<String, PowerError> {
        let mut system = self.system.lock().await;
        if let Some(path) = &*system {
            return Ok(path.clone());
        }
        let list = read(self.ask(Method::GET, SYSTEMS, None, None).await?)
            .await?
            .0;
        let members = list["Members"].as_array().map_or(&[][..], Vec::as_slice);
        let [only] = members else {
            return Err(PowerError::Unsupported(format!(
                "the service has {} systems: name one with `system`",
                members.len()
            )));
        };
        let path = only["@odata.id"]
            .as_str()
            .filter(|path| path.starts_with('/'));
        let Some(path) = path else {
            return Err(PowerError::Failed("the system has no path".to_owned()));
        };
        *system = Some(path.to_owned());
        Ok(path.to_owned())
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, PowerError> {
        request.send().await.map_err(|error| {
            if error.is_timeout() {
                PowerError::TimedOut(self.timeout)
            } else {
                // Without the address, which may carry a name and a password.
                PowerError::Failed(format!("no answer: {}", cause(&error.without_url())))
            }
        })
    }

    /// The system as it is, and its tag.
    async fn system(&self) -> Result<(Value, Option<String>), PowerError> {
        let path = self.path().await?;
        read(self.ask(Method::GET, &path, None, None).await?).await
    }
}

/// The innermost cause: the outer ones only say that something could not be sent.
fn cause(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    let text = inner.to_string();
    // Controllers sign their own.
    if text.starts_with("invalid peer certificate") {
        format!("{text}; name it in `certificate_sha256` if it is the controller's own")
    } else {
        text
    }
}

/// The answer as JSON, with its tag.
async fn read(mut response: Response) -> Result<(Value, Option<String>), PowerError> {
    let status = response.status();
    if !status.is_success() {
        return Err(PowerError::Failed(format!("the service answered {status}")));
    }
    let tag = response.headers().get(header::ETAG);
    let tag = tag.and_then(|value| value.to_str().ok()).map(str::to_owned);
    let mut body = Vec::new();
    let broken = |_| PowerError::Failed("the answer broke off".to_owned());
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        if body.len() + chunk.len() > LONGEST {
            return Err(PowerError::Failed("the answer is too long".to_owned()));
        }
        body.extend_from_slice(&chunk);
    }
    let value = serde_json::from_slice(&body)
        .map_err(|_| PowerError::Failed("the answer is no JSON".to_owned()))?;
    Ok((value, tag))
}

/// The first of the ways to do this that the system says it knows; the usual one if it says
/// nothing.
fn reset_type(system: &Value, switch: Switch) -> Result<&'static str, PowerError> {
    let ways: &[&'static str] = match switch {
        Switch::On => &["On", "ForceOn"],
        Switch::Off => &["GracefulShutdown"],
        Switch::ForceOff => &["ForceOff"],
        Switch::Suspend => return Err(no_suspension()),
    };
    let allowed = &system["Actions"]["#ComputerSystem.Reset"]["ResetType@Redfish.AllowableValues"];
    let Some(allowed) = allowed.as_array() else {
        return Ok(ways[0]);
    };
    let known = ways
        .iter()
        .find(|way| allowed.iter().any(|one| one == *way));
    known.copied().ok_or_else(|| {
        PowerError::Unsupported(format!("the system does not know {}", ways.join(" or ")))
    })
}

#[async_trait::async_trait]
impl PowerDriver for RedfishDriver {
    fn name(&self) -> &'static str {
        "redfish"
    }

    async fn switch(&self, switch: Switch) -> Result<(), PowerError> {
        let (system, tag) = self.system().await?;
        let path = self.path().await?;
        let target = system["Actions"]["#ComputerSystem.Reset"]["target"]
            .as_str()
            .filter(|target| target.starts_with('/'))
            .map_or_else(
                || format!("{path}/Actions/ComputerSystem.Reset"),
                str::to_owned,
            );
        let body = json!({ "ResetType": reset_type(&system, switch)? });
        let mut response = self.ask(Method::POST, &target, Some(&body), None).await?;
        let wants_tag = matches!(
            response.status(),
            StatusCode::PRECONDITION_REQUIRED | StatusCode::PRECONDITION_FAILED
        );
        if wants_tag && tag.is_some() {
            response = self
                .ask(Method::POST, &target, Some(&body), tag.as_deref())
                .await?;
        }
        match response.status() {
            status if status.is_success() => Ok(()),
            // It is so already, or a change is under way: reading it back decides.
            StatusCode::CONFLICT => Ok(()),
            StatusCode::NOT_IMPLEMENTED | StatusCode::METHOD_NOT_ALLOWED => Err(
                PowerError::Unsupported("the service does not do this reset".to_owned()),
            ),
            status => Err(PowerError::Failed(format!("the service answered {status}"))),
        }
    }

    async fn read(&self) -> Result<Reading, PowerError> {
        let (system, _) = self.system().await?;
        match system["PowerState"].as_str() {
            Some("On") => Ok(Reading::On),
            Some("Off") => Ok(Reading::Off),
            Some("PoweringOn" | "PoweringOff") => Ok(Reading::Changing),
            _ => Err(PowerError::Failed(
                "the system has no power state".to_owned(),
            )),
        }
    }
}

/// TLS with one certificate and no other.
mod pinned {
    use super::Arc;
    use rustls::{
        ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
        pki_types::{CertificateDer, ServerName, UnixTime},
    };
    use sha2::{Digest, Sha256};

    #[derive(Debug)]
    struct Pinned {
        sha256: [u8; 32],
        provider: Arc<CryptoProvider>,
    }

    /// A configuration that accepts the certificate with this SHA-256, whoever signed it and
    /// whatever it names, as controllers sign their own.
    pub(super) fn configuration(pin: &str) -> Result<ClientConfig, String> {
        let digits: Vec<char> = pin.chars().filter(|c| *c != ':').collect();
        let mut sha256 = [0; 32];
        if digits.len() != 64 {
            return Err("a SHA-256 has 64 hexadecimal digits".to_owned());
        }
        for (byte, pair) in sha256.iter_mut().zip(digits.chunks(2)) {
            let text: String = pair.iter().collect();
            *byte = u8::from_str_radix(&text, 16)
                .map_err(|_| "a SHA-256 has 64 hexadecimal digits".to_owned())?;
        }
        let provider = Arc::new(ring::default_provider());
        let verifier = Pinned {
            sha256,
            provider: provider.clone(),
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        Ok(builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth())
    }

    impl ServerCertVerifier for Pinned {
        fn verify_server_cert(
            &self,
            certificate: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            let found: [u8; 32] = Sha256::digest(certificate).into();
            if found == self.sha256 {
                Ok(ServerCertVerified::assertion())
            } else {
                Err(Error::General(
                    "the controller's certificate is not the one that is configured".to_owned(),
                ))
            }
        }

        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let known = &self.provider.signature_verification_algorithms;
            verify_tls12_signature(message, certificate, signature, known)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let known = &self.provider.signature_verification_algorithms;
            verify_tls13_signature(message, certificate, signature, known)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.provider
                .signature_verification_algorithms
                .supported_schemes()
        }
    }
}
