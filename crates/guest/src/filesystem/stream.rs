//! `WatchDir`'s stream, as the body of an answer.

use super::watch::Watch;
use crate::http::body::BrokenBody;
use api::envd::{
    connect::{ConnectError, seal, seal_end},
    filesystem::{FilesystemEvent, WatchResponse},
};
use bytes::Bytes;
use hyper::body::{Body, Frame};
use std::{
    collections::VecDeque,
    future::Future as _,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};
use tokio::time::{Sleep, sleep, sleep_until};

/// Starts with `start`, goes on until the client leaves or the deadline comes.
#[derive(Debug)]
pub struct WatchStream {
    watch: Watch,
    events: VecDeque<FilesystemEvent>,
    started: bool,
    closed: bool,
    interval: Duration,
    keepalive: Pin<Box<Sleep>>,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl WatchStream {
    /// After `interval` without events a `keepalive` goes out.
    pub fn new(watch: Watch, interval: Duration, deadline: Option<Instant>) -> Self {
        Self {
            watch,
            events: VecDeque::new(),
            started: false,
            closed: false,
            interval,
            keepalive: Box::pin(sleep(interval)),
            deadline: deadline.map(|moment| Box::pin(sleep_until(moment.into()))),
        }
    }

    fn restart_keepalive(&mut self) {
        let next = tokio::time::Instant::now() + self.interval;
        self.keepalive.as_mut().reset(next);
    }

    fn close(&mut self, error: ConnectError) -> Poll<Bytes> {
        self.closed = true;
        Poll::Ready(seal_end(Some(error)))
    }

    fn poll_message(&mut self, context: &mut Context<'_>) -> Poll<Bytes> {
        if !self.started {
            self.started = true;
            return Poll::Ready(message(&WatchResponse::Start {}));
        }
        loop {
            if let Some(event) = self.events.pop_front() {
                self.restart_keepalive();
                return Poll::Ready(message(&WatchResponse::Filesystem(event)));
            }
            match self.watch.read() {
                Ok(events) if !events.is_empty() => self.events = events.into(),
                Ok(_) => match self.watch.poll_ready(context) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return self.close(error),
                    Poll::Pending => break,
                },
                Err(error) => return self.close(error),
            }
        }
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(context).is_ready()
        {
            return self.close(crate::process::events::deadline_exceeded());
        }
        ready!(self.keepalive.as_mut().poll(context));
        self.restart_keepalive();
        // Registers the timer anew; it cannot be ready yet.
        let _ = self.keepalive.as_mut().poll(context);
        Poll::Ready(message(&WatchResponse::Keepalive {}))
    }
}

fn message(message: &WatchResponse) -> Bytes {
    // Cannot fail: there are only strings and numbers in it.
    seal(0, &serde_json::to_vec(message).unwrap_or_default())
}

impl Body for WatchStream {
    type Data = Bytes;
    type Error = BrokenBody;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenBody>>> {
        if self.closed {
            return Poll::Ready(None);
        }
        self.poll_message(context)
            .map(|bytes| Some(Ok(Frame::data(bytes))))
    }
}
