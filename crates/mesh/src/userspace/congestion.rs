//! Congestion control of a connection that carries many flows: the window of as many TCP connections as flows keep busy.
//!
//! All flows of two nodes share a QUIC connection, and a plain controller gives a connection the share of one TCP connection, however many would have run
//! without it. A [`Bundle`] has one CUBIC (RFC 9438) for each *share*: every acknowledged packet is told to one of them and every lost one too, in proportion to
//! their windows, as chance would have it among connections of their own; the connection's window is the sum. So a packet lost on the way costs one share's
//! part, and a queue that overflows costs as many as it drops packets. That is what MulTCP (Crowcroft and Oechslin, 1998) does with a formula.
//!
//! How many shares there are follows from what flows send ([`effective`]): flows that say little do not add to what one that says much may take, so the
//! connection takes from others on its way what its flows would take by themselves, and not more.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory, CubicConfig};
use quinn_proto::RttEstimator;

/// The most shares of one connection.
pub(super) const MOST: usize = 16;

/// How many flows of equal rates would be as many as these are: one if one of them sends nearly all, all of them if they send alike. It is what remains of
/// Simpson's index (the sum squared, over the sum of squares); 0 if nothing is sent.
pub(super) fn effective(rates: impl Iterator<Item = f64>) -> f64 {
    let (sum, squares) = rates.fold((0.0, 0.0), |(sum, squares), rate| {
        (sum + rate, squares + rate * rate)
    });
    if squares > 0.0 {
        sum * sum / squares
    } else {
        0.0
    }
}

/// How many shares a connection is to have; whoever counts flows sets it.
#[derive(Debug, Clone)]
pub(super) struct Shares(Arc<AtomicUsize>);

impl Default for Shares {
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(1)))
    }
}

impl Shares {
    /// Those of a connection; `None` if something else controls it.
    pub(super) fn of(connection: &quinn::Connection) -> Option<Self> {
        let bundle = connection.congestion_state().into_any();
        Some(bundle.downcast::<Bundle>().ok()?.shares)
    }

    /// From now on there are so many: at least 1, at most [`MOST`].
    pub(super) fn set(&self, count: usize) {
        self.0.store(count.clamp(1, MOST), Ordering::Relaxed);
    }

    fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// Makes a [`Bundle`] for each connection.
#[derive(Debug, Default)]
pub(super) struct BundleConfig {
    one: Arc<CubicConfig>,
}

impl ControllerFactory for BundleConfig {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        let mut bundle = Bundle {
            config: Arc::clone(&self.one),
            mtu,
            shares: Shares::default(),
            members: Vec::new(),
        };
        bundle.follow(now);
        Box::new(bundle)
    }
}

/// One share.
struct Share {
    control: Box<dyn Controller>,
    /// What it has waited for, in packets: acknowledged ones and lost ones.
    turns: [f64; 2],
}

/// What a packet came to.
#[derive(Clone, Copy)]
enum Fate {
    Acknowledged = 0,
    Lost = 1,
}

/// The controller.
struct Bundle {
    config: Arc<CubicConfig>,
    mtu: u16,
    shares: Shares,
    /// Never empty.
    members: Vec<Share>,
}

impl Bundle {
    /// Has as many shares as it is to have. A new one begins as a new connection does; if there are too many, the smallest goes with its window.
    fn follow(&mut self, now: Instant) {
        let wanted = self.shares.get();
        while self.members.len() < wanted {
            let control = Arc::clone(&self.config).build(now, self.mtu);
            let turns = [0.0; 2];
            self.members.push(Share { control, turns });
        }
        while self.members.len() > wanted {
            let smallest = self.members.iter().enumerate();
            let smallest = smallest.min_by_key(|(_, share)| share.control.window());
            if let Some((at, _)) = smallest {
                self.members.swap_remove(at);
            }
        }
    }

    /// The share that the next packet of this fate is of: each in turn, the more often the larger its window is.
    fn turn(&mut self, fate: Fate) -> Option<&mut Share> {
        let all = self.window().max(1) as f64;
        let at = fate as usize;
        for share in &mut self.members {
            share.turns[at] += share.control.window() as f64 / all;
        }
        let next = self.members.iter_mut();
        let next = next.max_by(|one, other| one.turns[at].total_cmp(&other.turns[at]))?;
        next.turns[at] -= 1.0;
        Some(next)
    }
}

impl Controller for Bundle {
    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.follow(now);
        if let Some(share) = self.turn(Fate::Acknowledged) {
            share.control.on_ack(now, sent, bytes, app_limited, rtt);
        }
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        persistent: bool,
        lost_bytes: u64,
    ) {
        if persistent {
            // Nothing got through for long: that is so for all of them.
            for share in &mut self.members {
                share.control.on_congestion_event(now, sent, true, 0);
            }
            return;
        }
        let mut left = lost_bytes;
        let packet = u64::from(self.mtu.max(1));
        // What is marked and not lost (RFC 3168) counts as one; those that lost something within the last round trip do not mind.
        for _ in 0..lost_bytes
            .div_ceil(packet)
            .clamp(1, self.members.len() as u64)
        {
            let lost = left.min(packet);
            left -= lost;
            if let Some(share) = self.turn(Fate::Lost) {
                share.control.on_congestion_event(now, sent, false, lost);
            }
        }
    }

    fn on_mtu_update(&mut self, mtu: u16) {
        self.mtu = mtu;
        for share in &mut self.members {
            share.control.on_mtu_update(mtu);
        }
    }

    fn window(&self) -> u64 {
        let windows = self.members.iter().map(|share| share.control.window());
        windows.fold(0, u64::saturating_add)
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        let members = self.members.iter().map(|share| Share {
            control: share.control.clone_box(),
            turns: share.turns,
        });
        Box::new(Self {
            config: Arc::clone(&self.config),
            mtu: self.mtu,
            shares: self.shares.clone(),
            members: members.collect(),
        })
    }

    fn initial_window(&self) -> u64 {
        let first = self.members.first();
        first.map_or(0, |share| share.control.initial_window())
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{OnceLock, RwLock};
    use std::time::Duration;

    use quinn::congestion::NewReno;

    use super::super::directory::Directory;
    use super::super::identity::{self, Credential};
    use super::*;

    const MTU: u16 = 1200;
    const ROUND_TRIP: Duration = Duration::from_millis(60);

    /// Keeps the first estimate that it is told. Only a connection can make one.
    #[derive(Clone)]
    struct Eavesdropper(Box<NewReno>, Arc<OnceLock<RttEstimator>>);

    impl Controller for Eavesdropper {
        fn on_ack(&mut self, _: Instant, _: Instant, _: u64, _: bool, rtt: &RttEstimator) {
            self.1.get_or_init(|| *rtt);
        }

        fn on_congestion_event(&mut self, _: Instant, _: Instant, _: bool, _: u64) {}

        fn on_mtu_update(&mut self, _: u16) {}

        fn window(&self) -> u64 {
            self.0.window()
        }

        fn clone_box(&self) -> Box<dyn Controller> {
            Box::new(self.clone())
        }

        fn initial_window(&self) -> u64 {
            self.0.initial_window()
        }

        fn into_any(self: Box<Self>) -> Box<dyn Any> {
            self
        }
    }

    struct Ear(Arc<OnceLock<RttEstimator>>);

    impl ControllerFactory for Ear {
        fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
            let control = NewReno::new(Arc::default(), now, mtu);
            Box::new(Eavesdropper(Box::new(control), Arc::clone(&self.0)))
        }
    }

    /// A connection's first guess, before anything was measured.
    fn estimate() -> RttEstimator {
        let heard = Arc::new(OnceLock::new());
        let mut transport = quinn::TransportConfig::default();
        transport
            .initial_rtt(ROUND_TRIP)
            .congestion_controller_factory(Arc::new(Ear(Arc::clone(&heard))));
        let members = [1, 2].map(super::super::tests::member);
        let credentials = [1, 2].map(|number| {
            let identity = super::super::tests::identity(number);
            Credential::new(&identity).unwrap()
        });
        let directory = Directory::new("", members[1].clone(), [members[0].clone()], []);
        let server = credentials[1].server(Arc::new(RwLock::new(Arc::new(directory))));
        let mut client = credentials[0].client(members[1].identity).unwrap();
        client.transport_config(Arc::new(transport));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let place = (std::net::Ipv4Addr::LOCALHOST, 0).into();
            let called = quinn::Endpoint::server(server.unwrap(), place).unwrap();
            let caller = quinn::Endpoint::client(place).unwrap();
            let at = called.local_addr().unwrap();
            let taken = async { called.accept().await.unwrap().await };
            let connecting = caller.connect_with(client, at, identity::NAME).unwrap();
            let (taken, connected) = tokio::join!(taken, connecting);
            taken.and(connected).unwrap();
        });
        *heard.get().unwrap()
    }

    fn bundle(shares: usize) -> (Box<dyn Controller>, Shares, Instant) {
        let now = Instant::now();
        let bundle = Arc::new(BundleConfig::default()).build(now, MTU);
        let known = bundle.clone_box().into_any().downcast::<Bundle>().unwrap();
        known.shares.set(shares);
        (bundle, known.shares, now)
    }

    /// Packets that get through in so many round trips, of which every so manieth is lost.
    fn carried(control: &mut dyn Controller, from: Instant, rounds: u32, lost: u64) -> u64 {
        let rtt = estimate();
        let (mut number, mut carried) = (0_u64, 0);
        for round in 0..rounds {
            let sent = from + ROUND_TRIP * round;
            let packets = control.window() / u64::from(MTU);
            for packet in 0..packets {
                number += 1;
                // They come back one by one, and what was lost is seen with the next.
                let part = ROUND_TRIP.mul_f64(packet as f64 / packets as f64);
                let (sent, now) = (sent + part, sent + ROUND_TRIP + part);
                if number.is_multiple_of(lost) {
                    control.on_congestion_event(now, sent, false, MTU.into());
                } else {
                    control.on_ack(now, sent, MTU.into(), false, &rtt);
                    carried += 1;
                }
            }
        }
        carried
    }

    #[test]
    fn rates_count_as_much_as_they_are_alike() {
        let check = |rates: &[f64], expected: f64| {
            let found = effective(rates.iter().copied());
            assert!((found - expected).abs() < 0.05, "{rates:?}: {found}");
        };
        check(&[], 0.0);
        check(&[0.0, 0.0], 0.0);
        check(&[3.0], 1.0);
        check(&[5.0; 4], 4.0);
        check(&[1000.0, 1.0, 1.0, 1.0, 1.0], 1.0);
        check(&[10.0, 10.0, 0.1], 2.0);
    }

    #[test]
    fn shares_carry_what_as_many_connections_would() {
        let (mut one, _, from) = bundle(1);
        let alone = carried(&mut *one, from, 3000, 1000);
        for count in [2_usize, 4, 8] {
            let (mut many, _, from) = bundle(count);
            let together = carried(&mut *many, from, 3000, 1000);
            let ratio = together as f64 / (alone * count as u64) as f64;
            assert!((0.85..1.15).contains(&ratio), "{count} shares: {ratio}");
        }
    }

    #[test]
    fn one_share_is_what_quinn_has() {
        let (mut one, _, from) = bundle(1);
        let mut cubic = Arc::new(CubicConfig::default()).build(from, MTU);
        let both = [&mut *one, &mut *cubic].map(|control| {
            let carried = carried(control, from, 500, 700);
            (carried, control.window())
        });
        assert_eq!(both[0], both[1]);
        assert_eq!(one.initial_window(), cubic.initial_window());
    }

    #[test]
    fn a_loss_costs_one_share_and_an_overflow_all() {
        let (mut four, shares, from) = bundle(4);
        carried(&mut *four, from, 200, 500);
        let full = four.window();
        let mut at = from + Duration::from_secs(100);
        let lose = |four: &mut Box<dyn Controller>, at: Instant, packets: u64| {
            four.on_congestion_event(at + ROUND_TRIP, at, false, packets * u64::from(MTU));
            four.window() as f64
        };
        let once = lose(&mut four, at, 1);
        at += Duration::from_secs(1);
        assert!(once > 0.8 * full as f64 && once < 0.99 * full as f64);
        let all = lose(&mut four, at, 40);
        assert!((0.69..0.72).contains(&(all / once)), "{}", all / once);
        // Fewer shares, a smaller window; and there is always one.
        shares.set(0);
        let rtt = estimate();
        four.on_ack(at, at, MTU.into(), true, &rtt);
        assert!((four.window() as f64) < 0.5 * all);
        at += Duration::from_secs(1);
        four.on_congestion_event(at + ROUND_TRIP, at, true, 0);
        assert_eq!(four.window(), 2 * u64::from(MTU));
    }
}
