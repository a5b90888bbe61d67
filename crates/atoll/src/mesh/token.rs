//! `atoll mesh token`: what lets machines in.

use crate::{
    client::{
        connection::{Connection, is_local},
        encode,
    },
    style::{self, Table},
};
use api::rest::mesh::{CreatedMeshToken, MeshToken, NewMeshToken};
use clap::Subcommand;

/// Make, list and remove join tokens
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a join token and print it, this once
    #[command(
        after_help = "Examples:\n  atoll mesh token create --tags web --address http://192.0.2.1:3000\n  \
                      atoll mesh token create --tags ci --ephemeral --reuse --valid 12h\n\n\
                      A token is good for one node and one day unless told otherwise. Who has it can join."
    )]
    Create {
        /// Tags of the nodes that join with it, by which policy knows them
        #[arg(long, value_name = "TAG", value_delimiter = ',')]
        tags: Vec<String>,

        /// Forget nodes that joined with it once they vanished for 90 s
        #[arg(long)]
        ephemeral: bool,

        /// Let more than one node join with it
        #[arg(long)]
        reuse: bool,

        /// How long it is good for: 90s, 15m, 2h, 7d
        #[arg(long, value_name = "TIME", value_parser = crate::commands::parse_seconds, default_value = "1d")]
        valid: u64,

        /// Where nodes reach this Atoll [default: where this command reaches it]
        #[arg(long, value_name = "URL")]
        address: Option<String>,

        /// Print JSON
        #[arg(long)]
        json: bool,

        #[command(flatten)]
        connection: Connection,
    },

    /// List the tokens, without their secrets
    #[command(after_help = "Example:\n  atoll mesh token ls")]
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,

        #[command(flatten)]
        connection: Connection,
    },

    /// Remove a token: nobody joins with it from then on; who did stays
    #[command(after_help = "Example:\n  atoll mesh token rm 1f3a52c08d9e7b64")]
    Rm {
        /// Its id as `atoll mesh token ls` shows it
        #[arg(value_name = "TOKEN")]
        token: String,

        #[command(flatten)]
        connection: Connection,
    },
}

/// Does it.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    match arguments.command {
        Command::Create {
            tags,
            ephemeral,
            reuse,
            valid,
            address,
            json,
            connection,
        } => {
            let client = connection.open()?;
            if address.is_none() && is_local(client.url()) {
                style::note("the token leads to this machine only; use --address for others");
            }
            let request = NewMeshToken {
                tags: tags.into_iter().collect(),
                ephemeral,
                reuse,
                valid_seconds: Some(valid),
                url: address.unwrap_or_else(|| client.url().to_string()),
            };
            let created: CreatedMeshToken = client.post("/v1/mesh/tokens", &request).await?;
            if json {
                style::print_json(&created)?;
            } else {
                style::to_stdout(&format!("{}\n", created.token.expose()))?;
            }
        }
        Command::Ls { json, connection } => {
            let tokens: Vec<MeshToken> = connection.open()?.get("/v1/mesh/tokens").await?;
            if json {
                style::print_json(&tokens)?;
                return Ok(0);
            }
            let mut table = Table::new(&["TOKEN", "TAGS", "FOR", "EPHEMERAL", "JOINED", "ENDS"]);
            for token in tokens {
                let ends = i64::try_from(token.expires_ms).ok();
                let ends = ends.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
                let tags: Vec<_> = token.tags.into_iter().collect();
                table.row([
                    token.id,
                    tags.join(","),
                    if token.reuse { "many" } else { "one" }.to_owned(),
                    if token.ephemeral { "yes" } else { "no" }.to_owned(),
                    token.uses.to_string(),
                    ends.map_or_else(String::new, |ends| format!("{ends:.0}")),
                ]);
            }
            table.print()?;
        }
        Command::Rm { token, connection } => {
            let path = format!("/v1/mesh/tokens/{}", encode(&token));
            connection.open()?.delete(&path).await?;
            style::to_stdout(&format!("{token}\n"))?;
        }
    }
    Ok(0)
}
