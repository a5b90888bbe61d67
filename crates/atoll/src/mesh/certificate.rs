//! `atoll mesh certificate`: keeps a program's certificate and key in a directory, and renews them.

use super::{
    StateDirectory,
    talk::{Answer, Question, Talk},
};
use crate::{failure::Failure, signals::Signals, style};
use anyhow::Context;
use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{ErrorKind, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown, symlink},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The files, as SPIFFE's own helper calls them.
const FILES: [&str; 3] = ["svid.pem", "svid_key.pem", "svid_bundle.pem"];
/// The link that leads to the files in force: all three change at once.
const CURRENT: &str = "..current";
/// How soon it is asked again when the coordinator is away, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

const EXAMPLES: &str = "\
Examples:
  atoll mesh certificate --directory /etc/db-tls --service db
  atoll mesh certificate --directory /etc/db-tls --service db -- systemctl reload postgresql
  atoll mesh certificate --directory ./tls --once          for this node itself, and end

In the directory are then

  svid.pem         the certificate: an X.509-SVID of SPIFFE, for TLS servers and clients
  svid_key.pem     its private key, which only the directory's owner may read
  svid_bundle.pem  what the certificates of others are checked against

The certificate has the id spiffe://mesh.internal/service/NAME and the DNS names of service and
node, or spiffe://mesh.internal/node/NAME without --service. A service is given to nodes that
policy names for it. It is good for a day, and renewed with another key after 8 hours, all three
files at once; the command behind -- is run each time. It prints `written ID` each time.";

/// Keep a certificate by which a program proves who it is (mutual TLS), and renew it
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Where to write it. The files belong to whom the directory belongs to
    #[arg(long, value_name = "DIR")]
    directory: PathBuf,

    /// The service that the program gives [default: none, the node itself]
    #[arg(long, value_name = "NAME")]
    service: Option<String>,

    /// Write it once and end
    #[arg(long)]
    once: bool,

    /// What to run whenever it was written
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,

    #[command(flatten)]
    state: StateDirectory,
}

/// What is written.
struct Files {
    id: String,
    contents: [String; 3],
    ends_ms: u64,
}

/// Does it, until it is told to stop.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    let mut signals = Signals::listen()?;
    tokio::select! {
        ended = keep(&arguments) => ended,
        _ = signals.stop() => Ok(0),
    }
}

async fn keep(arguments: &Arguments) -> anyhow::Result<u8> {
    let state = arguments.state.path();
    fs::create_dir_all(&arguments.directory).with_context(|| {
        let directory = arguments.directory.display();
        format!("cannot make {directory}")
    })?;
    let mut pause = FIRST_PAUSE;
    let mut written = false;
    loop {
        let files = match ask(&state, arguments.service.as_deref()).await {
            Ok(files) => files,
            // At first there is somebody who reads why.
            Err(error) if arguments.once || !written => return Err(error),
            Err(error) => {
                style::note(&format!("not renewed yet: {error:#}"));
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                continue;
            }
        };
        pause = FIRST_PAUSE;
        write(&arguments.directory, &files.contents)?;
        written = true;
        style::to_stdout(&format!("written {}\n", files.id))?;
        run(&arguments.command).await;
        if arguments.once {
            return Ok(0);
        }
        tokio::time::sleep(until_renewal(files.ends_ms)).await;
    }
}

/// A third of the time that is left.
fn until_renewal(ends_ms: u64) -> Duration {
    let ends = UNIX_EPOCH + Duration::from_millis(ends_ms);
    let left = ends.duration_since(SystemTime::now()).unwrap_or_default();
    (left / 3).max(FIRST_PAUSE)
}

async fn ask(state: &Path, service: Option<&str>) -> anyhow::Result<Files> {
    let question = Question::Certify {
        service: service.map(str::to_owned),
    };
    let answer = Talk::open(state).await?.ask(&question).await;
    match answer {
        Ok(Answer::Certified(certified)) => Ok(Files {
            id: style::harmless(&certified.id),
            contents: [
                certified.certificate,
                certified.key.expose().to_owned(),
                certified.bundle,
            ],
            ends_ms: certified.ends_ms,
        }),
        Ok(_) => anyhow::bail!("the node answers something else"),
        Err(error) => {
            let hint = "see `atoll mesh certificate --help` for what the policy needs";
            Err(Failure::new(error.to_string(), hint).into())
        }
    }
}

/// Runs the command to its end. That it failed is said, and no reason to stop.
async fn run(command: &[String]) {
    let [program, arguments @ ..] = command else {
        return;
    };
    let mut command = tokio::process::Command::new(program);
    let ended = command.args(arguments).kill_on_drop(true).status().await;
    match ended {
        Ok(status) if status.success() => {}
        Ok(status) => style::note(&format!("{program} ended with {status}")),
        Err(error) => style::note(&format!("{program} cannot be run: {error}")),
    }
}

/// Writes all files, so that whoever reads them sees those of before or these.
fn write(directory: &Path, contents: &[String; 3]) -> anyhow::Result<()> {
    let failed = || format!("cannot write to {}", directory.display());
    let owner = fs::metadata(directory).with_context(failed)?;
    let before = fs::read_link(directory.join(CURRENT)).ok();
    let turn = match &before {
        Some(name) if name.as_os_str() == "..a" => "..b",
        _ => "..a",
    };
    let fresh = directory.join(turn);
    match fs::remove_dir_all(&fresh) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(failed)?,
        _ => {}
    }
    fs::create_dir(&fresh).with_context(failed)?;
    give(&File::open(&fresh).with_context(failed)?, &owner).with_context(failed)?;
    fs::set_permissions(&fresh, Permissions::from_mode(0o755)).with_context(failed)?;
    for (name, content) in FILES.iter().zip(contents) {
        let mode = if *name == FILES[1] { 0o600 } else { 0o644 };
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(mode);
        let mut file = options.open(fresh.join(name)).with_context(failed)?;
        give(&file, &owner).with_context(failed)?;
        file.write_all(content.as_bytes()).with_context(failed)?;
        file.sync_all().with_context(failed)?;
    }
    lead(directory, CURRENT, Path::new(turn)).with_context(failed)?;
    for name in FILES {
        let target = Path::new(CURRENT).join(name);
        if fs::read_link(directory.join(name)).ok().as_ref() != Some(&target) {
            lead(directory, name, &target).with_context(failed)?;
        }
    }
    if let Some(before) = before {
        // Another name than the two would not be ours.
        let ours = [Path::new("..a"), Path::new("..b")].contains(&before.as_path());
        if ours && before.as_os_str() != turn {
            fs::remove_dir_all(directory.join(before)).with_context(failed)?;
        }
    }
    Ok(())
}

/// Root gives what it writes to whom the directory belongs to.
fn give(file: &File, owner: &fs::Metadata) -> std::io::Result<()> {
    let own = file.metadata()?;
    if (own.uid(), own.gid()) == (owner.uid(), owner.gid()) {
        return Ok(());
    }
    fchown(file, Some(owner.uid()), Some(owner.gid()))
}

/// Makes a link, in the place of what was there.
fn lead(directory: &Path, name: &str, target: &Path) -> std::io::Result<()> {
    let new = directory.join(format!("{name}.new"));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(target, &new)?;
    fs::rename(&new, directory.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(of: &str) -> [String; 3] {
        FILES.map(|name| format!("{of} {name}"))
    }

    fn read(directory: &Path) -> Vec<String> {
        FILES
            .iter()
            .map(|name| fs::read_to_string(directory.join(name)).expect(name))
            .collect()
    }

    #[test]
    fn all_files_change_at_once_and_only_the_owner_reads_the_key() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path();
        for round in ["one", "two", "three"] {
            write(path, &contents(round)).expect(round);
            assert_eq!(read(path), contents(round));
            let key = fs::metadata(path.join("svid_key.pem")).expect("the key");
            assert_eq!(key.mode() & 0o777, 0o600);
            let all = fs::read_dir(path).expect("the directory").count();
            assert_eq!(all, FILES.len() + 2, "nothing else is left");
        }
        // Killed after the new files, before the link: those of before are in force, and the next turn takes the place.
        fs::create_dir(path.join("..b")).expect("half made");
        fs::write(path.join("..b/svid.pem"), "half").expect("half made");
        assert_eq!(read(path), contents("three"));
        write(path, &contents("four")).expect("four");
        assert_eq!(read(path), contents("four"));
    }

    #[test]
    fn it_is_renewed_after_a_third() {
        let day = SystemTime::now() + Duration::from_secs(24 * 3600);
        let ends = day.duration_since(UNIX_EPOCH).expect("a time").as_millis();
        let wait = until_renewal(u64::try_from(ends).expect("milliseconds"));
        let eight = Duration::from_secs(8 * 3600);
        assert!(wait <= eight && wait > eight - Duration::from_secs(60));
        assert_eq!(until_renewal(0), FIRST_PAUSE, "a clock that jumped");
    }
}
