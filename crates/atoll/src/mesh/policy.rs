//! `atoll mesh policy`: what may pass.

use crate::{client::connection::Connection, failure::Failure, style};
use anyhow::Context;
use api::rest::mesh::MeshPolicy;
use clap::Subcommand;
use mesh::policy::{Mistake, Policy};
use serde::Serialize;
use std::path::{Path, PathBuf};

const FORMAT: &str = "\
Examples:
  atoll mesh policy test policy.toml

What no rule allows does not pass. A policy is a file like this:

  domain = \"mesh.internal\"            # what names end with
  relays = [\"tag:relay\"]             # nodes with `mesh up --relay` that are used as relays

  [services.db]                       # db.mesh.internal is all nodes with the tag db
  nodes = [\"tag:db\"]
  ports = [\"tcp/5432\"]

  [[allow]]
  from = [\"tag:web\"]                  # tag:NAME, node:NAME or *
  to = [\"service:db\"]                 # the same, or service:NAME: on the service's ports

  [[allow]]
  from = [\"tag:db\"]
  to = [\"tag:db\"]
  ports = [\"tcp/5432\", \"udp/8000-8100\", \"icmp\"]

  [clusters.paris]                    # networks behind nodes: pods and services of Kubernetes
  nodes = [\"tag:paris-gw\"]
  ranges = [\"10.42.0.0/16\", \"10.43.0.0/16\"]
  as = [\"10.200.0.0/16\", \"10.201.0.0/16\"]   # where the mesh reaches them, if others have these ranges

  [[allow]]
  from = [\"tag:web\"]                  # or cluster:NAME
  to = [\"cluster:paris\"]
  ports = [\"tcp/443\"]

  [[test]]                            # must hold, or the policy is not taken
  from = [\"tag:web\"]
  to = [\"tag:db\"]
  port = \"tcp/5432\"
  expect = \"allow\"

  [sandboxes]                         # the tags that tenants may give to their sandboxes
  t0123456789ab = [\"tag:ci\"]        # a tenant, as `atoll key ls` shows it, or \"*\"

  [dns.split]                         # name servers for other domains
  \"corp.example\" = [\"10.0.0.53\"]

Exit status: 0 if there is no mistake and all tests hold, else 1.";

/// Test, set and show what may pass between nodes
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Look for mistakes in a policy and run its own tests; nothing is changed
    #[command(after_help = FORMAT)]
    Test {
        /// The policy
        #[arg(value_name = "FILE")]
        file: PathBuf,

        /// Print JSON
        #[arg(long)]
        json: bool,
    },

    /// Put a policy in force, if its own tests hold
    #[command(after_help = "Example:\n  atoll mesh policy set policy.toml")]
    Set {
        /// The policy
        #[arg(value_name = "FILE")]
        file: PathBuf,

        #[command(flatten)]
        connection: Connection,
    },

    /// Print the policy that is in force
    #[command(after_help = "Example:\n  atoll mesh policy show > policy.toml")]
    Show {
        #[command(flatten)]
        connection: Connection,
    },
}

#[derive(Serialize)]
struct Line {
    line: usize,
    cause: String,
    remedy: String,
}

#[derive(Serialize)]
struct Summary {
    rules: usize,
    tests: usize,
    mistakes: Vec<Line>,
}

fn read(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

/// Rules, tests, and what is wrong.
fn check(text: &str) -> (usize, usize, Vec<Mistake>) {
    match Policy::parse(text) {
        Err(mistakes) => (0, 0, mistakes),
        Ok(policy) => match policy.test() {
            Err(mistakes) => (policy.rules(), 0, mistakes),
            Ok(tests) => (policy.rules(), tests, Vec::new()),
        },
    }
}

/// Does it.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    match arguments.command {
        Command::Test { file, json } => {
            let (rules, tests, mistakes) = check(&read(&file)?);
            let failed = !mistakes.is_empty();
            if json {
                let mistakes = mistakes.into_iter().map(|mistake| Line {
                    line: mistake.line,
                    cause: mistake.cause,
                    remedy: mistake.remedy,
                });
                style::print_json(&Summary {
                    rules,
                    tests,
                    mistakes: mistakes.collect(),
                })?;
                return Ok(u8::from(failed));
            }
            for mistake in &mistakes {
                let Mistake {
                    line,
                    cause,
                    remedy,
                } = mistake;
                let place = file.display();
                style::to_stderr(&style::harmless(&format!(
                    "{place}:{line}: {cause}; {remedy}"
                )));
                style::to_stderr("\n");
            }
            if failed {
                let text = format!("the policy has {} mistakes", mistakes.len());
                return Err(Failure::new(text, "mend the lines above").into());
            }
            style::note(&format!("no mistakes: {rules} rules, {tests} tests hold"));
        }
        Command::Set { file, connection } => {
            let text = read(&file)?;
            connection
                .open()?
                .put("/v1/mesh/policy", &MeshPolicy { text })
                .await?;
        }
        Command::Show { connection } => {
            let policy: MeshPolicy = connection.open()?.get("/v1/mesh/policy").await?;
            style::to_stdout(&policy.text)?;
        }
    }
    Ok(0)
}
