//! Questions and answers on the wire.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use simple_dns::RCODE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::forward::ask;
use super::zone::{Answer, Zone, refusal};
use crate::namespace::{Namespace, socket_in};

/// Questions that are asked on at the same time.
const QUESTIONS: usize = 256;
/// Connections at the same time.
const CONNECTIONS: usize = 64;
/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(10);

/// Where a server listens, and whom it asks.
#[derive(Debug, Clone, Default)]
pub struct ServerOptions {
    /// Addresses to listen at, over UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// Who is answered, besides who asks from one of these or from a loopback address.
    pub askers: Vec<IpAddr>,
    /// Whom to ask about other names.
    pub upstream: Vec<SocketAddr>,
    /// Who is told which services are asked for; what is not taken in time is not told.
    pub asked: Option<mpsc::Sender<String>>,
    /// Where it listens and from where it asks on: the network namespace of who asks, if it is another than this thread's. So nobody
    /// gets further by asking than he would himself.
    pub namespace: Option<Arc<Namespace>>,
}

#[derive(Debug)]
struct Shared {
    zone: RwLock<Arc<Zone>>,
    served: Vec<IpAddr>,
    upstream: Vec<SocketAddr>,
    asked: Option<mpsc::Sender<String>>,
    namespace: Option<Arc<Namespace>>,
    questions: Semaphore,
    connections: Arc<Semaphore>,
}

/// A DNS server at work. Dropping it ends it.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    addresses: Vec<SocketAddr>,
    _tasks: JoinSet<()>,
}

/// Both sockets at an address; with port 0, at the port that TCP got.
fn bind(address: SocketAddr) -> io::Result<(std::net::TcpListener, std::net::UdpSocket)> {
    let tcp = std::net::TcpListener::bind(address)?;
    let udp = std::net::UdpSocket::bind(tcp.local_addr()?)?;
    tcp.set_nonblocking(true)?;
    udp.set_nonblocking(true)?;
    Ok((tcp, udp))
}

impl Server {
    /// Listens and answers.
    ///
    /// # Errors
    /// An address cannot be listened at.
    pub async fn start(options: ServerOptions, zone: Zone) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            zone: RwLock::new(Arc::new(zone)),
            served: {
                let own = options.listen.iter().map(SocketAddr::ip);
                own.chain(options.askers).collect()
            },
            upstream: options.upstream,
            asked: options.asked,
            namespace: options.namespace,
            questions: Semaphore::new(QUESTIONS),
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
        });
        let mut tasks = JoinSet::new();
        let mut addresses = Vec::new();
        for address in options.listen {
            let namespace = shared.namespace.as_deref();
            let (tcp, udp) = socket_in(namespace, || bind(address))?;
            let tcp = TcpListener::from_std(tcp)?;
            let udp = Arc::new(UdpSocket::from_std(udp)?);
            let address = tcp.local_addr()?;
            addresses.push(address);
            tasks.spawn(Arc::clone(&shared).serve_udp(udp));
            tasks.spawn(Arc::clone(&shared).serve_tcp(tcp));
        }
        Ok(Self {
            shared,
            addresses,
            _tasks: tasks,
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Answers from another zone from now on.
    pub fn set_zone(&self, zone: Zone) {
        let mut place = self
            .shared
            .zone
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *place = Arc::new(zone);
    }
}

impl Shared {
    /// Other machines do not use this one's resolver.
    fn serves(&self, asker: IpAddr) -> bool {
        asker.is_loopback() || self.served.contains(&asker)
    }

    /// What is answered; `None` if nothing is.
    async fn answer(&self, question: &[u8], datagram: bool) -> Option<Vec<u8>> {
        let zone = Arc::clone(&self.zone.read().unwrap_or_else(PoisonError::into_inner));
        let servers = match zone.answer(question, datagram) {
            Answer::Reply(reply) => {
                if let Some(asked) = &self.asked
                    && let Some(service) = zone.service_asked_for(question)
                {
                    // Who has too much to do already need not know.
                    let _ = asked.try_send(service.to_owned());
                }
                return Some(reply);
            }
            Answer::Silence => return None,
            Answer::Forward(servers) => servers,
        };
        let servers: Vec<_> = servers
            .into_iter()
            .map(|server| (server, 53).into())
            .collect();
        let servers = if servers.is_empty() {
            &self.upstream
        } else {
            &servers
        };
        if servers.is_empty() {
            return Some(refusal(question, RCODE::Refused));
        }
        let Ok(_turn) = self.questions.try_acquire() else {
            return Some(refusal(question, RCODE::ServerFailure));
        };
        let namespace = self.namespace.as_deref();
        let answer = ask(servers, question, datagram, namespace).await;
        Some(answer.unwrap_or_else(|| refusal(question, RCODE::ServerFailure)))
    }

    async fn serve_udp(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; 4096];
        let mut waiting = JoinSet::new();
        loop {
            // Those that are done are let go.
            while waiting.try_join_next().is_some() {}
            let Ok((length, asker)) = socket.recv_from(&mut buffer).await else {
                // An unreachable asker is reported at the next call; it is not about this socket.
                tokio::task::yield_now().await;
                continue;
            };
            if !self.serves(asker.ip()) || waiting.len() > 2 * QUESTIONS {
                continue;
            }
            let (shared, socket) = (Arc::clone(&self), Arc::clone(&socket));
            let question = buffer[..length].to_vec();
            waiting.spawn(async move {
                if let Some(answer) = shared.answer(&question, true).await {
                    // The asker may be gone.
                    let _ = socket.send_to(&answer, asker).await;
                }
            });
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        let mut conversations = JoinSet::new();
        loop {
            while conversations.try_join_next().is_some() {}
            let Ok(turn) = Arc::clone(&self.connections).acquire_owned().await else {
                return;
            };
            let Ok((stream, asker)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            if !self.serves(asker.ip()) {
                continue;
            }
            let shared = Arc::clone(&self);
            conversations.spawn(async move {
                shared.converse(stream).await;
                drop(turn);
            });
        }
    }

    async fn converse(&self, mut stream: TcpStream) -> Option<()> {
        loop {
            let question = async {
                let length = stream.read_u16().await.ok()?;
                let mut question = vec![0; usize::from(length)];
                stream.read_exact(&mut question).await.ok()?;
                Some(question)
            };
            let question = tokio::time::timeout(SILENCE, question).await.ok()??;
            let answer = self.answer(&question, false).await?;
            let length = u16::try_from(answer.len()).ok()?.to_be_bytes();
            let whole = [&length, &answer[..]].concat();
            tokio::time::timeout(SILENCE, stream.write_all(&whole))
                .await
                .ok()?
                .ok()?;
        }
    }
}
