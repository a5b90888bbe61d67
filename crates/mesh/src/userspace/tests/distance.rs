//! Flows over a long way that loses something: what many carry, beside what one does.

use std::sync::atomic::AtomicU64;

use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use super::*;

/// There and back, and which datagram is lost of those that carry much.
const ROUND_TRIP: Duration = Duration::from_millis(40);
const LOST: u64 = 150;
const LARGE: usize = 1000;

/// Carries datagrams from one socket to another place, later, and loses some.
async fn carry(from: Arc<UdpSocket>, to: Arc<UdpSocket>, at: impl Fn() -> Option<SocketAddr>) {
    let (late, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(10_000);
    let take = async {
        let (mut buffer, mut number) = ([0; 2048], 0);
        while let Ok(length) = from.recv(&mut buffer).await {
            number += u64::from(length >= LARGE);
            if length < LARGE || !number.is_multiple_of(LOST) {
                let datagram = (Instant::now() + ROUND_TRIP / 2, buffer[..length].to_vec());
                let _ = late.try_send(datagram);
            }
        }
    };
    let give = async {
        while let Some((when, datagram)) = due.recv().await {
            tokio::time::sleep_until(when.into()).await;
            if let Some(at) = at() {
                let _ = to.send_to(&datagram, at).await;
            }
        }
    };
    tokio::join!(take, give);
}

/// A long way to a node, for one that calls from the other address; where it begins.
async fn way(caller: SocketAddr, called: SocketAddr) -> SocketAddr {
    let bind = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
    let (near, far) = (
        Arc::new(bind().await.unwrap()),
        Arc::new(bind().await.unwrap()),
    );
    let begin = near.local_addr().unwrap();
    tokio::spawn(carry(Arc::clone(&near), Arc::clone(&far), move || {
        Some(called)
    }));
    tokio::spawn(carry(far, near, move || Some(caller)));
    begin
}

/// Bytes that arrive in so long over each of so many flows that are busy, once they had some time.
async fn carried(lab: &Lab, service: &TcpListener, flows: usize, time: Duration) -> Vec<u64> {
    let mut all = Vec::new();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..flows {
        let mut caller = lab.flow(0, 1, 7000).await.unwrap();
        let (mut called, _) = in_time("a caller", service.accept()).await.unwrap();
        let arrived = Arc::new(AtomicU64::new(0));
        all.push(Arc::clone(&arrived));
        tasks.spawn(async move {
            let piece = noise(1, 16 << 10);
            while caller.write_all(&piece).await.is_ok() {}
        });
        tasks.spawn(async move {
            let mut piece = vec![0; 16 << 10];
            while let Ok(length @ 1..) = called.read(&mut piece).await {
                arrived.fetch_add(length as u64, Ordering::Relaxed);
            }
        });
    }
    tokio::time::sleep(time / 2).await;
    let look = || all.iter().map(|arrived| arrived.load(Ordering::Relaxed));
    let before: Vec<_> = look().collect();
    tokio::time::sleep(time).await;
    let each = look().zip(before).map(|(after, before)| after - before);
    let each = each.collect();
    tasks.shutdown().await;
    each
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_busy_flows_carry_about_four_times_what_one_does() {
    let allowed: Allowed<'_> = &[(0, 1, "tcp/7000")];
    let mut lab = Lab::new(2, allowed, &[7000]).await;
    let service = lab.service(1, 7000).await;
    let (caller, called) = (lab.node(0).address(), lab.node(1).address());
    lab.members[1].endpoints = vec![way(caller, called).await];
    lab.allow(allowed);
    let time = Duration::from_secs(4);
    let one = carried(&lab, &service, 1, time).await;
    let four = carried(&lab, &service, 4, time).await;
    let (alone, together) = (one[0], four.iter().sum::<u64>());
    let ratio = together as f64 / alone as f64;
    println!("{alone} bytes over one, {four:?} over four: {ratio:.2}");
    assert!(ratio > 2.5, "{alone} bytes over one, {four:?} over four");
    let least = four.iter().min().copied().unwrap_or(0);
    assert!(least * 8 > together, "one of them has too little: {four:?}");
    assert_eq!(lab.node(0).status().connections, 1);
    lab.stop().await;
}
