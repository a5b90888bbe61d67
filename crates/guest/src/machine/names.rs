//! Host name and name servers, as files of the sandbox.
//!
//! A file that is there already is written in place: a new one in its stead would make the file
//! system allocate, link, rename and free, which a translated machine spends a sixth of its start
//! on. What is written is shorter than a block, so nobody sees a half of it.

use rustix::fs::OFlags;
use std::{
    fs,
    io::{self, Write as _},
    net::IpAddr,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

/// What a sandbox calls itself and whom it asks for names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) host_name: String,
    pub(super) name_servers: Vec<IpAddr>,
    /// The domain that short names are looked up in.
    pub(super) search: Option<String>,
}

impl Names {
    /// Writes what differs from what was written before: a sandbox that goes on as the same one
    /// keeps what its users have changed. Tries all files and returns the first failure.
    pub(super) fn write(&self, before: Option<&Self>) -> io::Result<()> {
        let same_name = before.is_some_and(|before| before.host_name == self.host_name);
        let same_servers = before.is_some_and(|before| {
            before.name_servers == self.name_servers && before.search == self.search
        });
        let mut outcome = Ok(());
        if !same_name {
            let host_name = &self.host_name;
            outcome = outcome.and(put("/etc/hostname", &format!("{host_name}\n")));
            let hosts = format!(
                "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                 127.0.1.1\t{host_name}\n"
            );
            outcome = outcome.and(put("/etc/hosts", &hosts));
        }
        if !same_servers {
            let servers = self.name_servers.iter();
            let servers = servers.map(|server| format!("nameserver {server}\n"));
            let search = self.search.iter();
            let search = search.map(|domain| format!("search {domain}\n"));
            let text: String = servers.chain(search).collect();
            outcome = outcome.and(put("/etc/resolv.conf", &text));
        }
        outcome
    }
}

/// Gives a file this content.
fn put(path: &str, text: &str) -> io::Result<()> {
    match overwrite(path, text) {
        Ok(true) => Ok(()),
        _ => replace(path, text),
    }
}

/// Writes over a file that is plain and known by no other name; says whether it did.
fn overwrite(path: &str, text: &str) -> io::Result<bool> {
    let is_plain = |about: &fs::Metadata| about.is_file() && about.nlink() == 1;
    // Looked at before it is opened, as opening a device may do something.
    if !is_plain(&fs::symlink_metadata(path)?) {
        return Ok(false);
    }
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut options = fs::File::options();
    let mut file = options
        .write(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
    let about = file.metadata()?;
    if !is_plain(&about) {
        return Ok(false);
    }
    file.write_all(text.as_bytes())?;
    let length = text.len() as u64;
    if about.size() > length {
        file.set_len(length)?;
    }
    Ok(true)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_plain_file_is_written_in_place() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts");
        let path = path.to_str().unwrap();
        fs::write(path, "short").unwrap();
        let before = fs::metadata(path).unwrap().ino();
        for text in ["longer than before\n", "less\n"] {
            put(path, text).unwrap();
            assert_eq!(fs::read_to_string(path).unwrap(), text);
            assert_eq!(fs::metadata(path).unwrap().ino(), before);
        }
    }

    #[test]
    fn what_is_not_plain_is_replaced_and_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let place = |name: &str| directory.path().join(name);
        fs::write(place("other"), "mine").unwrap();
        symlink(place("other"), place("link")).unwrap();
        fs::hard_link(place("other"), place("twin")).unwrap();
        rustix::fs::mkfifoat(
            rustix::fs::CWD,
            place("pipe"),
            rustix::fs::Mode::from_raw_mode(0o600),
        )
        .unwrap();
        for name in ["link", "twin", "pipe", "missing"] {
            put(place(name).to_str().unwrap(), "name\n").unwrap();
            assert!(fs::symlink_metadata(place(name)).unwrap().is_file());
            assert_eq!(fs::read_to_string(place(name)).unwrap(), "name\n");
        }
        assert_eq!(fs::read_to_string(place("other")).unwrap(), "mine");
    }
}
