//! Atoll: one program that runs untrusted code in sandboxes.
//!
//! What it is: the command line. `atoll up` ([`up`]) puts the rooms of the house together in one
//! process; every other command ([`commands`]) is a client of the public API ([`client`]) or looks
//! at this machine (`doctor`).
//!
//! What it is not: nothing that a sandbox, a template or the API does is decided here.
//!
//! Start reading at [`commands`], then [`up`].

mod client;
mod commands;
mod data_dir;
mod doctor;
mod failure;
mod fleet;
mod instance;
mod mesh;
mod progress;
mod session;
mod signals;
mod style;
mod terminal;
mod transfer;
mod up;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Started as the keeper of sandboxes, the program never comes back from here.
    driver::container::keeper::run_if_asked();
    // Nor as the jail of a virtual machine, which it becomes.
    driver::qemu::jail::run_if_asked();
    // Nor as what brings one its memory.
    driver::firecracker::pages::run_if_asked();
    let arguments = commands::Arguments::parse();
    let status = match runtime(&arguments.command) {
        Ok(runtime) => {
            let runs_another = arguments.command.runs_another();
            let result = runtime.block_on(arguments.command.execute());
            // A thread may still wait for standard input; nobody waits for that thread.
            runtime.shutdown_background();
            result.unwrap_or_else(|error| {
                failure::report(&error);
                if runs_another {
                    failure::ATOLL_FAILED
                } else {
                    failure::FAILED
                }
            })
        }
        Err(error) => {
            failure::report(&error);
            failure::FAILED
        }
    };
    ExitCode::from(status)
}

/// The threads that the command needs: a few to serve, one for a client.
fn runtime(command: &commands::Command) -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = match command {
        commands::Command::Up(_) => up::runtime(),
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    Ok(builder.enable_all().build()?)
}
