//! This program's own terminal: its size, and raw mode.

use crate::client::process::Size;
use anyhow::Context;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::IsTerminal;

/// Whether standard input is a terminal.
pub(crate) fn is_present() -> bool {
    std::io::stdin().is_terminal()
}

/// The terminal's size; 80 × 24 where there is none.
pub(crate) fn size() -> Size {
    match tcgetwinsize(std::io::stdin()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => Size {
            columns: size.ws_col,
            rows: size.ws_row,
        },
        _ => Size {
            columns: 80,
            rows: 24,
        },
    }
}

/// Passes every key on as it is, Ctrl-C too; dropping it puts the terminal back as it was.
#[derive(Debug)]
pub(crate) struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Switches to raw mode, if standard input is a terminal.
    ///
    /// # Errors
    /// When the terminal refuses.
    pub(crate) fn enter() -> anyhow::Result<Option<Self>> {
        if !is_present() {
            return Ok(None);
        }
        let before = tcgetattr(std::io::stdin()).context("cannot read the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw)
            .context("cannot change the terminal's settings")?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
    }
}
