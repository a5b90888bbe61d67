//! A gateway on a real socket, sandboxes that are loopback addresses, and clients for both.
#![allow(dead_code, missing_docs, unreachable_pub)]

use api::{
    ClusterId, NodeId, Problem, SandboxId, Secret,
    route::{Locate, Route},
};
use bytes::Bytes;
use gateway::{
    ApiBody, ApiHandler, ClientAddress, Gateway, GatewayMetrics, GatewayOptions, Limits,
};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{
    collections::HashMap,
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// Longer than anything in these tests takes on a busy machine.
pub const LONG: Duration = Duration::from_secs(20);

#[derive(Default)]
pub struct TestLocate {
    known: Mutex<HashMap<SandboxId, (Route, CancellationToken)>>,
    asleep: Mutex<HashMap<SandboxId, Asleep>>,
    wakes: Mutex<HashMap<SandboxId, usize>>,
    tired: Mutex<Option<SandboxId>>,
    /// Held for writing, it makes waking wait.
    pub slow_wake: tokio::sync::RwLock<()>,
    /// Held for writing, it makes the list of all routes wait.
    pub slow: tokio::sync::RwLock<()>,
}

struct Asleep {
    route: Route,
    problem: Option<Problem>,
}

impl TestLocate {
    /// Pauses a sandbox that runs.
    pub fn pause(&self, id: &SandboxId) {
        let (route, ended) = self.known.lock().unwrap().remove(id).unwrap();
        let problem = None;
        let asleep = Asleep { route, problem };
        self.asleep.lock().unwrap().insert(id.clone(), asleep);
        ended.cancel();
    }

    /// The next look-up finds a sandbox that is paused at once after it.
    pub fn pause_after_next_locate(&self, id: &SandboxId) {
        *self.tired.lock().unwrap() = Some(id.clone());
    }

    /// Why a sandbox cannot be woken.
    pub fn refuse(&self, id: &SandboxId, problem: Option<Problem>) {
        self.asleep.lock().unwrap().get_mut(id).unwrap().problem = problem;
    }

    /// How often it was asked to wake a sandbox.
    pub fn wakes_of(&self, id: &SandboxId) -> usize {
        self.wakes.lock().unwrap().get(id).copied().unwrap_or(0)
    }
}

#[async_trait::async_trait]
impl Locate for TestLocate {
    async fn locate(&self, id: &SandboxId) -> Option<Route> {
        let route = self
            .known
            .lock()
            .unwrap()
            .get(id)
            .map(|(route, _)| route.clone());
        if self
            .tired
            .lock()
            .unwrap()
            .take_if(|tired| tired == id)
            .is_some()
        {
            self.pause(id);
        }
        route
    }

    async fn wake(&self, id: &SandboxId) -> Result<Option<Route>, Problem> {
        *self.wakes.lock().unwrap().entry(id.clone()).or_default() += 1;
        if !self.asleep.lock().unwrap().contains_key(id) {
            return Ok(None);
        }
        let _open = self.slow_wake.read().await;
        let mut sleepers = self.asleep.lock().unwrap();
        if let Some(problem) = sleepers.get(id).and_then(|asleep| asleep.problem.clone()) {
            return Err(problem);
        }
        let route = sleepers.remove(id).unwrap().route;
        let awake = (route.clone(), CancellationToken::new());
        self.known.lock().unwrap().insert(id.clone(), awake);
        Ok(Some(route))
    }

    async fn token_of_paused(&self, id: &SandboxId) -> Option<Secret> {
        let sleepers = self.asleep.lock().unwrap();
        sleepers.get(id)?.route.traffic_token.clone()
    }

    async fn routes(&self) -> Vec<(SandboxId, Route)> {
        let _open = self.slow.read().await;
        let known = self.known.lock().unwrap();
        known
            .iter()
            .map(|(id, (route, _))| (id.clone(), route.clone()))
            .collect()
    }

    async fn ended(&self, id: &SandboxId) {
        let token = self
            .known
            .lock()
            .unwrap()
            .get(id)
            .map(|(_, token)| token.clone());
        if let Some(token) = token {
            token.cancelled().await;
        }
    }
}

/// Says where requests ended up.
struct TestApi;

#[async_trait::async_trait]
impl ApiHandler for TestApi {
    async fn call(&self, request: Request<Incoming>) -> Response<ApiBody> {
        let client = request
            .extensions()
            .get::<ClientAddress>()
            .copied()
            .unwrap();
        let path = request.uri().path().to_owned();
        let body = request
            .into_body()
            .collect()
            .await
            .map(|body| body.to_bytes())
            .unwrap_or_default();
        let text = format!("api {path} {} {}", client.0.ip(), body.len());
        Response::new(
            Full::from(text)
                .map_err(|never: Infallible| match never {})
                .boxed_unsync(),
        )
    }
}

pub struct World {
    pub address: SocketAddr,
    pub locate: Arc<TestLocate>,
    pub gateway: Arc<Gateway>,
    pub shutdown: CancellationToken,
    pub serving: JoinHandle<()>,
}

impl World {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut GatewayOptions)) -> Self {
        let locate = Arc::new(TestLocate::default());
        let mut options = GatewayOptions {
            locate: locate.clone(),
            api: Arc::new(TestApi),
            domain: Some("example.org".into()),
            tls: None,
            limits: Limits {
                shutdown: Duration::from_millis(300),
                ..Limits::default()
            },
        };
        change(&mut options);
        let gateway = Arc::new(Gateway::new(options).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn({
            let (gateway, shutdown) = (gateway.clone(), shutdown.clone());
            async move { gateway.serve(listener, shutdown).await }
        });
        Self {
            address,
            locate,
            gateway,
            shutdown,
            serving,
        }
    }

    pub fn metrics(&self) -> GatewayMetrics {
        self.gateway.metrics()
    }

    /// A running sandbox at a loopback address of its own.
    pub fn sandbox(&self) -> Sandbox {
        self.sandbox_with(|_| {})
    }

    pub fn sandbox_with(&self, change: impl FnOnce(&mut Route)) -> Sandbox {
        let random = &mut rand::rng();
        let id = SandboxId::random(&ClusterId::random(random), &NodeId::random(random), random);
        let octets: [u8; 3] = rand::random();
        let address = Ipv4Addr::new(127, octets[0].max(1), octets[1], octets[2].clamp(1, 254));
        let address = IpAddr::V4(address);
        let mut route = Route {
            address,
            traffic_token: None,
            mask_request_host: None,
            access_token: Some(Secret::new(format!("token-of-{id}"))),
        };
        change(&mut route);
        let ended = CancellationToken::new();
        self.locate
            .known
            .lock()
            .unwrap()
            .insert(id.clone(), (route, ended.clone()));
        Sandbox { id, address, ended }
    }

    pub fn end(&self, sandbox: &Sandbox) {
        self.locate.known.lock().unwrap().remove(&sandbox.id);
        sandbox.ended.cancel();
    }

    /// Pauses a sandbox that runs.
    pub fn pause(&self, sandbox: &Sandbox) {
        self.locate.pause(&sandbox.id);
    }

    /// A client for the gateway at an address.
    pub fn at(address: SocketAddr) -> Client {
        Client { address }
    }

    pub async fn connect(&self) -> TcpStream {
        Self::at(self.address).connect().await
    }

    pub async fn sender(&self) -> http1::SendRequest<Full<Bytes>> {
        Self::at(self.address).sender().await
    }

    pub async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        Self::at(self.address).send(request).await
    }

    /// `fields`: `host: x`, one a line.
    pub async fn get(&self, path: &str, fields: &str) -> Answer {
        self.ask("GET", path, fields, "").await
    }

    pub async fn ask(&self, method: &str, path: &str, fields: &str, body: &str) -> Answer {
        Self::at(self.address).ask(method, path, fields, body).await
    }

    /// Sends bytes as they are and reads until the gateway closes.
    pub async fn raw(&self, text: &[u8]) -> String {
        let mut tcp = self.connect().await;
        // The gateway may close while it is still being written to.
        let _ = tcp.write_all(text).await;
        read_to_end(&mut tcp).await
    }
}

/// Someone who asks a gateway.
pub struct Client {
    address: SocketAddr,
}

impl Client {
    pub async fn connect(&self) -> TcpStream {
        let tcp = TcpStream::connect(self.address).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        tcp
    }

    pub async fn sender(&self) -> http1::SendRequest<Full<Bytes>> {
        let io = TokioIo::new(self.connect().await);
        let (sender, connection) = http1::handshake(io).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        sender
    }

    pub async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        let response = self.sender().await.send_request(request).await.unwrap();
        Answer::of(response).await
    }

    /// `fields`: `host: x`, one a line.
    pub async fn get(&self, path: &str, fields: &str) -> Answer {
        self.ask("GET", path, fields, "").await
    }

    pub async fn ask(&self, method: &str, path: &str, fields: &str, body: &str) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for line in fields.lines().filter(|line| !line.trim().is_empty()) {
            let (name, value) = line.split_once(':').unwrap();
            request = request.header(name.trim(), value.trim());
        }
        self.send(request.body(Full::from(body.to_owned())).unwrap())
            .await
    }
}

/// Reads until the other side closes or resets.
pub async fn read_to_end(tcp: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let _ = within(tcp.read_to_end(&mut all)).await;
    String::from_utf8_lossy(&all).into_owned()
}

/// Reads until a text has come.
pub async fn read_until(tcp: &mut (impl tokio::io::AsyncRead + Unpin), text: &str) -> String {
    let mut all = Vec::new();
    let mut byte = [0];
    while !String::from_utf8_lossy(&all).contains(text) {
        match within(tcp.read(&mut byte)).await {
            Ok(1) => all.push(byte[0]),
            end => panic!(
                "{end:?} before {text:?} in {:?}",
                String::from_utf8_lossy(&all)
            ),
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.expect("in time")
}

/// Polls a condition that no event announces.
pub async fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + LONG;
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    pub async fn of<B>(response: Response<B>) -> Self
    where
        B: http_body::Body<Data = Bytes>,
        B::Error: std::fmt::Debug,
    {
        let (parts, body) = response.into_parts();
        let collected = within(body.collect()).await.unwrap();
        let trailers = collected.trailers().cloned();
        let body = String::from_utf8_lossy(&collected.to_bytes()).into_owned();
        Self {
            status: parts.status,
            headers: parts.headers,
            body,
            trailers,
        }
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }
}

pub struct Sandbox {
    pub id: SandboxId,
    pub address: IpAddr,
    ended: CancellationToken,
}

impl Sandbox {
    pub fn host(&self, port: u16) -> String {
        format!("host: {port}-{}.example.org", self.id)
    }

    pub fn routing(&self, port: u16) -> String {
        format!(
            "host: localhost\ne2b-sandbox-id: {}\ne2b-sandbox-port: {port}",
            self.id
        )
    }

    pub async fn listen(&self, port: u16) -> TcpListener {
        TcpListener::bind((self.address, port)).await.unwrap()
    }

    /// A server that says what it was asked: request line, headers, body.
    pub async fn serve_mirror(&self, port: u16) {
        let listener = self.listen(port).await;
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let served = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(tcp), service_fn(mirror));
                tokio::spawn(served);
            }
        });
    }
}

async fn mirror(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body
        .collect()
        .await
        .map(|body| body.to_bytes())
        .unwrap_or_default();
    let mut text = format!("{} {}\n", parts.method, parts.uri);
    let mut lines: Vec<String> = parts
        .headers
        .iter()
        .map(|(name, value)| format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())))
        .collect();
    lines.sort();
    text.extend(lines);
    text.push_str(&format!("\n{}", String::from_utf8_lossy(&body)));
    let response = Response::builder()
        .header("keep-alive", "timeout=9")
        .header("connection", "x-hop")
        .header("x-hop", "1")
        .header("set-cookie", "a=b");
    Ok(response.body(Full::from(text)).unwrap())
}
