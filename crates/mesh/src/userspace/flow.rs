//! A flow that runs: bytes both ways between a socket of this machine and the other end.
//!
//! What one side ends in order, the other sees end in order, each direction by itself. Everything else (an error, a limit, a rule that is
//! gone, the end of this program) is seen as an error at both ends: a connection reset, never a clean end of what may be half of something. That is
//! also what happens if the task that carries the flow is dropped at any point.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

use super::book::Motion;
use super::lane::Lane;

/// Bytes that are carried at once; each direction of a flow has a buffer of so many.
const PIECE: usize = 32 << 10;
/// What a stream is ended with when its flow broke off.
const BROKEN: VarInt = VarInt::from_u32(1);

/// A socket of this machine.
#[derive(Debug)]
pub(super) struct Local {
    pub(super) stream: TcpStream,
    whole: bool,
}

impl Local {
    pub(super) fn new(stream: TcpStream) -> Self {
        // Small pieces go at once; that is an optimisation, not more.
        let _ = stream.set_nodelay(true);
        Self {
            stream,
            whole: false,
        }
    }

    /// It may be closed in order.
    pub(super) fn settle(&mut self) {
        self.whole = true;
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        if !self.whole {
            // Closing then resets the connection. If it cannot be set, the other end at least sees the end.
            let _ = rustix::net::sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO));
        }
    }
}

/// A stream to another node, and what is held for as long as it is.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) send: SendStream,
    pub(super) recv: RecvStream,
    pub(super) connection: Connection,
    /// Tells that its connection is in use.
    pub(super) lane: Arc<Lane>,
    /// Bytes that were sent, which its connection has its shares by.
    pub(super) sent: Arc<AtomicU64>,
    /// Its place among the flows of this node, once it has one.
    pub(super) place: Option<OwnedSemaphorePermit>,
    pub(super) whole: bool,
}

impl Remote {
    /// A stream over a connection, which has no place yet.
    pub(super) fn new(
        connection: Connection,
        (send, recv): (SendStream, RecvStream),
        lane: Arc<Lane>,
    ) -> Self {
        Self {
            send,
            recv,
            sent: lane.meter(),
            connection,
            lane,
            place: None,
            whole: false,
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if !self.whole {
            // They fail if the stream is over already.
            let _ = self.send.reset(BROKEN);
            let _ = self.recv.stop(BROKEN);
        }
    }
}

/// The other end of a flow.
#[derive(Debug)]
pub(super) enum Far {
    /// At another node.
    Peer(Remote),
    /// A service of this node, and the flow's place among all.
    Own {
        service: Local,
        _place: OwnedSemaphorePermit,
    },
}

/// What was carried, over all flows.
#[derive(Debug, Default)]
pub(super) struct Carried {
    /// Away from the near socket.
    pub(super) out: AtomicU64,
    /// Towards it.
    pub(super) back: AtomicU64,
}

/// Why a flow broke off.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// One of its ends did.
    #[error(transparent)]
    Failed(#[from] io::Error),
    /// Nothing moved for long.
    #[error("nothing moved for too long")]
    Idle,
    /// It may not run any more.
    #[error("it is not allowed any more")]
    Forbidden,
}

/// Waits until nothing moved for so long.
async fn idle(motion: &Motion, limit: Duration) {
    loop {
        let (last, began) = motion.last();
        match (Duration::from_millis(last) + limit).checked_sub(began.elapsed()) {
            Some(rest) if !rest.is_zero() => tokio::time::sleep(rest).await,
            _ => return,
        }
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    motion: &Motion,
    counts: &[&AtomicU64],
) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let length = from.read(&mut piece).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        motion.touch();
        to.write_all(&piece[..length]).await?;
        motion.touch();
        for count in counts {
            count.fetch_add(length as u64, Ordering::Relaxed);
        }
    }
}

/// Carries a flow to its end. `early` is what came from the near socket already. It breaks off when nothing moved for `limit`, and when
/// `forbidden` is over.
///
/// # Errors
/// Why it broke off; both ends see that it did.
pub(super) async fn carry(
    mut near: Local,
    early: &[u8],
    mut far: Far,
    limit: Duration,
    forbidden: impl Future<Output = ()>,
    carried: &Carried,
    motion: &Motion,
) -> Result<(), Broken> {
    let back = [&carried.back, &motion.back];
    let both = async {
        let (near_read, near_write) = near.stream.split();
        match &mut far {
            Far::Peer(remote) => {
                remote.send.write_all(early).await?;
                motion.out.fetch_add(early.len() as u64, Ordering::Relaxed);
                let out = [&carried.out, &motion.out, &*remote.sent];
                let out = copy(near_read, &mut remote.send, motion, &out);
                let back = copy(&mut remote.recv, near_write, motion, &back);
                tokio::try_join!(out, back)
            }
            Far::Own { service, .. } => {
                let (read, mut write) = service.stream.split();
                write.write_all(early).await?;
                let out = [&carried.out, &motion.out];
                let out = copy(near_read, write, motion, &out);
                let back = copy(read, near_write, motion, &back);
                tokio::try_join!(out, back)
            }
        }
    };
    tokio::select! {
        done = both => done?,
        () = idle(motion, limit) => return Err(Broken::Idle),
        () = forbidden => return Err(Broken::Forbidden),
    };
    near.settle();
    match &mut far {
        Far::Peer(remote) => remote.whole = true,
        Far::Own { service, .. } => service.settle(),
    }
    Ok(())
}
