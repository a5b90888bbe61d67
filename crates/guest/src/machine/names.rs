//! Host name and name servers, as files of the sandbox.

use std::{fs, io, net::IpAddr, path::Path};

/// What a sandbox calls itself and whom it asks for names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) host_name: String,
    pub(super) name_servers: Vec<IpAddr>,
}

impl Names {
    /// Writes what differs from what was written before: a sandbox that goes on as the same one
    /// keeps what its users have changed. Tries all files and returns the first failure.
    pub(super) fn write(&self, before: Option<&Self>) -> io::Result<()> {
        let same_name = before.is_some_and(|before| before.host_name == self.host_name);
        let same_servers = before.is_some_and(|before| before.name_servers == self.name_servers);
        let mut outcome = Ok(());
        if !same_name {
            let host_name = &self.host_name;
            outcome = outcome.and(replace("/etc/hostname", &format!("{host_name}\n")));
            let hosts = format!(
                "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                 127.0.1.1\t{host_name}\n"
            );
            outcome = outcome.and(replace("/etc/hosts", &hosts));
        }
        if !same_servers {
            let servers = self.name_servers.iter();
            let text: String = servers
                .map(|server| format!("nameserver {server}\n"))
                .collect();
            outcome = outcome.and(replace("/etc/resolv.conf", &text));
        }
        outcome
    }
}

/// Replaces a file, or a link that is in its place.
fn replace(path: &str, text: &str) -> io::Result<()> {
    fs::create_dir_all("/etc")?;
    let partial = format!("{path}.atoll");
    // Whatever lies there is nobody's; a link must not be followed.
    match fs::remove_file(&partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::write(&partial, text)?;
    fs::rename(Path::new(&partial), path)
}
