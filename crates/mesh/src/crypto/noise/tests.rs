use proptest::prelude::*;

use super::*;
use crate::clock::ShiftedClock;

/// Two nodes that know each other, and the messages between them.
struct Pair {
    clock: ShiftedClock,
    cores: [NoiseCore; 2],
    tunnels: [Box<dyn Tunnel>; 2],
}

fn packet(number: u32) -> Vec<u8> {
    let mut packet = vec![0; 24];
    packet[0] = 0x45;
    packet[3] = 24;
    packet[20..].copy_from_slice(&number.to_be_bytes());
    packet
}

fn packets(numbers: std::ops::Range<u32>) -> Batch {
    let mut batch = Batch::default();
    for number in numbers {
        batch.push(&packet(number));
    }
    batch
}

impl Pair {
    fn new() -> Self {
        let clock = ShiftedClock::new();
        let keys = [
            PrivateKey::generate().unwrap(),
            PrivateKey::generate().unwrap(),
        ];
        let cores = keys
            .each_ref()
            .map(|key| NoiseCore::new(key, 100, Arc::new(clock.clone())));
        let tunnels = [0, 1].map(|own: usize| {
            let peer = keys[1 - own].public();
            cores[own].tunnel(&TunnelKeys {
                peer,
                preshared: None,
                index: 7,
            })
        });
        Self {
            clock,
            cores,
            tunnels,
        }
    }

    /// Carries messages from `from` and the answers, until there are none. Returns the packets that came out at each.
    fn carry(&mut self, from: usize, messages: &Batch) -> [Batch; 2] {
        let mut out = [Batch::default(), Batch::default()];
        let mut way: VecDeque<(usize, Vec<u8>)> = messages
            .iter()
            .map(|message| (1 - from, message.to_vec()))
            .collect();
        while let Some((to, message)) = way.pop_front() {
            let mut replies = Batch::default();
            if matches!(Kind::of(&message), Some(Kind::Data(_))) {
                let mut one = std::iter::once(&message[..]);
                self.tunnels[to].open(&mut one, &mut out[to], &mut replies);
            } else {
                self.tunnels[to].handshake(&message, &mut replies).unwrap();
            }
            way.extend(replies.iter().map(|reply| (1 - to, reply.to_vec())));
        }
        out
    }

    /// Seals at `from` and carries.
    fn send(&mut self, from: usize, plain: &Batch) -> [Batch; 2] {
        let mut sealed = Batch::default();
        self.tunnels[from].seal(plain, &mut sealed);
        self.carry(from, &sealed)
    }
}

#[test]
fn what_waits_arrives_in_order_after_the_handshake() {
    let mut pair = Pair::new();
    let sent = packets(0..5);
    let [_, received] = pair.send(0, &sent);
    assert!(received.iter().eq(sent.iter()));
    let [received, _] = pair.send(1, &sent);
    assert!(received.iter().eq(sent.iter()));
    assert_eq!(pair.tunnels[0].handshakes(), 1);
    assert!(
        pair.tunnels
            .iter()
            .all(|tunnel| tunnel.last_handshake().is_some())
    );
}

#[test]
fn waiting_is_bounded_for_a_peer_and_for_all() {
    let mut pair = Pair::new();
    let mut sealed = Batch::default();
    let result = pair.tunnels[0].seal(&packets(0..200), &mut sealed);
    assert_eq!((result.waiting, result.dropped), (128, 72));
    assert_eq!(sealed.len(), 1, "one initiation");
    let mut large = Batch::default();
    (0..128).for_each(|_| large.push(&[0x45; 1420]));
    let mut tunnels: Vec<_> = (0u8..40)
        .map(|seed| {
            let peer = PrivateKey::from_bytes([seed; 32]).public();
            pair.cores[0].tunnel(&TunnelKeys {
                peer,
                preshared: None,
                index: seed.into(),
            })
        })
        .collect();
    let waiting: u64 = tunnels
        .iter_mut()
        .map(|tunnel| tunnel.seal(&large, &mut sealed).waiting)
        .sum();
    assert!(waiting * 1420 <= 4 << 20, "{waiting}");
    drop(tunnels);
    let held = pair.cores[0].waiting_bytes.load(Ordering::Relaxed);
    assert_eq!(
        held,
        128 * 24,
        "what waited for those that are gone is given back"
    );
}

#[test]
fn keys_change_after_two_minutes_and_no_packet_is_lost() {
    let mut pair = Pair::new();
    pair.send(0, &packets(0..1));
    for round in 1..6 {
        // On the way while the keys change.
        let mut late = Batch::default();
        pair.tunnels[0].seal(&packets(round..round + 1), &mut late);
        pair.clock.advance(Duration::from_secs(121));
        let mut due = Batch::default();
        for own in [1, 0] {
            due.clear();
            pair.tunnels[own].tick(&mut due);
            assert_eq!(
                due.len(),
                usize::from(own == 0),
                "only who began begins again"
            );
        }
        pair.carry(0, &due);
        assert_eq!(pair.tunnels[0].handshakes(), u64::from(round) + 1);
        let sent = packets(10..20);
        let [_, received] = pair.send(0, &sent);
        assert!(received.iter().eq(sent.iter()));
        let [received, _] = pair.send(1, &sent);
        assert!(received.iter().eq(sent.iter()));
        let [_, received] = pair.carry(0, &late);
        assert_eq!(received.get(0), Some(&packet(round)[..]));
    }
}

#[test]
fn unused_sessions_are_not_renewed() {
    let mut pair = Pair::new();
    let mut due = Batch::default();
    pair.tunnels[0].set_keepalive(Some(Duration::from_secs(25)));
    pair.tunnels[0].tick(&mut due);
    pair.carry(0, &due);
    assert_eq!(
        pair.tunnels[0].handshakes(),
        1,
        "a keepalive begins a session by itself"
    );
    due.clear();
    pair.clock.advance(Duration::from_secs(26));
    pair.tunnels[0].tick(&mut due);
    assert_eq!(due.get(0).map(<[u8]>::len), Some(32), "a keepalive");
    due.clear();
    pair.tunnels[0].set_keepalive(None);
    pair.clock.advance(Duration::from_secs(600));
    pair.tunnels[0].tick(&mut due);
    assert!(due.is_empty());
}

#[test]
fn replays_and_counters_at_the_end_are_refused() {
    let mut pair = Pair::new();
    pair.send(0, &packets(0..1));
    let mut sealed = Batch::default();
    pair.tunnels[0].seal(&packets(0..1), &mut sealed);
    let message = sealed.get(0).unwrap().to_vec();
    let mut end = message.clone();
    end[8..16].fill(0xff);
    let mut messages = [&end[..], &message, &message].into_iter();
    let (mut plain, mut replies) = (Batch::default(), Batch::default());
    let opened = pair.tunnels[1].open(&mut messages, &mut plain, &mut replies);
    assert_eq!((opened.packets, opened.rejected), (1, 2));
    assert!(
        !pair.tunnels[1]
            .open(&mut [&end[..]].into_iter(), &mut plain, &mut replies)
            .authentic()
    );
}

#[test]
fn a_replayed_initiation_is_refused() {
    let mut pair = Pair::new();
    let mut first = Batch::default();
    pair.tunnels[0].seal(&packets(0..1), &mut first);
    let initiation = first.get(0).unwrap().to_vec();
    let identified = pair.cores[1].identify(&initiation).unwrap();
    assert_eq!(identified, pair.cores[0].public_key());
    assert_eq!(pair.cores[0].identify(&initiation), Err(Refused));
    pair.carry(0, &first);
    let mut replies = Batch::default();
    assert_eq!(
        pair.tunnels[1].handshake(&initiation, &mut replies),
        Err(Refused)
    );
    assert!(replies.is_empty());
}

#[test]
fn under_load_an_address_must_be_proven() {
    let mut pair = Pair::new();
    let source = "192.0.2.1".parse().unwrap();
    let mut first = Batch::default();
    pair.tunnels[0].seal(&packets(0..1), &mut first);
    let initiation = first.get(0).unwrap();
    let mut cookie = None;
    for _ in 0..200 {
        match pair.cores[1].admit(source, initiation) {
            Admission::Pass => assert!(cookie.is_none()),
            Admission::Challenge(message) => cookie = Some(message),
            Admission::Refuse => panic!("the message is right"),
        }
    }
    let cookie = cookie.unwrap();
    assert_eq!(Kind::of(&cookie), Some(Kind::Cookie(7)));
    let mut replies = Batch::default();
    pair.tunnels[0].handshake(&cookie, &mut replies).unwrap();
    // A forged one, and one for another message.
    let mut forged = cookie;
    forged[40] ^= 1;
    assert!(pair.tunnels[0].handshake(&forged, &mut replies).is_err());
    let mut damaged = initiation.to_vec();
    damaged[20] ^= 1;
    assert_eq!(pair.cores[1].admit(source, &damaged), Admission::Refuse);
}

proptest! {
    /// Whatever is sent, in whatever state: no failure, no packet out of it, and the session goes on.
    #[test]
    fn garbage_changes_nothing(
        kind in 0u8..6,
        mut garbage in proptest::collection::vec(any::<u8>(), 0..200),
        length in prop_oneof![Just(148usize), Just(92), Just(64), Just(32), 0usize..200],
        index in prop_oneof![Just(7u32 << 8), Just(7 << 8 | 1), any::<u32>()],
        mutate in any::<prop::sample::Index>(),
    ) {
        garbage.resize(length, 0x5a);
        if length > 12 {
            garbage[..4].copy_from_slice(&u32::from(kind).to_le_bytes());
            garbage[4..8].copy_from_slice(&index.to_le_bytes());
        }
        let mut pair = Pair::new();
        let check = |pair: &mut Pair, bytes: &[u8]| {
            let (mut plain, mut replies) = (Batch::default(), Batch::default());
            for own in 0..2 {
                let opened = pair.tunnels[own].open(&mut std::iter::once(bytes), &mut plain, &mut replies);
                let refused = pair.tunnels[own].handshake(bytes, &mut replies).is_err();
                assert!(refused && !opened.authentic() && plain.is_empty() && replies.is_empty());
                assert!(pair.cores[own].identify(bytes).is_err());
                assert_eq!(pair.cores[own].admit([192, 0, 2, 1].into(), bytes) == Admission::Pass, kind_passes(bytes));
            }
        };
        check(&mut pair, &garbage);
        let mut sealed = Batch::default();
        pair.send(0, &packets(0..1));
        check(&mut pair, &garbage);
        // One bit of an authentic message, or its end cut off.
        pair.tunnels[0].seal(&packets(0..1), &mut sealed);
        let message = sealed.get(0).unwrap().to_vec();
        let mut flipped = message.clone();
        flipped[mutate.index(message.len())] ^= 1 << (kind % 8);
        check(&mut pair, &flipped);
        check(&mut pair, &message[..mutate.index(message.len())]);
        let [_, received] = pair.carry(0, &sealed);
        prop_assert_eq!(received.len(), 1);
    }
}

/// Whether a message needs no proof to be passed on: cookies and data prove themselves later.
fn kind_passes(message: &[u8]) -> bool {
    matches!(Kind::of(message), Some(Kind::Cookie(_) | Kind::Data(_)))
}
