//! Input for a process: a pipe to its standard input, or its terminal.

use crate::descriptor::watched;
use api::envd::{
    connect::{Code, ConnectError},
    process::{ProcessInput, PtySize},
};
use rustix::{io::Errno, termios::Winsize};
use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::OwnedFd,
    rc::Rc,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Mutex,
};

/// Where a process's input goes.
#[derive(Debug)]
pub struct Input {
    terminal: bool,
    sink: RefCell<Option<Rc<AsyncFd<OwnedFd>>>>,
    /// Held while one client's input is written, so that two do not mix.
    order: Mutex<()>,
    /// No more input is wanted; who is writing closes when done.
    closing: Cell<bool>,
}

impl Input {
    /// No standard input.
    pub fn none() -> Self {
        Self::new(None, false)
    }

    /// A pipe.
    pub fn pipe(pipe: OwnedFd) -> io::Result<Self> {
        Ok(Self::new(Some(watched(pipe, Interest::WRITABLE)?), false))
    }

    /// A terminal's controlling side.
    pub fn terminal(terminal: OwnedFd) -> io::Result<Self> {
        Ok(Self::new(
            Some(watched(terminal, Interest::WRITABLE)?),
            true,
        ))
    }

    fn new(sink: Option<AsyncFd<OwnedFd>>, terminal: bool) -> Self {
        let sink = RefCell::new(sink.map(Rc::new));
        Self {
            terminal,
            sink,
            order: Mutex::new(()),
            closing: Cell::new(false),
        }
    }

    /// Whether the process has a terminal.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Writes all of it, waiting until the process takes it.
    pub async fn write(&self, input: &ProcessInput) -> Result<(), ConnectError> {
        let refuse = |message: &str| ConnectError::new(Code::FailedPrecondition, message);
        let (data, what) = match (&input.stdin, &input.pty) {
            (Some(_), _) if self.terminal => {
                return Err(refuse(
                    "error writing to stdin: tty assigned to process — input should be written to \
                     the pty, not the stdin",
                ));
            }
            (Some(data), _) => (data, "stdin"),
            (None, Some(data)) if self.terminal => (data, "tty"),
            (None, Some(_)) => {
                return Err(refuse(
                    "error writing to tty: tty not assigned to process — input should be written \
                     to the stdin, not the tty",
                ));
            }
            (None, None) => {
                return Err(ConnectError::new(Code::Unimplemented, "invalid input type"));
            }
        };
        let _order = self.order.lock().await;
        let mut rest = &data.0[..];
        while !rest.is_empty() {
            let sink = self.sink.borrow().clone();
            let Some(sink) = sink.filter(|_| !self.closing.get()) else {
                return Err(refuse(&format!(
                    "error writing to {what}: stdin not enabled or closed"
                )));
            };
            let failed = |error: io::Error| {
                let code = if error.kind() == io::ErrorKind::BrokenPipe {
                    Code::FailedPrecondition
                } else {
                    Code::Internal
                };
                ConnectError::new(code, format!("error writing to {what}: {error}"))
            };
            let mut ready = sink.writable().await.map_err(failed)?;
            match rustix::io::write(sink.get_ref(), rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(failed(error.into())),
            }
        }
        Ok(())
    }

    /// Ends a pipe, after what is being written; a second time does nothing.
    pub async fn end(&self) -> Result<(), ConnectError> {
        if self.terminal {
            return Err(ConnectError::new(
                Code::FailedPrecondition,
                "error closing stdin: cannot close stdin for PTY process — send Ctrl+D (0x04) \
                 instead",
            ));
        }
        let _order = self.order.lock().await;
        self.close();
        Ok(())
    }

    /// Lets go of it at once.
    pub fn close(&self) {
        self.closing.set(true);
        self.sink.borrow_mut().take();
    }

    /// Changes the size of the terminal.
    pub fn resize(&self, size: PtySize) -> Result<(), ConnectError> {
        let sink = self.sink.borrow().clone();
        let Some(sink) = sink.filter(|_| self.terminal) else {
            return Err(ConnectError::internal(
                "error resizing tty: tty not assigned to process",
            ));
        };
        rustix::termios::tcsetwinsize(sink.get_ref(), window_size(size))
            .map_err(|error| ConnectError::internal(format!("error resizing tty: {error}")))
    }
}

/// The kernel's form of a size; what is too large becomes the largest.
pub fn window_size(size: PtySize) -> Winsize {
    Winsize {
        ws_row: u16::try_from(size.rows).unwrap_or(u16::MAX),
        ws_col: u16::try_from(size.cols).unwrap_or(u16::MAX),
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}
