//! Files in a sandbox: what `atoll cp` needs of the guest.

use crate::client::{connect::RpcError, encode, guest::Guest};
use reqwest::{Body, Method, Response};
use serde::Deserialize;
use serde_json::json;

/// What a path in a sandbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing is there.
    Missing,
    /// A folder.
    Directory,
    /// A file, or something else that is not a folder.
    File,
}

#[derive(Debug, Deserialize)]
struct StatAnswer {
    entry: Entry,
}

#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(default, rename = "type")]
    kind: String,
}

impl Guest {
    /// What is at `path`.
    ///
    /// # Errors
    /// When the guest does not answer or the user is unknown.
    pub(crate) async fn stat(&self, path: &str) -> anyhow::Result<Kind> {
        let answer: anyhow::Result<StatAnswer> = self
            .call("filesystem.Filesystem/Stat", &json!({ "path": path }))
            .await;
        match answer {
            Ok(answer) if answer.entry.kind == "FILE_TYPE_DIRECTORY" => Ok(Kind::Directory),
            Ok(_) => Ok(Kind::File),
            Err(error) => match error.downcast_ref::<RpcError>() {
                Some(rpc) if rpc.code == "not_found" => Ok(Kind::Missing),
                _ => Err(error),
            },
        }
    }

    fn file_path(&self, path: &str) -> String {
        let mut text = format!("/files?path={}", encode(path));
        if let Some(user) = self.user() {
            text.push_str(&format!("&username={}", encode(user)));
        }
        text
    }

    /// The content of a file, to be read as it arrives.
    ///
    /// # Errors
    /// When there is no such file.
    pub(crate) async fn read_file(&self, path: &str) -> anyhow::Result<Response> {
        let request = self
            .request(Method::GET, &self.file_path(path))
            .header("Accept-Encoding", "identity");
        self.send(request).await
    }

    /// Writes a file, with the folders above it; replaces what was there.
    ///
    /// # Errors
    /// When the sandbox's disk is full or the path is a folder.
    pub(crate) async fn write_file(&self, path: &str, body: Body) -> anyhow::Result<()> {
        let request = self
            .request(Method::POST, &self.file_path(path))
            .header("Content-Type", "application/octet-stream")
            .body(body);
        self.send(request).await.map(drop)
    }
}
