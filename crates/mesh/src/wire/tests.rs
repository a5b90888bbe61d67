use std::time::{Duration, Instant};

use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::send::Run;
use super::*;
use crate::batch::Batch;

fn batch(lengths: &[usize]) -> Batch {
    let mut batch = Batch::default();
    for (at, length) in lengths.iter().enumerate() {
        batch.push(&vec![at as u8; *length]);
    }
    batch
}

/// Everything that arrives until `count` datagrams are there.
fn receive(wire: &Wire, count: usize) -> Vec<(SocketAddr, Vec<u8>)> {
    let mut receiver = Receiver::new();
    let mut all = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(10);
    while all.len() < count && Instant::now() < deadline {
        for socket in wire.sockets() {
            let wait = Timespec {
                tv_sec: 0,
                tv_nsec: 20_000_000,
            };
            let _ = poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&wait));
            receiver.receive(socket).unwrap();
            for (source, datagrams) in receiver.messages() {
                all.extend(datagrams.map(|datagram| (source, datagram.to_vec())));
            }
        }
    }
    all
}

/// Sends these lengths over loopback both ways of addressing; they must arrive as they were, in order.
fn check(options: WireOptions, lengths: &[usize]) {
    let sender = Wire::bind(&options, None).unwrap();
    let receiver = Wire::bind(&options, None).unwrap();
    let batch = batch(lengths);
    for address in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
        let destination = SocketAddr::new(address.parse().unwrap(), receiver.port());
        let sent = sender.send(destination, &batch);
        assert_eq!(
            sent,
            Sent {
                datagrams: lengths.len() as u64,
                failed: 0
            },
            "{address}"
        );
        let received = receive(&receiver, lengths.len());
        assert!(
            received
                .iter()
                .map(|(_, bytes)| &bytes[..])
                .eq(batch.iter()),
            "{address}"
        );
        assert!(
            received
                .iter()
                .all(|(source, _)| source.port() == sender.port())
        );
    }
}

#[test]
fn batches_arrive_whole_and_in_order() {
    let mixed: Vec<usize> = (0..200)
        .map(|at| if at % 50 == 49 { 77 } else { 1452 })
        .collect();
    check(WireOptions::default(), &mixed);
    check(
        WireOptions {
            offload: false,
            ..WireOptions::default()
        },
        &mixed,
    );
    check(
        WireOptions::default(),
        &[100, 200, 300, 300, 100, 65_000, 1],
    );
}

#[test]
fn what_cannot_be_sent_is_counted() {
    let wire = Wire::bind(
        &WireOptions {
            ipv6: false,
            ..WireOptions::default()
        },
        None,
    )
    .unwrap();
    let batch = batch(&[100, 100]);
    let v6 = "[::1]:9".parse().unwrap();
    assert_eq!(
        wire.send(v6, &batch),
        Sent {
            datagrams: 0,
            failed: 2
        }
    );
    let nowhere = "127.0.0.1:0".parse().unwrap();
    assert_eq!(
        wire.send(nowhere, &batch),
        Sent {
            datagrams: 0,
            failed: 2
        }
    );
    assert!(
        wire.v4.as_ref().unwrap().joins(100),
        "a bad address says nothing of segmentation"
    );
}

#[test]
fn datagrams_longer_than_the_path_are_fragmented() {
    let space = Namespace::unnamed().unwrap();
    // The loopback device is the first of every namespace.
    space
        .within(|| crate::link::Links::open()?.bring_up(1, 1300, 1000))
        .unwrap();
    let options = WireOptions::default();
    let sender = Wire::bind(&options, Some(&space)).unwrap();
    let receiver = Wire::bind(&options, Some(&space)).unwrap();
    let destination = SocketAddr::new("127.0.0.1".parse().unwrap(), receiver.port());
    let long = batch(&[1452; 20]);
    for _ in 0..2 {
        assert_eq!(
            sender.send(destination, &long),
            Sent {
                datagrams: 20,
                failed: 0
            }
        );
        assert_eq!(receive(&receiver, 20).len(), 20);
    }
}

#[test]
fn a_taken_port_is_an_error() {
    let first = Wire::bind(&WireOptions::default(), None).unwrap();
    let same = WireOptions {
        port: first.port(),
        ..WireOptions::default()
    };
    let error = Wire::bind(&same, None).unwrap_err();
    assert!(
        error.to_string().starts_with("cannot take the UDP port"),
        "{error}"
    );
}

proptest! {
    /// Runs cover a batch without gaps, and the kernel can cut each one apart again.
    #[test]
    fn runs_can_be_cut_apart(lengths in proptest::collection::vec(prop_oneof![Just(0), Just(1), Just(700), Just(1452), Just(60_000)], 0..200)) {
        let batch = batch(&lengths);
        let mut next = 0;
        while let Some(run) = Run::at(&batch, next, |_| true) {
            prop_assert_eq!(run.from, next);
            let joined = batch.slice(run.from, run.to);
            prop_assert!(joined.len() <= 65_000 && run.count() <= 64);
            if run.count() > 1 {
                let cut: Vec<_> = joined.chunks(run.length).collect();
                let sent: Vec<_> = (run.from..run.to).filter_map(|at| batch.get(at)).collect();
                prop_assert_eq!(cut, sent);
            }
            next = run.to;
        }
        prop_assert_eq!(next, lengths.len());
    }
}
