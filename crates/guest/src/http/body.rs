//! Bodies: of answers, and reading those of requests.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::{
    pin::Pin,
    task::{Context, Poll},
};

/// The rest of an answer cannot be sent; the connection is broken off so that the client notices.
#[derive(Debug, thiserror::Error)]
#[error("the answer broke off: {0}")]
pub struct BrokenBody(pub String);

/// The body of an answer.
pub enum ReplyBody {
    /// All of it, or what is left of it.
    Full(Bytes),
    /// Made while it is sent.
    Stream(Pin<Box<dyn Body<Data = Bytes, Error = BrokenBody>>>),
}

impl ReplyBody {
    /// A body that is made while it is sent.
    pub fn stream(body: impl Body<Data = Bytes, Error = BrokenBody> + 'static) -> Self {
        Self::Stream(Box::pin(body))
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = BrokenBody;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenBody>>> {
        match &mut *self {
            Self::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Stream(body) => body.as_mut().poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_empty(),
            Self::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(body) => body.size_hint(),
        }
    }
}

/// Why a request's body could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is longer than allowed.
    #[error("request body is larger than {0} bytes")]
    TooLarge(usize),
    /// The client broke off.
    #[error("request body broke off: {0}")]
    Broken(#[from] hyper::Error),
}

/// Reads a whole body of at most `limit` bytes.
pub async fn collect(mut body: Incoming, limit: usize) -> Result<Bytes, ReadError> {
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(data) = next(&mut body).await? {
        if first.len() + rest.len() + data.len() > limit {
            return Err(ReadError::TooLarge(limit));
        }
        if first.is_empty() && rest.is_empty() {
            first = data;
        } else {
            rest.extend_from_slice(&std::mem::take(&mut first));
            rest.extend_from_slice(&data);
        }
    }
    Ok(if rest.is_empty() {
        first
    } else {
        rest.freeze()
    })
}

/// The next bytes of a body.
pub async fn next(body: &mut Incoming) -> Result<Option<Bytes>, hyper::Error> {
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data()
            && !data.is_empty()
        {
            return Ok(Some(data));
        }
    }
    Ok(None)
}
