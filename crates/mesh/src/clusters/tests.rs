//! Overlaps, offers, and packets.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::machine::{conflict, parse};
use super::overlap::list;
use super::*;
use crate::offload::checksum::Sum;
use crate::packet::{Addresses, addresses};

fn range(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn cluster(name: &str, line: usize, ranges: &[(&str, &str)]) -> Cluster {
    let ranges = ranges.iter().map(|(inside, outside)| Range {
        inside: range(inside),
        outside: range(outside),
    });
    Cluster {
        name: name.to_owned(),
        line,
        ranges: ranges.collect(),
    }
}

fn plain(name: &str, inside: &str) -> Cluster {
    cluster(name, 1, &[(inside, inside)])
}

/// What is found, a line each.
fn check(clusters: &[Cluster], expected: &[&str]) {
    let found: Vec<_> = overlaps(clusters).iter().map(Overlap::cause).collect();
    assert_eq!(found, expected);
}

#[test]
fn who_comes_later_gives_way_and_is_offered_a_free_range() {
    let clusters = [
        plain("paris", "10.42.0.0/16"),
        plain("lyon", "10.42.0.0/16"),
    ];
    check(
        &clusters,
        &["10.42.0.0/16 of cluster \"lyon\" overlaps with 10.42.0.0/16 of cluster \"paris\""],
    );
    let found = overlaps(&clusters).remove(0);
    let offer = found.offer.clone().unwrap();
    assert_eq!(offer[0].length(), 16);
    assert_eq!(
        found.remedy(),
        format!(
            "reach it at other addresses, one to one: in [clusters.lyon] write as = {}",
            list(&offer)
        )
    );
    let offer = offer[0].to_string();
    let taken = cluster("lyon", 1, &[("10.42.0.0/16", &offer)]);
    check(&[clusters[0].clone(), taken], &[]);
}

#[test]
fn ranges_nest_touch_and_are_apart() {
    check(&[plain("a", "10.0.0.0/15"), plain("b", "10.2.0.0/16")], &[]);
    check(
        &[plain("a", "10.1.2.0/24"), plain("b", "10.0.0.0/8")],
        &["10.0.0.0/8 of cluster \"b\" overlaps with 10.1.2.0/24 of cluster \"a\""],
    );
    check(
        &[plain("a", "10.0.0.0/8"), plain("b", "10.1.2.0/24")],
        &["10.1.2.0/24 of cluster \"b\" overlaps with 10.0.0.0/8 of cluster \"a\""],
    );
    check(
        &[cluster(
            "a",
            1,
            &[
                ("10.1.0.0/16", "10.1.0.0/16"),
                ("10.1.9.0/24", "10.1.9.0/24"),
            ],
        )],
        &["10.1.9.0/24 of cluster \"a\" overlaps with 10.1.0.0/16 of cluster \"a\""],
    );
    // The same inside is no trouble where the outside is not.
    check(
        &[
            plain("a", "10.1.0.0/16"),
            cluster("b", 1, &[("10.1.0.0/16", "10.9.0.0/16")]),
        ],
        &[],
    );
}

#[test]
fn what_is_the_meshs_or_nobodys_is_refused() {
    for (inside, what) in [
        ("100.64.0.0/16", "100.64.0.0/10 of the mesh's own addresses"),
        ("100.0.0.0/8", "100.64.0.0/10 of the mesh's own addresses"),
        ("127.0.0.0/8", "127.0.0.0/8 of loopback addresses"),
        ("224.1.0.0/16", "224.0.0.0/4 of multicast addresses"),
        (
            "192.0.0.8/32",
            "192.0.0.0/24 of addresses of protocols (RFC 6890)",
        ),
    ] {
        let found = overlaps(&[plain("a", inside)]);
        let cause = format!("{inside} of cluster \"a\" overlaps with {what}");
        assert_eq!(found[0].cause(), cause);
        assert!(found[0].offer.is_some(), "{inside}");
    }
    // Four of eight bits are not to be had in private ranges twice.
    let found = overlaps(&[plain("a", "10.0.0.0/8"), plain("b", "10.0.0.0/8")]);
    assert_eq!(found[0].offer, None);
    assert!(found[0].remedy().contains("smaller"));
}

#[test]
fn routes_are_read_as_the_kernel_writes_them() {
    let text = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
        eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
        eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
        atoll0\t00004064\t00000000\t0001\t0\t0\t0\t0000C0FF\t0\t0\t0\n\
        vpn\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0\n\
        off\t00000B0A\t00000000\t0000\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
        spoilt\tzz\n";
    // Numbers are as this machine has them.
    if cfg!(target_endian = "big") {
        return;
    }
    let routes = parse(text);
    let shown: Vec<_> = routes
        .iter()
        .map(|route| format!("{} {}", route.range, route.interface))
        .collect();
    assert_eq!(
        shown,
        [
            "0.0.0.0/0 eth0",
            "192.0.2.0/24 eth0",
            "100.64.0.0/10 atoll0",
            "10.0.0.0/8 vpn"
        ]
    );
    for (asked, by) in [
        ("10.42.0.0/16", Some("vpn")),
        ("8.0.0.0/6", Some("vpn")),
        ("192.0.2.7/32", Some("eth0")),
        ("172.16.0.0/12", None),
    ] {
        let found = conflict(range(asked), &routes).map(|route| &*route.interface);
        assert_eq!(found, by, "{asked}");
    }
    assert!(conflict(range("fd00::/48"), &routes).is_none());
}

/// Few distinct ranges, so that they collide.
fn some_cluster() -> impl Strategy<Value = Cluster> {
    let one = (0u32..6, 0u32..8, 14u8..=26).prop_map(|(pool, at, length)| {
        let base = [
            0x0a00_0000,
            0x0ac0_0000,
            0x0a80_0000,
            0xac10_0000,
            0xc0a8_0000,
            0x6440_0000,
        ];
        let first = base[pool as usize] + (at << 14);
        let inside = range_at(first, length);
        Range {
            inside,
            outside: inside,
        }
    });
    ("[a-h]{1,3}", proptest::collection::vec(one, 1..4)).prop_map(|(name, ranges)| Cluster {
        name,
        line: 1,
        ranges,
    })
}

fn some_clusters() -> impl Strategy<Value = Vec<Cluster>> {
    proptest::collection::vec(some_cluster(), 1..12).prop_map(|clusters| {
        let mut names = BTreeSet::new();
        let mut clusters = clusters;
        clusters.retain(|cluster| names.insert(cluster.name.clone()));
        clusters
    })
}

/// Takes every offer.
fn repaired(clusters: &[Cluster]) -> Vec<Cluster> {
    let found = overlaps(clusters);
    let mut repaired = clusters.to_vec();
    for overlap in found {
        let cluster = repaired
            .iter_mut()
            .find(|cluster| cluster.name == overlap.cluster)
            .unwrap();
        for (range, outside) in cluster.ranges.iter_mut().zip(overlap.offer.unwrap()) {
            range.outside = outside;
        }
    }
    repaired
}

fn apart(one: Prefix, other: Prefix) -> bool {
    let ((a, b), (c, d)) = (bounds(one).unwrap(), bounds(other).unwrap());
    b < c || d < a
}

proptest! {
    /// Taking what is offered leaves nothing that overlaps, sizes stay, and nobody who was in order is moved.
    #[test]
    fn offers_make_it_right(clusters in some_clusters()) {
        let blamed: BTreeSet<_> = overlaps(&clusters).into_iter().map(|o| o.cluster).collect();
        let repaired = repaired(&clusters);
        prop_assert_eq!(overlaps(&repaired), []);
        let all: Vec<_> = repaired.iter().flat_map(|cluster| &cluster.ranges).collect();
        for (at, one) in all.iter().enumerate() {
            prop_assert_eq!(one.inside.length(), one.outside.length());
            for other in &all[at + 1..] {
                prop_assert!(apart(one.outside, other.outside));
            }
        }
        for (before, after) in clusters.iter().zip(&repaired) {
            if !blamed.contains(&before.name) {
                prop_assert_eq!(before, after);
            }
        }
    }

    /// A cluster that is added at the end changes nothing of the others, neither what they have nor, if it stays away from that, what they are offered.
    #[test]
    fn another_cluster_changes_no_other(clusters in some_clusters(), more in some_cluster()) {
        prop_assume!(clusters.iter().all(|cluster| cluster.name != more.name));
        let before = repaired(&clusters);
        let mut all = before.clone();
        all.push(more.clone());
        prop_assert_eq!(&repaired(&all)[..before.len()], &before[..]);
        let away = more.ranges.iter().all(|range| {
            before.iter().flat_map(|cluster| &cluster.ranges).all(|other| apart(range.outside, other.outside))
        });
        if away {
            let mut fresh = clusters.clone();
            fresh.push(more);
            let offers = |clusters: &[Cluster]| -> Vec<_> {
                overlaps(clusters).into_iter().map(|overlap| (overlap.cluster, overlap.offer)).collect()
            };
            let (old, new) = (offers(&clusters), offers(&fresh));
            prop_assert_eq!(&new[..old.len()], &old[..]);
        }
    }
}

const CLIENT: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 7);
const POD: Ipv4Addr = Ipv4Addr::new(10, 42, 3, 4);
const SEEN: Ipv4Addr = Ipv4Addr::new(10, 200, 3, 4);

fn translation() -> Translation {
    Translation::new(&[
        Range {
            inside: range("10.43.0.0/16"),
            outside: range("10.43.0.0/16"),
        },
        Range {
            inside: range("10.42.0.0/16"),
            outside: range("10.200.0.0/16"),
        },
    ])
}

fn sum(body: &[u8]) -> u16 {
    Sum::default().bytes(body).finish()
}

/// A whole packet with right checksums. `options` are words behind the header.
fn packet(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    options: usize,
    mut body: Vec<u8>,
) -> Vec<u8> {
    let length = 20 + options * 4;
    let mut packet = vec![0; length];
    packet[0] = 0x40 | (length / 4) as u8;
    packet[2..4].copy_from_slice(&((length + body.len()) as u16).to_be_bytes());
    packet[8] = 64;
    packet[9] = protocol;
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&destination.octets());
    packet[20..length].fill(1);
    let check = sum(&packet).to_be_bytes();
    packet[10..12].copy_from_slice(&check);
    let found = addresses(&packet).unwrap();
    let at = match protocol {
        6 => 16,
        17 => 6,
        _ => 2,
    };
    body[at..at + 2].fill(0);
    let check = body_sum(&found, protocol, &body);
    body[at..at + 2].copy_from_slice(&check.to_be_bytes());
    packet.extend(body);
    packet
}

fn body_sum(found: &Addresses, protocol: u8, body: &[u8]) -> u16 {
    if protocol == 1 {
        return sum(body);
    }
    let all = Sum::default().pseudo_header(found, protocol, body.len());
    match all.bytes(body).finish() {
        0 if protocol == 17 => 0xffff,
        sum => sum,
    }
}

fn body(protocol: u8, more: &[u8]) -> Vec<u8> {
    let mut body = vec![0; if protocol == 6 { 20 } else { 8 }];
    body[0..4].copy_from_slice(&[0x1f, 0x90, 0x15, 0x38]);
    if protocol == 6 {
        body[12] = 0x50;
    }
    if protocol == 1 {
        body[0] = 8;
    }
    body.extend(more);
    body
}

fn inward(mut packet: Vec<u8>) -> Vec<u8> {
    translation().inward(&mut packet);
    packet
}

fn outward(mut packet: Vec<u8>) -> Vec<u8> {
    translation().outward(&mut packet, false);
    packet
}

proptest! {
    /// What comes out is what would have been made for the other addresses in the first place.
    #[test]
    fn packets_are_as_if_made_so(
        protocol in prop_oneof![Just(1u8), Just(6), Just(17)],
        options in 0usize..4,
        more in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let made = |from, to| packet(from, to, protocol, options, body(protocol, &more));
        prop_assert_eq!(inward(made(CLIENT, SEEN)), made(CLIENT, POD));
        prop_assert_eq!(outward(made(POD, CLIENT)), made(SEEN, CLIENT));
        // What is not the cluster's stays as it is.
        for other in [made(CLIENT, Ipv4Addr::new(10, 43, 0, 1)), made(CLIENT, POD), made(SEEN, CLIENT)] {
            prop_assert_eq!(inward(other.clone()), other);
        }
    }

    /// So does what errors quote, however little that is, but for half of a checksum.
    #[test]
    fn quotes_are_as_if_made_so(
        protocol in prop_oneof![Just(1u8), Just(6), Just(17)],
        kept in (10usize..30).prop_map(|words| words * 2),
        more in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let error = |from: Ipv4Addr, to: Ipv4Addr, about: (Ipv4Addr, Ipv4Addr)| {
            let mut quoted = packet(about.0, about.1, protocol, 0, body(protocol, &more));
            quoted.truncate(kept);
            let mut body = vec![3, 1, 0, 0, 0, 0, 0, 0];
            body.extend(quoted);
            packet(from, to, 1, 0, body)
        };
        prop_assert_eq!(
            outward(error(POD, CLIENT, (CLIENT, POD))),
            error(SEEN, CLIENT, (CLIENT, SEEN))
        );
        prop_assert_eq!(
            inward(error(CLIENT, SEEN, (SEEN, CLIENT))),
            error(CLIENT, POD, (POD, CLIENT))
        );
        // The gateway itself says that a pod is not there.
        let gateway = Ipv4Addr::new(100, 64, 0, 1);
        prop_assert_eq!(
            outward(error(gateway, CLIENT, (CLIENT, POD))),
            error(gateway, CLIENT, (CLIENT, SEEN))
        );
    }

    /// Nothing that comes makes it fail, and lengths stay.
    #[test]
    fn anything_may_come(bytes in proptest::collection::vec(any::<u8>(), 0..120), first in 0x40u8..0x50) {
        let mut packet = bytes;
        if let Some(byte) = packet.first_mut() {
            *byte = first;
        }
        if let Some(place) = packet.get_mut(12..16) {
            place.copy_from_slice(&POD.octets());
        }
        let length = packet.len();
        for partial in [false, true] {
            translation().outward(&mut packet, partial);
            translation().inward(&mut packet);
        }
        prop_assert_eq!(packet.len(), length);
    }
}

#[test]
fn a_sum_that_is_still_to_be_made_stays_one() {
    let mut before = packet(POD, CLIENT, 17, 0, body(17, b"hello"));
    let after = packet(SEEN, CLIENT, 17, 0, body(17, b"hello"));
    let partial = |packet: &[u8]| {
        Sum::default()
            .pseudo_header(&addresses(packet).unwrap(), 17, packet.len() - 20)
            .partial()
            .to_be_bytes()
    };
    let field = partial(&before);
    before[26..28].copy_from_slice(&field);
    translation().outward(&mut before, true);
    assert_eq!(before[26..28], partial(&after));
    assert_eq!(before[..20], after[..20]);
}

#[test]
fn pieces_and_datagrams_without_a_sum_are_left_alone() {
    let mut none = packet(POD, CLIENT, 17, 0, body(17, b"hello"));
    none[26..28].fill(0);
    assert_eq!(outward(none.clone())[26..28], [0, 0]);
    // A later piece has no header of UDP.
    none[7] = 4;
    none[26..28].copy_from_slice(&[7, 7]);
    assert_eq!(outward(none)[26..28], [7, 7]);
    assert_eq!(translation().inward_address(SEEN), Some(POD));
    assert_eq!(translation().inward_address(POD), None);
    assert!(Translation::new(&[]).is_empty());
    assert!(IpAddr::from(POD).is_ipv4());
}
