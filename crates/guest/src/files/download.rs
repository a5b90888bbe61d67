//! `GET /files`: one file, whole or in part, plain or compressed.

use super::{PIECE, blocking};
use crate::{
    encoding::{self, Coding},
    http::{
        Guest,
        access::{self, FilesQuery},
        body::{BrokenBody, ReplyBody},
        reply::{Failure, Reply, empty},
    },
    paths,
    range::{self, Selection},
    signature::Operation,
};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use jiff::{Timestamp, fmt::rfc2822};
use std::{
    fs::{File, Metadata},
    future::Future,
    io::{self, Write as _},
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

/// Answers with a file.
pub async fn download(
    guest: &Guest,
    request: &Request<Incoming>,
    query: &FilesQuery,
) -> Result<Reply, Failure> {
    let headers = request.headers();
    access::check_files(guest, headers, query, Operation::Read)?;
    let user = access::files_user(guest, query.username.as_deref())?;
    let text = query.path.as_deref().unwrap_or_default();
    let path = paths::resolve(text, &user, &guest.role().working_directory)
        .map_err(|error| Failure::bad_request(error.to_string()))?;
    let accept = header_text(headers, &header::ACCEPT_ENCODING);
    let coding = encoding::choose(accept);
    let target = path.clone();
    let opened = blocking(move || open(&target)).await?;
    let coding = coding.ok_or_else(|| {
        Failure::new(
            StatusCode::NOT_ACCEPTABLE,
            "no acceptable encoding found, supported: [gzip]",
        )
    })?;
    let partial = [
        header::RANGE,
        header::IF_MODIFIED_SINCE,
        header::IF_UNMODIFIED_SINCE,
        header::IF_NONE_MATCH,
        header::IF_MATCH,
        header::IF_RANGE,
    ];
    let coding = if partial.iter().any(|name| headers.contains_key(name)) {
        Coding::Identity
    } else {
        coding
    };
    let mut reply = match coding {
        Coding::Gzip => compressed(opened.file, opened.first),
        Coding::Identity => plain(headers, opened),
    };
    let content_type = HeaderValue::from_static(content_type(&path));
    let headers = reply.headers_mut();
    headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    if let Ok(value) = HeaderValue::try_from(disposition(&paths::name(&path))) {
        headers.insert(header::CONTENT_DISPOSITION, value);
    }
    Ok(reply)
}

fn header_text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

struct Opened {
    file: Arc<File>,
    found: Metadata,
    /// The first piece: for a small file that is all, and no second trip to the pool is needed.
    first: Bytes,
}

fn open(path: &PathBuf) -> Result<Opened, Failure> {
    let shown = path.display();
    let failed = |error: io::Error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => Failure::new(
            StatusCode::NOT_FOUND,
            format!("path '{shown}' does not exist"),
        ),
        Some(libc::EACCES | libc::EPERM) => Failure::new(
            StatusCode::FORBIDDEN,
            format!("error opening file '{shown}': {error}"),
        ),
        _ => Failure::internal(format!("error opening file '{shown}': {error}")),
    };
    // Without NONBLOCK, opening a named pipe would wait for its other end.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let found = std::fs::metadata(path).map_err(failed)?;
    if found.is_dir() {
        return Err(Failure::bad_request(format!(
            "path '{shown}' is a directory"
        )));
    }
    if !found.is_file() {
        return Err(Failure::bad_request(format!(
            "path '{shown}' is not a regular file"
        )));
    }
    let file = File::options()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    let first = read_piece(&file, 0, PIECE).map_err(failed)?;
    Ok(Opened {
        file: Arc::new(file),
        found,
        first,
    })
}

fn read_piece(file: &File, offset: u64, length: usize) -> io::Result<Bytes> {
    let mut buffer = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match file.read_at(
            buffer.get_mut(filled..).unwrap_or_default(),
            offset + filled as u64,
        ) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer.truncate(filled);
    if filled < length / 2 {
        buffer.shrink_to_fit();
    }
    Ok(buffer.into())
}

fn plain(headers: &HeaderMap, opened: Opened) -> Reply {
    let Opened { file, found, first } = opened;
    let size = found.len();
    if size == 0 && !first.is_empty() {
        // Files of the kernel's own say that they are empty.
        return streamed(file, first);
    }
    let tag = format!("\"{:x}-{:x}-{size:x}\"", found.mtime(), found.mtime_nsec());
    let modified = Timestamp::from_second(found.mtime()).unwrap_or_default();
    let mut reply = match precondition(headers, &tag, modified) {
        Some(status) => empty(status),
        None => ranged(headers, &tag, modified, file, size, first),
    };
    let headers = reply.headers_mut();
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Ok(value) = HeaderValue::try_from(tag) {
        headers.insert(header::ETAG, value);
    }
    let date = rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&modified);
    if let Some(value) = date.ok().and_then(|date| HeaderValue::try_from(date).ok()) {
        headers.insert(header::LAST_MODIFIED, value);
    }
    reply
}

fn ranged(
    headers: &HeaderMap,
    tag: &str,
    modified: Timestamp,
    file: Arc<File>,
    size: u64,
    first: Bytes,
) -> Reply {
    let wanted = header_text(headers, &header::RANGE).filter(|_| {
        // If the file is another one by now, all of it is wanted.
        header_text(headers, &header::IF_RANGE)
            .is_none_or(|condition| condition == tag || date(condition) == Some(modified))
    });
    let selection = wanted.map_or(Selection::Whole, |wanted| range::parse(wanted, size));
    let (status, start, end) = match selection {
        Selection::Whole => (StatusCode::OK, 0, size),
        Selection::Part { start, end } => (StatusCode::PARTIAL_CONTENT, start, end),
        Selection::Unsatisfiable => {
            let message = "invalid range: failed to overlap";
            let mut reply = Failure::new(StatusCode::RANGE_NOT_SATISFIABLE, message).reply();
            if let Ok(value) = HeaderValue::try_from(format!("bytes */{size}")) {
                reply.headers_mut().insert(header::CONTENT_RANGE, value);
            }
            return reply;
        }
    };
    let ready = usize::try_from(start)
        .ok()
        .filter(|start| *start < first.len());
    let ready = ready.map(|start| {
        let end = usize::try_from(end).unwrap_or(usize::MAX).min(first.len());
        first.slice(start..end)
    });
    let body = FileBody {
        file,
        offset: start,
        end,
        ready,
        reading: None,
    };
    let mut reply = Response::new(ReplyBody::stream(body));
    *reply.status_mut() = status;
    if status == StatusCode::PARTIAL_CONTENT
        && let Ok(value) = HeaderValue::try_from(format!("bytes {start}-{}/{size}", end - 1))
    {
        reply.headers_mut().insert(header::CONTENT_RANGE, value);
    }
    reply
}

/// What the conditional headers decide (RFC 9110, 13.2.2); `None` if the file is to be sent.
fn precondition(headers: &HeaderMap, tag: &str, modified: Timestamp) -> Option<StatusCode> {
    let lists = |list: &str, weak: bool| {
        list.split(',').map(str::trim).any(|item| {
            let item = if weak {
                item.strip_prefix("W/").unwrap_or(item)
            } else {
                item
            };
            item == "*" || item == tag
        })
    };
    if let Some(list) = header_text(headers, &header::IF_MATCH) {
        if !lists(list, false) {
            return Some(StatusCode::PRECONDITION_FAILED);
        }
    } else if let Some(since) = header_text(headers, &header::IF_UNMODIFIED_SINCE).and_then(date)
        && modified > since
    {
        return Some(StatusCode::PRECONDITION_FAILED);
    }
    if let Some(list) = header_text(headers, &header::IF_NONE_MATCH) {
        return lists(list, true).then_some(StatusCode::NOT_MODIFIED);
    }
    let since = header_text(headers, &header::IF_MODIFIED_SINCE).and_then(date)?;
    (modified <= since).then_some(StatusCode::NOT_MODIFIED)
}

fn date(text: &str) -> Option<Timestamp> {
    rfc2822::DateTimeParser::new().parse_timestamp(text).ok()
}

/// A known stretch of a file.
struct FileBody {
    file: Arc<File>,
    offset: u64,
    end: u64,
    ready: Option<Bytes>,
    reading: Option<Piece>,
}

type Piece = Pin<Box<dyn Future<Output = Result<Bytes, Failure>>>>;

fn piece(file: &Arc<File>, offset: u64, length: usize) -> Piece {
    let file = Arc::clone(file);
    Box::pin(blocking(move || {
        read_piece(&file, offset, length)
            .map_err(|error| Failure::internal(format!("error reading file: {error}")))
    }))
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = BrokenBody;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenBody>>> {
        if self.offset >= self.end {
            return Poll::Ready(None);
        }
        let data = match self.ready.take() {
            Some(data) => data,
            None => {
                let this = &mut *self;
                let rest = this.end - this.offset;
                let length = usize::try_from(rest).unwrap_or(PIECE).min(PIECE);
                let reading = this
                    .reading
                    .get_or_insert_with(|| piece(&this.file, this.offset, length));
                let outcome = ready!(reading.as_mut().poll(context));
                this.reading = None;
                match outcome {
                    Ok(data) if data.is_empty() => {
                        let why = "the file became shorter while it was sent".to_owned();
                        return Poll::Ready(Some(Err(BrokenBody(why))));
                    }
                    Ok(data) => data,
                    Err(failure) => {
                        return Poll::Ready(Some(Err(BrokenBody(failure.message))));
                    }
                }
            }
        };
        self.offset += data.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.offset >= self.end
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.end - self.offset)
    }
}

/// A file to its end, wherever that is, through an encoder or not.
struct StreamBody {
    file: Arc<File>,
    offset: u64,
    first: Option<Bytes>,
    encoder: Option<GzEncoder<Vec<u8>>>,
    working: Option<Work>,
    done: bool,
}

type Work = Pin<Box<dyn Future<Output = Result<Worked, Failure>>>>;

/// What came of a piece: the encoder for the next one (none at the end), bytes read, bytes to send.
type Worked = (Option<GzEncoder<Vec<u8>>>, usize, Bytes);

fn compressed(file: Arc<File>, first: Bytes) -> Reply {
    let encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let mut reply = stream_reply(file, first, Some(encoder));
    reply
        .headers_mut()
        .insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    reply
}

fn streamed(file: Arc<File>, first: Bytes) -> Reply {
    stream_reply(file, first, None)
}

fn stream_reply(file: Arc<File>, first: Bytes, encoder: Option<GzEncoder<Vec<u8>>>) -> Reply {
    let first = Some(first);
    let body = StreamBody {
        file,
        offset: 0,
        first,
        encoder,
        working: None,
        done: false,
    };
    Response::new(ReplyBody::stream(body))
}

fn work(
    file: &File,
    offset: u64,
    first: Option<Bytes>,
    encoder: Option<GzEncoder<Vec<u8>>>,
) -> io::Result<Worked> {
    let data = match first {
        Some(first) => first,
        None => read_piece(file, offset, PIECE)?,
    };
    let count = data.len();
    let Some(mut encoder) = encoder else {
        return Ok((None, count, data));
    };
    encoder.write_all(&data)?;
    if count == 0 {
        return Ok((None, 0, encoder.finish()?.into()));
    }
    let out = std::mem::take(encoder.get_mut());
    Ok((Some(encoder), count, out.into()))
}

impl Body for StreamBody {
    type Data = Bytes;
    type Error = BrokenBody;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenBody>>> {
        let this = &mut *self;
        while !this.done {
            let working = this.working.get_or_insert_with(|| {
                let file = Arc::clone(&this.file);
                let (offset, first, encoder) =
                    (this.offset, this.first.take(), this.encoder.take());
                Box::pin(blocking(move || {
                    work(&file, offset, first, encoder)
                        .map_err(|error| Failure::internal(format!("error reading file: {error}")))
                }))
            });
            let outcome = ready!(working.as_mut().poll(context));
            this.working = None;
            match outcome {
                Ok((encoder, count, data)) => {
                    this.encoder = encoder;
                    this.offset += count as u64;
                    this.done = count == 0;
                    if !data.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
                Err(failure) => {
                    this.done = true;
                    return Poll::Ready(Some(Err(BrokenBody(failure.message))));
                }
            }
        }
        Poll::Ready(None)
    }
}

/// `inline; filename="name"`, and the exact name beside it if it is not plain ASCII (RFC 6266).
fn disposition(name: &str) -> String {
    let plain: String = name
        .chars()
        .map(|c| {
            if c.is_ascii() && !c.is_ascii_control() && !matches!(c, '"' | '\\') {
                c
            } else {
                '_'
            }
        })
        .collect();
    if plain == name {
        return format!("inline; filename=\"{plain}\"");
    }
    let exact = percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC);
    format!("inline; filename=\"{plain}\"; filename*=UTF-8''{exact}")
}

fn content_type(path: &Path) -> &'static str {
    let extension = path
        .extension()
        .and_then(|extension| extension.to_str())
        .unwrap_or_default();
    match extension.to_ascii_lowercase().as_str() {
        "txt" | "log" | "md" | "py" | "sh" | "toml" | "yaml" | "yml" | "ini" | "conf" => {
            "text/plain; charset=utf-8"
        }
        "html" | "htm" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "csv" => "text/csv; charset=utf-8",
        "xml" => "text/xml; charset=utf-8",
        "json" => "application/json",
        "pdf" => "application/pdf",
        "wasm" => "application/wasm",
        "zip" => "application/zip",
        "gz" => "application/gzip",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "svg" => "image/svg+xml",
        "mp3" => "audio/mpeg",
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_in_headers() {
        assert_eq!(disposition("a b.txt"), "inline; filename=\"a b.txt\"");
        assert_eq!(
            disposition("a\"\r\nX: y"),
            "inline; filename=\"a___X: y\"; filename*=UTF-8''a%22%0D%0AX%3A%20y"
        );
        assert_eq!(
            disposition("é"),
            "inline; filename=\"_\"; filename*=UTF-8''%C3%A9"
        );
    }

    #[test]
    fn conditions_decide_as_the_standard_says() {
        let modified = date("Wed, 21 Oct 2015 07:28:00 GMT").unwrap();
        let check = |pairs: &[(HeaderName, &str)], expected: Option<u16>| {
            let pairs = pairs
                .iter()
                .map(|(name, value)| (name.clone(), value.parse().unwrap()));
            let status = precondition(&HeaderMap::from_iter(pairs), "\"tag\"", modified);
            assert_eq!(status.map(|status| status.as_u16()), expected);
        };
        check(&[], None);
        check(&[(header::IF_NONE_MATCH, "\"x\", W/\"tag\"")], Some(304));
        check(&[(header::IF_NONE_MATCH, "\"x\"")], None);
        check(
            &[(header::IF_MODIFIED_SINCE, "Wed, 21 Oct 2015 07:28:00 GMT")],
            Some(304),
        );
        check(
            &[(header::IF_MODIFIED_SINCE, "Wed, 21 Oct 2015 07:27:59 GMT")],
            None,
        );
        check(&[(header::IF_MODIFIED_SINCE, "yesterday")], None);
        check(&[(header::IF_MATCH, "\"x\"")], Some(412));
        check(
            &[(header::IF_UNMODIFIED_SINCE, "Wed, 21 Oct 2015 07:27:59 GMT")],
            Some(412),
        );
    }
}
