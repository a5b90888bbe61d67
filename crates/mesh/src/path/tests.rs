use super::*;

const RELAY: Route = Route::Relay(RelayId(1));
const SPARE: Route = Route::Relay(RelayId(2));

fn direct(host: u8) -> Route {
    Route::Direct(SocketAddr::new([192, 0, 2, host].into(), 51820))
}

/// An agent and the time, with all probes that it ever gave.
struct Run {
    agent: Agent,
    now: Instant,
    probes: Vec<Probe>,
}

impl Run {
    fn new(routes: &[Route]) -> Self {
        let now = Instant::now();
        let mut agent = Agent::new();
        agent.set_routes(now, routes);
        Self {
            agent,
            now,
            probes: Vec::new(),
        }
    }

    /// Lets time pass in small steps while packets are sent; probes over `works` are answered at once.
    fn pass(&mut self, time: Duration, works: &[Route]) {
        let end = self.now + time;
        while self.now < end {
            self.agent.sent(self.now);
            let mut probes = Vec::new();
            self.agent.tick(self.now, &mut probes);
            for probe in &probes {
                if works.contains(&probe.route) {
                    self.agent.answered(
                        self.now + Duration::from_millis(5),
                        probe.route,
                        probe.number,
                    );
                }
            }
            self.probes.extend(probes);
            self.now += Duration::from_millis(20);
        }
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_relay_carries_until_a_direct_route_is_proven() {
    let mut run = Run::new(&[direct(1), RELAY, direct(2)]);
    assert_eq!(run.agent.route(), Some(RELAY), "before anything is known");
    run.pass(SECOND, &[RELAY]);
    assert_eq!(run.agent.route(), Some(RELAY));
    run.agent.heard(run.now, direct(2));
    assert_eq!(
        run.agent.route(),
        Some(RELAY),
        "hearing proves nothing of the way there"
    );
    run.pass(20 * SECOND, &[RELAY, direct(2)]);
    assert_eq!(run.agent.route(), Some(direct(2)));
    run.pass(20 * SECOND, &[RELAY, direct(2)]);
    assert_eq!(run.agent.route(), Some(direct(2)), "it stays");
}

#[test]
fn a_dead_direct_route_is_left_within_seconds() {
    let mut run = Run::new(&[RELAY, direct(1)]);
    run.pass(5 * SECOND, &[RELAY, direct(1)]);
    assert_eq!(run.agent.route(), Some(direct(1)));
    run.pass(6 * SECOND, &[RELAY]);
    assert_eq!(run.agent.route(), Some(RELAY));
    run.pass(40 * SECOND, &[RELAY, direct(1)]);
    assert_eq!(run.agent.route(), Some(direct(1)), "and found again");
}

#[test]
fn silence_is_looked_into_at_once() {
    let mut run = Run::new(&[RELAY, direct(1)]);
    run.pass(5 * SECOND, &[RELAY, direct(1)]);
    run.agent.doubt(run.now);
    run.pass(2 * SECOND, &[RELAY]);
    assert_eq!(
        run.agent.route(),
        Some(RELAY),
        "in two seconds, not in four"
    );
}

#[test]
fn who_moved_begins_with_the_relay() {
    let mut run = Run::new(&[RELAY, direct(1)]);
    run.pass(5 * SECOND, &[RELAY, direct(1)]);
    run.agent.moved(run.now);
    assert_eq!(run.agent.route(), Some(RELAY));
    run.pass(SECOND, &[RELAY, direct(1)]);
    assert_eq!(run.agent.route(), Some(direct(1)));
}

#[test]
fn a_peer_that_moved_is_followed_before_the_old_way_is_given_up() {
    let mut run = Run::new(&[RELAY, direct(1)]);
    run.pass(5 * SECOND, &[RELAY, direct(1)]);
    run.agent.heard(run.now, direct(2));
    run.pass(SECOND + SECOND / 2, &[RELAY, direct(2)]);
    assert_eq!(run.agent.route(), Some(direct(2)));
}

#[test]
fn the_relay_that_was_heard_is_the_first_guess() {
    let mut run = Run::new(&[RELAY, SPARE]);
    assert_eq!(run.agent.route(), Some(RELAY));
    run.agent.heard(run.now, SPARE);
    assert_eq!(run.agent.route(), Some(SPARE));
    run.agent.heard(run.now, Route::Relay(RelayId(9)));
    assert_eq!(run.agent.route(), Some(SPARE), "not one that is not known");
}

#[test]
fn relays_that_fail_take_turns() {
    let mut run = Run::new(&[RELAY, SPARE]);
    run.pass(10 * SECOND, &[SPARE]);
    assert_eq!(run.agent.route(), Some(SPARE));
    run.pass(10 * SECOND, &[RELAY]);
    assert_eq!(run.agent.route(), Some(RELAY));
}

#[test]
fn after_a_silence_the_relay_has_the_first_word() {
    let mut run = Run::new(&[RELAY, direct(1)]);
    run.pass(5 * SECOND, &[RELAY, direct(1)]);
    assert_eq!(run.agent.route(), Some(direct(1)));
    run.now += 40 * SECOND;
    let mut probes = Vec::new();
    run.agent.tick(run.now, &mut probes);
    assert!(probes.is_empty(), "who sends nothing is not probed");
    assert!(
        run.agent
            .deadline()
            .is_none_or(|deadline| deadline < run.now)
    );
    run.agent.sent(run.now);
    assert_eq!(run.agent.route(), Some(RELAY));
    run.pass(SECOND, &[RELAY, direct(1)]);
    assert_eq!(run.agent.route(), Some(direct(1)));
}

#[test]
fn without_relays_what_there_is_is_tried() {
    let mut run = Run::new(&[]);
    assert_eq!(run.agent.route(), None);
    run.agent.heard(run.now, direct(7));
    assert_eq!(run.agent.route(), Some(direct(7)));
    run.agent.set_routes(run.now, &[direct(1), direct(2)]);
    run.pass(10 * SECOND, &[direct(2)]);
    assert_eq!(run.agent.route(), Some(direct(2)));
}

#[test]
fn what_peers_claim_is_bounded() {
    let many: Vec<Route> = (0..200).map(direct).collect();
    let mut run = Run::new(&many);
    for host in 0..250 {
        run.agent.heard(run.now, direct(host));
        run.agent.heard(run.now, Route::Relay(RelayId(host.into())));
    }
    assert_eq!(run.agent.candidates.len(), MOST_ROUTES);
    run.pass(60 * SECOND, &[]);
    // Per route: often at first, then every 16 seconds.
    assert!(run.probes.len() < MOST_ROUTES * 16, "{}", run.probes.len());
    run.agent.answered(run.now, direct(0), u64::MAX);
    assert_eq!(run.agent.round_trip(), None, "an answer to nothing");
}

#[test]
fn routes_of_one_kind_change_only_for_much() {
    let score = |relayed, ms| Score {
        relayed,
        round_trip: Duration::from_millis(ms),
    };
    for (new, used, expected) in [
        (score(false, 500), score(true, 1), true),
        (score(true, 1), score(false, 500), false),
        (score(false, 70), score(false, 100), true),
        (score(false, 80), score(false, 100), false),
        (score(false, 1), score(false, 2), false),
    ] {
        assert_eq!(better(&new, &used), expected, "{new:?} {used:?}");
    }
}
