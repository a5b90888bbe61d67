//! Bodies on their way through, frame by frame as they come.

use crate::{connection::Active, handler::ApiBody, metrics::count, upstream::Lease};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use std::{
    error::Error,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Release},
    },
    task::{Context, Poll, Waker},
};

/// The body of an answer to a client.
pub(crate) struct Body {
    kind: Kind,
    /// Keeps the connection from counting as idle until the body is out.
    active: Option<Active>,
}

enum Kind {
    /// Made here.
    Full(Option<Bytes>),
    /// Relayed from a server in a sandbox.
    Relay(Incoming, Option<Lease>),
    /// Made by the API.
    Api(ApiBody),
}

impl Body {
    pub(crate) fn empty() -> Self {
        Self {
            kind: Kind::Full(None),
            active: None,
        }
    }

    pub(crate) fn full(bytes: Bytes) -> Self {
        Self {
            kind: Kind::Full(Some(bytes)),
            active: None,
        }
    }

    pub(crate) fn api(body: ApiBody) -> Self {
        Self {
            kind: Kind::Api(body),
            active: None,
        }
    }

    /// Relays what a server sends, then gives its connection back.
    pub(crate) fn relay(incoming: Incoming, lease: Lease) -> Self {
        let lease = if HttpBody::is_end_stream(&incoming) {
            lease.give_back();
            None
        } else {
            Some(lease)
        };
        Self {
            kind: Kind::Relay(incoming, lease),
            active: None,
        }
    }

    pub(crate) fn with_active(mut self, active: Active) -> Self {
        self.active = Some(active);
        self
    }

    /// Breaks the client's connection, so that it does not take what it has got for the whole.
    fn break_off(&self) {
        if let Some(active) = &self.active {
            active.0.break_off();
            count(&active.0.registry.counters.broken);
        }
    }
}

type BoxError = Box<dyn Error + Send + Sync>;

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let body = &mut *self;
        let outcome = match &mut body.kind {
            Kind::Full(bytes) => {
                return Poll::Ready(bytes.take().map(|data| Ok(Frame::data(data))));
            }
            Kind::Api(api) => match Pin::new(api).poll_frame(context) {
                Poll::Ready(Some(Err(error))) => Err(error),
                other => return other,
            },
            Kind::Relay(incoming, lease) => match poll_relay(incoming, lease, context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(outcome) => outcome,
            },
        };
        match outcome {
            Ok(Some(frame)) => Poll::Ready(Some(Ok(frame))),
            Ok(None) => Poll::Ready(None),
            Err(error) => {
                body.break_off();
                Poll::Ready(Some(Err(error)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Full(bytes) => bytes.is_none(),
            Kind::Relay(incoming, _) => HttpBody::is_end_stream(incoming),
            Kind::Api(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Kind::Relay(incoming, _) => HttpBody::size_hint(incoming),
            Kind::Api(body) => body.size_hint(),
        }
    }
}

/// The next frame of what a server sends.
///
/// Only driving the connection changes what `incoming` has to give, so it needs no waker.
fn poll_relay(
    incoming: &mut Incoming,
    lease: &mut Option<Lease>,
    context: &mut Context<'_>,
) -> Poll<Result<Option<Frame<Bytes>>, BoxError>> {
    let mut unwoken = Context::from_waker(Waker::noop());
    let mut polled = Pin::new(&mut *incoming).poll_frame(&mut unwoken);
    if polled.is_pending() {
        if lease.as_mut().is_some_and(|lease| lease.drive(context)) {
            *lease = None;
            return Poll::Ready(Err("the sandbox ended".into()));
        }
        polled = Pin::new(&mut *incoming).poll_frame(&mut unwoken);
    }
    match polled {
        Poll::Pending => Poll::Pending,
        Poll::Ready(Some(Err(error))) => {
            *lease = None;
            Poll::Ready(Err(error.into()))
        }
        Poll::Ready(Some(Ok(frame))) => {
            if HttpBody::is_end_stream(incoming)
                && let Some(lease) = lease.take()
            {
                lease.give_back();
            }
            Poll::Ready(Ok(Some(frame)))
        }
        Poll::Ready(None) => {
            if let Some(lease) = lease.take() {
                if lease.has_ended() {
                    return Poll::Ready(Err("the sandbox ended".into()));
                }
                lease.give_back();
            }
            Poll::Ready(Ok(None))
        }
    }
}

/// The body of a request to a sandbox.
pub(crate) enum RequestBody {
    Empty,
    Stream {
        incoming: Incoming,
        sent: Arc<AtomicBool>,
    },
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Stream { incoming, sent } => {
                let polled = Pin::new(&mut *incoming).poll_frame(context);
                let over = match &polled {
                    Poll::Ready(None) => true,
                    Poll::Ready(Some(Ok(_))) => HttpBody::is_end_stream(incoming),
                    _ => false,
                };
                if over {
                    sent.store(true, Release);
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Stream { incoming, .. } => HttpBody::is_end_stream(incoming),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Stream { incoming, .. } => HttpBody::size_hint(incoming),
        }
    }
}
