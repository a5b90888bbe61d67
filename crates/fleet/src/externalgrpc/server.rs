//! Connections: who may make them, how many there are, and how they end.

use super::{Service, Tls, router::route};
use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::{convert::Infallible, future::Future, io, pin::pin, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::timeout,
};

/// Cluster Autoscaler makes one connection, and its expander another.
const CONNECTIONS: usize = 256;
/// Calls at once on a connection.
const STREAMS: u32 = 256;
/// A handshake takes no longer.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Whoever is silent for so long is asked whether it is still there.
const SILENCE: Duration = Duration::from_secs(60);
/// Calls under way when the server stops get so long.
const GRACE: Duration = Duration::from_secs(5);
/// After an accept that failed, as when files are short.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop` is ready, then ends in order: no new connections, calls under way are
/// finished. Without `tls` everything is in the open, and everybody may ask.
///
/// # Errors
/// When the listener cannot be used at all.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Tls>,
    service: Arc<Service>,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    listener.local_addr()?;
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let (ending, ended) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut stop = pin!(stop);
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = accept(&listener, &places) => accepted,
        };
        let (stream, place) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let (tls, service, ended) = (tls.clone(), service.clone(), ended.clone());
        connections.spawn(async move {
            connection(stream, tls, service, ended).await;
            drop(place);
        });
    }
    drop(listener);
    let _ = ending.send(true);
    let finish = async { while connections.join_next().await.is_some() {} };
    if timeout(GRACE, finish).await.is_err() {
        connections.shutdown().await;
    }
    Ok(())
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await;
    let place = place.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    // An answer is small, and must not wait for more to be sent with it.
    stream.set_nodelay(true)?;
    Ok((stream, place))
}

async fn connection(
    stream: TcpStream,
    tls: Option<Tls>,
    service: Arc<Service>,
    ended: watch::Receiver<bool>,
) {
    let peer = stream.peer_addr().ok();
    let Some(tls) = tls else {
        return converse(stream, true, service, ended).await;
    };
    match timeout(HANDSHAKE, tls.accept(stream)).await {
        Ok(Ok((stream, known))) => converse(stream, known, service, ended).await,
        Ok(Err(error)) => tracing::warn!(?peer, %error, "a TLS connection was refused"),
        Err(_) => tracing::warn!(?peer, "a TLS handshake took too long"),
    }
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    known: bool,
    service: Arc<Service>,
    mut ended: watch::Receiver<bool>,
) {
    let answer = service_fn(move |request| {
        let service = service.clone();
        async move { Ok::<_, Infallible>(route(service, known, request).await) }
    });
    let mut connection = pin!(
        http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(16 << 10)
            .keep_alive_interval(SILENCE)
            .keep_alive_timeout(HANDSHAKE)
            .serve_connection(TokioIo::new(stream), answer)
    );
    let end = async move { ended.wait_for(|ended| *ended).await.is_ok() };
    let result = tokio::select! {
        result = connection.as_mut() => result,
        _ = end => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection broke");
    }
}
