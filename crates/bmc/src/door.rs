//! The controller's door: TLS with a certificate of its own, and the handle by which a test holds it.

use crate::{
    Event, Fault, Machine, Point,
    rack::Rack,
    requests::{Shared, answer, lock},
};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use sha2::{Digest, Sha256};
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{oneshot, watch},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

/// A connection that does not become one in this time is dropped.
const HANDSHAKE: Duration = Duration::from_secs(30);
/// Steps of the system's time, where the test does not say what time it is.
const STEP: Duration = Duration::from_millis(20);

/// Resolves when a request has come to the point where it stays.
pub type Pause = oneshot::Receiver<()>;

/// Why a controller could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It cannot listen.
    #[error("cannot listen: {0}")]
    Listen(#[from] std::io::Error),
    /// It has no certificate.
    #[error("no certificate: {0}")]
    Certificate(String),
}

struct Identity {
    acceptor: TlsAcceptor,
    fingerprint: String,
}

/// A management controller that runs until it is dropped.
pub struct Bmc {
    rack: Shared,
    identity: Arc<Mutex<Identity>>,
    address: SocketAddr,
    cards: SocketAddr,
    open: watch::Sender<usize>,
    _tasks: JoinSet<()>,
}

impl Bmc {
    /// Starts one on a free port of 127.0.0.1, for whoever knows name and password. Time stands still
    /// until [`Bmc::pass`] or [`Bmc::keep_time`].
    ///
    /// # Errors
    /// When it cannot listen or make its certificate.
    pub async fn start(
        user: &str,
        password: &str,
        machines: Vec<Machine>,
    ) -> Result<Self, StartError> {
        let rack = Rack {
            user: user.to_owned(),
            password: password.to_owned(),
            machines,
            basic: true,
            ..Rack::default()
        };
        let rack: Shared = Arc::new(Mutex::new(rack));
        let identity = Arc::new(Mutex::new(identify()?));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let card = UdpSocket::bind("127.0.0.1:0").await?;
        let (address, cards) = (listener.local_addr()?, card.local_addr()?);
        let open = watch::Sender::new(0);
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(
            listener,
            rack.clone(),
            identity.clone(),
            open.clone(),
        ));
        tasks.spawn(hear(card, rack.clone()));
        Ok(Self {
            rack,
            identity,
            address,
            cards,
            open,
            _tasks: tasks,
        })
    }

    /// Its address, as `https://HOST:PORT`.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Where packets to its machines' network cards go.
    pub const fn cards(&self) -> SocketAddr {
        self.cards
    }

    /// The SHA-256 of its certificate, in hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        let identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        identity.fingerprint.clone()
    }

    /// Gives it another certificate, as a controller has whose firmware was set back.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn change_certificate(&self) -> Result<(), StartError> {
        let fresh = identify()?;
        *self.identity.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    /// Lets time pass until so long after the start. It never goes back.
    pub fn pass(&self, now: Duration) {
        lock(&self.rack).pass(now);
    }

    /// Follows the system's time, from now on and for as long as it is waited for.
    pub async fn keep_time(&self) {
        let (start, before) = (Instant::now(), lock(&self.rack).now);
        loop {
            self.pass(before + start.elapsed());
            tokio::time::sleep(STEP).await;
        }
    }

    /// Looks at a machine, or changes it.
    pub fn with<T>(&self, name: &str, change: impl FnOnce(&mut Machine) -> T) -> Option<T> {
        let mut rack = lock(&self.rack);
        let machine = rack.machines.iter_mut().find(|one| one.name == name)?;
        let result = change(machine);
        machine.revision += 1;
        Some(result)
    }

    /// What is wrong with a machine from now on; with nothing, it is in order.
    pub fn set_faults(&self, machine: &str, faults: &[Fault]) {
        self.with(machine, |one| one.faults = faults.to_vec());
    }

    /// What is wrong with the controller itself from now on.
    pub fn set_own_faults(&self, faults: &[Fault]) {
        lock(&self.rack).faults = faults.to_vec();
    }

    /// Whether it takes name and password with each request, instead of sessions only.
    pub fn set_basic(&self, basic: bool) {
        lock(&self.rack).basic = basic;
    }

    /// Ends all sessions, as some do after a while without saying so.
    pub fn end_sessions(&self) {
        lock(&self.rack).sessions.clear();
    }

    /// How many sessions were made.
    pub fn made_sessions(&self) -> u64 {
        lock(&self.rack).made_sessions
    }

    /// Boots the controller, not its machines: for so long nobody is there, and it forgets sessions.
    pub fn reboot(&self, long: Duration) {
        let mut rack = lock(&self.rack);
        rack.boots_until = rack.now + long;
        rack.sessions.clear();
    }

    /// The next request that gets to this point stays there; resolves when one has.
    pub fn pause(&self, point: Point) -> Pause {
        lock(&self.rack).pause(point)
    }

    /// Requests stay nowhere any more.
    pub fn unpause(&self) {
        lock(&self.rack).pause = None;
    }

    /// All that machines were told, the oldest first.
    pub fn events(&self) -> Vec<Event> {
        lock(&self.rack).events.clone()
    }

    /// Waits until nobody is connected: what was sent has arrived then.
    pub async fn quiet(&self) {
        let mut open = self.open.subscribe();
        // The sender lives as long as we do.
        let _ = open.wait_for(|count| *count == 0).await;
    }
}

fn identify() -> Result<Identity, StartError> {
    let failed = |error: &dyn std::fmt::Display| StartError::Certificate(error.to_string());
    let signed = rcgen::generate_simple_self_signed(["controller".to_owned()]);
    let signed = signed.map_err(|error| failed(&error))?;
    let certificate: CertificateDer<'static> = signed.cert.der().clone();
    let key = PrivateKeyDer::try_from(signed.signing_key.serialize_der())
        .map_err(|error| failed(&error))?;
    let digest = Sha256::digest(&certificate);
    let fingerprint = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let configuration = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&error))?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .map_err(|error| failed(&error))?;
    Ok(Identity {
        acceptor: TlsAcceptor::from(Arc::new(configuration)),
        fingerprint,
    })
}

async fn serve(
    listener: TcpListener,
    rack: Shared,
    identity: Arc<Mutex<Identity>>,
    open: watch::Sender<usize>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                if !lock(&rack).listens() {
                    continue;
                }
                let acceptor = identity.lock().unwrap_or_else(PoisonError::into_inner).acceptor.clone();
                open.send_modify(|count| *count += 1);
                let (rack, open) = (rack.clone(), Open(open.clone()));
                connections.spawn(async move {
                    connect(stream, acceptor, rack).await;
                    drop(open);
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Counts a connection until it ends, however it does.
struct Open(watch::Sender<usize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count = count.saturating_sub(1));
    }
}

async fn connect(stream: TcpStream, acceptor: TlsAcceptor, rack: Shared) {
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else {
        return;
    };
    let service = service_fn(move |request| answer(rack.clone(), request));
    // What ends a connection is the other side's business.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// Wakes machines by packets to their network cards.
async fn hear(card: UdpSocket, rack: Shared) {
    let mut packet = [0; 256];
    while let Ok((length, _)) = card.recv_from(&mut packet).await {
        if let Some(mac) = meant(&packet[..length]) {
            lock(&rack).wake(&mac);
        }
    }
}

/// Whom a magic packet is for.
fn meant(packet: &[u8]) -> Option<String> {
    let rest = packet.strip_prefix(&[0xff; 6])?;
    let first = rest.get(..6)?;
    let whole = rest.len() == 96 && rest.chunks(6).all(|one| one == first);
    let digits: Vec<String> = first.iter().map(|byte| format!("{byte:02x}")).collect();
    whole.then(|| digits.join(":"))
}
