//! Who may ask: everybody on the machine itself, and from elsewhere whoever has the token.

use api::{ErrorCode, Problem, Secret};
use axum::{Router, http::HeaderMap, http::header::AUTHORIZATION};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use subtle::ConstantTimeEq;
use tokio::{net::TcpListener, sync::Semaphore};

/// So many connections are served together; others wait.
const CONNECTIONS: usize = 256;
/// A request's head must arrive within this time.
const HEAD: Duration = Duration::from_secs(10);
/// A connection is closed after this time.
const LONGEST: Duration = Duration::from_secs(300);
/// Tokens shorter than this can be guessed, in bytes.
const SHORTEST_TOKEN: usize = 16;

/// Decides who may ask.
#[derive(Debug, Clone)]
pub struct Door {
    token: Option<Secret>,
}

/// Whether only this machine can reach the address.
pub fn is_loopback(address: &SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

impl Door {
    /// The door of a server that listens here.
    ///
    /// # Errors
    /// When others can reach the address and there is no token, or a short one.
    pub fn new(address: &SocketAddr, token: Option<Secret>) -> Result<Self, Problem> {
        let refuse = |cause: String| {
            Problem::new(
                ErrorCode::InvalidArgument,
                cause,
                "listen on 127.0.0.1, or give a token of at least 16 characters by --token-file or ATOLL_FLEET_TOKEN",
            )
        };
        match &token {
            None if !is_loopback(address) => Err(refuse(format!(
                "{address} can be reached from other machines, and there is no token"
            ))),
            Some(token) if token.expose().len() < SHORTEST_TOKEN => {
                Err(refuse("the token is too short".to_owned()))
            }
            _ => Ok(Self { token }),
        }
    }

    /// Whether the headers of a request open it.
    pub(super) fn admit(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let Some(token) = &self.token else {
            return Ok(());
        };
        let given = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        let given = given.and_then(|value| value.strip_prefix("Bearer "));
        let right = given.is_some_and(|given| {
            bool::from(given.trim().as_bytes().ct_eq(token.expose().as_bytes()))
        });
        if right {
            return Ok(());
        }
        Err(Problem::new(
            ErrorCode::Unauthenticated,
            "the token is missing or wrong",
            "send `Authorization: Bearer TOKEN`",
        ))
    }

    /// Serves until `end`. What is being answered then is broken off: nothing is changed here.
    pub async fn serve(listener: TcpListener, router: Router, end: impl Future<Output = ()>) {
        let mut end = std::pin::pin!(end);
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = &mut end => break,
                Some(_) = connections.join_next() => continue,
                accepted = accept(&listener, &room) => accepted,
            };
            let Some((stream, permit)) = accepted else {
                continue;
            };
            let mut builder = Builder::new(TokioExecutor::new());
            builder
                .http1()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD);
            builder.http2().timer(TokioTimer::new());
            let service = TowerToHyperService::new(router.clone());
            let connection = builder.serve_connection(TokioIo::new(stream), service);
            let connection = connection.into_owned();
            connections.spawn(async move {
                let _permit = permit;
                let _ = tokio::time::timeout(LONGEST, connection).await;
            });
        }
    }
}

/// The next connection, once there is room for it.
async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> Option<(tokio::net::TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = room.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, permit)),
        Err(error) => {
            // Such as too many open files: it passes.
            tracing::warn!(%error, "a connection was not accepted");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_need_a_token() {
        let here: SocketAddr = "127.0.0.1:80".parse().unwrap();
        let mapped: SocketAddr = "[::ffff:127.0.0.1]:80".parse().unwrap();
        let anywhere: SocketAddr = "0.0.0.0:80".parse().unwrap();
        assert!(Door::new(&here, None).is_ok() && Door::new(&mapped, None).is_ok());
        assert!(Door::new(&anywhere, None).is_err());
        assert!(Door::new(&anywhere, Some(Secret::new("short"))).is_err());
        let token = Secret::new("a-token-of-some-length");
        let door = Door::new(&anywhere, Some(token)).unwrap();
        let mut headers = HeaderMap::new();
        assert!(door.admit(&headers).is_err());
        for (value, admitted) in [
            ("Bearer a-token-of-some-length", true),
            ("Bearer a-token-of-some-lengtH", false),
            ("Bearer ", false),
            ("a-token-of-some-length", false),
        ] {
            headers.insert(AUTHORIZATION, value.parse().unwrap());
            assert_eq!(door.admit(&headers).is_ok(), admitted, "{value}");
        }
    }
}
