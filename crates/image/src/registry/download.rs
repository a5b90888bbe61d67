//! Downloading one blob into the store, going on where an earlier try stopped.

use super::client::{Repository, RequestError, passing};
use crate::{
    build::{Build, Counter},
    digest::{Digest, Hasher},
    error::ImageError,
    source::manifest::Descriptor,
    store::BlobUse,
};
use bytes::Bytes;
use reqwest::{StatusCode, header::CONTENT_RANGE};
use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, Write},
    path::PathBuf,
    sync::Arc,
};
use tokio::sync::{OwnedMutexGuard, mpsc};

/// Pieces that wait to be written.
const PIECES_WAITING: usize = 32;

/// Fetches the blob unless it is in the store; its content is verified when this returns.
pub(crate) async fn fetch(
    build: &Build,
    repository: &Arc<Repository>,
    blob: &Descriptor,
    counter: &Counter,
) -> Result<BlobUse, ImageError> {
    let store = &build.store;
    if blob.size > store.options.limits.compressed_bytes {
        return Err(ImageError::source(
            format!("a layer of {} bytes is larger than allowed", blob.size),
            "use a smaller image",
        ));
    }
    let guard = store.locks.lock(format!("blob {}", blob.digest)).await;
    let held = store.reserve_blob(blob.digest);
    let place = store.layout.blob(&blob.digest);
    if tokio::fs::metadata(&place).await.is_ok() {
        counter.add(blob.size);
        return Ok(held);
    }
    let _permit = store.downloads.acquire().await;
    let partial = store.layout.partial(&blob.digest);
    let guard = Arc::new(guard);
    // A second time only if what an earlier try left turns out to be damaged.
    for resumed_allowed in [true, false] {
        let sink = Sink::open(partial.clone(), guard.clone(), resumed_allowed, blob.size).await?;
        let resumed = sink.length;
        counter.add(resumed);
        let (digest, length) = download(repository, blob, sink, counter).await?;
        if digest == blob.digest && length == blob.size {
            let (from, to) = (partial.clone(), place.clone());
            build
                .blocking(move |_| {
                    std::fs::rename(&from, &to).map_err(ImageError::path("create", &to))
                })
                .await?;
            return Ok(held);
        }
        counter.subtract(length);
        _ = tokio::fs::remove_file(&partial).await;
        if resumed == 0 {
            break;
        }
    }
    Err(ImageError::Registry {
        cause: format!(
            "what the registry sends for {} is something else",
            blob.digest
        ),
        remedy: "try again; if it stays so, a proxy or the registry is broken".into(),
    })
}

/// Downloads what is missing, with retries; returns what the file then is.
async fn download(
    repository: &Repository,
    blob: &Descriptor,
    mut sink: Sink,
    counter: &Counter,
) -> Result<(Digest, u64), ImageError> {
    let mut tries = 0;
    while sink.length < blob.size {
        let before = sink.length;
        match attempt(repository, blob, &mut sink, counter).await {
            Ok(()) if sink.length == before => {
                let cause = "it sends less than it promised".to_owned();
                repository
                    .wait_or_fail(RequestError::Passing(cause, None), &mut tries)
                    .await?;
            }
            Ok(()) => tries = 0,
            Err(error) => {
                if sink.length > before {
                    tries = 0;
                }
                repository.wait_or_fail(error, &mut tries).await?;
            }
        }
    }
    sink.finish().await
}

async fn attempt(
    repository: &Repository,
    blob: &Descriptor,
    sink: &mut Sink,
    counter: &Counter,
) -> Result<(), RequestError> {
    let from = (sink.length > 0).then_some(sink.length);
    let path = format!("blobs/{}", blob.digest);
    let mut response = repository.get(&path, from).await?;
    let starts_at = |range: &str| -> Option<u64> {
        range
            .strip_prefix("bytes ")?
            .split('-')
            .next()?
            .parse()
            .ok()
    };
    let range = response
        .headers()
        .get(CONTENT_RANGE)
        .and_then(|value| value.to_str().ok());
    let goes_on = response.status() == StatusCode::PARTIAL_CONTENT
        && range.and_then(starts_at) == Some(sink.length);
    if from.is_some() && !goes_on {
        // The server does not do ranges, or sends another than was asked for.
        counter.subtract(sink.length);
        sink.restart().await?;
        if response.status() != StatusCode::OK {
            return Err(RequestError::Passing("it can't resume".into(), None));
        }
    }
    while let Some(chunk) = response.chunk().await.map_err(passing)? {
        let count = chunk.len() as u64;
        if sink.length + count > blob.size {
            return Err(RequestError::Lasting(ImageError::Registry {
                cause: format!("{} is longer than its manifest says", blob.digest),
                remedy: "ask the image's publisher for a sound one".into(),
            }));
        }
        sink.write(chunk).await?;
        counter.add(count);
    }
    Ok(())
}

enum Piece {
    Data(Bytes),
    Restart,
}

/// A thread that writes and hashes. It keeps the blob locked for as long as it writes, also when
/// the build was cancelled.
struct Sink {
    length: u64,
    sender: mpsc::Sender<Piece>,
    thread: tokio::task::JoinHandle<io::Result<(Digest, u64)>>,
    path: PathBuf,
}

impl Sink {
    async fn open(
        path: PathBuf,
        guard: Arc<OwnedMutexGuard<()>>,
        resume: bool,
        size: u64,
    ) -> Result<Self, ImageError> {
        let (sender, receiver) = mpsc::channel(PIECES_WAITING);
        let (ready, opened) = tokio::sync::oneshot::channel();
        let file = path.clone();
        let thread = tokio::task::spawn_blocking(move || {
            let _guard = guard;
            let (file, hasher, length) = open_partial(&file, resume, size)?;
            _ = ready.send(length);
            write_pieces(file, hasher, length, receiver)
        });
        match opened.await {
            Ok(length) => Ok(Self {
                length,
                sender,
                thread,
                path,
            }),
            Err(_) => match thread.await {
                Ok(Err(error)) => Err(ImageError::path("write", &path)(error)),
                _ => Err(ImageError::Internal("a download's thread ended".into())),
            },
        }
    }

    async fn write(&mut self, data: Bytes) -> Result<(), ImageError> {
        self.length += data.len() as u64;
        self.send(Piece::Data(data)).await
    }

    async fn restart(&mut self) -> Result<(), ImageError> {
        self.length = 0;
        self.send(Piece::Restart).await
    }

    async fn send(&mut self, piece: Piece) -> Result<(), ImageError> {
        if self.sender.send(piece).await.is_ok() {
            return Ok(());
        }
        // The thread ended early: only a failed write does that.
        match (&mut self.thread).await {
            Ok(Err(error)) => Err(ImageError::path("write", &self.path)(error)),
            _ => Err(ImageError::Internal("a download's thread ended".into())),
        }
    }

    async fn finish(self) -> Result<(Digest, u64), ImageError> {
        drop(self.sender);
        match self.thread.await {
            Ok(result) => result.map_err(ImageError::path("write", &self.path)),
            Err(error) => Err(ImageError::Internal(error.to_string())),
        }
    }
}

/// Opens what an earlier try left, and hashes it.
fn open_partial(path: &PathBuf, resume: bool, size: u64) -> io::Result<(File, Hasher, u64)> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    let mut hasher = Hasher::default();
    let mut length = 0;
    if resume && file.metadata()?.len() <= size {
        let mut buffer = vec![0; 256 << 10];
        loop {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            length += count as u64;
        }
    } else {
        file.set_len(0)?;
    }
    Ok((file, hasher, length))
}

fn write_pieces(
    mut file: File,
    mut hasher: Hasher,
    mut length: u64,
    mut receiver: mpsc::Receiver<Piece>,
) -> io::Result<(Digest, u64)> {
    while let Some(piece) = receiver.blocking_recv() {
        match piece {
            Piece::Data(data) => {
                file.write_all(&data)?;
                hasher.update(&data);
                length += data.len() as u64;
            }
            Piece::Restart => {
                file.set_len(0)?;
                file.rewind()?;
                hasher = Hasher::default();
                length = 0;
            }
        }
    }
    Ok((hasher.finish(), length))
}
