//! Messages of `filesystem.Filesystem`.

use super::scalar::{int64, is_default, or_default, uint32};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a path leads to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileType {
    /// A device, a socket, a pipe, or a link to nothing.
    #[default]
    #[serde(rename = "FILE_TYPE_UNSPECIFIED")]
    Unspecified,
    /// A regular file.
    #[serde(rename = "FILE_TYPE_FILE")]
    File,
    /// A directory.
    #[serde(rename = "FILE_TYPE_DIRECTORY")]
    Directory,
    /// A symbolic link; newer guests say what it leads to, and [`EntryInfo::is_symlink`].
    #[serde(rename = "FILE_TYPE_SYMLINK")]
    Symlink,
}

/// What is known about a path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EntryInfo {
    /// The last part of the path.
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    /// What it is; of a link, what it leads to.
    #[serde(rename = "type", skip_serializing_if = "is_default")]
    pub file_type: FileType,
    /// The path as it was asked for, made absolute.
    #[serde(skip_serializing_if = "is_default")]
    pub path: String,
    /// In bytes.
    #[serde(with = "int64", skip_serializing_if = "is_default")]
    pub size: i64,
    /// Permission bits; of a link, those of what it leads to.
    #[serde(deserialize_with = "uint32", skip_serializing_if = "is_default")]
    pub mode: u32,
    /// The same for people: `-rw-r--r--`.
    #[serde(skip_serializing_if = "is_default")]
    pub permissions: String,
    /// The owner's name, or number if it has none.
    #[serde(skip_serializing_if = "is_default")]
    pub owner: String,
    /// The group's name, or number if it has none.
    #[serde(skip_serializing_if = "is_default")]
    pub group: String,
    /// When its content was last changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modified_time: Option<Timestamp>,
    /// Where a link leads in the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub symlink_target: Option<String>,
    /// The user's own labels, from extended attributes `user.e2b.*`.
    #[serde(skip_serializing_if = "is_default")]
    pub metadata: BTreeMap<String, String>,
    /// Whether the path itself is a link.
    #[serde(skip_serializing_if = "is_default")]
    pub is_symlink: bool,
}

/// A request that names only a path: `Stat`, `MakeDir`, `Remove`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PathRequest {
    /// Absolute, or relative to the user's home.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub path: String,
}

/// An answer about one path: `Stat`, `MakeDir`, `Move`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EntryResponse {
    /// What is known.
    pub entry: EntryInfo,
}

/// `Move`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MoveRequest {
    /// From.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub source: String,
    /// To.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub destination: String,
}

/// `ListDir`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ListDirRequest {
    /// Which directory.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub path: String,
    /// How many levels down; 0 means 1.
    #[serde(deserialize_with = "uint32", skip_serializing_if = "is_default")]
    pub depth: u32,
}

/// `ListDir`'s answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ListDirResponse {
    /// In order of their names, each directory before what it holds.
    #[serde(skip_serializing_if = "is_default")]
    pub entries: Vec<EntryInfo>,
}

/// `WatchDir` and `CreateWatcher`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct WatchRequest {
    /// Which directory.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub path: String,
    /// With all directories below it.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub recursive: bool,
    /// Whether events say what is known about the path.
    #[serde(
        alias = "include_entry",
        deserialize_with = "or_default",
        skip_serializing_if = "is_default"
    )]
    pub include_entry: bool,
    /// Whether network file systems may be watched, where events are unreliable.
    #[serde(
        alias = "allow_network_mounts",
        deserialize_with = "or_default",
        skip_serializing_if = "is_default"
    )]
    pub allow_network_mounts: bool,
}

/// What happened to a path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventType {
    /// Nothing known.
    #[default]
    #[serde(rename = "EVENT_TYPE_UNSPECIFIED")]
    Unspecified,
    /// It appeared.
    #[serde(rename = "EVENT_TYPE_CREATE")]
    Create,
    /// It was written to.
    #[serde(rename = "EVENT_TYPE_WRITE")]
    Write,
    /// It was removed.
    #[serde(rename = "EVENT_TYPE_REMOVE")]
    Remove,
    /// It was moved away.
    #[serde(rename = "EVENT_TYPE_RENAME")]
    Rename,
    /// Its permissions, owner or attributes changed.
    #[serde(rename = "EVENT_TYPE_CHMOD")]
    Chmod,
}

/// A change below a watched directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FilesystemEvent {
    /// Relative to the watched directory.
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    /// What happened.
    #[serde(rename = "type", skip_serializing_if = "is_default")]
    pub event_type: EventType,
    /// What is known about the path, if asked for and still there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entry: Option<EntryInfo>,
}

/// A message of `WatchDir`'s stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(
    clippy::large_enum_variant,
    reason = "written and let go at once, one at a time"
)]
pub enum WatchResponse {
    /// The directory is watched: always first.
    Start {},
    /// Something changed.
    Filesystem(FilesystemEvent),
    /// Nothing, for a while.
    Keepalive {},
}

/// A request that names only a watcher: `GetWatcherEvents`, `RemoveWatcher`; and the answer of
/// `CreateWatcher`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct WatcherId {
    /// Which.
    #[serde(
        alias = "watcher_id",
        deserialize_with = "or_default",
        skip_serializing_if = "is_default"
    )]
    pub watcher_id: String,
}

/// `GetWatcherEvents`'s answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WatcherEvents {
    /// Since the last call.
    #[serde(skip_serializing_if = "is_default")]
    pub events: Vec<FilesystemEvent>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_looks_as_clients_expect() {
        let entry = EntryInfo {
            name: "a".into(),
            file_type: FileType::File,
            path: "/a".into(),
            size: 5,
            mode: 0o644,
            permissions: "-rw-r--r--".into(),
            owner: "user".into(),
            group: "user".into(),
            modified_time: Some(Timestamp::from_second(1).unwrap()),
            ..EntryInfo::default()
        };
        let text = serde_json::to_string(&EntryResponse { entry }).unwrap();
        assert_eq!(
            text,
            r#"{"entry":{"name":"a","type":"FILE_TYPE_FILE","path":"/a","size":"5","mode":420,"permissions":"-rw-r--r--","owner":"user","group":"user","modifiedTime":"1970-01-01T00:00:01Z"}}"#
        );
    }

    #[test]
    fn watch_messages_are_flat() {
        let text = serde_json::to_string(&WatchResponse::Start {}).unwrap();
        assert_eq!(text, r#"{"start":{}}"#);
        let request: WatchRequest =
            serde_json::from_str(r#"{"path":"/a","includeEntry":true}"#).unwrap();
        assert!(request.include_entry && !request.recursive);
    }
}
