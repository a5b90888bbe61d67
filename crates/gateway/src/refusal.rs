//! The answers that the gateway gives itself instead of a sandbox.

use crate::{body::Body, cors, host::DecideError};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{
        ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, RETRY_AFTER, USER_AGENT,
        X_CONTENT_TYPE_OPTIONS,
    },
};
use serde_json::{Value, json};

/// Why a request does not reach a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("{0}")]
    Undecided(#[from] DecideError),
    #[error("More than one Host header")]
    AmbiguousHost,
    #[error("CONNECT is not supported")]
    Connect,
    #[error("The sandbox was not found")]
    NotFound { sandbox: String },
    #[error("The sandbox is running but port is not open")]
    PortClosed { sandbox: String, port: u16 },
    #[error("The server in the sandbox broke off without an answer")]
    NoAnswer { sandbox: String, port: u16 },
    #[error("The traffic access token is missing: send it as e2b-traffic-access-token")]
    TokenMissing { sandbox: String },
    #[error("The traffic access token is wrong")]
    TokenWrong { sandbox: String },
    #[error("Not found")]
    ControlRoute { sandbox: String },
    #[error("Too many requests are under way in the sandbox")]
    Busy { sandbox: String },
    #[error("Finding the sandbox took too long")]
    LocateTimeout { sandbox: String },
    #[error("The sandbox is being paused, resumed or ended")]
    InTransition { sandbox: String },
    #[error("The sandbox could not be resumed: its owner has reached a limit")]
    LimitReached { sandbox: String },
    #[error("The sandbox could not be resumed")]
    NotWoken { sandbox: String },
    #[error("Too many sandboxes are being resumed")]
    WakesFull { sandbox: String },
    #[error("invalid signature")]
    UnknownSignature,
    #[error("Too many of your signed URLs wait for their sandbox to be found")]
    TooManySearches,
    #[error("Too many signed URLs wait for their sandbox to be found")]
    SearchesFull,
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::Undecided(_) | Self::AmbiguousHost => StatusCode::BAD_REQUEST,
            Self::Connect => StatusCode::METHOD_NOT_ALLOWED,
            Self::NotFound { .. } | Self::PortClosed { .. } | Self::NoAnswer { .. } => {
                StatusCode::BAD_GATEWAY
            }
            Self::TokenMissing { .. } | Self::TokenWrong { .. } => StatusCode::FORBIDDEN,
            Self::ControlRoute { .. } => StatusCode::NOT_FOUND,
            Self::InTransition { .. } => StatusCode::CONFLICT,
            Self::Busy { .. } | Self::LimitReached { .. } | Self::TooManySearches => {
                StatusCode::TOO_MANY_REQUESTS
            }
            Self::SearchesFull | Self::NotWoken { .. } | Self::WakesFull { .. } => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::LocateTimeout { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::UnknownSignature => StatusCode::UNAUTHORIZED,
        }
    }

    fn sandbox(&self) -> Option<&str> {
        match self {
            Self::NotFound { sandbox }
            | Self::PortClosed { sandbox, .. }
            | Self::NoAnswer { sandbox, .. }
            | Self::TokenMissing { sandbox }
            | Self::TokenWrong { sandbox }
            | Self::ControlRoute { sandbox }
            | Self::Busy { sandbox }
            | Self::InTransition { sandbox }
            | Self::LimitReached { sandbox }
            | Self::NotWoken { sandbox }
            | Self::WakesFull { sandbox }
            | Self::LocateTimeout { sandbox } => Some(sandbox),
            Self::Undecided(_)
            | Self::AmbiguousHost
            | Self::Connect
            | Self::UnknownSignature
            | Self::TooManySearches
            | Self::SearchesFull => None,
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::Undecided(DecideError::MissingHeader) => {
                "Send both E2b-Sandbox-Id and E2b-Sandbox-Port, or neither."
            }
            Self::Undecided(DecideError::InvalidHeader) => {
                "E2b-Sandbox-Id is a sandbox's id, E2b-Sandbox-Port a number from 1 to 65535."
            }
            Self::Undecided(DecideError::InvalidHost) => {
                "Use PORT-SANDBOX.DOMAIN for a port of a sandbox, or api.DOMAIN for the API."
            }
            Self::AmbiguousHost => "Send one Host header.",
            Self::Connect => "Use an ordinary request or a WebSocket.",
            Self::NotFound { .. } => {
                "It may have ended or been paused. Check its id, or create a new one."
            }
            Self::PortClosed { .. } => {
                "Start a server on this port, listening on 0.0.0.0 and not only on localhost."
            }
            Self::NoAnswer { .. } => "Look at the server's own output for the cause.",
            Self::TokenMissing { .. } | Self::TokenWrong { .. } => {
                "Send the sandbox's trafficAccessToken in the header e2b-traffic-access-token."
            }
            Self::ControlRoute { .. } => "There is nothing here for clients.",
            Self::Busy { .. } => "Wait for some of them to end, then try again.",
            Self::LocateTimeout { .. } | Self::InTransition { .. } | Self::WakesFull { .. } => {
                "Try again in a moment."
            }
            Self::LimitReached { .. } => "Kill or pause sandboxes that are no longer needed.",
            Self::NotWoken { .. } => {
                "It is paused as before. Try again later, or ask the owner of the node: its log \
                 has the cause."
            }
            Self::UnknownSignature => {
                "The sandbox may have ended, or the URL was changed. Make a new one."
            }
            Self::TooManySearches | Self::SearchesFull => {
                "Try again in a moment, or send E2b-Sandbox-Id and E2b-Sandbox-Port: then nothing \
                 is searched."
            }
        }
    }

    fn json(&self) -> Value {
        let (message, code) = (self.to_string(), self.status().as_u16());
        match (self, self.sandbox()) {
            (Self::PortClosed { port, .. } | Self::NoAnswer { port, .. }, Some(sandbox)) => {
                json!({ "sandboxId": sandbox, "message": message, "port": port, "code": code })
            }
            (_, Some(sandbox)) => json!({ "sandboxId": sandbox, "message": message, "code": code }),
            (_, None) => json!({ "code": code, "message": message, "remedy": self.remedy() }),
        }
    }

    fn html(&self) -> String {
        let status = self.status();
        let sandbox = self
            .sandbox()
            .map(|id| format!("<p>Sandbox <code>{}</code></p>", escape(id)));
        format!(
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title>\
             <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:36rem;margin:15vh auto;\
             padding:0 1rem;color-scheme:light dark}}</style>\
             <h1>{title}</h1>{sandbox}<p>{remedy}</p><p><small>{code}</small></p></html>\n",
            title = escape(&self.to_string()),
            sandbox = sandbox.unwrap_or_default(),
            remedy = escape(self.remedy()),
            code = status,
        )
    }

    /// The answer, as a page if a browser navigates, else as JSON.
    pub(crate) fn response(&self, navigates: bool) -> Response<Body> {
        let (kind, text) = if navigates {
            ("text/html; charset=utf-8", self.html())
        } else {
            ("application/json", self.json().to_string())
        };
        let mut response = Response::new(Body::full(Bytes::from(text)));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(
            CONTENT_SECURITY_POLICY,
            HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'"),
        );
        if matches!(
            self,
            Self::Busy { .. }
                | Self::LocateTimeout { .. }
                | Self::InTransition { .. }
                | Self::NotWoken { .. }
                | Self::WakesFull { .. }
                | Self::TooManySearches
                | Self::SearchesFull
        ) {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        cors::allow_reading(headers);
        response
    }
}

/// Whether a person will read the answer in a browser's window.
pub(crate) fn is_navigation(asked: &HeaderMap) -> bool {
    if let Some(mode) = asked.get("sec-fetch-mode") {
        return mode == "navigate";
    }
    let contains = |name, start: bool, text: &str| {
        asked
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok())
            .is_some_and(|value| {
                if start {
                    value.starts_with(text)
                } else {
                    value.contains(text)
                }
            })
    };
    contains(ACCEPT, false, "text/html") && contains(USER_AGENT, true, "Mozilla/")
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_escape_what_clients_sent() {
        let page = Refusal::NotFound {
            sandbox: "<script>'\"&".into(),
        }
        .html();
        assert!(page.contains("&lt;script&gt;&#39;&quot;&amp;") && !page.contains("<script>"));
    }

    #[test]
    fn only_navigation_gets_a_page() {
        let mut head = HeaderMap::new();
        assert!(!is_navigation(&head));
        head.insert(ACCEPT, HeaderValue::from_static("text/html,*/*"));
        assert!(!is_navigation(&head));
        head.insert(USER_AGENT, HeaderValue::from_static("Mozilla/5.0"));
        assert!(is_navigation(&head));
        head.insert("sec-fetch-mode", HeaderValue::from_static("cors"));
        assert!(!is_navigation(&head));
    }
}
