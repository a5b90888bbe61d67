//! What others try.

use super::*;

#[tokio::test]
async fn nothing_passes_that_both_ends_do_not_allow() {
    let lab = Lab::new(2, &[], &[7000, 7001]).await;
    let service = lab.service(1, 7000).await;
    // Neither, then the caller only: then it is the called end that refuses.
    assert_eq!(lab.flow(0, 1, 7000).await.err(), Some(2));
    assert_eq!(lab.node(1).status().connections, 0, "nothing was even sent");
    let caller_only: Allowed<'_> = &[(0, 1, "tcp/7000"), (0, 1, "tcp/7002")];
    lab.gates[0].set(filter(&lab.members, 0, caller_only));
    assert_eq!(lab.flow(0, 1, 7000).await.err(), Some(2));
    assert_eq!(lab.node(1).status().connections, 1);
    assert_eq!(lab.node(1).status().refused, 1);
    // Another port, another protocol and the other direction say nothing about this one.
    lab.allow(&[(0, 1, "tcp/7001"), (0, 1, "udp/7000"), (1, 0, "tcp/7000")]);
    lab.gates[0].set(filter(&lab.members, 0, caller_only));
    assert_eq!(lab.flow(0, 1, 7000).await.err(), Some(2));
    // Both: what is not offered is not reached either, and where nobody listens is told apart.
    lab.allow(&[(0, 1, "tcp/*")]);
    assert_eq!(lab.flow(0, 1, 7002).await.err(), Some(2));
    assert_eq!(lab.flow(0, 1, 7001).await.err(), Some(5));
    lab.flow(0, 1, 7000).await.unwrap();
    in_time("a caller", service.accept()).await.unwrap();
    lab.stop().await;
}

#[tokio::test]
async fn flows_break_off_when_policy_or_directory_changes() {
    let allowed: Allowed<'_> = &[(0, 1, "tcp/7000"), (0, 1, "tcp/7001")];
    let lab = Lab::new(2, allowed, &[7000, 7001]).await;
    let services = [lab.service(1, 7000).await, lab.service(1, 7001).await];
    let open = async |at: usize| {
        let caller = lab.flow(0, 1, [7000, 7001][at]).await.unwrap();
        let (called, _) = in_time("a caller", services[at].accept()).await.unwrap();
        [caller, called]
    };
    let [mut stays, mut peer] = open(0).await;
    let [mut goes, mut other] = open(1).await;
    // At the called end alone, and nobody tells it.
    lab.gates[1].set(filter(&lab.members, 1, &allowed[..1]));
    assert!(rest(&mut goes).await.is_err());
    assert!(rest(&mut other).await.is_err());
    stays.write_all(b"!").await.unwrap();
    assert_eq!(in_time("a word", peer.read_u8()).await.unwrap(), b'!');
    // A node that is out of the mesh loses everything, and does not come back.
    let alone = directory(&lab.members[1..], 0);
    lab.node(1).set_directory(alone).unwrap();
    assert!(rest(&mut stays).await.is_err());
    assert!(rest(&mut peer).await.is_err());
    until("the connection is gone", || {
        lab.node(1).status().connections == 0
    })
    .await;
    assert_eq!(lab.flow(0, 1, 7000).await.err(), Some(4));
    assert!(lab.node(1).status().turned_away > 0);
    lab.stop().await;
}

#[tokio::test]
async fn another_identity_than_the_expected_one_gets_nothing() {
    let allowed: Allowed<'_> = &[(0, 1, "tcp/7000"), (2, 1, "tcp/7000")];
    let mut lab = Lab::new(3, allowed, &[7000]).await;
    let service = lab.service(1, 7000).await;
    // Somebody else answers at the address of the second: the third, whom everybody knows.
    let right = lab.members[1].endpoints.clone();
    lab.members[1].endpoints = lab.members[2].endpoints.clone();
    lab.allow(allowed);
    assert_eq!(lab.flow(0, 1, 7000).await.err(), Some(4));
    // If the right one is among the addresses, it is found.
    lab.members[1].endpoints.extend(right);
    lab.allow(allowed);
    lab.flow(0, 1, 7000).await.unwrap();
    in_time("a caller", service.accept()).await.unwrap();
    lab.stop().await;
}

#[tokio::test]
async fn who_claims_the_key_of_another_does_not_get_what_that_one_may() {
    let allowed: Allowed<'_> = &[(0, 1, "tcp/7000")];
    let mut lab = Lab::new(3, allowed, &[7000]).await;
    let _service = lab.service(1, 7000).await;
    let filters: Vec<_> = (0..3).map(|at| filter(&lab.members, at, allowed)).collect();
    // The third says in its record that it has the first's key, by which the gate knows peers.
    lab.members[2].key = lab.members[0].key;
    for (at, filter) in filters.into_iter().enumerate() {
        let node = lab.node(at);
        node.set_directory(directory(&lab.members, at)).unwrap();
        // The liar's own gate lets everything out.
        match at {
            2 => lab.gates[2].set(super::filter(&lab.members, 2, &[(2, 1, "tcp/*")])),
            _ => lab.gates[at].set(filter),
        }
    }
    lab.flow(0, 1, 7000).await.unwrap();
    assert_eq!(lab.flow(2, 1, 7000).await.err(), Some(2));
    assert_eq!(
        lab.node(1).status().refused,
        1,
        "it is the called end that refuses"
    );
    lab.stop().await;
}

#[tokio::test]
async fn streams_that_say_nonsense_are_refused_and_silent_ones_forgotten() {
    let lab = Lab::new(2, &[(0, 1, "tcp/7000")], &[7000]).await;
    let credential = identity::Credential::new(&identity(number_of(&lab, 0))).unwrap();
    let endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let config = credential.client(lab.members[1].identity).unwrap();
    let connecting = endpoint.connect_with(config, lab.node(1).address(), identity::NAME);
    let connection = in_time("a connection", connecting.unwrap()).await.unwrap();
    let ask = async |bytes: &[u8]| {
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();
        send.finish().unwrap();
        in_time("an answer", recv.read_to_end(64)).await.unwrap()
    };
    let request = |address: std::net::IpAddr, port| {
        let carries = Carries::Bytes;
        Request {
            carries,
            address,
            port,
        }
        .encode()
    };
    let v4 = lab.members[1].v4.into();
    assert_eq!(ask(b"").await, [6]);
    assert_eq!(ask(b"\x01\x04\x1b").await, [6]);
    assert_eq!(ask(b"GET / HTTP/1.1\r\n\r\n").await, [6]);
    // Another node's address, this machine's, and an address of the other family that is not allowed either.
    assert_eq!(ask(&request(lab.members[0].v4.into(), 7000)).await, [6]);
    assert_eq!(ask(&request(Ipv4Addr::LOCALHOST.into(), 7000)).await, [6]);
    assert_eq!(ask(&request(v4, 22)).await, [1]);
    // A right one still is.
    let service = lab.service(1, 7000).await;
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&request(v4, 7000)).await.unwrap();
    let mut answer = [9];
    in_time("an answer", recv.read_exact(&mut answer))
        .await
        .unwrap();
    assert_eq!(answer, [0]);
    in_time("a caller", service.accept()).await.unwrap();
    // There are no other kinds of streams.
    let uni = tokio::time::timeout(Duration::from_millis(50), connection.open_uni()).await;
    assert!(uni.is_err());
    // Streams that say nothing take no place among the flows, and end with the connection.
    let silent = connection.open_bi().await.unwrap();
    drop(connection);
    drop((send, recv, silent));
    until("nothing is left", || lab.node(1).status().flows == 0).await;
    lab.stop().await;
}

#[tokio::test]
async fn a_flood_of_strangers_does_not_keep_members_out() {
    let lab = Lab::new(2, &[(0, 1, "tcp/7000")], &[7000]).await;
    let service = lab.service(1, 7000).await;
    let stranger = identity::Credential::new(&Identity::from_seed([0; 32])).unwrap();
    let endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let config = stranger.client(lab.members[1].identity).unwrap();
    let flood: Vec<_> = (0..100)
        .map(|_| endpoint.connect_with(config.clone(), lab.node(1).address(), identity::NAME))
        .map(Result::unwrap)
        .collect();
    // More begin than are served at once; members come in meanwhile all the same, at the second or third try on a slow machine.
    in_time("a member comes in", async {
        while lab.flow(0, 1, 7000).await.is_err() {}
    })
    .await;
    in_time("a caller", service.accept()).await.unwrap();
    for connecting in flood {
        // A caller that is not taken learns so only after its own part of the handshake.
        if let Ok(connection) = in_time("a refusal", connecting).await {
            in_time("the end", connection.closed()).await;
        }
    }
    until("only the member is left", || {
        lab.node(1).status().connections == 1
    })
    .await;
    lab.stop().await;
}

fn number_of(lab: &Lab, at: usize) -> u32 {
    lab.members[at].v4.to_bits() & 0x3f_ffff
}

#[tokio::test]
async fn there_is_an_end_of_flows() {
    let allowed: Allowed<'_> = &[(0, 1, "tcp/7000"), (1, 0, "tcp/7000")];
    let lab = Lab::with(2, allowed, &[7000], |options| options.limits.flows = 3).await;
    let service = lab.service(1, 7000).await;
    let mut flows = Vec::new();
    for _ in 0..3 {
        flows.push(lab.flow(0, 1, 7000).await.unwrap());
        flows.push(in_time("a caller", service.accept()).await.unwrap().0);
    }
    assert_eq!(lab.flow(0, 1, 7000).await.err(), Some(1));
    flows.truncate(4);
    until("a place is free", || {
        (0..2).all(|at| lab.node(at).status().flows == 2)
    })
    .await;
    lab.flow(0, 1, 7000).await.unwrap();
    lab.stop().await;
}

#[tokio::test]
async fn what_is_silent_for_long_breaks_off() {
    let allowed: Allowed<'_> = &[(0, 1, "tcp/7000")];
    let lab = Lab::with(2, allowed, &[7000], |options| {
        options.limits.idle = Duration::from_secs(1);
        options.limits.keep = Duration::from_secs(1);
    })
    .await;
    let service = lab.service(1, 7000).await;
    let mut caller = lab.flow(0, 1, 7000).await.unwrap();
    let (_called, _) = in_time("a caller", service.accept()).await.unwrap();
    let error = rest(&mut caller).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    // And then the connection is of no use.
    until("the connection is closed", || {
        (0..2).all(|at| lab.node(at).status().connections == 0)
    })
    .await;
    lab.stop().await;
}

#[tokio::test]
async fn a_node_that_came_back_is_reached_though_nobody_said_it_was_gone() {
    let allowed: Allowed<'_> = &[(0, 1, "tcp/7000")];
    let lab = Lab::new(2, allowed, &[7000]).await;
    let service = lab.service(1, 7000).await;
    // It dies without a word: it cannot send any more, and another takes its address.
    let address: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
    let first = std::net::UdpSocket::bind(address).unwrap();
    let address = first.local_addr().unwrap();
    let mute = Arc::new(Mute {
        inner: TokioRuntime.wrap_udp_socket(first).unwrap(),
        mute: std::sync::atomic::AtomicBool::new(false),
    });
    let start = |socket: Arc<dyn AsyncUdpSocket>| {
        let own = directory(&lab.members, 1);
        let gate = Arc::clone(&lab.gates[1]);
        let mut options = UserspaceOptions::new(identity(number_of(&lab, 1)), own, gate);
        options.services = vec![Service {
            port: 7000,
            target: None,
        }];
        Userspace::start_over(options, socket)
    };
    let node = start(mute.clone()).await.unwrap();
    let mut members = lab.members.clone();
    members[1].endpoints = vec![address];
    lab.node(0).set_directory(directory(&members, 0)).unwrap();
    let mut caller = lab.flow(0, 1, 7000).await.unwrap();
    let (_called, _) = in_time("a caller", service.accept()).await.unwrap();
    mute.mute.store(true, Ordering::Relaxed);
    in_time("a node stops", node.stop()).await;
    drop(mute);
    let again = async {
        loop {
            match std::net::UdpSocket::bind(address) {
                Ok(socket) => break socket,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    let socket = in_time("the address is free", again).await;
    let node = start(TokioRuntime.wrap_udp_socket(socket).unwrap());
    let node = node.await.unwrap();
    // The next flow makes the other end notice, and works.
    // It has no time to wait until the old connection falls silent.
    lab.flow(0, 1, 7000).await.unwrap();
    assert!(rest(&mut caller).await.is_err());
    in_time("a node stops", node.stop()).await;
    lab.stop().await;
}

/// A socket that can be made to swallow what it is to send.
#[derive(Debug)]
struct Mute {
    inner: Arc<dyn AsyncUdpSocket>,
    mute: std::sync::atomic::AtomicBool,
}

impl AsyncUdpSocket for Mute {
    fn create_io_poller(self: Arc<Self>) -> std::pin::Pin<Box<dyn quinn::UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &quinn::udp::Transmit<'_>) -> io::Result<()> {
        match self.mute.load(Ordering::Relaxed) {
            true => Ok(()),
            false => self.inner.try_send(transmit),
        }
    }

    fn poll_recv(
        &self,
        context: &mut std::task::Context<'_>,
        buffers: &mut [io::IoSliceMut<'_>],
        meta: &mut [quinn::udp::RecvMeta],
    ) -> std::task::Poll<io::Result<usize>> {
        self.inner.poll_recv(context, buffers, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}
