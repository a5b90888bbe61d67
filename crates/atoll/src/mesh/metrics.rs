//! `atoll mesh status --metrics`: what the node counts, in Prometheus' text format.

use mesh::node::NodeStatus;
use std::fmt::{Display, Write as _};

/// A label's value as the format wants it.
fn quoted(value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"");
    value.replace('\n', "\\n")
}

struct Text(String);

impl Text {
    /// A metric with its values, each under some labels.
    fn metric<'a, V: Display>(
        &mut self,
        (name, kind, help): (&str, &str, &str),
        values: impl IntoIterator<Item = (Vec<(&'a str, &'a str)>, V)>,
    ) {
        // Writing to a string does not fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (labels, value) in values {
            let labels = labels.iter();
            let labels = labels.map(|(label, value)| format!("{label}=\"{}\"", quoted(value)));
            let labels: Vec<_> = labels.collect();
            let labels = match labels.is_empty() {
                true => String::new(),
                false => format!("{{{}}}", labels.join(",")),
            };
            let _ = writeln!(self.0, "{name}{labels} {value}");
        }
    }
}

/// All of it.
pub(super) fn text(status: &NodeStatus) -> String {
    let mut text = Text(String::new());
    let counted = |yes: bool| u64::from(yes);
    text.metric(
        (
            "atoll_mesh_connected",
            "gauge",
            "Whether the coordinator answers.",
        ),
        [(vec![], counted(status.connected))],
    );
    let allowed = status.peers.iter().filter(|peer| peer.allowed).count();
    text.metric(
        (
            "atoll_mesh_peers",
            "gauge",
            "Other nodes, by whether policy lets anything pass.",
        ),
        [
            (vec![("allowed", "true")], allowed),
            (vec![("allowed", "false")], status.peers.len() - allowed),
        ],
    );
    let bytes = status.peers.iter().flat_map(|peer| {
        let labels = |direction| vec![("peer", &*peer.name), ("direction", direction)];
        [
            (labels("received"), peer.received),
            (labels("sent"), peer.sent),
        ]
    });
    text.metric(
        (
            "atoll_mesh_peer_bytes_total",
            "counter",
            "Bytes carried between this node and another.",
        ),
        bytes,
    );
    let times = status.peers.iter().filter_map(|peer| {
        let micros = peer.round_trip_us?;
        let seconds = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
        Some((vec![("peer", &*peer.name)], seconds))
    });
    text.metric(
        (
            "atoll_mesh_peer_round_trip_seconds",
            "gauge",
            "Time of a round trip, where it was measured lately.",
        ),
        times,
    );
    text.metric(
        (
            "atoll_mesh_flows_running",
            "gauge",
            "Flows without a tunnel that run.",
        ),
        [(vec![], status.flows)],
    );
    text.metric(
        (
            "atoll_mesh_flows_begun_total",
            "counter",
            "Flows that began, by what carries them.",
        ),
        [
            (vec![("way", "tunnel")], status.begun_in_tunnels),
            (vec![("way", "flows")], status.begun),
        ],
    );
    text.metric(
        (
            "atoll_mesh_flows_refused_total",
            "counter",
            "Flows without a tunnel that were refused.",
        ),
        [(vec![], status.refused)],
    );
    text.metric(
        (
            "atoll_mesh_packets_denied_total",
            "counter",
            "Packets that policy held back.",
        ),
        [
            (vec![("direction", "inbound")], status.denied_inbound),
            (vec![("direction", "outbound")], status.denied_outbound),
        ],
    );
    let relays = status.relays.iter().flat_map(|relay| {
        let labels = |over| vec![("relay", &*relay.name), ("over", over)];
        [
            (labels("udp"), counted(relay.udp)),
            (labels("tls"), counted(relay.tls)),
        ]
    });
    text.metric(
        (
            "atoll_mesh_relay_registered",
            "gauge",
            "Whether this node is registered with a relay.",
        ),
        relays,
    );
    text.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_told_as_prometheus_reads_them() {
        let mut text = Text(String::new());
        text.metric(
            ("some_total", "counter", "Some."),
            [(vec![], 1), (vec![("peer", "a\"b\\c\nd"), ("way", "x")], 2)],
        );
        let told = "# HELP some_total Some.\n# TYPE some_total counter\nsome_total 1\n\
                    some_total{peer=\"a\\\"b\\\\c\\nd\",way=\"x\"} 2\n";
        assert_eq!(text.0, told);
    }
}
