//! A process in a sandbox as if it ran here: input, output, signals, terminal and exit status pass
//! through.

use crate::{
    client::{
        guest::Guest,
        process::{Command, Event, Process, Signal, is_gone},
    },
    failure::INTERRUPTED,
    signals::{Request, Signals},
    style,
    terminal::{self, RawMode},
};
use anyhow::Context;
use std::{io::ErrorKind, pin::pin, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinHandle,
};

/// Exit status when nobody reads the output any more, as shells have it.
const OUTPUT_CLOSED: u8 = 128 + 13;
/// As much input travels in one request.
const INPUT_CHUNK: usize = 64 << 10;
/// Ctrl-D, which ends the input of a terminal.
const END_OF_TRANSMISSION: &[u8] = b"\x04";
/// How long ending the process inside may take when the command is told to stop.
const KILL_DEADLINE: Duration = Duration::from_secs(5);

/// How the process is connected.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wiring {
    /// On a terminal.
    pub(crate) terminal: bool,
    /// With this program's standard input.
    pub(crate) input: bool,
}

/// Ends the task when dropped.
struct Companion(JoinHandle<()>);

impl Drop for Companion {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs the command and returns its exit status, as shells have it.
///
/// Ctrl-C is passed on; the second one ends the process.
///
/// # Errors
/// When the process cannot be started, or the sandbox or the connection to it ended before it did.
pub(crate) async fn run(
    guest: &Guest,
    mut command: Command,
    wiring: Wiring,
    signals: &mut Signals,
) -> anyhow::Result<u8> {
    let size = wiring.terminal.then(terminal::size);
    if wiring.terminal {
        let kind = std::env::var("TERM").unwrap_or_else(|_| "xterm-256color".to_owned());
        command.environment.entry("TERM".to_owned()).or_insert(kind);
    }
    let process = guest.start(&command, size, wiring.input).await?;
    let pid = process.pid;
    let raw = if wiring.terminal {
        RawMode::enter()?
    } else {
        None
    };
    let _input = wiring.input.then(|| {
        let guest = guest.clone();
        Companion(tokio::spawn(async move {
            pass_input(&guest, pid, wiring.terminal).await
        }))
    });
    let mut interrupted = false;
    let mut messenger: Option<Companion> = None;
    let mut output = pin!(pass_output(process));
    let status = loop {
        let request = tokio::select! {
            status = &mut output => return status,
            request = signals.next() => request,
        };
        match request {
            Request::Interrupt if !interrupted => {
                interrupted = true;
                let guest = guest.clone();
                messenger = Some(Companion(tokio::spawn(async move {
                    // Where `kill` is missing the process is at least asked to end.
                    if guest.signal(pid, Signal::Interrupt).await.is_err() {
                        let _ = guest.signal(pid, Signal::Terminate).await;
                    }
                })));
            }
            Request::Interrupt => break INTERRUPTED,
            Request::Stop(status) => break status,
            Request::Resize if wiring.terminal => {
                let guest = guest.clone();
                messenger = Some(Companion(tokio::spawn(async move {
                    let _ = guest.resize(pid, terminal::size()).await;
                })));
            }
            Request::Resize => {}
        }
    };
    drop((messenger, raw));
    match tokio::time::timeout(KILL_DEADLINE, guest.signal(pid, Signal::Kill)).await {
        Ok(Err(error)) if !is_gone(&error) => {
            style::note(&format!("warning: process {pid} may still run: {error:#}"));
        }
        Err(_) => style::note(&format!("warning: process {pid} may still run")),
        _ => {}
    }
    Ok(status)
}

/// Copies standard input to the process until either ends.
async fn pass_input(guest: &Guest, pid: u32, pty: bool) {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; INPUT_CHUNK];
    loop {
        match stdin.read(&mut buffer).await {
            Ok(count) if count > 0 => {
                // It ended or closed its input: nobody wants the rest.
                if guest.write(pid, &buffer[..count], pty).await.is_err() {
                    return;
                }
            }
            _ if pty => {
                let _ = guest.write(pid, END_OF_TRANSMISSION, pty).await;
                return;
            }
            _ => {
                let _ = guest.close_input(pid).await;
                return;
            }
        }
    }
}

/// Copies what the process prints until it ends; returns its exit status.
async fn pass_output(mut process: Process) -> anyhow::Result<u8> {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    while let Some(event) = process.next().await? {
        let written = match event {
            Event::Output(bytes) => write(&mut stdout, &bytes).await,
            Event::ErrorOutput(bytes) => write(&mut stderr, &bytes).await,
            Event::End(end) => {
                if let Some(error) = end.error.as_deref().filter(|_| end.exit_code < 0) {
                    tracing::debug!(error, status = end.status, "the process was ended");
                }
                return Ok(end.shell_status());
            }
        };
        match written {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(OUTPUT_CLOSED),
            Err(error) => return Err(error).context("cannot write the command's output"),
        }
    }
    anyhow::bail!("the sandbox did not say how the command ended")
}

async fn write(stream: &mut (impl AsyncWriteExt + Unpin), bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}
