//! A client's socket: it counts, notes activity, and can close with a reset.

use crate::{connection::Connection, registry::Ticket};
use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::TcpStream,
};

pub(crate) struct ClientSocket {
    tcp: TcpStream,
    connection: Arc<Connection>,
    _ticket: Ticket,
    /// What was read to find out which HTTP the client speaks, and is still to be handed on.
    prefix: Vec<u8>,
    handed: usize,
}

impl ClientSocket {
    pub(crate) fn new(tcp: TcpStream, connection: Arc<Connection>, ticket: Ticket) -> Self {
        Self {
            tcp,
            connection,
            _ticket: ticket,
            prefix: Vec::new(),
            handed: 0,
        }
    }

    /// Reads until it is known whether the client's first bytes are `expected`, and keeps them
    /// to be read again.
    pub(crate) async fn read_prefix(&mut self, expected: &[u8]) -> io::Result<bool> {
        let mut buffer = vec![0; expected.len()];
        let mut length = 0;
        while length < expected.len() && buffer[..length] == expected[..length] {
            match self.read(&mut buffer[length..]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => length += count,
            }
        }
        let same = buffer[..length] == *expected;
        buffer.truncate(length);
        self.prefix = buffer;
        Ok(same)
    }
}

impl Drop for ClientSocket {
    fn drop(&mut self) {
        if self.connection.is_broken() {
            // Without it the kernel would send a FIN, which reads as a clean end.
            if let Err(error) = self.tcp.set_zero_linger() {
                tracing::debug!(%error, "cannot reset a client's connection");
            }
        }
    }
}

impl AsyncRead for ClientSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.handed < self.prefix.len() {
            let count = buffer.remaining().min(self.prefix.len() - self.handed);
            buffer.put_slice(&self.prefix[self.handed..self.handed + count]);
            self.handed += count;
            if self.handed == self.prefix.len() {
                self.prefix = Vec::new();
                self.handed = 0;
            }
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.tcp).poll_read(context, buffer))?;
        let count = (buffer.filled().len() - before) as u64;
        if count > 0 {
            self.connection.received();
            self.connection
                .registry
                .counters
                .bytes_received
                .fetch_add(count, Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl ClientSocket {
    fn note_sent(&self, count: usize) -> usize {
        if count > 0 {
            self.connection.sent();
            self.connection
                .registry
                .counters
                .bytes_sent
                .fetch_add(count as u64, Relaxed);
        }
        count
    }
}

impl AsyncWrite for ClientSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.tcp).poll_write(context, bytes))?;
        Poll::Ready(Ok(self.note_sent(count)))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.tcp).poll_write_vectored(context, slices))?;
        Poll::Ready(Ok(self.note_sent(count)))
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.connection.is_broken() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}
