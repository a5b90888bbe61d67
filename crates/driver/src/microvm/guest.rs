//! What a machine's guest is told: one short HTTP request over the slot's network.
//!
//! The connection begins inside the slot's network namespace, where the guest always has the same
//! address, so nothing depends on the host's routes and rules. What the guest answers is hostile:
//! it is bounded, and only its status counts.

use crate::{DriverError, doing, slot::machine};
use api::{
    Secret,
    boot::{IDENTITY_PATH, MachineClaim, SETTLE_PATH},
};
use base64::Engine;
use rustix::{
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use std::{
    fs::File,
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
};

/// The longest answer that is looked at.
const LONGEST_ANSWER: usize = 8 << 10;

/// The header that carries the control token.
const CONTROL_HEADER: &str = "x-atoll-control";

/// The way to one guest.
#[derive(Debug)]
pub(crate) struct Guest {
    /// The network namespace of the machine's slot.
    network: OwnedFd,
    /// A socket made beforehand: entering a network takes a thread of its own.
    spare: Mutex<Option<OwnedFd>>,
}

impl Guest {
    pub(crate) fn new(network: OwnedFd) -> Self {
        Self {
            network,
            spare: Mutex::default(),
        }
    }

    /// The guest of a machine that runs already, by its process.
    pub(crate) fn of_process(pid: u32) -> Result<Self, DriverError> {
        let path = format!("/proc/{pid}/ns/net");
        let network = File::open(&path).map_err(doing(format!("open {path}")))?;
        Ok(Self::new(network.into()))
    }

    /// Makes a socket, so that the next request finds it. Blocks for a moment.
    pub(crate) fn provide(&self) -> io::Result<()> {
        let socket = self.new_socket()?;
        *self.spare.lock().unwrap_or_else(PoisonError::into_inner) = Some(socket);
        Ok(())
    }

    fn new_socket(&self) -> io::Result<OwnedFd> {
        let network = &self.network;
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                // The network of this thread alone, which ends with it; a socket stays in the one
                // that it was made in.
                move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
                Ok(socket)
            });
            inside
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("a thread ended early")))
        })
    }

    /// Makes the guest somebody; returns when it is.
    pub(crate) async fn claim(
        &self,
        claim: &MachineClaim,
        token: &Secret,
        patience: Duration,
    ) -> Result<(), DriverError> {
        let body = serde_json::to_vec(claim).map_err(doing("write an identity"))?;
        self.ask("PUT", IDENTITY_PATH, token, &body, patience).await
    }

    /// Makes the guest write back what it holds for its disk, and without `keep_cache` give back
    /// the memory that it can do without.
    pub(crate) async fn settle(
        &self,
        keep_cache: bool,
        token: &Secret,
        patience: Duration,
    ) -> Result<(), DriverError> {
        let path = match keep_cache {
            true => format!("{SETTLE_PATH}?keep-cache=1"),
            false => SETTLE_PATH.to_owned(),
        };
        self.ask("POST", &path, token, &[], patience).await
    }

    async fn ask(
        &self,
        method: &str,
        path: &str,
        token: &Secret,
        body: &[u8],
        patience: Duration,
    ) -> Result<(), DriverError> {
        let asking = async {
            let answer = self
                .exchange(method, path, token, body)
                .await
                .map_err(doing(format!("ask the guest to {method} {path}")))?;
            understand(&answer)
        };
        match tokio::time::timeout(patience, asking).await {
            Ok(answer) => answer,
            Err(_) => Err(DriverError::Guest(format!(
                "no answer to {method} {path} within {patience:?}"
            ))),
        }
    }

    async fn exchange(
        &self,
        method: &str,
        path: &str,
        token: &Secret,
        body: &[u8],
    ) -> io::Result<Vec<u8>> {
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nhost: guest\r\n{CONTROL_HEADER}: {}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            token.expose(),
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        self.send(&request).await
    }

    /// Runs a shell that prints an empty line, as a sandbox's user asks for one, and waits for its
    /// end. What comes of it does not count.
    pub(crate) async fn run_shell(
        &self,
        access_token: &Secret,
        user: &str,
        patience: Duration,
    ) -> Result<(), DriverError> {
        let message = serde_json::to_vec(&serde_json::json!({
            "process": { "cmd": "/bin/bash", "args": ["-l", "-c", "echo"] },
            "stdin": false,
        }));
        let message = message.map_err(doing("ask for a shell"))?;
        let credentials = base64::engine::general_purpose::STANDARD.encode(format!("{user}:"));
        let mut request = format!(
            "POST /process.Process/Start HTTP/1.1\r\nhost: guest\r\nx-access-token: {}\r\n\
             authorization: Basic {credentials}\r\ncontent-type: application/connect+json\r\n\
             connect-protocol-version: 1\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            access_token.expose(),
            message.len() + 5
        )
        .into_bytes();
        request.push(0);
        request.extend((message.len() as u32).to_be_bytes());
        request.extend(message);
        let ran = tokio::time::timeout(patience, self.send(&request)).await;
        match ran {
            Ok(answer) => answer.map(drop).map_err(doing("run a shell")),
            Err(_) => Err(DriverError::Guest(format!(
                "a shell did not end within {patience:?}"
            ))),
        }
    }

    async fn send(&self, request: &[u8]) -> io::Result<Vec<u8>> {
        let spare = self
            .spare
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let socket = match spare {
            Some(socket) => socket,
            None => self.new_socket()?,
        };
        let socket = TcpSocket::from_std_stream(socket.into());
        let address = SocketAddr::from((machine::ADDRESS, api::envd::PORT));
        let mut stream = socket.connect(address).await?;
        stream.set_nodelay(true)?;
        stream.write_all(request).await?;
        let mut answer = Vec::new();
        let mut limited = stream.take(LONGEST_ANSWER as u64);
        while limited.read_buf(&mut answer).await? > 0 {
            // Nothing follows an answer without content, however long the connection is kept.
            if status(&answer) == Some(204) {
                break;
            }
        }
        Ok(answer)
    }
}

fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
    std::str::from_utf8(line).ok()?.parse().ok()
}

fn understand(answer: &[u8]) -> Result<(), DriverError> {
    match status(answer) {
        Some(204) => Ok(()),
        Some(status) => {
            let text = String::from_utf8_lossy(answer);
            let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
            let body: String = body.chars().filter(|c| !c.is_control()).take(500).collect();
            Err(DriverError::Guest(format!("it answered {status}: {body}")))
        }
        None => Err(DriverError::Guest("its answer is not HTTP".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_204_is_an_agreement() {
        assert!(understand(b"HTTP/1.1 204 No Content\r\n\r\n").is_ok());
        let refused =
            understand(b"HTTP/1.1 403 Forbidden\r\nx: y\r\n\r\nno \x1b[31mway").unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the guest did not start: it answered 403: no [31mway"
        );
        for odd in [&b""[..], b"HTTP/1.1", b"HTTP/1.1 2x4 ", b"\xff\xfe"] {
            assert!(understand(odd).is_err());
        }
    }
}
