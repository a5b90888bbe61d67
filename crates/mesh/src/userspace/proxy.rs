//! The proxy that local programs use: SOCKS5 and HTTP CONNECT at one port, told apart by the first byte.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::carrier::{Core, Rule};
use super::connect::{self, Head};
use super::credentials::Credentials;
use super::flow::{Far, Local};
use super::header::Refusal;
use super::socks::{self, Reply};

/// Clients of one proxy that did not get their flow yet.
const CLIENTS: usize = 256;
/// How long a client may take until it said what it wants.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long an answer without a flow may take, and the bytes of a client that are thrown away so that it gets to read it.
const FAREWELL: Duration = Duration::from_secs(2);
const THROWN_AWAY: usize = 64 << 10;

/// Why a conversation ended without a flow.
enum Trouble {
    /// The client is gone, or what it says is answered already.
    Over,
    /// More came than any message has.
    TooLong,
    /// What came is nothing that is understood.
    Malformed,
}

impl From<io::Error> for Trouble {
    fn from(_: io::Error) -> Self {
        Self::Over
    }
}

impl From<socks::Malformed> for Trouble {
    fn from(_: socks::Malformed) -> Self {
        Self::Malformed
    }
}

impl From<connect::Malformed> for Trouble {
    fn from(_: connect::Malformed) -> Self {
        Self::Malformed
    }
}

/// What comes from a client: no byte is read twice, none is lost that belongs to the flow.
struct Client {
    stream: TcpStream,
    came: Vec<u8>,
}

impl Client {
    async fn more(&mut self) -> Result<(), Trouble> {
        let mut piece = [0; 1024];
        match self.stream.read(&mut piece).await? {
            0 => Err(Trouble::Over),
            length => {
                self.came.extend_from_slice(&piece[..length]);
                Ok(())
            }
        }
    }

    /// The next message, of at most so many bytes.
    async fn next<T, E: Into<Trouble>>(
        &mut self,
        longest: usize,
        parse: impl Fn(&[u8]) -> Result<Option<(T, usize)>, E>,
    ) -> Result<T, Trouble> {
        loop {
            let known = self.came.get(..longest).unwrap_or(&self.came);
            if let Some((message, length)) = parse(known).map_err(Into::into)? {
                self.came.drain(..length);
                return Ok(message);
            }
            if self.came.len() >= longest {
                return Err(Trouble::TooLong);
            }
            self.more().await?;
        }
    }

    async fn say(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        Ok(self.stream.write_all(bytes).await?)
    }

    /// Says something and ends, in such a way that the client can read it.
    async fn farewell(&mut self, bytes: &[u8]) {
        let said = async {
            self.stream.write_all(bytes).await?;
            self.stream.shutdown().await?;
            let mut thrown = 0;
            let mut piece = [0; 1024];
            while thrown < THROWN_AWAY {
                match self.stream.read(&mut piece).await? {
                    0 => break,
                    length => thrown += length,
                }
            }
            Ok::<(), io::Error>(())
        };
        // Whether the client hears it is up to the client.
        let _ = timeout(FAREWELL, said).await;
    }
}

/// Serves clients at a listener until this node stops.
pub(super) async fn serve(
    core: Arc<Core>,
    listener: TcpListener,
    credentials: Option<Credentials>,
) {
    let clients = Arc::new(Semaphore::new(CLIENTS));
    // Who comes when all places are taken waits in the listener's queue.
    while let Ok(place) = Arc::clone(&clients).acquire_owned().await {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(_) => {
                // No descriptors are left, perhaps; then some time must pass.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let task = Arc::clone(&core);
        core.spawn(async move {
            let mut client = Client {
                stream,
                came: Vec::new(),
            };
            let Some((far, rule)) = converse(&task, &mut client, credentials).await else {
                return;
            };
            drop(place);
            let near = Local::new(client.stream);
            task.run(near, &client.came, far, rule).await;
        });
    }
}

/// Speaks with a client until it has its flow; `None` if it has none, and knows why.
async fn converse(
    core: &Arc<Core>,
    client: &mut Client,
    credentials: Option<Credentials>,
) -> Option<(Far, Option<Rule>)> {
    timeout(PATIENCE, client.more()).await.ok()?.ok()?;
    if client.came.first() == Some(&socks::VERSION) {
        let wanted = timeout(PATIENCE, wanted_by_socks(client, credentials)).await;
        let (host, port) = wanted.ok()?.ok()?;
        return match core.reach(&host, port).await {
            Ok(flow) => {
                client.say(&socks::answer(Ok(()))).await.ok()?;
                Some(flow)
            }
            Err(refusal) => {
                let answer = socks::answer(Err(Reply::Refused(refusal)));
                client.farewell(&answer).await;
                None
            }
        };
    }
    // Nothing else begins with a capital letter; to the rest nobody would know what to answer.
    if !client.came.first().is_some_and(u8::is_ascii_uppercase) {
        return None;
    }
    let status = match timeout(PATIENCE, client.next(connect::LONGEST, connect::head)).await {
        Err(_) => connect::TOO_SLOW,
        Ok(Err(Trouble::Over)) => return None,
        Ok(Err(Trouble::TooLong)) => connect::TOO_LONG,
        Ok(Err(Trouble::Malformed)) => connect::NO_HEAD,
        Ok(Ok(Head::Method)) => connect::OTHER_METHOD,
        Ok(Ok(Head::Connect(wanted))) => {
            let welcome = credentials.is_none_or(|right| {
                wanted
                    .credentials
                    .is_some_and(|shown| right.matches(&shown))
            });
            if welcome {
                match core.reach(&wanted.host, wanted.port).await {
                    Ok(flow) => {
                        client.say(connect::CONNECTED).await.ok()?;
                        return Some(flow);
                    }
                    Err(refusal) => return end(client, refusal).await,
                }
            }
            connect::UNKNOWN_USER
        }
    };
    client.farewell(&connect::answer(status, status.1)).await;
    None
}

async fn end(client: &mut Client, refusal: Refusal) -> Option<(Far, Option<Rule>)> {
    let answer = connect::answer(connect::status(refusal), &refusal.to_string());
    client.farewell(&answer).await;
    None
}

/// What a client of SOCKS5 wants, once it showed that it may.
async fn wanted_by_socks(
    client: &mut Client,
    credentials: Option<Credentials>,
) -> Result<(String, u16), Trouble> {
    let methods = client.next(socks::LONGEST, socks::methods).await?;
    match credentials {
        Some(right) if methods.password => {
            client.say(&socks::chosen(true)).await?;
            let shown = client.next(socks::LONGEST, socks::password).await?;
            if !right.matches(&shown) {
                client.farewell(&socks::welcome(false)).await;
                return Err(Trouble::Over);
            }
            client.say(&socks::welcome(true)).await?;
        }
        None if methods.none => client.say(&socks::chosen(false)).await?,
        _ => {
            client.farewell(&socks::NO_METHOD).await;
            return Err(Trouble::Over);
        }
    }
    let reply = match client.next(socks::LONGEST, socks::request).await? {
        socks::Request::Connect(host, port) => return Ok((host, port)),
        socks::Request::Other => Reply::Command,
        socks::Request::Address => Reply::Address,
    };
    client.farewell(&socks::answer(Err(reply))).await;
    Err(Trouble::Over)
}
