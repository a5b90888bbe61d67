//! The stream of a process's events, as the body of an answer.

use super::{output::Process, transcript::Next};
use crate::http::body::BrokenBody;
use api::envd::{
    connect::{Code, ConnectError, seal, seal_end},
    process::{EventResponse, ProcessEvent, seal_output},
};
use bytes::Bytes;
use hyper::body::{Body, Frame};
use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};
use tokio::time::{Sleep, sleep, sleep_until};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    Output,
    /// The `end` event went out; the end of the stream is left.
    Ended,
    Closed,
}

/// Starts with `start`, ends with `end` or an error.
#[derive(Debug)]
pub struct Events {
    process: Rc<Process>,
    subscriber: u64,
    state: State,
    interval: Duration,
    keepalive: Pin<Box<Sleep>>,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Events {
    /// Subscribes to a process. After `interval` without output a `keepalive` goes out; at the
    /// deadline the stream ends with an error.
    pub fn new(process: Rc<Process>, interval: Duration, deadline: Option<Instant>) -> Self {
        let subscriber = process.transcript.borrow_mut().subscribe();
        Self {
            process,
            subscriber,
            state: State::Start,
            interval,
            keepalive: Box::pin(sleep(interval)),
            deadline: deadline.map(|moment| Box::pin(sleep_until(moment.into()))),
        }
    }

    fn close(&mut self, error: Option<ConnectError>) -> Poll<Bytes> {
        self.state = State::Closed;
        Poll::Ready(seal_end(error))
    }

    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Bytes> {
        match self.state {
            State::Start => {
                self.state = State::Output;
                Poll::Ready(event(ProcessEvent::Start {
                    pid: self.process.pid,
                }))
            }
            State::Ended | State::Closed => self.close(None),
            State::Output => self.poll_output(context),
        }
    }

    fn poll_output(&mut self, context: &mut Context<'_>) -> Poll<Bytes> {
        let mut transcript = self.process.transcript.borrow_mut();
        match transcript.next(self.subscriber) {
            Next::Output(stream, data) => {
                let count = data.len();
                let sealed = seal_output(stream, data);
                transcript.advance(self.subscriber, count);
                drop(transcript);
                self.process.made_room();
                let next = tokio::time::Instant::now() + self.interval;
                self.keepalive.as_mut().reset(next);
                return Poll::Ready(sealed);
            }
            Next::End(end) => {
                let sealed = event(ProcessEvent::End(end.clone()));
                drop(transcript);
                self.state = State::Ended;
                return Poll::Ready(sealed);
            }
            Next::CutOff => {
                drop(transcript);
                return self.close(Some(ConnectError::new(
                    Code::ResourceExhausted,
                    "output was read too slowly while other clients waited for it",
                )));
            }
            Next::Wait => transcript.set_waker(self.subscriber, context.waker()),
        }
        drop(transcript);
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(context).is_ready()
        {
            return self.close(Some(deadline_exceeded()));
        }
        ready!(self.keepalive.as_mut().poll(context));
        let next = tokio::time::Instant::now() + self.interval;
        self.keepalive.as_mut().reset(next);
        // Registers the timer anew; it cannot be ready yet.
        let _ = self.keepalive.as_mut().poll(context);
        Poll::Ready(event(ProcessEvent::Keepalive {}))
    }
}

/// What a stream ends with at its deadline.
pub fn deadline_exceeded() -> ConnectError {
    ConnectError::new(Code::DeadlineExceeded, "context deadline exceeded")
}

fn event(event: ProcessEvent) -> Bytes {
    // Cannot fail: there are only strings and numbers in it.
    seal(
        0,
        &serde_json::to_vec(&EventResponse { event }).unwrap_or_default(),
    )
}

impl Body for Events {
    type Data = Bytes;
    type Error = BrokenBody;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenBody>>> {
        if self.state == State::Closed {
            return Poll::Ready(None);
        }
        self.poll_event(context)
            .map(|bytes| Some(Ok(Frame::data(bytes))))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.process
            .transcript
            .borrow_mut()
            .unsubscribe(self.subscriber);
        self.process.made_room();
    }
}
