//! Signals that the program itself is sent, as events.

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What the person or the system asks of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    /// Ctrl-C.
    Interrupt,
    /// To end; the number is the exit status that says so.
    Stop(u8),
    /// The terminal has another size.
    Resize,
}

/// Listens from when it is made: from then on these signals no longer end the program.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    window: Signal,
}

impl Signals {
    /// Begins to listen. Needs a Tokio runtime.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn listen() -> anyhow::Result<Self> {
        let on = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: on(SignalKind::interrupt())?,
            terminate: on(SignalKind::terminate())?,
            hangup: on(SignalKind::hangup())?,
            window: on(SignalKind::window_change())?,
        })
    }

    /// The next request.
    pub(crate) async fn next(&mut self) -> Request {
        tokio::select! {
            _ = self.interrupt.recv() => Request::Interrupt,
            _ = self.terminate.recv() => Request::Stop(128 + 15),
            _ = self.hangup.recv() => Request::Stop(128 + 1),
            _ = self.window.recv() => Request::Resize,
        }
    }

    /// The next request that is not about the terminal: the exit status that it asks for.
    pub(crate) async fn stop(&mut self) -> u8 {
        loop {
            match self.next().await {
                Request::Interrupt => return crate::failure::INTERRUPTED,
                Request::Stop(status) => return status,
                Request::Resize => {}
            }
        }
    }
}
