//! `tar:PATH`: an archive of a root file system, plain or compressed with gzip or zstd.

use crate::{
    build::{Build, Made},
    error::ImageError,
    store::ImageConfig,
};
use std::{fs::File, io::Read, os::unix::fs::MetadataExt, path::Path};

pub(super) async fn make(build: &Build, path: &Path) -> Result<Made, ImageError> {
    let (file, size, fingerprint) = open(path)?;
    if let Some(image) = build.unchanged(&fingerprint) {
        return Ok(Made::Unchanged(image));
    }
    let counter = build
        .report
        .step(format!("unpacking {}", path.display()), Some(size));
    let content = Box::new(move || Ok(Box::new(file) as Box<dyn Read + Send>));
    let layer = build.only_layer(&counter, content).await?;
    Ok(Made::Image {
        layers: vec![layer],
        config: ImageConfig::default(),
        fingerprint,
    })
}

/// Opens a regular file: its size, and what tells whether it was changed.
pub(super) fn open(path: &Path) -> Result<(File, u64, String), ImageError> {
    let refuse = |error: std::io::Error| {
        ImageError::source(
            format!("can't read `{}`: {error}", path.display()),
            "check the path; it is read on the node, by the user that Atoll runs as",
        )
    };
    let file = File::open(path).map_err(refuse)?;
    let metadata = file.metadata().map_err(refuse)?;
    if !metadata.is_file() {
        return Err(ImageError::source(
            format!("`{}` is not a file", path.display()),
            "write dir:PATH for a folder, or oci:PATH for an OCI layout",
        ));
    }
    let fingerprint = format!(
        "file {}:{} {} {}.{:09} {}.{:09}",
        metadata.dev(),
        metadata.ino(),
        metadata.size(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    );
    Ok((file, metadata.len(), fingerprint))
}
