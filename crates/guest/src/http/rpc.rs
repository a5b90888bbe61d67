//! The Connect protocol over HTTP: from a request to a call and back.

use super::{
    body::{ReadError, ReplyBody, collect, next},
    reply::{Failure, Reply},
};
use api::envd::connect::{
    Code, ConnectError, EnvelopeReader, FLAG_COMPRESSED, STREAM_JSON, UNARY_JSON, seal, seal_end,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::{Body, Incoming};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    future::Future,
    io::Read as _,
    time::{Duration, Instant},
};

use super::body::BrokenBody;

/// The longest message, compressed or not.
pub const MESSAGE_LIMIT: usize = 4 << 20;
/// How long an idle stream waits before it says `keepalive`, unless the request says otherwise.
const KEEPALIVE: Duration = Duration::from_secs(90);
/// No call may ask for more: further ahead, timers do not reach.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// How messages travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One message each way, without envelopes.
    Unary,
    /// Envelopes.
    Stream,
}

/// The refusal of a request in another method or codec than the call's kind takes;
/// `None` if it is right.
pub fn check_codec(request: &Request<Incoming>, kind: Kind) -> Option<Reply> {
    if request.method() != http::Method::POST {
        let failure = Failure::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed");
        let mut reply = failure.reply();
        reply
            .headers_mut()
            .insert(header::ALLOW, HeaderValue::from_static("POST"));
        return Some(reply);
    }
    let expected = match kind {
        Kind::Unary => UNARY_JSON,
        Kind::Stream => STREAM_JSON,
    };
    let sent = request
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|sent| sent.to_str().ok());
    let sent = sent.unwrap_or_default();
    if sent
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .eq_ignore_ascii_case(expected)
    {
        return None;
    }
    let message = format!("unsupported content type '{sent}', expected {expected}");
    let mut reply = Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message).reply();
    reply
        .headers_mut()
        .insert("accept-post", HeaderValue::from_static(expected));
    Some(reply)
}

/// The moment by which a call has to be done, from `Connect-Timeout-Ms`.
pub fn deadline(headers: &HeaderMap) -> Result<Option<Instant>, ConnectError> {
    let Some(value) = headers.get("connect-timeout-ms") else {
        return Ok(None);
    };
    let parsed = value
        .to_str()
        .ok()
        .filter(|text| !text.is_empty() && text.len() <= 18);
    let parsed = parsed.and_then(|text| text.parse::<u64>().ok());
    match parsed {
        Some(0) => Ok(None),
        Some(milliseconds) => {
            let timeout = Duration::from_millis(milliseconds).min(LONGEST);
            Ok(Instant::now().checked_add(timeout))
        }
        None => Err(ConnectError::invalid_argument(
            "invalid Connect-Timeout-Ms header",
        )),
    }
}

/// After how much silence a stream says `keepalive`, from `Keepalive-Ping-Interval`, in seconds.
pub fn keepalive(headers: &HeaderMap) -> Duration {
    let seconds = headers
        .get("keepalive-ping-interval")
        .and_then(|value| value.to_str().ok());
    let seconds = seconds
        .and_then(|text| text.parse::<u64>().ok())
        .filter(|seconds| *seconds > 0);
    seconds.map_or(KEEPALIVE, |seconds| {
        Duration::from_secs(seconds).min(LONGEST)
    })
}

fn decode<T: DeserializeOwned>(message: &[u8]) -> Result<T, ConnectError> {
    let message = if message.is_empty() { b"{}" } else { message };
    serde_json::from_slice(message)
        .map_err(|error| ConnectError::invalid_argument(format!("unmarshal message: {error}")))
}

/// Undoes gzip, which the protocol lets clients use; no answer is ever compressed.
fn inflate(message: &[u8]) -> Result<Bytes, ConnectError> {
    let mut plain = Vec::new();
    let mut reader = flate2::read::GzDecoder::new(message).take(MESSAGE_LIMIT as u64 + 1);
    reader
        .read_to_end(&mut plain)
        .map_err(|error| ConnectError::invalid_argument(format!("decompress: {error}")))?;
    if plain.len() > MESSAGE_LIMIT {
        return Err(too_large());
    }
    Ok(plain.into())
}

fn too_large() -> ConnectError {
    let message = format!("message is larger than the limit of {MESSAGE_LIMIT} bytes");
    ConnectError::new(Code::ResourceExhausted, message)
}

/// Whether a header names gzip; an error if it names something else.
fn is_gzip(headers: &HeaderMap, name: &str) -> Result<bool, ConnectError> {
    match headers.get(name).map(|value| value.to_str().unwrap_or("?")) {
        None | Some("" | "identity") => Ok(false),
        Some("gzip") => Ok(true),
        Some(other) => Err(ConnectError::new(
            Code::Unimplemented,
            format!("unknown compression \"{other}\": supported encodings are gzip"),
        )),
    }
}

/// Reads the message of a unary request.
pub async fn read_unary<T: DeserializeOwned>(
    request: Request<Incoming>,
) -> Result<T, ConnectError> {
    let compressed = is_gzip(request.headers(), header::CONTENT_ENCODING.as_str())?;
    let body = collect(request.into_body(), MESSAGE_LIMIT)
        .await
        .map_err(|error| match error {
            ReadError::TooLarge(_) => too_large(),
            ReadError::Broken(error) => ConnectError::new(Code::Canceled, error.to_string()),
        })?;
    if compressed {
        decode(&inflate(&body)?)
    } else {
        decode(&body)
    }
}

/// Reads the messages of a request that streams.
pub struct Messages {
    body: Incoming,
    reader: EnvelopeReader,
    compressed: bool,
    done: bool,
}

impl Messages {
    /// Of this request.
    pub fn new(request: Request<Incoming>) -> Result<Self, ConnectError> {
        let compressed = is_gzip(request.headers(), "connect-content-encoding")?;
        let reader = EnvelopeReader::new(MESSAGE_LIMIT);
        Ok(Self {
            body: request.into_body(),
            reader,
            compressed,
            done: false,
        })
    }

    /// The next message; `None` at the end.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ConnectError> {
        loop {
            if let Some(envelope) = self.reader.take()? {
                if envelope.is_end() {
                    self.done = true;
                    return Ok(None);
                }
                if envelope.flags & FLAG_COMPRESSED == 0 {
                    return decode(&envelope.message).map(Some);
                }
                if !self.compressed {
                    return Err(ConnectError::internal(
                        "compressed envelope without Connect-Content-Encoding header",
                    ));
                }
                return decode(&inflate(&envelope.message)?).map(Some);
            }
            if self.done {
                return Ok(None);
            }
            match next(&mut self.body).await {
                Ok(Some(bytes)) => self.reader.push(&bytes),
                Ok(None) if self.reader.is_empty() => {
                    self.done = true;
                    return Ok(None);
                }
                Ok(None) => {
                    return Err(ConnectError::invalid_argument("incomplete envelope"));
                }
                Err(error) => {
                    return Err(ConnectError::new(Code::Canceled, error.to_string()));
                }
            }
        }
    }

    /// The only message of a request that has one.
    ///
    /// Reads the body to its end: if some of it were left, the connection would no longer be read,
    /// and nobody would notice when the client goes away.
    pub async fn only<T: DeserializeOwned>(mut self) -> Result<T, ConnectError> {
        let message = self.next().await?;
        let message = message
            .ok_or_else(|| ConnectError::new(Code::Unimplemented, "request has no message"))?;
        if self.next::<serde::de::IgnoredAny>().await?.is_some() {
            let text = "request has more than one message";
            return Err(ConnectError::new(Code::Unimplemented, text));
        }
        while let Ok(Some(_)) = next(&mut self.body).await {}
        Ok(message)
    }
}

/// Answers a unary call.
pub fn unary<T: Serialize>(outcome: Result<T, ConnectError>) -> Reply {
    match outcome {
        Ok(message) => super::reply::json(&message),
        Err(error) => {
            let mut reply = super::reply::json(&error);
            *reply.status_mut() = StatusCode::from_u16(error.code.status())
                .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            reply
        }
    }
}

fn stream_of(body: ReplyBody) -> Reply {
    let mut reply = Response::new(body);
    reply
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(STREAM_JSON));
    reply
}

/// Answers a call that streams; one that failed at once is a stream that only says so.
pub fn stream<B>(outcome: Result<B, ConnectError>) -> Reply
where
    B: Body<Data = Bytes, Error = BrokenBody> + 'static,
{
    stream_of(match outcome {
        Ok(body) => ReplyBody::stream(body),
        Err(error) => ReplyBody::Full(seal_end(Some(error))),
    })
}

/// Answers a call whose request streams with its one message.
pub fn client_stream<T: Serialize>(outcome: Result<T, ConnectError>) -> Reply {
    let body = match outcome {
        Ok(message) => {
            let message = serde_json::to_vec(&message).unwrap_or_default();
            [seal(0, &message), seal_end(None)].concat().into()
        }
        Err(error) => seal_end(Some(error)),
    };
    stream_of(ReplyBody::Full(body))
}

/// Gives a call up at its deadline.
pub async fn within<T>(
    deadline: Option<Instant>,
    call: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    match deadline {
        Some(moment) => tokio::time::timeout_at(moment.into(), call)
            .await
            .unwrap_or_else(|_| Err(crate::process::events::deadline_exceeded())),
        None => call.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(http::HeaderName::from_static(name), value.parse().unwrap())])
    }

    #[test]
    fn timeouts_come_from_headers() {
        let read = |value: &str| deadline(&headers("connect-timeout-ms", value));
        assert!(deadline(&HeaderMap::new()).unwrap().is_none());
        assert!(read("0").unwrap().is_none());
        let soon = read("5000").unwrap().unwrap() - Instant::now();
        assert!(soon > Duration::from_secs(4) && soon <= Duration::from_secs(5));
        assert!(read("999999999999999999").unwrap().is_some());
        assert_eq!(read("-1").unwrap_err().code, Code::InvalidArgument);
        assert_eq!(read("soon").unwrap_err().code, Code::InvalidArgument);
        let interval = |value: &str| keepalive(&headers("keepalive-ping-interval", value));
        assert_eq!(interval("50"), Duration::from_secs(50));
        assert_eq!((interval("0"), interval("x")), (KEEPALIVE, KEEPALIVE));
    }

    #[test]
    fn a_bomb_is_refused() {
        use std::io::Write as _;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&vec![b' '; MESSAGE_LIMIT + 1]).unwrap();
        let bomb = encoder.finish().unwrap();
        assert_eq!(inflate(&bomb).unwrap_err().code, Code::ResourceExhausted);
    }
}
