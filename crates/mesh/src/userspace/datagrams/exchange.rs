//! A flow of datagrams that runs.

use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quinn::{ReadError, ReadExactError, SendDatagramError, VarInt};
use tokio::sync::mpsc;

use super::ends::{End, Far, Near, Peer, Service};
use super::wire;
use crate::userspace::book::Motion;
use crate::userspace::flow::Broken;

/// Long datagrams that wait for their turn on the stream.
const MOST_LONG: usize = 4;
/// How long a flow may be silent in which there was never an answer.
const UNANSWERED: Duration = Duration::from_secs(30);
/// What the stream of a flow is ended with that was silent for too long.
const QUIET: VarInt = VarInt::from_u32(2);

/// Waits until nothing moved for so long.
async fn quiet(motion: &Motion, limit: Duration) {
    loop {
        let (last, began) = motion.last();
        let limit = match motion
            .out
            .load(Ordering::Relaxed)
            .min(motion.back.load(Ordering::Relaxed))
        {
            0 => limit.min(UNANSWERED),
            _ => limit,
        };
        match (Duration::from_millis(last) + limit).checked_sub(began.elapsed()) {
            Some(rest) if !rest.is_zero() => tokio::time::sleep(rest).await,
            _ => return,
        }
    }
}

/// Counts what moves.
pub(super) struct Counter<'a> {
    pub(super) motion: &'a Motion,
    pub(super) all: [&'a AtomicU64; 2],
}

impl Counter<'_> {
    fn out(&self, length: usize) {
        self.motion.touch();
        self.motion.out.fetch_add(length as u64, Ordering::Relaxed);
        self.all[0].fetch_add(length as u64, Ordering::Relaxed);
    }

    fn back(&self, length: usize) {
        self.motion.touch();
        self.motion.back.fetch_add(length as u64, Ordering::Relaxed);
        self.all[1].fetch_add(length as u64, Ordering::Relaxed);
    }
}

/// The next long datagram; `None` after the last.
async fn long(recv: &mut quinn::RecvStream) -> Result<Option<Vec<u8>>, Broken> {
    let failed = |error: ReadExactError| match error {
        ReadExactError::ReadError(ReadError::Reset(QUIET)) => Broken::Idle,
        error => Broken::Failed(io::Error::other(error)),
    };
    let mut length = [0; 2];
    match recv.read_exact(&mut length).await {
        Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
        other => other.map_err(failed)?,
    }
    let mut datagram = vec![0; usize::from(u16::from_be_bytes(length))];
    recv.read_exact(&mut datagram).await.map_err(failed)?;
    Ok(Some(datagram))
}

/// Carries between a near end and a peer until one of them ends it.
async fn exchange(near: &mut Near, peer: &mut Peer, count: &Counter<'_>) -> Result<(), Broken> {
    let (mut source, sink) = near.split();
    let Peer { remote, arrivals } = peer;
    let (connection, sent) = (&remote.connection, &remote.sent);
    let number = wire::number(remote.send.id());
    let (send, recv) = (&mut remote.send, &mut remote.recv);
    let (later, mut waiting) = mpsc::channel::<Vec<u8>>(MOST_LONG);
    let out = async {
        while let Some(datagram) = source.next().await? {
            count.out(datagram.len());
            sent.fetch_add(datagram.len() as u64, Ordering::Relaxed);
            let whole = Bytes::from(wire::write(number, &datagram));
            match connection.send_datagram(whole) {
                // What finds no room on the stream is lost.
                Err(SendDatagramError::TooLarge) => _ = later.try_send(datagram),
                other => other.map_err(io::Error::other)?,
            }
        }
        Ok::<(), Broken>(())
    };
    let long_out = async {
        while let Some(datagram) = waiting.recv().await {
            let Ok(length) = u16::try_from(datagram.len()) else {
                continue;
            };
            let framed = [&length.to_be_bytes()[..], &datagram].concat();
            send.write_all(&framed).await.map_err(io::Error::other)?;
        }
        // The sender lives as long as this.
        std::future::pending::<Result<(), Broken>>().await
    };
    let back = async {
        while let Some(datagram) = arrivals.next().await {
            count.back(datagram.len());
            sink.give(&datagram).await;
        }
        std::future::pending::<Result<(), Broken>>().await
    };
    let long_back = async {
        while let Some(datagram) = long(recv).await? {
            count.back(datagram.len());
            sink.give(&datagram).await;
        }
        Ok(())
    };
    tokio::select! {
        done = out => done,
        done = long_out => done,
        done = back => done,
        done = long_back => done,
    }
}

/// The same with a service of this node.
async fn exchange_here(
    near: &mut Near,
    service: &Service,
    count: &Counter<'_>,
) -> Result<(), Broken> {
    let (mut source, sink) = near.split();
    let out = async {
        while let Some(datagram) = source.next().await? {
            count.out(datagram.len());
            service.send(&datagram).await;
        }
        Ok::<(), Broken>(())
    };
    let back = async {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let length = service.receive(&mut buffer).await?;
            count.back(length);
            sink.give(buffer.get(..length).unwrap_or_default()).await;
        }
    };
    tokio::select! {
        done = out => done,
        done = back => done,
    }
}

/// Carries a flow to its end. It breaks off when nothing moved for `limit`, and when `forbidden` is over.
///
/// # Errors
/// Why it did not end in order.
pub(super) async fn carry(
    mut near: Near,
    far: Far,
    limit: Duration,
    forbidden: impl Future<Output = ()>,
    count: Counter<'_>,
) -> Result<(), Broken> {
    let (mut peer, own) = match far.end {
        End::Peer(peer) => (Some(peer), None),
        End::Own(service, place) => (None, Some((service, place))),
    };
    let both = async {
        match (&mut peer, &own) {
            (Some(peer), _) => exchange(&mut near, peer, &count).await,
            (None, Some((service, _))) => exchange_here(&mut near, service, &count).await,
            (None, None) => Ok(()),
        }
    };
    let result = tokio::select! {
        done = both => done,
        () = quiet(count.motion, limit) => Err(Broken::Idle),
        () = forbidden => Err(Broken::Forbidden),
    };
    if let Some(remote) = peer.as_mut().map(|peer| &mut peer.remote) {
        // What is said here fails if the stream is over already. A flow that broke off is told when it is dropped.
        match result {
            Ok(()) => remote.whole = remote.send.finish().is_ok(),
            Err(Broken::Idle) => remote.whole = remote.send.reset(QUIET).is_ok(),
            Err(_) => {}
        }
        let _ = remote.recv.stop(VarInt::from_u32(0));
    }
    result
}
