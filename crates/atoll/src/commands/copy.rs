//! `atoll cp`: files and folders into a sandbox and out of it.

use crate::{
    client::{connection::Connection, files::Kind, guest::Guest},
    failure::Failure,
    transfer,
};
use anyhow::Context;
use reqwest::Body;
use std::path::{Path, PathBuf};
use tokio::io::AsyncWriteExt;
use tokio_util::io::ReaderStream;

const EXAMPLES: &str = "\
Examples:
  atoll cp main.py i0ab:                    into the working directory
  atoll cp i0ab:/var/log/app.log .
  atoll cp ./site i0ab:/srv/                a folder, with all that is in it
  tar c . | atoll cp - i0ab:/tmp/all.tar
  atoll cp i0ab:/etc/os-release -           to standard output

As with `cp`, a folder as destination receives the source under its own name.";

/// Copy files and folders into a sandbox or out of it
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// SANDBOX:PATH, PATH, or - for standard input
    #[arg(value_name = "FROM", value_parser = parse_place)]
    from: Place,

    /// SANDBOX:PATH, PATH, or - for standard output
    #[arg(value_name = "TO", value_parser = parse_place)]
    to: Place,

    /// Whose files they are in the sandbox [default: the template's user]
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,

    #[command(flatten)]
    connection: Connection,
}

/// One end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Standard,
    Local(PathBuf),
    Sandbox { sandbox: String, path: String },
}

#[expect(clippy::unnecessary_wraps, reason = "the form that clap wants")]
fn parse_place(text: &str) -> Result<Place, String> {
    Ok(match text.split_once(':') {
        _ if text == "-" => Place::Standard,
        Some((sandbox, path)) if !sandbox.is_empty() && !sandbox.contains(['/', '.']) => {
            let path = if path.is_empty() { "." } else { path };
            Place::Sandbox {
                sandbox: sandbox.to_owned(),
                path: path.to_owned(),
            }
        }
        _ => Place::Local(text.into()),
    })
}

/// Does it.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    let sandbox = match (&arguments.from, &arguments.to) {
        (Place::Sandbox { .. }, Place::Sandbox { .. }) => {
            return Err(Failure::new(
                "both ends are in sandboxes",
                "copy through this machine: atoll cp A:PATH - | atoll cp - B:PATH",
            )
            .into());
        }
        (Place::Sandbox { sandbox, .. }, _) | (_, Place::Sandbox { sandbox, .. }) => sandbox,
        _ => {
            return Err(Failure::new(
                "neither end is in a sandbox",
                "write one of them as SANDBOX:PATH",
            )
            .into());
        }
    };
    let client = arguments.connection.open()?;
    let id = client.resolve(sandbox).await?;
    let opened = client.open(&id).await?;
    let guest = Guest::new(client, opened, arguments.user);
    match (arguments.from, arguments.to) {
        (Place::Standard, Place::Sandbox { path, .. }) => {
            guest
                .write_file(
                    &path,
                    Body::wrap_stream(ReaderStream::new(tokio::io::stdin())),
                )
                .await
        }
        (Place::Local(from), Place::Sandbox { path, .. }) => upload(&guest, &from, &path).await,
        (Place::Sandbox { path, .. }, Place::Standard) => {
            read_into(&guest, &path, &mut tokio::io::stdout()).await
        }
        (Place::Sandbox { path, .. }, Place::Local(to)) => download(&guest, &path, &to).await,
        _ => Ok(()),
    }?;
    Ok(0)
}

async fn upload(guest: &Guest, from: &Path, to: &str) -> anyhow::Result<()> {
    let metadata = tokio::fs::metadata(from)
        .await
        .with_context(|| format!("cannot read {}", from.display()))?;
    let name = std::path::absolute(from)?;
    let name = name
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
        .to_owned();
    let inside = to.ends_with('/') || guest.stat(to).await? == Kind::Directory;
    let target = if inside && !name.is_empty() {
        format!("{}/{name}", to.trim_end_matches('/'))
    } else {
        to.to_owned()
    };
    if metadata.is_dir() {
        return transfer::upload_folder(guest, from, &target).await;
    }
    let file = tokio::fs::File::open(from)
        .await
        .with_context(|| format!("cannot read {}", from.display()))?;
    guest
        .write_file(&target, Body::wrap_stream(ReaderStream::new(file)))
        .await
}

async fn download(guest: &Guest, from: &str, to: &Path) -> anyhow::Result<()> {
    let kind = guest.stat(from).await?;
    if kind == Kind::Missing {
        return Err(Failure::new(format!("there is no `{from}` in the sandbox"), "").into());
    }
    let name = from
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or_default();
    // The name comes from the command line, yet `..` would leave the folder that was named.
    let named = !matches!(name, "" | "." | ".." | "~");
    let target = if to.is_dir() && named {
        to.join(name)
    } else {
        to.to_owned()
    };
    if kind == Kind::Directory {
        return transfer::download_folder(guest, from, &target).await;
    }
    let mut file = tokio::fs::File::create(&target)
        .await
        .with_context(|| format!("cannot write {}", target.display()))?;
    read_into(guest, from, &mut file).await
}

async fn read_into(
    guest: &Guest,
    path: &str,
    to: &mut (impl AsyncWriteExt + Unpin),
) -> anyhow::Result<()> {
    let mut response = guest.read_file(path).await?;
    while let Some(bytes) = response
        .chunk()
        .await
        .context("the connection to the sandbox broke")?
    {
        to.write_all(&bytes)
            .await
            .context("cannot write what was read")?;
    }
    to.flush().await.context("cannot write what was read")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart() {
        let sandbox = |path: &str| Place::Sandbox {
            sandbox: "i0ab".into(),
            path: path.into(),
        };
        assert_eq!(parse_place("-"), Ok(Place::Standard));
        assert_eq!(parse_place("i0ab:/etc/x:y"), Ok(sandbox("/etc/x:y")));
        assert_eq!(parse_place("i0ab:"), Ok(sandbox(".")));
        assert_eq!(parse_place("./a:b"), Ok(Place::Local("./a:b".into())));
        assert_eq!(parse_place("/a:b"), Ok(Place::Local("/a:b".into())));
        assert_eq!(parse_place("plain"), Ok(Place::Local("plain".into())));
    }
}
