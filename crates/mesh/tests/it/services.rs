//! Services of real nodes, with devices and without, each on a machine of its own: what their consumers see of them, with the coordinator down.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mesh::Namespace;
use mesh::coordination::{
    Book, BookOptions, Identity, JoinAnswer, JoinRequest, Mode, NewToken, NodeRecord, Plan, Signed,
    Token, WatchRequest,
};
use mesh::node::{Heard, Link, LinkError, Node, NodeOptions, ServiceEndpoint, State};
use mesh::services::{Class, State as Health};

use crate::lab::{PATIENCE, pattern, run, wait_for};

const POLICY: &str = r#"
[services.db]
nodes = ["tag:db"]
ports = ["tcp/5432"]

[[allow]]
from = ["tag:app", "tag:db"]
to = ["service:db"]
"#;
const SERVICE: Ipv4Addr = Ipv4Addr::new(100, 127, 0, 1);
const LOOPBACK: Ipv4Addr = Ipv4Addr::new(127, 127, 0, 1);
const PORT: u16 = 5432;

/// A coordinator in this process, which can be down.
#[derive(Clone)]
struct Coordinator {
    book: Arc<Mutex<Book>>,
    up: Arc<AtomicBool>,
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    since.as_millis() as u64
}

impl Coordinator {
    fn new() -> Self {
        let book = Book::new(
            Identity::from_seed([9; 32]),
            BookOptions::default(),
            now_ms(),
        );
        let coordinator = Self {
            book: Arc::new(Mutex::new(book)),
            up: Arc::new(AtomicBool::new(true)),
        };
        coordinator.step(|book| book.set_policy(POLICY)).unwrap();
        coordinator
    }

    fn step<T, E>(&self, plan: impl Fn(&Book) -> Result<Plan<T>, E>) -> Result<T, E> {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = plan(&book)?;
        assert!(book.apply(&plan.writes));
        Ok(plan.answer)
    }

    fn token(&self, tag: &str) -> Token {
        let allows = NewToken {
            tags: BTreeSet::from([tag.to_owned()]),
            ..NewToken::default()
        };
        self.step(|book| book.new_token(allows.clone(), "http://coordinator", now_ms()))
            .unwrap()
    }

    fn answers(&self) -> Result<(), LinkError> {
        match self.up.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err(LinkError::Unreachable("it is down".to_owned())),
        }
    }
}

fn refused(refusal: impl std::fmt::Display) -> LinkError {
    LinkError::Refused(refusal.to_string())
}

impl Link for Coordinator {
    async fn join(&self, request: &JoinRequest) -> Result<JoinAnswer, LinkError> {
        self.answers()?;
        self.step(|book| book.join(request, now_ms()))
            .map_err(refused)
    }

    async fn update(&self, record: &Signed<NodeRecord>) -> Result<(), LinkError> {
        self.answers()?;
        self.step(|book| book.update(record)).map_err(refused)
    }

    async fn watch(&self, request: &Signed<WatchRequest>) -> Result<Heard, LinkError> {
        self.answers()?;
        let asked = {
            let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
            book.hear(request, now_ms()).map_err(refused)?
        };
        for _ in 0..50 {
            self.answers()?;
            let frame = {
                let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
                book.frame(asked.cursor)
            };
            if let Some(frame) = frame {
                let frame = serde_json::from_str(&frame).map_err(refused)?;
                return Ok(Heard::Frame(Box::new(frame)));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(Heard::Nothing)
    }
}

/// Machines on one network: 192.0.2.N.
struct Hub {
    space: Namespace,
    data: tempfile::TempDir,
}

impl Hub {
    fn new() -> Self {
        let space = Namespace::unnamed().unwrap();
        run(&space, "ip link add hub type bridge");
        run(&space, "ip link set hub up");
        Self {
            space,
            data: tempfile::tempdir().unwrap(),
        }
    }

    fn machine(&self, number: u8, mode: Mode, coordinator: &Coordinator, tag: &str) -> Machine {
        let space = Namespace::unnamed().unwrap();
        run(&space, "ip link set lo up");
        run(
            &self.space,
            &format!(
                "ip link add to{number} type veth peer name eth0 netns {}",
                space.path()
            ),
        );
        run(
            &self.space,
            &format!("ip link set to{number} master hub up"),
        );
        run(
            &space,
            &format!("ip address add 192.0.2.{number}/24 dev eth0"),
        );
        run(&space, "ip link set eth0 up");
        let name = format!("n{number}");
        let token = coordinator.token(tag);
        let directory = self.data.path().join(&name);
        let options = NodeOptions {
            name,
            mode,
            endpoints: vec![([192, 0, 2, number], 0).into()],
            ..NodeOptions::default()
        };
        let (inside, coordinator) = (
            Namespace::open(space.path().as_ref()).unwrap(),
            coordinator.clone(),
        );
        let (tell, told) = mpsc::channel();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            inside.enter().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let mesh = Some((token.coordinator, &*token.url));
                let state = State::open(&directory, mesh).unwrap();
                let node = Node::start(state, Some(&token), options, &coordinator).await;
                let node = Arc::new(node.unwrap());
                tell.send(Arc::clone(&node)).unwrap();
                tokio::select! {
                    ended = node.follow(&coordinator) => panic!("{ended:?}"),
                    _ = ended => {}
                }
                node.stop().await;
            });
        });
        Machine {
            node: Some(told.recv().unwrap()),
            space,
            end: Some(end),
            thread: Some(thread),
        }
    }
}

struct Machine {
    node: Option<Arc<Node>>,
    space: Namespace,
    end: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop((self.node.take(), self.end.take()));
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || ended.is_none_or(|ended| ended.is_ok()));
    }
}

/// A server that says who it is, until it is dropped.
struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Machine {
    fn node(&self) -> &Node {
        self.node.as_ref().unwrap()
    }

    fn server(&self, at: Ipv4Addr, word: &'static str) -> Server {
        let bind = || Ok(TcpListener::bind((at, PORT)));
        let listener = self.space.within(bind).unwrap().unwrap();
        listener.set_nonblocking(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                match listener.accept() {
                    // A probe may be gone already.
                    Ok((mut stream, _)) => _ = stream.write_all(word.as_bytes()),
                    Err(_) => std::thread::park_timeout(Duration::from_millis(2)),
                }
            }
        });
        Server {
            stop,
            thread: Some(thread),
        }
    }

    /// Who answers at an address; `None` if nobody does.
    fn who(&self, at: Ipv4Addr) -> Option<String> {
        let place = SocketAddr::from((at, PORT));
        let connect = || Ok(TcpStream::connect_timeout(&place, Duration::from_secs(20)));
        let mut stream = self.space.within(connect).unwrap().ok()?;
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).ok()?;
        Some(said).filter(|said| !said.is_empty())
    }

    fn endpoint(&self, name: &str) -> Option<ServiceEndpoint> {
        let services = self.node().services();
        let port = services.first()?.ports.first()?;
        port.endpoints.iter().find(|one| one.node == name).cloned()
    }

    /// Asks until an endpoint looks so; everybody who asks is answered, by one of these.
    fn asks_until(&self, at: Ipv4Addr, name: &str, health: Health, answers: &[&str]) {
        wait_for(&format!("{name} is {health:?}"), || {
            let who = self.who(at);
            let one = who.as_deref().is_some_and(|who| answers.contains(&who));
            assert!(one, "{who:?} of {answers:?}, {:?}", self.node().services());
            (self.endpoint(name)?.health == health).then_some(())
        });
    }
}

#[test]
fn a_service_has_one_address_everywhere_and_outlives_a_server_a_node_and_the_coordinator() {
    let (coordinator, hub) = (Coordinator::new(), Hub::new());
    let app = hub.machine(1, Mode::Tun, &coordinator, "app");
    let one = hub.machine(2, Mode::Tun, &coordinator, "db");
    let two = hub.machine(3, Mode::Userspace, &coordinator, "db");
    let bare = hub.machine(4, Mode::Userspace, &coordinator, "app");
    let stranger = hub.machine(5, Mode::Tun, &coordinator, "other");
    let mut server = Some(one.server(one.node().home(), "one"));
    let _other = two.server(two.node().home(), "two");
    for (machine, address) in [
        (&app, SERVICE),
        (&one, SERVICE),
        (&two, LOOPBACK),
        (&bare, LOOPBACK),
    ] {
        wait_for("the door", || {
            let services = machine.node().services();
            let service = services.first()?;
            let port = service.ports.first()?;
            assert_eq!(service.address, Some(address));
            (port.door && service.named && port.endpoints.len() == 2).then_some(())
        });
    }
    for (machine, address) in [(&app, SERVICE), (&bare, LOOPBACK)] {
        for name in ["n2", "n3"] {
            machine.asks_until(address, name, Health::Well, &["one", "two"]);
        }
    }
    // Who gives it is its own nearest.
    for _ in 0..5 {
        assert_eq!(one.who(SERVICE).as_deref(), Some("one"));
        assert_eq!(two.who(LOOPBACK).as_deref(), Some("two"));
    }
    assert_eq!(one.endpoint("n2").unwrap().class, Class::Here);
    assert!(app.endpoint("n2").unwrap().round_trip_us.is_some());
    // Whom no rule lets use it has no door, and its name leads to nodes that it does not reach.
    wait_for("the map", || stranger.node().services().first().map(drop));
    let none = &stranger.node().services()[0];
    assert!(!none.named && !none.ports[0].door && none.ports[0].endpoints.is_empty());

    // From here on nobody tells anybody anything.
    coordinator.up.store(false, Ordering::Relaxed);
    wait_for("the coordinator to be missed", || {
        (!app.node().status().connected).then_some(())
    });
    // The server dies.
    drop(server.take());
    let died = Instant::now();
    app.asks_until(SERVICE, "n2", Health::Ejected, &["two"]);
    bare.asks_until(LOOPBACK, "n2", Health::Ejected, &["two"]);
    assert_eq!(one.who(SERVICE).as_deref(), Some("two"), "its own node too");
    assert!(died.elapsed() < Duration::from_secs(30));
    server = Some(one.server(one.node().home(), "one"));
    app.asks_until(SERVICE, "n2", Health::Well, &["one", "two"]);
    // A provider is cut off, without a word.
    run(&two.space, "ip link set eth0 down");
    app.asks_until(SERVICE, "n3", Health::Ejected, &["one"]);
    bare.asks_until(LOOPBACK, "n3", Health::Ejected, &["one"]);
    run(&two.space, "ip link set eth0 up");
    app.asks_until(SERVICE, "n3", Health::Well, &["one", "two"]);
    // Both are gone, so all are tried, and who comes back answers at once.
    drop(server.take());
    run(&two.space, "ip link set eth0 down");
    wait_for("panic", || {
        assert_eq!(app.who(SERVICE), None);
        app.node().services()[0].ports[0].panic.then_some(())
    });
    let _server = one.server(one.node().home(), "one");
    assert_eq!(app.who(SERVICE).as_deref(), Some("one"));
}

#[test]
fn with_a_device_a_door_takes_no_port_from_servers_that_listen_everywhere() {
    let (coordinator, hub) = (Coordinator::new(), Hub::new());
    let app = hub.machine(1, Mode::Tun, &coordinator, "app");
    let one = hub.machine(2, Mode::Tun, &coordinator, "db");
    // One that has nothing to do with the service, at the machine that uses it.
    let _own = app.server(Ipv4Addr::UNSPECIFIED, "own");
    for machine in [&app, &one] {
        wait_for("the door", || {
            let services = machine.node().services();
            let port = services.first()?.ports.first()?.clone();
            (port.door && !port.endpoints.is_empty()).then_some(())
        });
    }
    // And the server itself, which comes after its door.
    let _server = one.server(Ipv4Addr::UNSPECIFIED, "one");
    app.asks_until(SERVICE, "n2", Health::Well, &["one"]);
    assert_eq!(one.who(SERVICE).as_deref(), Some("one"));
    assert_eq!(app.who(Ipv4Addr::LOCALHOST).as_deref(), Some("own"));
    assert_eq!(app.who(one.node().home()).as_deref(), Some("one"));
}

/// A server of UDP that repeats what it is told, with its name before it.
fn repeater(machine: &Machine, word: &'static str) -> Server {
    let home = machine.node().home();
    let bind = || Ok(std::net::UdpSocket::bind((home, PORT)));
    let socket = machine.space.within(bind).unwrap().unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = Arc::clone(&stop);
    let thread = std::thread::spawn(move || {
        let mut buffer = [0; 2000];
        while !stopping.load(Ordering::Relaxed) {
            if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let answer = [word.as_bytes(), &buffer[..length]].concat();
                let _ = socket.send_to(&answer, from);
            }
        }
    });
    Server {
        stop,
        thread: Some(thread),
    }
}

#[test]
fn datagrams_to_the_address_reach_a_node_and_another_when_nobody_listens_there() {
    let (coordinator, hub) = (Coordinator::new(), Hub::new());
    let with_udp = POLICY.replace("[\"tcp/5432\"]", "[\"tcp/5432\", \"udp/5432\"]");
    coordinator.step(|book| book.set_policy(&with_udp)).unwrap();
    let app = hub.machine(1, Mode::Tun, &coordinator, "app");
    let one = hub.machine(2, Mode::Tun, &coordinator, "db");
    let two = hub.machine(3, Mode::Tun, &coordinator, "db");
    let first = repeater(&one, "one ");
    let _second = repeater(&two, "two ");
    for machine in [&app, &one] {
        wait_for("the doors", || {
            let services = machine.node().services();
            let ports = &services.first()?.ports;
            let open = ports.len() == 2
                && ports
                    .iter()
                    .all(|port| port.door && port.endpoints.len() == 2);
            (open && services[0].named).then_some(())
        });
    }
    let client = |machine: &Machine| {
        let home = machine.node().home();
        let bind = || Ok(std::net::UdpSocket::bind((home, 0)));
        let socket = machine.space.within(bind).unwrap().unwrap();
        socket.connect((SERVICE, PORT)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        socket
    };
    let ask = |socket: &std::net::UdpSocket| {
        wait_for("an answer", || {
            socket.send(b"hello").unwrap();
            let mut buffer = [0; 2000];
            let length = socket.recv(&mut buffer).ok()?;
            Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
        })
    };
    // Who gives it uses its own; a flow stays where it is, and flows are spread.
    assert_eq!(ask(&client(&one)), "one hello");
    let clients: Vec<_> = (0..24).map(|_| client(&app)).collect();
    let answers: Vec<_> = clients.iter().map(ask).collect();
    for (client, answer) in clients.iter().zip(&answers) {
        assert_eq!(ask(client), *answer);
    }
    let both: BTreeSet<_> = answers.iter().map(String::as_str).collect();
    assert_eq!(both, BTreeSet::from(["one hello", "two hello"]));
    // The server dies: its flows go on with the other.
    drop(first);
    for client in &clients {
        wait_for("the other's answer", || {
            (ask(client) == "two hello").then_some(())
        });
    }
}

#[test]
fn megabytes_over_the_address_arrive_whole() {
    let (coordinator, hub) = (Coordinator::new(), Hub::new());
    let app = hub.machine(1, Mode::Tun, &coordinator, "app");
    let one = hub.machine(2, Mode::Tun, &coordinator, "db");
    let home = one.node().home();
    let bind = || Ok(TcpListener::bind((home, PORT)));
    let listener = one.space.within(bind).unwrap().unwrap();
    // Repeats what it hears; probes say nothing.
    let server = std::thread::spawn(move || {
        loop {
            let (mut stream, _) = listener.accept().unwrap();
            let mut answers = stream.try_clone().unwrap();
            if std::io::copy(&mut stream, &mut answers).is_ok_and(|bytes| bytes > 0) {
                return;
            }
        }
    });
    wait_for("the door", || {
        let services = app.node().services();
        let port = services.first()?.ports.first()?.clone();
        (port.door && !port.endpoints.is_empty()).then_some(())
    });
    let place = SocketAddr::from((SERVICE, PORT));
    let connect = || Ok(TcpStream::connect_timeout(&place, PATIENCE));
    let mut stream = app.space.within(connect).unwrap().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // More than the kernel keeps, so that it passes large packets.
    let sent = pattern(8 << 20, 7);
    let (expected, mut out) = (sent.clone(), stream.try_clone().unwrap());
    let sending = std::thread::spawn(move || {
        out.write_all(&sent).unwrap();
        out.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    assert!(received == expected, "{} bytes", received.len());
    sending.join().unwrap();
    server.join().unwrap();
}
