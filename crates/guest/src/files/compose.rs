//! `POST /files/compose`: joins files into one, and removes them.

use super::{blocking, upload, write_failure};
use crate::{
    http::{
        Guest, access,
        body::{self, ReadError},
        reply::{Failure, Reply, json},
    },
    metadata::Metadata,
    paths,
};
use api::envd::files::{ComposeRequest, WrittenFile};
use http::{Request, StatusCode};
use hyper::body::Incoming;
use std::{
    fs::{self, File},
    io,
    path::PathBuf,
};

const REQUEST_LIMIT: usize = 4 << 20;
/// Parts of one file.
const SOURCES_LIMIT: usize = 10_000;

/// Joins files, in order. The destination appears whole or not at all.
pub async fn compose(guest: &Guest, request: Request<Incoming>) -> Result<Reply, Failure> {
    let text = body::collect(request.into_body(), REQUEST_LIMIT)
        .await
        .map_err(|error| match error {
            ReadError::TooLarge(_) => {
                Failure::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string())
            }
            ReadError::Broken(_) => Failure::bad_request(error.to_string()),
        })?;
    let request: ComposeRequest = serde_json::from_slice(&text)
        .map_err(|error| Failure::bad_request(format!("invalid request body: {error}")))?;
    if request.source_paths.is_empty() {
        return Err(Failure::bad_request("source_paths must not be empty"));
    }
    if request.source_paths.len() > SOURCES_LIMIT {
        let message = format!("source_paths must not have more than {SOURCES_LIMIT} entries");
        return Err(Failure::bad_request(message));
    }
    if request.destination.is_empty() {
        return Err(Failure::bad_request("destination is required"));
    }
    let user = access::files_user(guest, request.username.as_deref())?;
    let role = guest.role();
    let directory = &role.working_directory;
    let destination = paths::resolve(&request.destination, &user, directory).map_err(|error| {
        Failure::bad_request(format!("error resolving destination path: {error}"))
    })?;
    let mut sources = Vec::with_capacity(request.source_paths.len());
    for text in request.source_paths {
        let path = paths::resolve(&text, &user, directory).map_err(|error| {
            Failure::bad_request(format!("error resolving source path \"{text}\": {error}"))
        })?;
        if path == destination {
            return Err(Failure::bad_request(format!(
                "source path \"{text}\" cannot be the same as destination"
            )));
        }
        sources.push((text, path));
    }
    let written = WrittenFile {
        path: destination.to_string_lossy().into_owned(),
        name: paths::name(&destination),
        file_type: "file".to_owned(),
        metadata: None,
    };
    blocking(move || {
        let parts = open(&sources)?;
        let mut name = destination.file_name().unwrap_or_default().to_owned();
        name.push(format!(
            ".compose-{}",
            jiff::Timestamp::now().as_nanosecond()
        ));
        let staged = destination.with_file_name(name);
        let whole = upload::create(&staged, &user, &Metadata::new())?;
        if let Err(error) = join(parts, whole).and_then(|()| fs::rename(&staged, &destination)) {
            // Half a file is of no use to anybody.
            let _ = fs::remove_file(&staged);
            return Err(write_failure("error finalizing compose", &error));
        }
        for (_, path) in &sources {
            // The whole is there; a part that stays does no harm.
            let _ = fs::remove_file(path);
        }
        Ok(())
    })
    .await?;
    Ok(json(&written))
}

fn open(sources: &[(String, PathBuf)]) -> Result<Vec<PathBuf>, Failure> {
    sources
        .iter()
        .map(|(text, path)| match fs::metadata(path) {
            Ok(found) if found.is_file() => Ok(path.clone()),
            Ok(_) => Err(Failure::bad_request(format!(
                "source path is not a regular file: {text}"
            ))),
            Err(_) => Err(Failure::new(
                StatusCode::NOT_FOUND,
                format!("source file not found: {text}"),
            )),
        })
        .collect()
}

fn join(parts: Vec<PathBuf>, mut whole: File) -> io::Result<()> {
    for path in parts {
        // Between files the kernel copies by itself.
        io::copy(&mut File::open(path)?, &mut whole)?;
    }
    Ok(())
}
