//! Pictures of meshes small, large and hostile.

use super::draw::{escape, picture};
use mesh::node::NodeStatus;
use serde_json::{Value, json};

fn peer(name: &str, more: &Value) -> Value {
    let mut peer = json!({
        "name": name,
        "addresses": ["100.64.0.9", "fd00::9"],
        "tags": ["db"],
        "mode": "tun",
        "allowed": true,
        "way": "tunnel",
        "endpoint": "192.0.2.9:51820",
        "round_trip_us": 1240,
        "handshake_seconds": 7,
        "received": 1000,
        "sent": 2000,
    });
    let both = peer.as_object_mut().zip(more.as_object());
    if let Some((peer, more)) = both {
        peer.extend(more.clone());
    }
    peer
}

fn status(peers: &[Value]) -> NodeStatus {
    let status = json!({
        "name": "web-1",
        "domain": "mesh.internal",
        "addresses": ["100.64.0.2", "fd00::2"],
        "tags": ["web"],
        "mode": "tun",
        "home": "100.64.0.2",
        "interface": "atoll0",
        "port": 51820,
        "flows_port": 51821,
        "dns": [],
        "proxies": [],
        "doors": [],
        "stuck": [],
        "cursor": 7,
        "connected": true,
        "since_ms": 0,
        "services": {"shop": true},
        "denied_outbound": 0,
        "denied_inbound": 0,
        "flows": 0,
        "refused": 0,
        "relays": [{"name": "relay-1", "udp": true, "tls": false, "seen": null, "round_trip_us": 3100}],
        "clusters": [{
            "name": "paris",
            "ranges": [["10.42.0.0/16", "10.247.0.0/16"]],
            "here": false,
            "gateways": ["paris-gw"],
            "by": "paris-gw",
            "allowed": true,
            "troubles": [],
        }],
        "peers": peers,
    });
    serde_json::from_value(status).unwrap()
}

fn few() -> Vec<Value> {
    let mut few = vec![
        peer("db-1", &json!({"services": ["db"]})),
        peer(
            "db-2",
            &json!({"relay": "relay-1", "endpoint": null, "round_trip_us": 23410, "services": ["db"]}),
        ),
        peer(
            "paris-gw",
            &json!({"tags": ["paris-gw"], "round_trip_us": 9800}),
        ),
        peer(
            "relay-1",
            &json!({"tags": ["relay"], "mode": "userspace", "allowed": false, "way": null, "relays": true}),
        ),
        peer(
            "job-7",
            &json!({"tags": ["job"], "mode": "userspace", "way": null, "endpoint": null, "round_trip_us": null}),
        ),
        peer(
            "old-1",
            &json!({"tags": ["job"], "way": null, "unreachable": "it names no place where flows could reach it"}),
        ),
    ];
    for (number, peer) in (3..).zip(&mut few) {
        peer["addresses"] = json!([format!("100.64.0.{number}")]);
    }
    few
}

#[test]
fn a_small_mesh() {
    let picture = picture(&status(&few()));
    insta::assert_snapshot!(picture);
    // The one in the guide is this one.
    let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/pictures/map.svg");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(guide, &picture).unwrap();
    }
    assert_eq!(std::fs::read_to_string(guide).unwrap(), picture);
}

#[test]
fn a_node_alone() {
    insta::assert_snapshot!(picture(&status(&[])));
}

/// The number behind a word.
fn numbers(picture: &str, class: &str, attribute: &str) -> Vec<u32> {
    let rects = picture.lines().filter(|line| line.contains(class));
    let number = |line: &str| -> Option<u32> {
        let (_, rest) = line.split_once(&format!(" {attribute}=\""))?;
        rest.split_once('"')?.0.parse().ok()
    };
    rects.filter_map(number).collect()
}

#[test]
fn sixty_nodes_stand_apart_and_their_order_does_not_matter() {
    let mut peers: Vec<_> = (0..60)
        .map(|at| {
            let tag = ["api", "db", "job"][at % 3];
            peer(
                &format!("{tag}-{at}"),
                &json!({"tags": [tag], "allowed": at % 7 != 0}),
            )
        })
        .collect();
    let drawn = picture(&status(&peers));
    peers.reverse();
    assert_eq!(picture(&status(&peers)), drawn);
    let class = "<rect class=\"card";
    let (xs, ys) = (numbers(&drawn, class, "x"), numbers(&drawn, class, "y"));
    assert_eq!((xs.len(), ys.len()), (60, 60));
    let height = numbers(&drawn, "<svg", "height")[0];
    for (at, (x, y)) in xs.iter().zip(&ys).enumerate() {
        assert!(y + 58 < height - 30, "card {at}");
        for (other_x, other_y) in xs.iter().zip(&ys).take(at) {
            assert!(x != other_x || y.abs_diff(*other_y) > 58, "card {at}");
        }
    }
    assert_eq!(drawn.matches("<path class=\"direct\"").count(), 51);
    assert!(drawn.contains("no rule: 9"));
}

#[test]
fn names_are_text_and_nothing_else() {
    let names = [
        "</text><script>alert(1)</script>",
        "\"/><image href='http://192.0.2.1/'/>",
        "&lt;already&gt;&amp;",
        "]]><!--",
        "turned \u{202e}around\u{0} and\nbroken",
        &"long".repeat(100),
    ];
    for name in names {
        let peers = [peer(
            name,
            &json!({
                "tags": [name],
                "relay": name,
                "services": [name],
                "unreachable": null,
            }),
        )];
        let mut status = status(&peers);
        status.name = name.to_owned();
        status.domain = name.to_owned();
        status.services = [(name.to_owned(), false)].into();
        status.clusters[0].name = name.to_owned();
        status.relays[0].name = name.to_owned();
        let picture = picture(&status);
        // The same elements as with a name that is none of these.
        let plain = {
            let text = serde_json::to_string(&status).unwrap();
            let quoted = serde_json::to_string(name).unwrap();
            let plain = text.replace(&quoted, "\"plain\"");
            super::draw::picture(&serde_json::from_str(&plain).unwrap())
        };
        let elements = |picture: &str| picture.matches('<').count();
        assert_eq!(elements(&picture), elements(&plain), "{name:?}");
        assert!(!picture.contains("<script") && !picture.contains("<image"));
        assert!(!picture.contains('\u{202e}') && !picture.contains('\u{0}'));
        let visible = picture.lines().filter(|line| line.starts_with("<text"));
        assert!(visible.map(str::len).max() < Some(700), "{name:?}");
    }
    assert_eq!(escape("a<b&\"c'>"), "a&lt;b&amp;&quot;c&#39;&gt;");
}
