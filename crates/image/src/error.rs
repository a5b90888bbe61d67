//! Why an image can't be had: the cause and the remedy.

use crate::{
    archive::ArchiveError,
    unpack::{Fault, UnpackError},
};
use api::{ErrorCode, ImageDigest, Problem};
use std::{
    io,
    path::{Path, PathBuf},
};

/// Why an image can't be had.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No image has this digest.
    #[error("there is no image {0}")]
    Unknown(ImageDigest),
    /// Another program uses the store.
    #[error("the image store `{0}` is in use by another process")]
    InUse(PathBuf),
    /// The store's own files can't be used.
    #[error("{doing}: {source}")]
    Store {
        /// What was being done.
        doing: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The source is malformed, does not exist, or holds what can't be taken.
    #[error("{cause}")]
    Source {
        /// What is wrong.
        cause: String,
        /// What to do about it.
        remedy: String,
    },
    /// A layer can't be unpacked.
    #[error("a layer can't be unpacked: {0}")]
    Unpack(#[from] UnpackError),
    /// A registry did not give what was asked for.
    #[error("{cause}")]
    Registry {
        /// What it said.
        cause: String,
        /// What to do about it.
        remedy: String,
    },
    /// A program that is needed is missing or failed.
    #[error("{cause}")]
    Tool {
        /// What happened.
        cause: String,
        /// What to do about it.
        remedy: String,
    },
    /// Nobody waits for the build any more.
    #[error("the build was cancelled")]
    Cancelled,
    /// A fault of this program.
    #[error("the build ended unexpectedly: {0}")]
    Internal(String),
}

impl ImageError {
    pub(crate) fn store(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Store { doing, source }
    }

    pub(crate) fn path(verb: &str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        Self::store(format!("can't {verb} `{}`", path.display()))
    }

    pub(crate) fn source(cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Source {
            cause: cause.into(),
            remedy: remedy.into(),
        }
    }

    /// Whether the disk is full.
    pub fn is_out_of_disk(&self) -> bool {
        let error = match self {
            Self::Store { source, .. } => source,
            Self::Unpack(UnpackError::Entry {
                fault: Fault::System(source),
                ..
            }) => source,
            Self::Unpack(UnpackError::Archive(ArchiveError::Read(source))) => source,
            _ => return false,
        };
        matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }

    /// What the reader can do about it.
    pub fn remedy(&self) -> String {
        if self.is_out_of_disk() {
            return "free some space, for example by removing templates that nobody uses, and \
                    build again: what was fetched is kept"
                .into();
        }
        match self {
            Self::Source { remedy, .. }
            | Self::Registry { remedy, .. }
            | Self::Tool { remedy, .. } => remedy.clone(),
            Self::Unknown(_) => "build the template again".into(),
            Self::InUse(_) => "stop the other one, or use another data directory".into(),
            Self::Store { .. } => {
                "check that the data directory's disk is writable and has room".into()
            }
            Self::Unpack(_) => "ask the image's publisher for a sound one".into(),
            Self::Cancelled => "build again: what was fetched is kept".into(),
            Self::Internal(_) => "build again, and report it if it happens again".into(),
        }
    }
}

impl From<ImageError> for Problem {
    fn from(error: ImageError) -> Self {
        let code = match &error {
            error if error.is_out_of_disk() => ErrorCode::OutOfDisk,
            ImageError::Unknown(_) => ErrorCode::NotFound,
            ImageError::InUse(_) => ErrorCode::Conflict,
            ImageError::Source { .. } | ImageError::Unpack(_) => ErrorCode::InvalidArgument,
            ImageError::Registry { .. } | ImageError::Cancelled => ErrorCode::Unavailable,
            ImageError::Tool { .. } => ErrorCode::Unsupported,
            ImageError::Store { .. } | ImageError::Internal(_) => ErrorCode::Internal,
        };
        Problem::new(code, error.to_string(), error.remedy())
    }
}
