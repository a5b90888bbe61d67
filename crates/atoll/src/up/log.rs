//! The log: to standard error, around a progress bar if there is one.

use crate::{
    progress,
    style::{Paint, Stream},
};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter, util::SubscriberInitExt};

/// What is logged unless `ATOLL_LOG` says otherwise.
const DEFAULT: &str = "info,hyper=warn,reqwest=warn,rustls=warn,h2=warn";

/// Begins to log. `ATOLL_LOG` chooses what, as `RUST_LOG` does elsewhere: `debug`,
/// `warn,agent=debug`.
pub(crate) fn begin(json: bool) {
    let filter = EnvFilter::try_from_env("ATOLL_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(Around)
        .with_ansi(Paint::of(Stream::Error).is_coloured());
    // A second log in the same process, as in tests, is no reason to stop.
    let _ = if json {
        builder.json().flatten_event(true).finish().try_init()
    } else {
        builder.compact().with_target(false).finish().try_init()
    };
}

/// Writes lines without disturbing a progress bar.
#[derive(Debug, Clone, Copy)]
struct Around;

impl<'a> MakeWriter<'a> for Around {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        *self
    }
}

impl std::io::Write for Around {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        progress::write_around(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
