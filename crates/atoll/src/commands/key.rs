//! `atoll key`: API keys.

use crate::{
    client::{connection::Connection, encode, sandboxes::pick},
    style::{self, Table},
};
use api::rest::v1::{CreatedKey, Key, NewKey, Role};
use clap::Subcommand;

/// Make, list and remove API keys
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a key and print it, this once
    #[command(
        after_help = "Examples:\n  atoll key new ci > ci.key && chmod 600 ci.key\n  \
                            atoll key new ann --tenant new --json"
    )]
    New {
        /// What the key is for
        #[arg(value_name = "NAME")]
        name: String,

        /// Let it manage keys, list nodes and build templates from files of the nodes
        #[arg(long)]
        admin: bool,

        /// Whose sandboxes and templates it opens: a tenant's id, or `new` [default: your own]
        #[arg(long, value_name = "TENANT")]
        tenant: Option<String>,

        /// Print JSON
        #[arg(long)]
        json: bool,

        #[command(flatten)]
        connection: Connection,
    },

    /// List the keys, without the keys themselves
    #[command(after_help = "Example:\n  atoll key ls")]
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,

        #[command(flatten)]
        connection: Connection,
    },

    /// Remove keys: whoever uses them is refused from then on
    #[command(after_help = "Example:\n  atoll key rm 1f3a")]
    Rm {
        /// Keys: their ids as `atoll key ls` shows them, or the beginnings of them
        #[arg(value_name = "KEY", required = true)]
        keys: Vec<String>,

        #[command(flatten)]
        connection: Connection,
    },
}

/// Does it.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    match arguments.command {
        Command::New {
            name,
            admin,
            tenant,
            json,
            connection,
        } => {
            let client = connection.open()?;
            let request = NewKey {
                name,
                role: admin.then_some(Role::Admin),
                tenant,
            };
            let made: CreatedKey = client.post("/v1/keys", &request).await?;
            if json {
                style::print_json(&made)?;
            } else {
                style::to_stdout(&format!("{}\n", made.secret.expose()))?;
            }
        }
        Command::Ls { json, connection } => {
            let client = connection.open()?;
            let keys: Vec<Key> = client.get("/v1/keys").await?;
            if json {
                style::print_json(&keys)?;
                return Ok(0);
            }
            let mut table = Table::new(&["KEY", "NAME", "BEGINS WITH", "ROLE", "TENANT", "MADE"]);
            for key in keys {
                let role = match key.role {
                    Role::Admin => "admin",
                    Role::Member => "member",
                };
                let made = format!("{:.0}", key.created_at);
                table.row([
                    key.id,
                    key.name,
                    key.prefix,
                    role.to_owned(),
                    key.tenant,
                    made,
                ]);
            }
            table.print()?;
        }
        Command::Rm { keys, connection } => {
            let client = connection.open()?;
            let known: Vec<Key> = client.get("/v1/keys").await?;
            for text in keys {
                let key = pick(&text, known.iter(), |key| &key.id);
                let key = key.only("key", &text, "atoll key ls")?;
                client
                    .delete(&format!("/v1/keys/{}", encode(&key.id)))
                    .await?;
                style::to_stdout(&format!("{}\n", key.id))?;
            }
        }
    }
    Ok(0)
}
