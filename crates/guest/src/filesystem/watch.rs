//! Watches a directory with inotify.

use super::entry;
use crate::{accounts::Names, descriptor::watched};
use api::envd::{
    connect::{Code, ConnectError},
    filesystem::{EventType, FilesystemEvent},
};
use rustix::{
    fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags},
    io::Errno,
};
use std::{
    collections::BTreeMap,
    fs,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};
use tokio::io::unix::AsyncFd;

/// Directories that one watch covers.
const DIRECTORY_LIMIT: usize = 8192;
/// Events handed out at once.
const BATCH_LIMIT: usize = 1024;

const FLAGS: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);

/// A watched directory.
#[derive(Debug)]
pub struct Watch {
    inotify: AsyncFd<OwnedFd>,
    root: PathBuf,
    /// Relative to the root, by watch descriptor. The root itself is empty.
    directories: BTreeMap<i32, PathBuf>,
    recursive: bool,
    include_entry: bool,
}

/// What [`prepare`] made.
#[derive(Debug)]
pub struct PreparedWatch {
    inotify: OwnedFd,
    root: PathBuf,
    directories: BTreeMap<i32, PathBuf>,
    recursive: bool,
    include_entry: bool,
}

/// Sets up a watch. May wait for a disk.
pub fn prepare(
    root: PathBuf,
    recursive: bool,
    include_entry: bool,
) -> Result<PreparedWatch, ConnectError> {
    let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(|error| {
        let code = if error == Errno::MFILE {
            Code::ResourceExhausted
        } else {
            Code::Internal
        };
        ConnectError::new(code, format!("error creating watcher: {error}"))
    })?;
    let mut directories = BTreeMap::new();
    add(
        &inotify,
        &root,
        Path::new(""),
        recursive,
        &mut directories,
        &mut None,
    )?;
    Ok(PreparedWatch {
        inotify,
        root,
        directories,
        recursive,
        include_entry,
    })
}

/// Adds a directory, and those below it. What is found below is noted in `found`: it may have
/// come before the watch did.
fn add(
    inotify: &OwnedFd,
    root: &Path,
    relative: &Path,
    recursive: bool,
    directories: &mut BTreeMap<i32, PathBuf>,
    found: &mut Option<Vec<PathBuf>>,
) -> Result<(), ConnectError> {
    let path = root.join(relative);
    let failed = |code, why: &str| {
        let message = format!("error adding path {} to watcher: {why}", path.display());
        Err(ConnectError::new(code, message))
    };
    if directories.len() >= DIRECTORY_LIMIT {
        let why = format!("more than {DIRECTORY_LIMIT} directories");
        return failed(Code::ResourceExhausted, &why);
    }
    match inotify::add_watch(inotify, &path, FLAGS) {
        Ok(descriptor) => directories.insert(descriptor, relative.to_owned()),
        // Gone, or replaced, since.
        Err(Errno::NOENT | Errno::NOTDIR) if !relative.as_os_str().is_empty() => return Ok(()),
        Err(error @ (Errno::NOSPC | Errno::NOMEM)) => {
            return failed(Code::ResourceExhausted, &error.to_string());
        }
        Err(error) => return failed(Code::Internal, &error.to_string()),
    };
    if !recursive {
        return Ok(());
    }
    let Ok(children) = fs::read_dir(&path) else {
        return Ok(());
    };
    for child in children.flatten() {
        let relative = relative.join(child.file_name());
        if let Some(found) = found {
            found.push(relative.clone());
        }
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            add(inotify, root, &relative, recursive, directories, found)?;
        }
    }
    Ok(())
}

impl Watch {
    /// Brings a prepared watch to the thread that serves.
    pub fn new(prepared: PreparedWatch) -> Result<Self, ConnectError> {
        let PreparedWatch {
            inotify,
            root,
            directories,
            recursive,
            include_entry,
        } = prepared;
        let inotify = watched(inotify, tokio::io::Interest::READABLE)
            .map_err(|error| ConnectError::internal(format!("error creating watcher: {error}")))?;
        Ok(Self {
            inotify,
            root,
            directories,
            recursive,
            include_entry,
        })
    }

    /// Returns when there may be events.
    pub async fn ready(&self) -> Result<(), ConnectError> {
        let ready = self.inotify.readable().await;
        ready
            .map(|_| ())
            .map_err(|error| ConnectError::internal(format!("watcher error: {error}")))
    }

    /// Like [`Watch::ready`], for those that are polled themselves.
    pub fn poll_ready(
        &self,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), ConnectError>> {
        let ready = std::task::ready!(self.inotify.poll_read_ready(context));
        std::task::Poll::Ready(
            ready
                .map(|_| ())
                .map_err(|error| ConnectError::internal(format!("watcher error: {error}"))),
        )
    }

    /// Events that have happened, without waiting: possibly none. At most a batch; call again
    /// until there are none.
    pub fn read(&mut self) -> Result<Vec<FilesystemEvent>, ConnectError> {
        let mut raw = Vec::new();
        let mut buffer = [MaybeUninit::uninit(); 8192];
        let mut drained = false;
        {
            let mut reader = Reader::new(self.inotify.get_ref(), &mut buffer);
            while raw.len() < BATCH_LIMIT {
                match reader.next() {
                    Ok(event) => raw.push((
                        event.wd(),
                        event.events(),
                        event
                            .file_name()
                            .map(|name| name.to_string_lossy().into_owned()),
                    )),
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => {
                        drained = true;
                        break;
                    }
                    Err(error) => {
                        return Err(ConnectError::internal(format!("watcher error: {error}")));
                    }
                }
            }
            // What is left in the buffer would be lost with it.
            while !reader.is_buffer_empty() {
                if let Ok(event) = reader.next() {
                    let name = event
                        .file_name()
                        .map(|name| name.to_string_lossy().into_owned());
                    raw.push((event.wd(), event.events(), name));
                }
            }
        }
        if drained {
            self.clear_ready();
        }
        let names = if self.include_entry && !raw.is_empty() {
            Names::load()
        } else {
            Names::default()
        };
        let mut events = Vec::new();
        for (descriptor, flags, name) in raw {
            if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                return Err(ConnectError::new(
                    Code::ResourceExhausted,
                    "watcher error: events came faster than they were read",
                ));
            }
            if flags.contains(ReadFlags::IGNORED) {
                self.directories.remove(&descriptor);
                continue;
            }
            let Some(directory) = self.directories.get(&descriptor).cloned() else {
                continue;
            };
            let relative = match name {
                Some(name) => directory.join(name),
                // What happens to a directory below the root is said by the one that holds it.
                None if directory.as_os_str().is_empty() => PathBuf::from("."),
                None => continue,
            };
            let appeared = flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO);
            for event_type in event_types(flags) {
                events.push(self.event(&relative, event_type, &names));
            }
            if self.recursive && appeared && flags.contains(ReadFlags::ISDIR) {
                self.watch_new(&relative, &names, &mut events)?;
            }
        }
        Ok(events)
    }

    fn clear_ready(&self) {
        // `try_io` forgets readiness when told that the call would block.
        let _ = self.inotify.try_io(tokio::io::Interest::READABLE, |_| {
            Err::<(), _>(std::io::Error::from(std::io::ErrorKind::WouldBlock))
        });
    }

    fn watch_new(
        &mut self,
        relative: &Path,
        names: &Names,
        events: &mut Vec<FilesystemEvent>,
    ) -> Result<(), ConnectError> {
        // A moved directory is known already, by its old name.
        let mut found = Some(Vec::new());
        let inotify = self.inotify.get_ref();
        add(
            inotify,
            &self.root,
            relative,
            true,
            &mut self.directories,
            &mut found,
        )?;
        for path in found.unwrap_or_default() {
            events.push(self.event(&path, EventType::Create, names));
        }
        Ok(())
    }

    fn event(&self, relative: &Path, event_type: EventType, names: &Names) -> FilesystemEvent {
        let lasting = matches!(
            event_type,
            EventType::Create | EventType::Write | EventType::Chmod
        );
        let entry = if self.include_entry && lasting {
            let path = crate::paths::clean(&self.root.join(relative));
            entry::look(&path, names).ok()
        } else {
            None
        };
        FilesystemEvent {
            name: relative.to_string_lossy().into_owned(),
            event_type,
            entry,
        }
    }
}

fn event_types(flags: ReadFlags) -> impl Iterator<Item = EventType> {
    [
        (ReadFlags::CREATE | ReadFlags::MOVED_TO, EventType::Create),
        (
            ReadFlags::MOVED_FROM | ReadFlags::MOVE_SELF,
            EventType::Rename,
        ),
        (ReadFlags::ATTRIB, EventType::Chmod),
        (ReadFlags::MODIFY, EventType::Write),
        (
            ReadFlags::DELETE | ReadFlags::DELETE_SELF,
            EventType::Remove,
        ),
    ]
    .into_iter()
    .filter(move |(mask, _)| flags.intersects(*mask))
    .map(|(_, event_type)| event_type)
}

/// Whether a path lies on a file system whose changes others can make unseen.
pub fn is_on_network(path: &Path) -> rustix::io::Result<bool> {
    const NFS: u32 = 0x6969;
    const CIFS: u32 = 0xff53_4d42;
    const SMB: u32 = 0x517b;
    const SMB2: u32 = 0xfe53_4d42;
    const FUSE: u32 = 0x6573_5546;
    const V9FS: u32 = 0x0102_1997;
    let kind = rustix::fs::statfs(path)?.f_type as u32;
    Ok([NFS, CIFS, SMB, SMB2, FUSE, V9FS].contains(&kind))
}
