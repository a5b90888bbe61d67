//! What is known of flows while they run, and afterwards.

use super::*;
use crate::flows::{End, Record};
use crate::policy::{Allowance, Direction};

/// The newest record of a node, once it says this of its end.
async fn newest(lab: &Lab, at: usize, end: Option<End>) -> Record {
    let look = || lab.node(at).records(0).records.first().copied();
    let ended = |record: &Record| record.end.map(|(_, end)| end) == end;
    until("the record is right", || look().as_ref().is_some_and(ended)).await;
    look().unwrap()
}

/// Another policy, whose only rule is at this line.
fn allow_by(lab: &Lab, line: u32) {
    for at in 0..2 {
        let ports = |from: usize| {
            let ports = "tcp/7000".parse::<Ports>().unwrap();
            (from == 0).then_some(Allowance { ports, line })
        };
        let (own, other) = (&lab.members[at], &lab.members[1 - at]);
        let rules = FilterPeer {
            v4: other.v4,
            v6: other.v6,
            inbound: ports(1 - at).into_iter().collect(),
            outbound: ports(at).into_iter().collect(),
        };
        lab.gates[at].set(Filter::new((own.v4, own.v6), [(other.key, rules)]));
        lab.node(at).refresh();
    }
}

#[tokio::test]
async fn a_flow_is_recorded_at_both_ends_with_its_rule_and_bytes() {
    let lab = Lab::new(2, &[(0, 1, "tcp/7000")], &[7000]).await;
    allow_by(&lab, 7);
    let service = lab.service(1, 7000).await;
    let mut caller = lab.flow(0, 1, 7000).await.unwrap();
    let (mut called, _) = in_time("a caller", service.accept()).await.unwrap();
    caller.write_all(b"question").await.unwrap();
    let mut asked = [0; 8];
    in_time("the question", called.read_exact(&mut asked))
        .await
        .unwrap();
    for (at, direction) in [(0, Direction::Outbound), (1, Direction::Inbound)] {
        let record = newest(&lab, at, None).await;
        assert_eq!(record.peer, lab.members[1 - at].key);
        assert_eq!((record.direction, record.line), (direction, 7));
        assert_eq!(record.flow.destination_port, 7000);
        assert_eq!(record.flow.destination, lab.members[1].v4);
        let port = caller.local_addr().unwrap().port();
        assert_eq!(record.flow.source_port, if at == 0 { port } else { 0 });
    }
    // A rule that moved is told where it is.
    allow_by(&lab, 9);
    until("the other line", || {
        lab.node(0).records(0).records[0].line == 9
    })
    .await;
    called.write_all(b"an answer").await.unwrap();
    drop(called);
    assert_eq!(rest(&mut caller).await.unwrap(), b"an answer");
    drop(caller);
    for (at, [sent, received]) in [(0, [8, 9]), (1, [9, 8])] {
        let record = newest(&lab, at, Some(End::Closed)).await;
        assert_eq!((record.sent.bytes, record.received.bytes), (sent, received));
        let news = lab.node(at).records(record.number);
        assert_eq!(news.records, [record]);
        assert_eq!(lab.node(at).records(news.cursor).records, []);
    }

    // One that breaks off, and one that is forbidden.
    let caller = lab.flow(0, 1, 7000).await.unwrap();
    let (called, _) = in_time("a caller", service.accept()).await.unwrap();
    rustix::net::sockopt::set_socket_linger(&caller, Some(Duration::ZERO)).unwrap();
    drop(caller);
    for at in 0..2 {
        newest(&lab, at, Some(End::Reset)).await;
    }
    drop(called);
    let caller = lab.flow(0, 1, 7000).await.unwrap();
    lab.allow(&[]);
    for at in 0..2 {
        lab.node(at).refresh();
    }
    // Who hears of it later may see it break off.
    until("a forbidden flow", || {
        (0..2).any(|at| {
            let records = lab.node(at).records(0).records;
            records[0].end.is_some_and(|(_, end)| end == End::Policy)
        })
    })
    .await;
    drop(caller);
    lab.stop().await;
}
