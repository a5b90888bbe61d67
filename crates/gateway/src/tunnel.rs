//! Bytes both ways, once client and server have left HTTP.

use crate::{connection::Active, upstream::Lease};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::pin::pin;
use tokio::io::copy_bidirectional_with_sizes;

const BUFFER: usize = 16 << 10;

/// Copies until both sides are done, one breaks, or the sandbox ends. Silence for too long ends
/// it as well, because the client's connection notes when its last byte went through.
pub(crate) async fn run(client: OnUpgrade, server: OnUpgrade, mut lease: Lease, active: Active) {
    let connection = active.0.clone();
    let ended = lease.ended();
    let talk = async {
        let mut server = pin!(server);
        let server = std::future::poll_fn(|context| {
            lease.drive(context);
            server.as_mut().poll(context)
        });
        let (client, server) = match futures::future::try_join(client, server).await {
            Ok(both) => both,
            Err(error) => {
                tracing::debug!(%error, "an upgrade did not happen");
                return;
            }
        };
        let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
        let copied = tokio::select! {
            copied = copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER) => {
                copied.is_ok() && !lease.has_ended()
            }
            () = ended.cancelled() => false,
        };
        if !copied {
            connection.break_off();
        }
    };
    connection.run(talk).await;
    drop(active);
}
