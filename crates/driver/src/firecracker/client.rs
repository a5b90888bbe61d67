//! Firecracker's API: HTTP/1.1 with JSON over a Unix socket, a connection for each request.
//!
//! The peer runs a hostile guest and may be hostile itself: what it answers is bounded, every
//! request has a deadline, and its socket is never followed out of its jail.

use super::messages::Fault;
use crate::{DriverError, doing};
use rustix::{
    fs::{FileType, Mode, OFlags},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

/// The socket in the jail.
pub(super) const SOCKET: &str = "api.socket";

/// The longest answer that is taken.
const LONGEST_ANSWER: usize = 64 << 10;

/// The longest refusal that is passed on.
const LONGEST_FAULT: usize = 500;

/// The way to one Firecracker.
#[derive(Debug)]
pub(super) struct Client {
    /// The directory that it sees as its root.
    root: PathBuf,
}

impl Client {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Asks for something.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        patience: Duration,
    ) -> Result<T, DriverError> {
        let body = self.ask("GET", path, &[], patience).await?;
        serde_json::from_slice(&body).map_err(doing(format!("understand Firecracker's {path}")))
    }

    /// Sets something.
    pub(super) async fn put(
        &self,
        path: &str,
        body: &impl Serialize,
        patience: Duration,
    ) -> Result<(), DriverError> {
        let body = serde_json::to_vec(body).map_err(doing("write a request"))?;
        self.ask("PUT", path, &body, patience).await.map(drop)
    }

    /// Changes something.
    pub(super) async fn patch(
        &self,
        path: &str,
        body: &impl Serialize,
        patience: Duration,
    ) -> Result<(), DriverError> {
        let body = serde_json::to_vec(body).map_err(doing("write a request"))?;
        self.ask("PATCH", path, &body, patience).await.map(drop)
    }

    /// Whether it listens.
    pub(super) fn listens(&self) -> bool {
        self.connect().is_ok()
    }

    async fn ask(
        &self,
        method: &str,
        path: &str,
        body: &[u8],
        patience: Duration,
    ) -> Result<Vec<u8>, DriverError> {
        let answer = tokio::time::timeout(patience, self.exchange(method, path, body));
        let answer = answer
            .await
            .map_err(|_| {
                DriverError::Guest(format!(
                    "Firecracker did not answer `{method} {path}` within {patience:?}"
                ))
            })?
            .map_err(doing(format!("ask Firecracker to `{method} {path}`")))?;
        match answer.status {
            200 | 204 => Ok(answer.body),
            status => Err(refusal(method, path, status, &answer.body)),
        }
    }

    async fn exchange(&self, method: &str, path: &str, body: &[u8]) -> io::Result<Answer> {
        let stream = std::os::unix::net::UnixStream::from(self.connect()?);
        let mut stream = UnixStream::from_std(stream)?;
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n").into_bytes();
        if !body.is_empty() {
            let length = body.len();
            let head = format!("Content-Type: application/json\r\nContent-Length: {length}\r\n");
            request.extend_from_slice(head.as_bytes());
        }
        request.extend_from_slice(b"Accept: application/json\r\n\r\n");
        request.extend_from_slice(body);
        stream.write_all(&request).await?;
        let mut text = Vec::new();
        loop {
            if let Some(answer) = parse(&text)? {
                return Ok(answer);
            }
            if text.len() > LONGEST_ANSWER {
                return Err(io::Error::other("it says too much"));
            }
            if stream.read_buf(&mut text).await? == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "it ended before it answered",
                ));
            }
        }
    }

    /// A connection. Its owner can write in the directory, and could put a link there to somebody
    /// else's socket; so what is there must be a socket itself.
    fn connect(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = rustix::fs::open(self.root.join(SOCKET), flags, Mode::empty())?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode);
        if kind != FileType::Socket {
            return Err(io::Error::other("what is in place of its socket is none"));
        }
        // Also because an address may have 108 bytes at most, a path more.
        let path = format!("/proc/self/fd/{}", place.as_raw_fd());
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(socket)
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    body: Vec<u8>,
}

/// An answer, once it is complete.
fn parse(text: &[u8]) -> io::Result<Option<Answer>> {
    let odd = || io::Error::new(io::ErrorKind::InvalidData, "its answer is not HTTP");
    let Some(end) = text.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&text[..end]).map_err(|_| odd())?;
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1."))
        .and_then(|line| line.get(2..5)?.parse().ok())
        .ok_or_else(odd)?;
    let mut length = 0;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().map_err(|_| odd())?;
        }
    }
    if length > LONGEST_ANSWER {
        return Err(io::Error::other("it says too much"));
    }
    let body = &text[end + 4..];
    Ok((body.len() >= length).then(|| Answer {
        status,
        body: body[..length].to_vec(),
    }))
}

/// Says what it said; without what could change a terminal.
fn refusal(method: &str, path: &str, status: u16, body: &[u8]) -> DriverError {
    let said = match serde_json::from_slice::<Fault>(body) {
        Ok(fault) => fault.fault_message,
        Err(_) => format!("status {status}"),
    };
    let said: String = said
        .chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .take(LONGEST_FAULT)
        .collect();
    // Many machines started at once can meet this on older kernels, although there is memory: it
    // is worth another try, and is told apart for that.
    if said.contains("Cannot allocate memory") || said.contains("ENOMEM") {
        return DriverError::Exhausted {
            what: "memory",
            cause: format!("Firecracker refuses `{method} {path}`: {said}"),
        };
    }
    DriverError::Guest(format!("Firecracker refuses `{method} {path}`: {said}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    const PATIENCE: Duration = Duration::from_secs(5);

    /// A peer that says this to everyone.
    fn peer(answer: Option<&'static [u8]>) -> (tempfile::TempDir, Client) {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join(SOCKET)).unwrap();
        tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                match answer {
                    Some(answer) => {
                        let _ = stream.write_all(answer).await;
                    }
                    None => kept.push(stream),
                }
            }
        });
        let client = Client::new(directory.path().to_owned());
        (directory, client)
    }

    #[tokio::test]
    async fn a_refusal_says_why() {
        let answer =
            b"HTTP/1.1 400 \r\nContent-Type: application/json\r\nContent-Length: 32\r\n\r\n\
                       {\"fault_message\":\"no\\u001b[31m\"}";
        let (_directory, client) = peer(Some(answer));
        let refused = client.put("/entropy", &(), PATIENCE).await.unwrap_err();
        let text = refused.to_string();
        assert!(text.contains("`PUT /entropy`: no [31m"), "{text}");
    }

    #[tokio::test]
    async fn want_of_memory_is_told_apart() {
        let error = refusal(
            "PUT",
            "/x",
            400,
            b"{\"fault_message\":\"Cannot allocate memory\"}",
        );
        assert!(
            matches!(error, DriverError::Exhausted { what: "memory", .. }),
            "{error:?}"
        );
    }

    #[tokio::test]
    async fn silence_has_a_deadline() {
        let (_directory, client) = peer(None);
        let error = client
            .put("/entropy", &(), Duration::from_millis(20))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("within 20ms"), "{error}");
    }

    #[tokio::test]
    async fn what_is_odd_or_endless_is_an_error() {
        for answer in [
            &b"HTTP/1.1 2x4 \r\n\r\n"[..],
            b"SSH-2.0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
            b"",
        ] {
            let (_directory, client) = peer(Some(answer));
            assert!(client.put("/entropy", &(), PATIENCE).await.is_err());
        }
    }

    #[tokio::test]
    async fn a_link_in_place_of_the_socket_is_not_followed() {
        let (elsewhere, _client) = peer(Some(b"HTTP/1.1 204 \r\n\r\n"));
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path().join(SOCKET), directory.path().join(SOCKET))
            .unwrap();
        let client = Client::new(directory.path().to_owned());
        assert!(client.put("/entropy", &(), PATIENCE).await.is_err());
        assert!(!client.listens());
    }
}
