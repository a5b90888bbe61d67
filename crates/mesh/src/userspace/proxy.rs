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
use super::datagrams::associate::Association;
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
            let Some(granted) = converse(&task, &mut client, credentials).await else {
                return;
            };
            drop(place);
            let (far, rule) = match granted {
                Granted::Flow(far, rule) => (far, rule),
                Granted::Datagrams(association) => {
                    let idle = task.idle();
                    association.serve(&task, &mut client.stream, idle).await;
                    return;
                }
            };
            let near = Local::new(client.stream);
            task.run(near, &client.came, far, rule).await;
        });
    }
}

/// What a client gets.
enum Granted {
    Flow(Far, Option<Rule>),
    Datagrams(Association),
}

/// Speaks with a client until it has its flow; `None` if it has none, and knows why.
async fn converse(
    core: &Arc<Core>,
    client: &mut Client,
    credentials: Option<Credentials>,
) -> Option<Granted> {
    timeout(PATIENCE, client.more()).await.ok()?.ok()?;
    if client.came.first() == Some(&socks::VERSION) {
        let wanted = timeout(PATIENCE, wanted_by_socks(client, credentials)).await;
        let (host, port) = match wanted.ok()?.ok()? {
            Wanted::Flow(host, port) => (host, port),
            Wanted::Datagrams(port) => return associate(core, client, port).await,
        };
        return match core.reach(&host, port).await {
            Ok((far, rule)) => {
                client.say(&socks::answer(Ok(()))).await.ok()?;
                Some(Granted::Flow(far, rule))
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
                    Ok((far, rule)) => {
                        client.say(connect::CONNECTED).await.ok()?;
                        return Some(Granted::Flow(far, rule));
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

/// Gives a client of SOCKS5 a socket for datagrams.
async fn associate(core: &Arc<Core>, client: &mut Client, port: u16) -> Option<Granted> {
    let opened = match core.place() {
        Ok(place) => Association::open(place, &client.stream, port).await.ok(),
        Err(_) => None,
    };
    let at = opened.as_ref().and_then(|opened| opened.address().ok());
    let (Some(association), Some(at)) = (opened, at) else {
        let answer = socks::answer(Err(Reply::Refused(Refusal::Busy)));
        client.farewell(&answer).await;
        return None;
    };
    client.say(&socks::associated(at)).await.ok()?;
    Some(Granted::Datagrams(association))
}

async fn end(client: &mut Client, refusal: Refusal) -> Option<Granted> {
    let answer = connect::answer(connect::status(refusal), &refusal.to_string());
    client.farewell(&answer).await;
    None
}

/// What a client of SOCKS5 wants.
enum Wanted {
    Flow(String, u16),
    /// To send datagrams, from this port if it is not 0.
    Datagrams(u16),
}

/// What a client of SOCKS5 wants, once it showed that it may.
async fn wanted_by_socks(
    client: &mut Client,
    credentials: Option<Credentials>,
) -> Result<Wanted, Trouble> {
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
        socks::Request::Connect(host, port) => return Ok(Wanted::Flow(host, port)),
        socks::Request::Associate(port) => return Ok(Wanted::Datagrams(port)),
        socks::Request::Other => Reply::Command,
        socks::Request::Address => Reply::Address,
    };
    client.farewell(&socks::answer(Err(reply))).await;
    Err(Trouble::Over)
}
