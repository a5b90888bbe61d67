//! The calls of `process.Process`.

use super::{
    events::Events,
    input::{Input, window_size},
    output::Process,
    spawn::{Credentials, Program, SpawnError, Step, Streams, spawn},
    supervise::supervise,
};
use crate::{
    accounts::{self, User},
    http::Guest,
    paths,
};
use api::{
    envd::{
        connect::{Code, ConnectError},
        process::{
            Empty, ListResponse, OutputStream, PtySize, SelectRequest, SendInputRequest,
            SendSignalRequest, Signal, StartRequest, UpdateRequest,
        },
    },
    node::LogLevel,
};
use rustix::pty::OpenptFlags;
use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant},
};

/// Arguments and variables together may not be longer.
const SIZE_LIMIT: usize = 2 << 20;

/// How long the answer to a kill waits for the end.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// `Start`: the process is in the table and supervised when this returns.
pub fn start(
    guest: &Rc<Guest>,
    user: &User,
    request: StartRequest,
    deadline: Option<Instant>,
) -> Result<Rc<Process>, ConnectError> {
    guest.processes.admit()?;
    if request.process.cmd.is_empty() {
        return Err(ConnectError::invalid_argument("no command was given"));
    }
    let program = prepare(guest, user, &request)?;
    let failed = |error: &io::Error| {
        let command = std::iter::once(&request.process.cmd).chain(&request.process.args);
        let command: Vec<&str> = command.map(String::as_str).take(100).collect();
        let command: String = command.join(" ").chars().take(1000).collect();
        ConnectError::new(
            code(error),
            format!("error starting process '{command}': {error}"),
        )
    };
    let explain = |error: SpawnError| match error.step {
        Step::Directory => ConnectError::invalid_argument(format!(
            "cannot enter cwd '{}': {}",
            program.directory.to_string_lossy(),
            error.source
        )),
        Step::Execute if error.source.kind() == io::ErrorKind::NotFound => {
            ConnectError::invalid_argument(format!(
                "error starting process '{0}': exec: \"{0}\": executable file not found in $PATH",
                request.process.cmd
            ))
        }
        _ => failed(&error.source),
    };
    let (pid, input, outputs) = match request.pty {
        Some(pty) => {
            let (controller, terminal) = open_terminal(user, pty.size.unwrap_or_default())
                .map_err(|error| failed(&error))?;
            let reader = controller.try_clone().map_err(|error| failed(&error))?;
            let input = Input::terminal(controller).map_err(|error| failed(&error))?;
            let pid = spawn(&program, Streams::Terminal(terminal.as_fd())).map_err(explain)?;
            (pid, input, vec![(OutputStream::Pty, reader)])
        }
        None => {
            let pipe = || {
                rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
                    .map_err(|error| failed(&error.into()))
            };
            let (stdout, stdout_child) = pipe()?;
            let (stderr, stderr_child) = pipe()?;
            let (input, stdin_child) = if request.stdin.unwrap_or(true) {
                let (child, ours) = pipe()?;
                (Input::pipe(ours).map_err(|error| failed(&error))?, child)
            } else {
                let null = std::fs::File::open("/dev/null").map_err(|error| failed(&error))?;
                (Input::none(), null.into())
            };
            let streams = Streams::Pipes {
                stdin: stdin_child.as_fd(),
                stdout: stdout_child.as_fd(),
                stderr: stderr_child.as_fd(),
            };
            let pid = spawn(&program, streams).map_err(explain)?;
            (
                pid,
                input,
                vec![
                    (OutputStream::Stdout, stdout),
                    (OutputStream::Stderr, stderr),
                ],
            )
        }
    };
    let table = &guest.processes;
    let logs = Rc::clone(&guest.logs);
    let bound = Rc::clone(table.bound());
    let process = Process::new(pid, request.process, request.tag, input, logs, bound);
    let process = Rc::new(process);
    table.insert(Rc::clone(&process));
    let fields = [("pid", pid.to_string()), ("command", process.command())];
    guest
        .logs
        .add(LogLevel::Info, format!("process {pid} started"), &fields);
    for (stream, source) in outputs {
        if let Err(error) = process.read_from(stream, source) {
            // Its output is lost, and it will notice by itself.
            let message = format!("cannot read the output of process {pid}: {error}");
            guest.logs.add(LogLevel::Error, message, &[]);
        }
    }
    tokio::task::spawn_local(supervise(Rc::clone(&process), Rc::clone(table), deadline));
    Ok(process)
}

fn code(error: &io::Error) -> Code {
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE | libc::ENOSPC) => {
            Code::ResourceExhausted
        }
        _ => Code::InvalidArgument,
    }
}

fn c_string(text: impl Into<Vec<u8>>) -> Result<CString, ConnectError> {
    CString::new(text).map_err(|_| {
        ConnectError::invalid_argument("commands, arguments and variables must not contain NUL")
    })
}

/// All that is needed to start what was asked for.
pub(crate) fn prepare(
    guest: &Guest,
    user: &User,
    request: &StartRequest,
) -> Result<Program, ConnectError> {
    let config = &request.process;
    let directory = directory(guest, user, config.cwd.as_deref().unwrap_or_default())?;
    let mut environment = guest.environment_of(user);
    for (name, value) in &config.envs {
        if name.is_empty() || name.contains('=') {
            return Err(ConnectError::invalid_argument(format!(
                "invalid name of an environment variable: '{name}'"
            )));
        }
        environment.insert(name.clone(), value.clone());
    }
    let strings = config
        .args
        .iter()
        .chain(environment.values())
        .chain(environment.keys());
    if strings.map(|text| text.len() + 2).sum::<usize>() > SIZE_LIMIT {
        return Err(ConnectError::invalid_argument("argument list too long"));
    }
    let path = environment
        .get("PATH")
        .map(String::as_str)
        .unwrap_or_default();
    let candidates = candidates(&config.cmd, path, &directory);
    let candidates = candidates
        .into_iter()
        .map(|path| c_string(path.into_os_string().into_encoded_bytes()));
    let arguments = std::iter::once(&config.cmd).chain(&config.args);
    let variables = environment
        .iter()
        .map(|(name, value)| c_string(format!("{name}={value}")));
    Ok(Program {
        candidates: candidates.collect::<Result<_, _>>()?,
        arguments: arguments
            .map(|text| c_string(text.as_str()))
            .collect::<Result<_, _>>()?,
        environment: variables.collect::<Result<_, _>>()?,
        directory: c_string(directory.into_os_string().into_encoded_bytes())?,
        credentials: guest.can_change_user.then(|| Credentials {
            uid: user.uid,
            gid: user.gid,
            groups: accounts::find_group_ids(user),
        }),
        oom_score: guest.child_oom_score.clone(),
    })
}

/// Where a command runs: where it says; else the default directory; else, if that is missing,
/// home; else the root.
fn directory(guest: &Guest, user: &User, asked: &str) -> Result<PathBuf, ConnectError> {
    let resolve = |text: &str| {
        paths::resolve(text, user, &guest.role().working_directory)
            .map_err(|error| ConnectError::invalid_argument(error.to_string()))
    };
    let path = resolve(asked)?;
    if path.exists() {
        return Ok(path);
    }
    if asked.is_empty() {
        let home = user.home.is_dir().then(|| user.home.clone());
        return Ok(home.unwrap_or_else(|| PathBuf::from("/")));
    }
    Err(ConnectError::invalid_argument(format!(
        "cwd '{}' does not exist",
        path.display()
    )))
}

fn candidates(command: &str, path: &str, directory: &Path) -> Vec<PathBuf> {
    if command.contains('/') {
        return vec![directory.join(command)];
    }
    let folders = path.split(':').map(|folder| directory.join(folder));
    folders
        .map(|folder| folder.join(command))
        .take(100)
        .collect()
}

fn open_terminal(user: &User, size: PtySize) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let controller = rustix::pty::openpt(flags)?;
    rustix::pty::unlockpt(&controller)?;
    let terminal = rustix::pty::ioctl_tiocgptpeer(&controller, flags)?;
    rustix::termios::tcsetwinsize(&controller, window_size(size))?;
    // So that the user's programs may open it again by its name.
    let owner = rustix::fs::Uid::from_raw(user.uid);
    let _ = rustix::fs::fchown(&terminal, Some(owner), None);
    Ok((controller, terminal))
}

/// The stream of a process's events.
pub fn events(process: Rc<Process>, interval: Duration, deadline: Option<Instant>) -> Events {
    Events::new(process, interval, deadline)
}

/// `List`.
pub fn list(guest: &Guest) -> ListResponse {
    ListResponse {
        processes: guest.processes.list(),
    }
}

/// `SendInput`.
pub async fn send_input(guest: &Guest, request: SendInputRequest) -> Result<Empty, ConnectError> {
    let process = guest.processes.find(&request.process)?;
    process.input.write(&request.input).await?;
    Ok(Empty {})
}

/// `CloseStdin`.
pub async fn close_stdin(guest: &Guest, request: SelectRequest) -> Result<Empty, ConnectError> {
    guest.processes.find(&request.process)?.input.end().await?;
    Ok(Empty {})
}

/// `Update`.
pub fn update(guest: &Guest, request: &UpdateRequest) -> Result<Empty, ConnectError> {
    let process = guest.processes.find(&request.process)?;
    if let Some(size) = request.pty.and_then(|pty| pty.size) {
        process.input.resize(size)?;
    }
    Ok(Empty {})
}

/// `SendSignal`. One that kills is answered when the process is gone, if that is soon: whoever asks
/// next finds it gone.
pub async fn send_signal(guest: &Guest, request: SendSignalRequest) -> Result<Empty, ConnectError> {
    let process = guest.processes.find(&request.process)?;
    let signal = match request.signal {
        Signal::Sigkill => rustix::process::Signal::KILL,
        Signal::Sigterm => rustix::process::Signal::TERM,
        Signal::Unspecified => {
            return Err(ConnectError::new(Code::Unimplemented, "invalid signal"));
        }
    };
    process
        .signal(signal)
        .map_err(|error| ConnectError::internal(format!("error sending signal: {error}")))?;
    if signal == rustix::process::Signal::KILL {
        let gone = guest.processes.wait_for(&process);
        let _ = tokio::time::timeout(KILL_PATIENCE, gone).await;
    }
    Ok(Empty {})
}
