//! From an HTTP request to a call, and back.

use super::{Call, Service, wire::LARGEST};
use bytes::{Buf, BufMut, Bytes};
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use std::{future::Future, pin::Pin, sync::Arc, time::Duration};
use tonic::{
    Status,
    body::Body,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    server::{Grpc, UnaryService},
};

/// No call takes longer, whatever its caller says.
const LONGEST: Duration = Duration::from_secs(10);

/// Messages as bytes: they are read where it is known what they are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(length)))
    }
}

struct Unary {
    service: Arc<Service>,
    call: Call,
    deadline: Duration,
}

impl UnaryService<Bytes> for Unary {
    type Response = Bytes;
    type Future =
        Pin<Box<dyn Future<Output = Result<tonic::Response<Bytes>, Status>> + Send + 'static>>;

    fn call(&mut self, request: tonic::Request<Bytes>) -> Self::Future {
        let (service, call, deadline) = (self.service.clone(), self.call, self.deadline);
        Box::pin(async move {
            let answer = service.call(call, request.into_inner());
            match tokio::time::timeout(deadline, answer).await {
                Ok(answer) => answer.map(tonic::Response::new),
                Err(_) => Err(Status::deadline_exceeded(
                    "it was not done in the time that Cluster Autoscaler gave",
                )),
            }
        })
    }
}

/// Answers a request. Only the expander answers whoever did not show a certificate where one is
/// asked for.
pub(super) async fn route(
    service: Arc<Service>,
    known: bool,
    request: Request<Incoming>,
) -> Response<Body> {
    let Some(call) = Call::of_path(request.uri().path()) else {
        return Status::unimplemented("there is no such call").into_http();
    };
    if !known && !call.is_expander() {
        let refused = "show a certificate that Atoll's client CA has signed";
        return Status::unauthenticated(refused).into_http();
    }
    let deadline = deadline(request.headers()).unwrap_or(LONGEST).min(LONGEST);
    let unary = Unary {
        service,
        call,
        deadline,
    };
    let mut grpc = Grpc::new(Raw)
        .max_decoding_message_size(LARGEST)
        .max_encoding_message_size(usize::MAX);
    grpc.unary(unary, request).await
}

/// How long the caller waits.
fn deadline(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|one| one.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_patience_is_read() {
        for (text, expected) in [
            ("5S", Some(Duration::from_secs(5))),
            ("4999m", Some(Duration::from_millis(4999))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("123456789S", None),
            ("S", None),
            ("5", None),
            ("-5S", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            assert_eq!(deadline(&headers), expected, "{text}");
        }
    }
}
