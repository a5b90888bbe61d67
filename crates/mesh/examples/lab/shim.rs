//! A long cable: packets between two namespaces come late, and some never do. The kernel's `netem` is not everywhere; this is a device in each
//! namespace, and a thread for each direction.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mesh::{Namespace, Offload, Tun, TunOptions};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Outcome;
use super::daemon::outside;

/// The most packets that are under way in a direction.
const MOST: usize = 100_000;
/// The longest packet.
const LONGEST: usize = 2048;

/// How a cable is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Distance {
    /// How long there and back.
    pub(crate) round_trip: Duration,
    /// How much of what is sent gets lost, each way.
    pub(crate) loss: f64,
    /// What decides which.
    pub(crate) seed: u64,
}

/// What a cable did.
#[derive(Debug, Default)]
pub(crate) struct Carried {
    pub(crate) packets: AtomicU64,
    pub(crate) lost: AtomicU64,
}

/// Lays the cable. It is there for as long as the program.
pub(crate) fn cable(spaces: &[Namespace; 2], distance: Distance) -> Outcome<Arc<Carried>> {
    let end = |number: u8| {
        let options = TunOptions {
            name: "eth0".to_owned(),
            mtu: 1500,
            addresses: vec![(outside(number).into(), 24)],
            offload: Offload::None,
            queue: 10_000,
            ..TunOptions::default()
        };
        Tun::create(&options, Some(&spaces[usize::from(number) - 1])).map(Arc::new)
    };
    let (one, two) = (end(1)?, end(2)?);
    let carried = Arc::new(Carried::default());
    for (from, to, salt) in [(&one, &two, 1), (&two, &one, 2)] {
        let (from, to, carried) = (Arc::clone(from), Arc::clone(to), Arc::clone(&carried));
        let seed = distance.seed.wrapping_mul(2).wrapping_add(salt);
        std::thread::Builder::new()
            .name("cable".to_owned())
            .spawn(move || {
                if let Err(error) = carry(&from, &to, distance, seed, &carried) {
                    eprintln!("a cable is broken: {error}");
                }
            })?;
    }
    Ok(carried)
}

/// One direction, until a device is gone.
fn carry(
    from: &Tun,
    to: &Tun,
    distance: Distance,
    seed: u64,
    carried: &Carried,
) -> std::io::Result<()> {
    let late = distance.round_trip / 2;
    let mut chance = Chance::new(seed);
    let mut under_way: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut packet = [0; LONGEST];
    loop {
        let now = Instant::now();
        let due = |at: &Instant| at.saturating_duration_since(now);
        while under_way.front().is_some_and(|(at, _)| due(at).is_zero()) {
            if let Some((_, packet)) = under_way.pop_front() {
                // What the device has no room for is lost, as on any cable.
                let _ = rustix::io::write(to.as_fd(), &packet);
            }
        }
        let wait = under_way.front().map(|(at, _)| due(at));
        let wait = wait.unwrap_or(Duration::from_secs(1));
        let wait = Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(1),
            tv_nsec: wait.subsec_nanos().into(),
        };
        let fd = from.as_fd();
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&wait))?;
        while let Some(length) = read(from, &mut packet)? {
            carried.packets.fetch_add(1, Ordering::Relaxed);
            if chance.draw() < distance.loss || under_way.len() >= MOST {
                carried.lost.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let packet = packet.get(..length).unwrap_or_default().to_vec();
            under_way.push_back((Instant::now() + late, packet));
        }
    }
}

fn read(tun: &Tun, packet: &mut [u8]) -> std::io::Result<Option<usize>> {
    match rustix::io::read(tun.as_fd(), packet) {
        Ok(length) => Ok(Some(length)),
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Numbers that look random, the same for the same seed.
struct Chance(u64);

impl Chance {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// From 0 to 1.
    fn draw(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }
}
