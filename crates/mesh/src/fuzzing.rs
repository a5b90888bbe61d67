//! What fuzzers reach of the private parts: parsers of what anybody may send, and of what members and coordinators may sign.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::batch::Batch;
use crate::coordination::{
    Book, BookOptions, Frame, Identity, JoinRequest, NewToken, NodeRecord, Token, View,
};
use crate::crypto::{Core, Kind, NoiseCore, Tunnel, TunnelKeys};
use crate::key::{PrivateKey, PublicKey};
use crate::names::{Answer, Zone, ZoneNode};
use crate::offload::coalesce::{Coalescer, LONGEST_HEADERS, MOST_PIECES};
use crate::offload::segment::segment;
use crate::offload::{VIRTIO_HEADER, VirtioHeader};
use crate::policy::{Direction, Filter, FilterGate, FilterPeer, Gate, Policy, Subject, Verdict};
use crate::prefix::Prefix;
use crate::userspace::{Request, connect, fuzz_datagram, fuzz_signal, socks};
use crate::{SystemClock, relay};

const OWN: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(100, 64, 0, 1), Ipv6Addr::LOCALHOST);
const OTHER: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_bytes([seed; 32])
}

/// A datagram as anybody may send it to a node or a relay: nothing of it opens anything.
pub fn datagram(bytes: &[u8]) {
    static CORE: OnceLock<NoiseCore> = OnceLock::new();
    let core = CORE.get_or_init(|| NoiseCore::new(&key(1), 100, Arc::new(SystemClock)));
    if let Some(frame) = relay::Frame::read(bytes) {
        let mut again = Vec::new();
        frame.write(&mut again);
        assert_eq!(relay::Frame::read(&again), Some(frame));
        assert_eq!(
            Kind::of(bytes),
            None,
            "relays' words are none of WireGuard's"
        );
    }
    static KEYS: OnceLock<(PrivateKey, PublicKey)> = OnceLock::new();
    let (own, other) = KEYS.get_or_init(|| (key(1), key(2).public()));
    fuzz_signal(own, other, bytes);
    fuzz_datagram(bytes);
    core.admit(IpAddr::from([192, 0, 2, 1]), bytes);
    assert!(core.identify(bytes).is_err());
    // Keys are costly, and nothing that comes changes this.
    static TUNNEL: OnceLock<Mutex<Box<dyn Tunnel>>> = OnceLock::new();
    let tunnel = TUNNEL.get_or_init(|| {
        Mutex::new(core.tunnel(&TunnelKeys {
            peer: key(2).public(),
            preshared: None,
            index: 7,
        }))
    });
    let mut tunnel = tunnel.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut plain, mut replies) = (Batch::default(), Batch::default());
    assert!(tunnel.handshake(bytes, &mut replies).is_err());
    let opened = tunnel.open(&mut std::iter::once(bytes), &mut plain, &mut replies);
    assert!(!opened.authentic() && plain.is_empty());
}

fn gate(now: Instant) -> FilterGate {
    let gate = FilterGate::closed(now);
    let ports = || {
        let ports = "tcp/80".parse::<crate::policy::Ports>().ok();
        ports.map(Into::into).into_iter().collect()
    };
    let peer = FilterPeer {
        v4: OTHER,
        v6: OWN.1,
        inbound: ports(),
        outbound: ports(),
    };
    gate.set(Filter::new(OWN, [(key(2).public(), peer)]));
    gate
}

/// A packet out of a tunnel, or from the device with what the kernel says of it.
pub fn packet(bytes: &[u8]) {
    static GATE: OnceLock<(FilterGate, PublicKey, PublicKey)> = OnceLock::new();
    let now = Instant::now();
    let (gate, other, stranger) =
        GATE.get_or_init(|| (gate(now), key(2).public(), key(3).public()));
    for (seconds, direction) in (0..).zip([Direction::Outbound, Direction::Inbound]) {
        let later = now + Duration::from_secs(seconds);
        gate.admit(other, direction, bytes, later);
        let stranger = gate.admit(stranger, direction, bytes, later);
        assert_ne!(stranger, Verdict::Admit, "nobody speaks for a stranger");
    }
    let mut batch = Batch::default();
    if let (Some(header), Some(packet)) = (VirtioHeader::read(bytes), bytes.get(VIRTIO_HEADER..)) {
        // Malformed or cut, both are fine.
        let _ = segment(&header, &mut packet.to_vec(), &mut batch, |length| length);
    }
    batch.push(bytes);
    let mut coalescer = Coalescer::new(true);
    (0..batch.len()).for_each(|place| coalescer.add(&batch, place));
    let mut whole = 0;
    for frame in coalescer.frames() {
        let mut headers = [0; LONGEST_HEADERS];
        let mut pieces = [&[][..]; MOST_PIECES];
        let (_, count) = coalescer.pieces(&batch, frame, &mut headers, &mut pieces);
        whole += pieces[..count]
            .iter()
            .map(|piece| piece.len())
            .sum::<usize>();
    }
    assert!(
        whole <= batch.size(),
        "nothing is written that was not there"
    );
}

/// A question for names, over UDP and TCP, and what a client says to a proxy.
pub fn question(bytes: &[u8]) {
    static NONE: BTreeSet<String> = BTreeSet::new();
    static ZONE: OnceLock<Zone> = OnceLock::new();
    let zone = ZONE.get_or_init(|| {
        let node = ZoneNode {
            subject: Subject {
                name: Some("one"),
                tags: &NONE,
            },
            v4: OWN.0,
            v6: OWN.1,
            door: None,
            unready: &NONE,
        };
        Zone::new(&Policy::none(), &[node], Prefix::new(OWN.1.into(), 48), 1)
    });
    for datagram in [true, false] {
        if let Answer::Reply(reply) = zone.answer(bytes, datagram) {
            assert_eq!(reply.get(..2), bytes.get(..2), "an answer to this question");
        }
    }
    let _ = socks::methods(bytes);
    let _ = socks::password(bytes);
    let _ = socks::request(bytes);
    let _ = connect::head(bytes);
    if let Some(request) = Request::decode(bytes) {
        assert_eq!(request.encode(), bytes);
    }
}

/// Texts that members, administrators and a coordinator gone bad may sign.
pub fn record(text: &str) {
    let coordinator = Identity::from_seed([1; 32]);
    let member = Identity::from_seed([2; 32]);
    let _ = text.parse::<Token>();
    let _ = View::from_cache(coordinator.public(), text);
    if let Ok(policy) = Policy::parse(text) {
        let _ = policy.test();
    }
    if let Ok(frame) = serde_json::from_str::<Frame>(text) {
        let mut view = View::new(coordinator.public());
        let before = view.to_cache();
        if view.apply(&coordinator.sign(&frame)).is_err() {
            assert_eq!(view.to_cache(), before, "what is refused changes nothing");
        }
    }
    let Ok(record) = serde_json::from_str::<NodeRecord>(text) else {
        return;
    };
    let record = NodeRecord {
        identity: member.public(),
        ..record
    };
    let mut book = Book::new(coordinator, BookOptions::default(), 0);
    let Ok(token) = book.new_token(NewToken::default(), "http://a", 0) else {
        return;
    };
    book.apply(&token.writes);
    let request = JoinRequest {
        token: token.answer.id.clone(),
        admission: token.answer.admission(member.public()),
        record: member.sign(&record),
    };
    if let Ok(joined) = book.join(&request, 0) {
        book.apply(&joined.writes);
        let frame = book
            .frame(0)
            .and_then(|frame| serde_json::from_str(&frame).ok());
        let mut view = View::new(book.key());
        let applied = frame.map(|frame| view.apply(&frame));
        assert!(
            applied.is_some_and(|applied| applied.is_ok_and(|applied| applied.refused == 0)),
            "what the coordinator lets in, nodes believe"
        );
    }
}
