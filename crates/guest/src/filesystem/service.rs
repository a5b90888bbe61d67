//! The calls of `filesystem.Filesystem`.

use super::{
    blocking, entry,
    stream::WatchStream,
    tree::{self, MakeError},
    watch::{self, PreparedWatch, Watch},
};
use crate::{
    accounts::{Names, User},
    http::Guest,
    paths,
};
use api::envd::{
    connect::{Code, ConnectError},
    filesystem::{
        EntryInfo, EntryResponse, ListDirRequest, ListDirResponse, MoveRequest, PathRequest,
        WatchRequest, WatcherEvents, WatcherId,
    },
    process::Empty,
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

fn resolve(guest: &Guest, user: &User, path: &str) -> Result<PathBuf, ConnectError> {
    paths::resolve(path, user, &guest.role().working_directory)
        .map_err(|error| ConnectError::invalid_argument(error.to_string()))
}

fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn look(path: &Path) -> Result<EntryInfo, ConnectError> {
    entry::look(path, &Names::load()).map_err(|error| {
        if is_missing(&error) {
            ConnectError::not_found(format!("file not found: {}: {error}", path.display()))
        } else {
            ConnectError::internal(format!("error getting file info: {error}"))
        }
    })
}

fn make_failed(error: &MakeError) -> ConnectError {
    let code = match error {
        MakeError::NotDirectory(_) => Code::InvalidArgument,
        MakeError::Io(error) if error.kind() == io::ErrorKind::StorageFull => {
            Code::ResourceExhausted
        }
        MakeError::Io(_) => Code::Internal,
    };
    ConnectError::new(code, error.to_string())
}

/// `Stat`.
pub async fn stat(
    guest: &Guest,
    user: User,
    request: PathRequest,
) -> Result<EntryResponse, ConnectError> {
    let path = resolve(guest, &user, &request.path)?;
    blocking(move || {
        Ok(EntryResponse {
            entry: look(&path)?,
        })
    })
    .await
}

/// `MakeDir`.
pub async fn make_dir(
    guest: &Guest,
    user: User,
    request: PathRequest,
) -> Result<EntryResponse, ConnectError> {
    let path = resolve(guest, &user, &request.path)?;
    blocking(move || {
        let shown = path.display();
        match fs::metadata(&path) {
            Ok(found) if found.is_dir() => {
                let message = format!("directory already exists: {shown}");
                return Err(ConnectError::new(Code::AlreadyExists, message));
            }
            Ok(_) => {
                return Err(ConnectError::invalid_argument(format!(
                    "path already exists but it is not a directory: {shown}"
                )));
            }
            Err(error) if is_missing(&error) => {}
            Err(error) => {
                return Err(ConnectError::internal(format!(
                    "error getting file info: {error}"
                )));
            }
        }
        tree::ensure_directories(&path, &user).map_err(|error| make_failed(&error))?;
        Ok(EntryResponse {
            entry: look(&path)?,
        })
    })
    .await
}

/// `Move`.
pub async fn rename(
    guest: &Guest,
    user: User,
    request: MoveRequest,
) -> Result<EntryResponse, ConnectError> {
    let source = resolve(guest, &user, &request.source)?;
    let destination = resolve(guest, &user, &request.destination)?;
    blocking(move || {
        if let Err(error) = fs::symlink_metadata(&source)
            && is_missing(&error)
        {
            let message = format!("source file not found: {}: {error}", source.display());
            return Err(ConnectError::not_found(message));
        }
        if let Some(parent) = destination.parent() {
            tree::ensure_directories(parent, &user).map_err(|error| make_failed(&error))?;
        }
        tree::rename(&source, &destination).map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                ConnectError::not_found(format!("source file not found: {error}"))
            } else {
                ConnectError::internal(format!("error renaming: {error}"))
            }
        })?;
        Ok(EntryResponse {
            entry: look(&destination)?,
        })
    })
    .await
}

/// `ListDir`.
pub async fn list_dir(
    guest: &Guest,
    user: User,
    request: ListDirRequest,
) -> Result<ListDirResponse, ConnectError> {
    let shown = resolve(guest, &user, &request.path)?;
    blocking(move || {
        let real = tree::follow(&shown)?;
        if !real.is_dir() {
            let message = format!("path is not a directory: {}", shown.display());
            return Err(ConnectError::invalid_argument(message));
        }
        Ok(ListDirResponse {
            entries: tree::list(&shown, &real, request.depth.max(1))?,
        })
    })
    .await
}

/// `Remove`.
pub async fn remove(
    guest: &Guest,
    user: User,
    request: PathRequest,
) -> Result<Empty, ConnectError> {
    let path = resolve(guest, &user, &request.path)?;
    blocking(move || {
        tree::remove(&path).map_err(|error| {
            ConnectError::internal(format!("error removing file or directory: {error}"))
        })?;
        Ok(Empty {})
    })
    .await
}

async fn watch(guest: &Guest, user: &User, request: WatchRequest) -> Result<Watch, ConnectError> {
    let path = resolve(guest, user, &request.path)?;
    let prepared = blocking(move || prepare(path, &request)).await?;
    Watch::new(prepared)
}

fn prepare(path: PathBuf, request: &WatchRequest) -> Result<PreparedWatch, ConnectError> {
    let shown = path.display();
    match fs::metadata(&path) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => {
            return Err(ConnectError::invalid_argument(format!(
                "path {shown} not a directory"
            )));
        }
        Err(error) if is_missing(&error) => {
            return Err(ConnectError::not_found(format!(
                "path {shown} not found: {error}"
            )));
        }
        Err(error) => {
            return Err(ConnectError::internal(format!(
                "error statting path {shown}: {error}"
            )));
        }
    }
    let on_network = watch::is_on_network(&path)
        .map_err(|error| ConnectError::internal(format!("error checking mount status: {error}")))?;
    if on_network && !request.allow_network_mounts {
        let message = format!("cannot watch path on network filesystem: {shown}");
        return Err(ConnectError::invalid_argument(message));
    }
    watch::prepare(path, request.recursive, request.include_entry)
}

/// `WatchDir`.
pub async fn watch_dir(
    guest: &Guest,
    user: User,
    request: WatchRequest,
    interval: Duration,
    deadline: Option<Instant>,
) -> Result<WatchStream, ConnectError> {
    let watch = watch(guest, &user, request).await?;
    Ok(WatchStream::new(watch, interval, deadline))
}

/// `CreateWatcher`.
pub async fn create_watcher(
    guest: &Guest,
    user: User,
    request: WatchRequest,
) -> Result<WatcherId, ConnectError> {
    let watch = watch(guest, &user, request).await?;
    Ok(WatcherId {
        watcher_id: guest.watchers.add(watch)?,
    })
}

/// `GetWatcherEvents`.
pub async fn get_watcher_events(
    guest: &Guest,
    _user: User,
    request: WatcherId,
) -> Result<WatcherEvents, ConnectError> {
    Ok(WatcherEvents {
        events: guest.watchers.take(&request.watcher_id)?,
    })
}

/// `RemoveWatcher`.
pub async fn remove_watcher(
    guest: &Guest,
    _user: User,
    request: WatcherId,
) -> Result<Empty, ConnectError> {
    guest.watchers.remove(&request.watcher_id)?;
    Ok(Empty {})
}
