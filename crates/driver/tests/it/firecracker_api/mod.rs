//! In place of Firecracker and its jailer, which the machines that tests run on do not have.
//!
//! The test's own program is started again as both, through two small scripts. The jailer takes
//! the arguments that the real one documents, and locks up; what it becomes serves the API, checks
//! every request against [`description`], and plays a guest that serves in the slot's network. It
//! runs as the machine's user inside the machine's root, so what it may open is what Firecracker
//! may.

// Not every test file uses all of it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::panic)]

pub mod description;
mod guest;
mod jailer;
mod server;
mod userfault;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// The jailer's arguments, one a line.
const ARGUMENTS: &str = "ATOLL_STAND_IN_ARGUMENTS";
/// What it does wrong: see [`Behaviour`].
const BEHAVIOUR: &str = "ATOLL_STAND_IN_BEHAVIOUR";
/// Set in the process that becomes Firecracker: its root, user, and arguments.
const ROOT: &str = "ATOLL_STAND_IN_ROOT";
const USER: &str = "ATOLL_STAND_IN_USER";

/// What is different from what it should be.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Behaviour {
    pub version: String,
    pub jailer_version: String,
    /// A request, such as `PUT /balloon`, that is refused with a message.
    pub refuses: Option<(String, String)>,
    /// A request at which it ends.
    pub dies_at: Option<String>,
    /// A request that it never answers.
    pub hangs_at: Option<String>,
    /// What the jailer says when it fails.
    pub jailer_fails: Option<String>,
    /// What it tells of its memory that is not so.
    pub lies: Option<Lie>,
}

/// What a Firecracker that was taken over could tell of its memory.
#[derive(Debug, Clone, Copy, serde::Serialize, serde::Deserialize)]
pub enum Lie {
    /// Something that is no description of memory.
    Nonsense,
    /// That there is more of it than was saved.
    More,
    /// Where it is, with something that is no userfaultfd.
    AnotherDescriptor,
    /// Where it is, without a descriptor.
    NoDescriptor,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            version: "1.14.1".into(),
            jailer_version: "1.14.1".into(),
            refuses: None,
            dies_at: None,
            hangs_at: None,
            jailer_fails: None,
            lies: None,
        }
    }
}

/// Writes the programs `firecracker` and `jailer` to a directory. The test `jailer_process` of the
/// running program must call [`run_if_asked`].
pub fn install(directory: &Path, behaviour: &Behaviour) -> (PathBuf, PathBuf) {
    let own = std::env::current_exe().unwrap();
    let own = own.display();
    let (version, jailer_version) = (&behaviour.version, &behaviour.jailer_version);
    let json = serde_json::to_string(behaviour).unwrap();
    let firecracker = format!(
        "#!/bin/sh\ncase $1 in\n--snapshot-version) echo v5.0.0 ;;\n\
         *) echo 'Firecracker v{version}' ;;\nesac\n"
    );
    let jailer = format!(
        "#!/bin/sh\nif [ \"$1\" = --version ]; then echo 'Jailer v{jailer_version}'; exit; fi\n\
         export {ARGUMENTS}=\"$(printf '%s\\n' \"$@\")\"\n\
         export {BEHAVIOUR}='{json}'\n\
         exec '{own}' jailer_process --exact --nocapture --test-threads=1\n"
    );
    let write = |name: &str, text: String| {
        let path = directory.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    (write("firecracker", firecracker), write("jailer", jailer))
}

/// Becomes jailer or Firecracker, if this process was started for that.
pub fn run_if_asked() {
    let Ok(behaviour) = std::env::var(BEHAVIOUR) else {
        return;
    };
    let behaviour: Behaviour = serde_json::from_str(&behaviour).unwrap();
    let failure = match std::env::var(ROOT) {
        Ok(root) => server::run(Path::new(&root), behaviour),
        Err(_) => jailer::run(&std::env::var(ARGUMENTS).unwrap(), &behaviour),
    };
    if let Err(failure) = failure {
        eprintln!("{failure}");
        std::process::exit(1);
    }
    std::process::exit(0);
}

/// What Firecracker was asked in a machine's root: method, path, body.
pub fn requests(root: &Path) -> Vec<(String, serde_json::Value)> {
    lines(&root.join(server::REQUESTS))
}

/// The claims that the guest of a machine's root has granted.
pub fn claims(root: &Path) -> Vec<(String, serde_json::Value)> {
    lines(&root.join(guest::CLAIMS))
}

fn lines(path: &Path) -> Vec<(String, serde_json::Value)> {
    fs::read_to_string(path)
        .unwrap_or_default()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}
