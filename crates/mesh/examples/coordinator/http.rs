//! As much of HTTP/1.1 as a node needs that asks one coordinator, over one connection.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::lab::Outcome;

/// The longest answer: a whole map.
const LONGEST: usize = 64 << 20;

/// A connection that is kept.
pub(crate) struct Http {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// An answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Http {
    /// From one of several addresses of this machine, as a coordinator takes only so many connections from one.
    pub(crate) async fn connect(to: SocketAddr, group: u8) -> Outcome<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2 + group)), 0).into())?;
        let stream = socket.connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: Vec::with_capacity(2048),
        })
    }

    /// Asks, without waiting for the answer.
    pub(crate) async fn ask(&mut self, path: &str, body: &str, key: Option<&str>) -> Outcome<()> {
        let length = body.len();
        let key = key.map(|key| format!("x-api-key: {key}\r\n"));
        let key = key.unwrap_or_default();
        let text = format!(
            "POST {path} HTTP/1.1\r\nhost: coordinator\r\ncontent-type: application/json\r\n{key}content-length: {length}\r\n\r\n{body}"
        );
        self.stream.write_all(text.as_bytes()).await?;
        Ok(())
    }

    /// Reads an answer.
    pub(crate) async fn answer(&mut self) -> Outcome<Answer> {
        let head = loop {
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                break end + 4;
            }
            self.more().await?;
        };
        let text = std::str::from_utf8(&self.buffer[..head])?;
        let status = text.split(' ').nth(1).ok_or("no status")?.parse()?;
        let mut length = 0;
        for line in text.lines() {
            if let Some((name, value)) = line.split_once(':') {
                if name.eq_ignore_ascii_case("content-length") {
                    length = value.trim().parse::<usize>()?;
                } else if name.eq_ignore_ascii_case("transfer-encoding") {
                    return Err("an answer without a length".into());
                }
            }
        }
        if length > LONGEST {
            return Err("an answer that is too long".into());
        }
        while self.buffer.len() < head + length {
            self.more().await?;
        }
        let body = self.buffer[head..head + length].to_vec();
        self.buffer.drain(..head + length);
        self.buffer.shrink_to(16 << 10);
        Ok(Answer { status, body })
    }

    pub(crate) async fn post(
        &mut self,
        path: &str,
        body: &str,
        key: Option<&str>,
    ) -> Outcome<Answer> {
        self.ask(path, body, key).await?;
        self.answer().await
    }

    async fn more(&mut self) -> Outcome<()> {
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err("the coordinator hung up".into()),
            _ => Ok(()),
        }
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}
