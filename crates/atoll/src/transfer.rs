//! Folders as a tar stream through a process in the sandbox.
//!
//! What comes out of a sandbox is hostile: it is unpacked so that nothing lands outside the
//! folder that was named, and set-user-id bits are not taken over.

use crate::client::{
    guest::Guest,
    process::{Command, Event},
};
use anyhow::{Context, bail};
use std::{
    io::{BufWriter, Read, Write},
    path::Path,
};
use tokio::sync::mpsc;

/// Parts of a tar stream on their way between a thread and the network.
const PARTS: usize = 8;
const PART_SIZE: usize = 64 << 10;
/// As much of what `tar` complains about is shown.
const COMPLAINT_MAX: usize = 2000;

const UNPACK: &str = r#"case $1 in "~") set -- "$HOME";; "~/"*) set -- "$HOME/${1#??}";; esac
mkdir -p -- "$1" && cd -- "$1" && exec tar -x -o -f -"#;
const PACK: &str = r#"case $1 in "~") set -- "$HOME";; "~/"*) set -- "$HOME/${1#??}";; esac
cd -- "$1" && exec tar -c -f - ."#;

fn shell(script: &str, path: &str) -> Command {
    Command {
        program: "/bin/sh".into(),
        arguments: vec!["-c".into(), script.into(), "sh".into(), path.into()],
        ..Command::default()
    }
}

/// The writing end, for a thread.
struct Sender(mpsc::Sender<Vec<u8>>);

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0
            .blocking_send(bytes.to_vec())
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The reading end, for a thread.
struct Receiver {
    parts: mpsc::Receiver<Vec<u8>>,
    part: std::io::Cursor<Vec<u8>>,
}

impl Read for Receiver {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let count = self.part.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            match self.parts.blocking_recv() {
                Some(part) => self.part = std::io::Cursor::new(part),
                None => return Ok(0),
            }
        }
    }
}

/// Copies what is in the folder `from` here to the folder `to` in the sandbox, which is made if
/// need be.
///
/// # Errors
/// When a file cannot be read here or written there.
pub(crate) async fn upload_folder(guest: &Guest, from: &Path, to: &str) -> anyhow::Result<()> {
    let mut process = guest.start(&shell(UNPACK, to), None, true).await?;
    let pid = process.pid;
    let (sender, mut parts) = mpsc::channel::<Vec<u8>>(PARTS);
    let folder = from.to_owned();
    let packing = tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
        let mut archive = tar::Builder::new(BufWriter::with_capacity(PART_SIZE, Sender(sender)));
        archive.follow_symlinks(false);
        archive
            .append_dir_all(".", &folder)
            .with_context(|| format!("cannot read {}", folder.display()))?;
        archive.into_inner()?.flush()?;
        Ok(())
    });
    let sending = async {
        while let Some(part) = parts.recv().await {
            if guest.write(pid, &part, false).await.is_err() {
                // It has ended; its exit status and what it printed say why.
                return;
            }
        }
        let _ = guest.close_input(pid).await;
    };
    let watching = async {
        let mut complaint = Vec::new();
        while let Some(event) = process.next().await? {
            match event {
                Event::ErrorOutput(bytes) | Event::Output(bytes) => collect(&mut complaint, &bytes),
                Event::End(end) => return Ok((end.shell_status(), complaint)),
            }
        }
        bail!("the sandbox did not say how unpacking ended")
    };
    let ((), watched) = tokio::join!(sending, watching);
    drop(parts);
    let (status, complaint) = watched?;
    check(status, &complaint, "unpacking in the sandbox failed")?;
    packing.await.context("packing was broken off")?
}

/// Copies what is in the folder `from` in the sandbox to the folder `to` here, which is made if
/// need be.
///
/// # Errors
/// When a file cannot be read there or written here, or would land outside `to`.
pub(crate) async fn download_folder(guest: &Guest, from: &str, to: &Path) -> anyhow::Result<()> {
    let mut process = guest.start(&shell(PACK, from), None, false).await?;
    let (sender, parts) = mpsc::channel::<Vec<u8>>(PARTS);
    let folder = to.to_owned();
    let unpacking = tokio::task::spawn_blocking(move || unpack(parts, &folder));
    let mut complaint = Vec::new();
    let mut status = None;
    while let Some(event) = process.next().await? {
        match event {
            Event::Output(bytes) => {
                if sender.send(bytes).await.is_err() {
                    // Unpacking failed; its result says why.
                    break;
                }
            }
            Event::ErrorOutput(bytes) => collect(&mut complaint, &bytes),
            Event::End(end) => {
                status = Some(end.shell_status());
                break;
            }
        }
    }
    drop((sender, process));
    unpacking.await.context("unpacking was broken off")??;
    check(
        status.unwrap_or(1),
        &complaint,
        "packing in the sandbox failed",
    )
}

fn unpack(parts: mpsc::Receiver<Vec<u8>>, folder: &Path) -> anyhow::Result<()> {
    let writing = || format!("cannot write {}", folder.display());
    std::fs::create_dir_all(folder).with_context(writing)?;
    let mut archive = tar::Archive::new(Receiver {
        parts,
        part: Default::default(),
    });
    archive.set_preserve_ownerships(false);
    archive.set_preserve_permissions(false);
    archive.set_unpack_xattrs(false);
    archive.unpack(folder).with_context(writing)
}

fn collect(complaint: &mut Vec<u8>, bytes: &[u8]) {
    let room = COMPLAINT_MAX.saturating_sub(complaint.len());
    complaint.extend_from_slice(&bytes[..bytes.len().min(room)]);
}

fn check(status: u8, complaint: &[u8], what: &str) -> anyhow::Result<()> {
    if status == 0 {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(complaint);
    let complaint = crate::style::harmless(&complaint.trim().replace('\n', "; "));
    if complaint.is_empty() {
        bail!("{what} with exit status {status}");
    }
    bail!("{what}: {complaint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(archive: Vec<u8>) -> mpsc::Receiver<Vec<u8>> {
        let (sender, parts) = mpsc::channel(1024);
        for part in archive.chunks(700) {
            sender.try_send(part.to_vec()).unwrap();
        }
        parts
    }

    /// An archive with one entry, whose name is written as it is.
    fn archive(name: &[u8], kind: tar::EntryType, link: &[u8], mode: u32) -> Vec<u8> {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(if kind.is_file() { 2 } else { 0 });
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        if kind.is_file() {
            bytes.extend_from_slice(b"hi");
            bytes.resize(1024, 0);
        }
        bytes
    }

    #[test]
    fn nothing_lands_outside_the_folder() {
        use tar::EntryType;
        let top = tempfile::tempdir().unwrap();
        let folder = top.path().join("folder");
        for evil in [
            archive(b"../outside", EntryType::Regular, b"", 0o644),
            [
                archive(b"link", EntryType::Symlink, b"..", 0o777),
                archive(b"link/outside", EntryType::Regular, b"", 0o644),
            ]
            .concat(),
        ] {
            let end = vec![0; 1024];
            let _ = unpack(send([evil, end].concat()), &folder);
            assert!(!top.path().join("outside").exists());
        }
    }

    #[test]
    fn set_user_id_is_not_taken_over() {
        use std::os::unix::fs::PermissionsExt;
        let top = tempfile::tempdir().unwrap();
        let bytes = archive(b"tool", tar::EntryType::Regular, b"", 0o4755);
        unpack(send([bytes, vec![0; 1024]].concat()), top.path()).unwrap();
        let mode = top
            .path()
            .join("tool")
            .metadata()
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7000, 0);
    }
}
