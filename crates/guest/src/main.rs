//! `atoll-guest`: the first process of a sandbox.
//!
//! As `/init`, process 1, it starts a microVM; see [`guest::machine`].
//! `atoll-guest wait --control-fd N` waits to become somebody's sandbox; `atoll-guest serve` serves
//! right here, for tests and for comparing with other guests.

use api::{Secret, boot::Identity};
use guest::{Settings, cell, machine, serve};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    os::fd::{FromRawFd as _, OwnedFd},
    process::ExitCode,
};

const USAGE: &str = "usage: atoll-guest wait --control-fd N
       atoll-guest serve --port PORT [--address ADDRESS] [--token-file FILE]
                         [--control-token-file FILE] [--user NAME] [--workdir DIR]
                         [--start-command COMMAND] [--env NAME=VALUE]...";

fn main() -> ExitCode {
    if machine::is_wanted() {
        machine::run();
    }
    let mut arguments = std::env::args().skip(1);
    let mode = arguments.next().unwrap_or_default();
    let options = match Options::parse(arguments) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("atoll-guest: {message}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let outcome = match mode.as_str() {
        "wait" => wait(&options),
        "serve" => serve_here(options),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("atoll-guest: {message}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug, Default)]
struct Options {
    control: Option<i32>,
    port: Option<u16>,
    address: Option<IpAddr>,
    token: Option<Secret>,
    control_token: Option<Secret>,
    user: Option<String>,
    directory: String,
    start_command: Option<String>,
    environment: BTreeMap<String, String>,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self::default();
        while let Some(name) = arguments.next() {
            let value = arguments
                .next()
                .ok_or_else(|| format!("{name} needs a value"))?;
            let bad = || format!("`{value}` is not a value for {name}");
            match name.as_str() {
                "--control-fd" => options.control = Some(value.parse().map_err(|_| bad())?),
                "--port" => options.port = Some(value.parse().map_err(|_| bad())?),
                "--address" => options.address = Some(value.parse().map_err(|_| bad())?),
                "--token-file" => options.token = Some(read_secret(&value)?),
                "--control-token-file" => options.control_token = Some(read_secret(&value)?),
                "--user" => options.user = Some(value),
                "--workdir" => options.directory = value,
                "--start-command" => options.start_command = Some(value),
                "--env" => {
                    let (name, value) = value.split_once('=').ok_or_else(bad)?;
                    options
                        .environment
                        .insert(name.to_owned(), value.to_owned());
                }
                _ => return Err(format!("unknown option {name}")),
            }
        }
        Ok(options)
    }
}

fn read_secret(path: &str) -> Result<Secret, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    Ok(Secret::new(text.trim()))
}

fn wait(options: &Options) -> Result<(), String> {
    let control = options
        .control
        .filter(|fd| *fd > 2)
        .ok_or("--control-fd is missing")?;
    // SAFETY: whoever started us handed this descriptor over for this alone; nothing was opened yet.
    let control = unsafe { OwnedFd::from_raw_fd(control) };
    let (identity, control) = match cell::wait(control) {
        Ok(claimed) => claimed,
        // The node went away before anybody wanted this sandbox.
        Err(cell::CellError::Abandoned) => return Ok(()),
        Err(error) => return Err(error.to_string()),
    };
    let settings = Settings {
        address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    let mut control = Some(control);
    let served = serve(identity, settings, |_| {
        if let Some(control) = control.take() {
            control.ready();
        }
    });
    served.map_err(|error| {
        let message = format!("cannot serve: {error}");
        if let Some(control) = &control {
            control.failed(&message);
        }
        message
    })
}

fn serve_here(options: Options) -> Result<(), String> {
    let port = options.port.ok_or("--port is missing")?;
    let id = |error: api::id::ParseIdError| error.to_string();
    let identity = Identity {
        sandbox: "i00000000000000000000".parse().map_err(id)?,
        template: "00000000000000000000".parse().map_err(id)?,
        access_token: options.token,
        control_token: options.control_token.unwrap_or_else(|| Secret::new("")),
        environment: options.environment,
        default_user: options.user.unwrap_or_else(|| "root".to_owned()),
        working_directory: options.directory,
        start_command: options.start_command,
        port,
    };
    let address = options.address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    serve(identity, Settings { address }, |port| {
        println!("ready {port}")
    })
    .map_err(|error| format!("cannot serve: {error}"))
}
