//! `POST /files`: files in, as a form with several or as one body.

use super::{PIECE, blocking, write_failure};
use crate::{
    accounts::User,
    encoding::{self, Coding},
    filesystem::tree::{self, MakeError},
    http::{
        Guest,
        access::{self, FilesQuery},
        body,
        reply::{Failure, Reply, json},
    },
    metadata::{self, Metadata},
    multipart::{Multipart, Piece},
    paths,
    signature::Operation,
};
use api::envd::files::WrittenFile;
use bytes::BytesMut;
use flate2::write::MultiGzDecoder;
use http::{Request, header};
use hyper::body::Incoming;
use std::{
    fs::File,
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, fchown},
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

/// Files in one form.
const FILES_LIMIT: usize = 10_000;
/// Compressed bytes that are inflated at once: at most about a thousand times as much comes out.
const INFLATE_STEP: usize = 4 << 10;
/// How much of a body is taken, and how long, after its writing failed.
const DISCARD_LIMIT: usize = 1 << 30;
const DISCARD_PATIENCE: Duration = Duration::from_secs(30);

/// Writes files, and answers with what was written.
pub async fn upload(
    guest: &Rc<Guest>,
    request: Request<Incoming>,
    query: &FilesQuery,
) -> Result<Reply, Failure> {
    let headers = request.headers();
    access::check_files(guest, headers, query, Operation::Write)?;
    let text = |name| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let content_type = text(header::CONTENT_TYPE).to_owned();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    let coding = text(header::CONTENT_ENCODING);
    let coding = encoding::of_request(Some(coding)).ok_or_else(|| {
        Failure::bad_request(format!(
            "error decompressing request body: unsupported Content-Encoding: {coding}, supported: \
             [gzip]"
        ))
    })?;
    let user = access::files_user(guest, query.username.as_deref())?;
    let metadata =
        metadata::parse(headers).map_err(|error| Failure::bad_request(error.to_string()))?;
    let length = text(header::CONTENT_LENGTH).parse::<u64>().ok();
    let upload = Upload {
        guest: Rc::clone(guest),
        path: query.path.clone().filter(|path| !path.is_empty()),
        user,
        metadata,
        length,
        written: Vec::new(),
    };
    let mut body = request.into_body();
    let written = if media_type.eq_ignore_ascii_case("application/octet-stream") {
        upload.octet_stream(&mut body, coding).await
    } else if media_type.to_ascii_lowercase().starts_with("multipart/") {
        let form = Multipart::new(&content_type).map_err(|error| {
            Failure::bad_request(format!("error parsing multipart form: {error}"))
        })?;
        upload.multipart(&mut body, coding, form).await
    } else {
        return Err(Failure::bad_request(format!(
            "unsupported content type: {content_type}, expected multipart/form-data or \
             application/octet-stream"
        )));
    };
    match written {
        Ok(written) => Ok(json(&written)),
        Err(failure) => {
            let _ = tokio::time::timeout(DISCARD_PATIENCE, discard(&mut body)).await;
            Err(failure)
        }
    }
}

/// Takes the rest of a body that is of no use any more. Most clients look at an answer only when
/// they have sent everything, and take a closed connection for a fault (RFC 9112, section 9.6).
async fn discard(body: &mut Incoming) {
    let mut left = DISCARD_LIMIT;
    while let Ok(Some(data)) = body::next(body).await {
        left = left.saturating_sub(data.len());
        if left == 0 {
            return;
        }
    }
}

struct Upload {
    guest: Rc<Guest>,
    path: Option<String>,
    user: User,
    metadata: Metadata,
    length: Option<u64>,
    written: Vec<WrittenFile>,
}

impl Upload {
    async fn octet_stream(
        mut self,
        body: &mut Incoming,
        coding: Coding,
    ) -> Result<Vec<WrittenFile>, Failure> {
        let text = self.path.clone().ok_or_else(|| {
            Failure::bad_request("path query parameter is required for raw body upload")
        })?;
        let path = self.resolve(&text)?;
        let mut sink = self.sink(path.clone(), coding);
        while let Some(data) = body::next(body).await.map_err(broken)? {
            sink.push(&data).await?;
        }
        sink.finish().await?;
        self.add(&path);
        Ok(self.written)
    }

    async fn multipart(
        mut self,
        body: &mut Incoming,
        coding: Coding,
        mut form: Multipart,
    ) -> Result<Vec<WrittenFile>, Failure> {
        let malformed = |error| Failure::bad_request(format!("error reading form: {error}"));
        let mut inflater = (coding == Coding::Gzip).then(|| MultiGzDecoder::new(Vec::<u8>::new()));
        let mut current: Option<(PathBuf, Sink)> = None;
        while let Some(data) = body::next(body).await.map_err(broken)? {
            for step in data.chunks(if inflater.is_some() {
                INFLATE_STEP
            } else {
                usize::MAX
            }) {
                match &mut inflater {
                    Some(inflater) => {
                        inflater
                            .write_all(step)
                            // Else some of it waits inside for the next step.
                            .and_then(|()| inflater.flush())
                            .map_err(|error| inflate_failure(&error))?;
                        form.push(&std::mem::take(inflater.get_mut()));
                    }
                    None => form.push(step),
                }
                while let Some(piece) = form.take().map_err(malformed)? {
                    match piece {
                        Piece::Head(head) if head.name == "file" => {
                            let path = self.destination(head.file_name)?;
                            current = Some((path.clone(), self.sink(path, Coding::Identity)));
                        }
                        // Fields of other names mean nothing.
                        Piece::Head(_) => current = None,
                        Piece::Data(data) => {
                            if let Some((_, sink)) = &mut current {
                                sink.push(&data).await?;
                            }
                        }
                        Piece::End => {
                            if let Some((path, sink)) = current.take() {
                                sink.finish().await?;
                                self.add(&path);
                            }
                        }
                    }
                }
            }
        }
        if let Some(mut inflater) = inflater {
            inflater
                .try_finish()
                .map_err(|error| inflate_failure(&error))?;
        }
        form.finish().map_err(malformed)?;
        Ok(self.written)
    }

    fn resolve(&self, text: &str) -> Result<PathBuf, Failure> {
        paths::resolve(text, &self.user, &self.guest.role().working_directory)
            .map_err(|error| Failure::bad_request(format!("error resolving path: {error}")))
    }

    /// Where a part of a form goes: where the query says, else where its own name says.
    fn destination(&self, file_name: Option<String>) -> Result<PathBuf, Failure> {
        let text = match (&self.path, file_name) {
            (Some(path), _) => path.clone(),
            (None, Some(name)) if !name.is_empty() => name,
            (None, _) => {
                return Err(Failure::bad_request(
                    "error getting multipart custom part file name: filename not found in \
                     Content-Disposition header",
                ));
            }
        };
        let path = self.resolve(&text)?;
        if self.written.len() >= FILES_LIMIT {
            return Err(Failure::bad_request(format!(
                "more than {FILES_LIMIT} files in one form"
            )));
        }
        let shown = path.to_string_lossy();
        if !self.written.iter().any(|file| file.path == shown) {
            return Ok(path);
        }
        let others = self.written.iter().map(|file| file.path.as_str());
        let others: Vec<&str> = others.filter(|other| *other != shown).take(100).collect();
        let mut message = format!(
            "you cannot upload multiple files to the same path '{shown}' in one upload request, \
             only the first specified file was uploaded"
        );
        if others.len() > 1 {
            message.push_str(", also the following files were uploaded: ");
            message.push_str(&others.join(", "));
        }
        Err(Failure::bad_request(message))
    }

    fn sink(&self, path: PathBuf, coding: Coding) -> Sink {
        let (user, metadata) = (self.user.clone(), self.metadata.clone());
        Sink {
            target: Some(Target::New {
                path,
                user,
                metadata,
                coding,
            }),
            waiting: BytesMut::new(),
            length: self.length,
        }
    }

    fn add(&mut self, path: &Path) {
        self.written.push(WrittenFile {
            path: path.to_string_lossy().into_owned(),
            name: paths::name(path),
            file_type: "file".to_owned(),
            metadata: (!self.metadata.is_empty()).then(|| self.metadata.clone()),
        });
    }
}

fn broken(error: hyper::Error) -> Failure {
    Failure::bad_request(format!("error reading request body: {error}"))
}

fn inflate_failure(error: &io::Error) -> Failure {
    Failure::bad_request(format!("error decompressing request body: {error}"))
}

/// Takes bytes and writes them in large pieces; a small file takes one trip to the pool.
struct Sink {
    target: Option<Target>,
    waiting: BytesMut,
    length: Option<u64>,
}

enum Target {
    New {
        path: PathBuf,
        user: User,
        metadata: Metadata,
        coding: Coding,
    },
    Plain(File),
    Gzip(Box<MultiGzDecoder<File>>),
}

impl Sink {
    async fn push(&mut self, data: &[u8]) -> Result<(), Failure> {
        self.waiting.extend_from_slice(data);
        if self.waiting.len() >= PIECE {
            self.flush(false).await
        } else {
            Ok(())
        }
    }

    async fn finish(mut self) -> Result<(), Failure> {
        self.flush(true).await
    }

    async fn flush(&mut self, last: bool) -> Result<(), Failure> {
        let data = std::mem::take(&mut self.waiting);
        let Some(target) = self.target.take() else {
            return Err(Failure::internal("error writing file: it was closed"));
        };
        let length = self.length;
        let outcome = blocking(move || {
            let mut target = target.open()?;
            target.write(&data, last, length)?;
            Ok((target, data))
        });
        let (target, mut data) = outcome.await?;
        self.target = Some(target);
        data.clear();
        self.waiting = data;
        Ok(())
    }
}

impl Target {
    fn open(self) -> Result<Self, Failure> {
        let Self::New {
            path,
            user,
            metadata,
            coding,
        } = self
        else {
            return Ok(self);
        };
        let file = create(&path, &user, &metadata)?;
        Ok(match coding {
            Coding::Identity => Self::Plain(file),
            Coding::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(file))),
        })
    }

    fn write(&mut self, data: &[u8], last: bool, length: Option<u64>) -> Result<(), Failure> {
        let failed = |error: io::Error| {
            let mut failure = write_failure("error writing file", &error);
            if super::is_full(&error)
                && let Some(length) = length
            {
                failure.message = format!("attempted to write {length} bytes: {}", failure.message);
            }
            failure
        };
        match self {
            Self::New { .. } => Ok(()),
            Self::Plain(file) => file.write_all(data).map_err(failed),
            Self::Gzip(decoder) => {
                let inflated = decoder.write_all(data);
                let inflated =
                    inflated.and_then(|()| if last { decoder.try_finish() } else { Ok(()) });
                inflated.map_err(|error| match error.kind() {
                    io::ErrorKind::InvalidInput
                    | io::ErrorKind::InvalidData
                    | io::ErrorKind::UnexpectedEof => inflate_failure(&error),
                    _ => failed(error),
                })
            }
        }
    }
}

/// Opens a file for writing, empty and the user's, with its directories and labels.
pub(super) fn create(path: &Path, user: &User, metadata: &Metadata) -> Result<File, Failure> {
    if let Some(parent) = path.parent() {
        tree::ensure_directories(parent, user).map_err(|error| match &error {
            MakeError::Io(source) => write_failure("error ensuring directories", source),
            MakeError::NotDirectory(_) => {
                Failure::bad_request(format!("error ensuring directories: {error}"))
            }
        })?;
    }
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => {
            return Err(Failure::bad_request(format!(
                "path is a directory: {}",
                path.display()
            )));
        }
        Ok(found) if !found.is_file() => {
            let message = format!("path is not a regular file: {}", path.display());
            return Err(Failure::bad_request(message));
        }
        _ => {}
    }
    // Truncated after the owner is changed: watchers then see what they see from envd, a new
    // file's creation, change of owner and writing, in this order.
    let mut options = File::options();
    let options = options.write(true).create(true).truncate(false).mode(0o666);
    let file = options
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    let file = file.map_err(|error| write_failure("error opening file", &error))?;
    fchown(&file, Some(user.uid), Some(user.gid))
        .map_err(|error| Failure::internal(format!("error changing file ownership: {error}")))?;
    if file.metadata().is_ok_and(|found| found.len() > 0) {
        file.set_len(0)
            .map_err(|error| write_failure("error opening file", &error))?;
    }
    metadata::replace(&file, metadata)
        .map_err(|error| write_failure("error writing file metadata", &error))?;
    Ok(file)
}
