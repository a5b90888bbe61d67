use super::super::frame::data_header;
use super::super::session::{Change, Session};
use super::super::ticket::{AnyNode, SharedTickets};
use super::*;

fn place(port: u16) -> Place {
    Place::Udp(SocketAddr::new([192, 0, 2, 1].into(), port))
}

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_bytes([seed; 32])
}

fn registry(tickets: Arc<dyn TicketCheck>) -> Registry {
    let limits = Limits {
        clients: 3,
        bytes_per_second: 10_000,
        burst_bytes: 10_000,
        ..Limits::default()
    };
    Registry::new(key(99), tickets, limits, Instant::now()).unwrap()
}

fn client(seed: u8, ticket: &[u8], now: Instant) -> Session {
    let own = key(seed);
    let relay = key(99).public();
    let shared = shared_secret(&own, &relay).unwrap();
    super::super::session(own.public(), &relay, &shared, ticket.into(), now)
}

/// Lets both speak with each other until nobody has more to say; the last thing that changed.
fn converse(registry: &mut Registry, session: &mut Session, now: Instant, place: Place) -> Change {
    let mut change = Change::None;
    let mut question = Vec::new();
    session.tick(now, &mut question);
    for _ in 0..4 {
        let mut answer = Vec::new();
        registry.take(now, place, &question, &mut answer);
        assert!(answer.len() <= question.len(), "no amplification");
        question.clear();
        match session.take(now, &answer, &mut question) {
            Change::None => {}
            other => change = other,
        }
    }
    change
}

fn packet(length: usize) -> Vec<u8> {
    let mut packet = vec![0; length];
    packet[0] = 4;
    packet
}

#[test]
fn two_register_and_are_carried() {
    let mut registry = registry(Arc::new(AnyNode));
    let now = Instant::now();
    let (mut one, mut two) = (client(1, &[], now), client(2, &[], now));
    assert!(matches!(
        converse(&mut registry, &mut one, now, place(1)),
        Change::In { seen, .. } if seen.port() == 1
    ));
    converse(&mut registry, &mut two, now, place(2));
    let (from, to) = (Short::of(&key(1).public()), Short::of(&key(2).public()));
    let (first, second) = (one.number().unwrap(), two.number().unwrap());
    let verdict = registry.carry(now, place(1), first, to, &packet(100));
    assert_eq!(verdict, Verdict::Carry(place(2), second, from));
    assert_eq!(data_header(second, from).len(), super::super::HEADER);
    // In another's name, with a guessed session, or something that is not WireGuard's: nothing.
    for (place, session, bytes, expected) in [
        (place(2), first, packet(100), Verdict::Unknown),
        (place(3), first, packet(100), Verdict::Unknown),
        (place(1), first ^ 1, packet(100), Verdict::Unknown),
        (place(1), first, vec![9; 100], Verdict::Drop),
    ] {
        assert_eq!(registry.carry(now, place, session, to, &bytes), expected);
    }
    let nobody = Short([9; 12]);
    let verdict = registry.carry(now, place(1), first, nobody, &packet(100));
    assert_eq!(verdict, Verdict::Drop);
    assert_eq!(registry.statistics.absent, 1);
}

#[test]
fn who_moves_registers_anew_and_is_found_there() {
    let mut registry = registry(Arc::new(AnyNode));
    let mut now = Instant::now();
    let (mut one, mut two) = (client(1, &[], now), client(2, &[], now));
    converse(&mut registry, &mut one, now, place(1));
    converse(&mut registry, &mut two, now, place(2));
    now += Duration::from_secs(5);
    // Its first packet from there is answered by "unknown", upon which it asks again.
    let mut unknown = Vec::new();
    Frame::Unknown {
        session: one.number().unwrap(),
    }
    .write(&mut unknown);
    one.take(now, &unknown, &mut Vec::new());
    converse(&mut registry, &mut one, now, place(7));
    let (from, to) = (Short::of(&key(2).public()), Short::of(&key(1).public()));
    let verdict = registry.carry(now, place(2), two.number().unwrap(), to, &packet(50));
    assert_eq!(
        verdict,
        Verdict::Carry(place(7), one.number().unwrap(), from)
    );
    assert_eq!(registry.clients.len(), 2);
    assert_eq!(registry.by_place.len(), 2);
}

#[test]
fn registrations_end_and_are_renewed() {
    let mut registry = registry(Arc::new(AnyNode));
    let mut now = Instant::now();
    let mut one = client(1, &[], now);
    let before = {
        converse(&mut registry, &mut one, now, place(1));
        one.number()
    };
    for _ in 0..10 {
        now += Duration::from_secs(21);
        registry.tick(now);
        converse(&mut registry, &mut one, now, place(1));
        assert_eq!(one.number(), before, "the session stays");
    }
    // The relay is gone: three questions without an answer.
    let start = now + Duration::from_secs(21);
    now = start;
    let mut lost = false;
    while !lost && now < start + Duration::from_secs(10) {
        lost = one.tick(now, &mut Vec::new()) == Change::Out;
        now += Duration::from_millis(50);
    }
    assert!(lost && now < start + Duration::from_secs(3));
    registry.tick(now + LIFETIME);
    assert_eq!(registry.statistics.clients, 0);
}

#[test]
fn nobody_gets_in_without_cookie_proof_and_ticket() {
    let tickets = Arc::new(SharedTickets::generate().unwrap());
    let later = SystemTime::now() + Duration::from_secs(1000);
    let ticket = tickets.issue(&key(1).public(), later);
    let mut registry = registry(tickets);
    let now = Instant::now();
    // Another's ticket.
    let mut other = client(2, &ticket, now);
    assert_eq!(
        converse(&mut registry, &mut other, now, place(2)),
        Change::None
    );
    // What the right one sends, from another address, changed, or after the secret is forgotten.
    let mut one = client(1, &ticket, now);
    let (mut hello, mut challenge, mut register) = (Vec::new(), Vec::new(), Vec::new());
    one.tick(now, &mut hello);
    registry.take(now, place(1), &hello, &mut challenge);
    one.take(now, &challenge, &mut register);
    let refused = |registry: &mut Registry, place, bytes: &[u8]| {
        let mut answer = Vec::new();
        registry.take(now, place, bytes, &mut answer);
        assert!(answer.is_empty(), "{place:?}");
        assert_eq!(registry.clients.len(), 0);
    };
    refused(&mut registry, place(9), &register);
    refused(
        &mut registry,
        Place::Stream(0, place(1).address()),
        &register,
    );
    for at in 0..register.len() {
        let mut forged = register.clone();
        forged[at] ^= 1;
        refused(&mut registry, place(1), &forged);
    }
    let mut answer = Vec::new();
    registry.take(now, place(1), &register, &mut answer);
    assert_eq!(registry.clients.len(), 1, "the right one is let in");
    // An answer that somebody else made, or changed, is not believed.
    for at in 0..answer.len() {
        let mut forged = answer.clone();
        forged[at] ^= 1;
        assert_eq!(one.take(now, &forged, &mut Vec::new()), Change::None);
    }
    assert!(matches!(
        one.take(now, &answer, &mut Vec::new()),
        Change::In { .. }
    ));
    assert!(registry.forget(&key(1).public()));
    for _ in 0..2 {
        registry.tick(now + SECRET_LIFETIME * 2);
        registry.tick(now + SECRET_LIFETIME * 4);
    }
    refused(&mut registry, place(1), &register);
}

#[test]
fn each_has_a_share_and_there_is_an_end_of_clients() {
    let mut registry = registry(Arc::new(AnyNode));
    let now = Instant::now();
    let mut sessions = Vec::new();
    for seed in 1..=4 {
        let mut session = client(seed, &[], now);
        converse(&mut registry, &mut session, now, place(seed.into()));
        sessions.push(session);
    }
    assert_eq!(registry.clients.len(), 3, "no room for the fourth");
    assert_eq!(sessions[3].number(), None);
    let to = Short::of(&key(2).public());
    let sent = |registry: &mut Registry, at: usize, now| {
        let number = sessions[at].number().unwrap();
        let verdict = registry.carry(now, place(at as u16 + 1), number, to, &packet(1000));
        matches!(verdict, Verdict::Carry(..))
    };
    let carried = (0..50).filter(|_| sent(&mut registry, 0, now)).count();
    assert_eq!(carried, 10);
    assert!(
        sent(&mut registry, 2, now),
        "the others' shares are their own"
    );
    assert!(sent(&mut registry, 0, now + Duration::from_millis(200)));
    assert_eq!(registry.statistics.limited, 40);
    // Handshakes have a share of their own.
    let mut handshake = [0; 148];
    handshake[0] = 1;
    let number = sessions[2].number().unwrap();
    let carried = (0..200)
        .filter(|_| {
            let verdict = registry.carry(now, place(3), number, to, &handshake[..]);
            matches!(verdict, Verdict::Carry(..))
        })
        .count();
    assert_eq!(carried, 50);
}
