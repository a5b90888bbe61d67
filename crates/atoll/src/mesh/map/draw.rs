//! From a status to a picture: a pure function. This node is in the middle, the others stand in two columns, so that cards never meet and what is written on a
//! line stands at its end, beside the card that it is about.

use crate::mesh::status::milliseconds;
use mesh::node::{NodeStatus, PeerSummary};
use std::fmt::Write;

const WIDTH: u32 = 1100;
const CARD: u32 = 250;
const CARD_HEIGHT: u32 = 58;
const ROW: u32 = 74;
const MARGIN: u32 = 20;
const TOP: u32 = 64;
const OWN: u32 = 230;
const OWN_LINE: u32 = 17;
/// Letters that fit on a card, of each size.
const NAME: usize = 22;
const SMALL: usize = 38;
const OWN_SMALL: usize = 34;
/// The most lines that are told of this node's relays, services and clusters.
const MOST: usize = 12;

/// Colours are written out, as some that show pictures know no variables.
const STYLE: &str = "<style>\
text{fill:#102027;font:12px system-ui,sans-serif}.b{font-weight:600;font-size:14px}.h{font-weight:600;font-size:17px}.s{fill:#546e7a}\
.paper{fill:#fff}.card{fill:#f4f7f9;stroke:#90a4ae}.own{fill:#e3f2fd;stroke:#90a4ae}.away{opacity:.55}\
path,line{fill:none;stroke-width:2}.direct{stroke:#1b7f3b}.relayed{stroke:#b26a00;stroke-dasharray:9 5}.idle{stroke:#78909c;stroke-dasharray:2 5}.lost{stroke:#c62828;stroke-dasharray:4 4}\
text.lost{fill:#c62828;stroke:none}\
@media(prefers-color-scheme:dark){text{fill:#eceff1}.s{fill:#a7b8c2}.paper{fill:#12181c}.card{fill:#1d262c;stroke:#546e7a}.own{fill:#10334a;stroke:#546e7a}\
.direct{stroke:#66d08a}.relayed{stroke:#ffb74d}.idle{stroke:#90a4ae}.lost{stroke:#ff7b72}text.lost{fill:#ff7b72}}\
</style>";

/// How a node is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Direct,
    Relayed,
    Idle,
    Lost,
    Forbidden,
}

impl Way {
    fn of(peer: &PeerSummary) -> Self {
        match peer {
            PeerSummary { allowed: false, .. } => Self::Forbidden,
            PeerSummary {
                unreachable: Some(_),
                ..
            } => Self::Lost,
            PeerSummary { way: None, .. } => Self::Idle,
            PeerSummary { relay: Some(_), .. } => Self::Relayed,
            _ => Self::Direct,
        }
    }

    const fn class(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relayed => "relayed",
            Self::Idle => "idle",
            Self::Lost => "lost",
            Self::Forbidden => "away",
        }
    }
}

/// Text that is text and nothing else, wherever it stands. Names are others' words: what would turn or hide what stands beside it is shown as a mark.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::new();
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // Control characters, and those that direct text or have no width; and what XML forbids.
            c if c.is_control()
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}') =>
            {
                safe.push('\u{fffd}');
            }
            c => safe.push(c),
        }
    }
    safe
}

/// At most so many letters.
fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(most.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

fn text(svg: &mut String, x: u32, y: u32, class: &str, anchor: &str, words: &str) {
    let words = escape(words);
    let _ = writeln!(
        svg,
        "<text x=\"{x}\" y=\"{y}\" class=\"{class}\" text-anchor=\"{anchor}\">{words}</text>"
    );
}

fn mode(peer: &PeerSummary) -> &'static str {
    if peer.mode.is_tun() {
        "device"
    } else {
        "no device"
    }
}

/// What is known of a node, for its card's second and third line.
fn facts(status: &NodeStatus, peer: &PeerSummary) -> [String; 2] {
    let address = peer.addresses.first().map(ToString::to_string);
    let tags = peer.tags.iter().map(|tag| format!("tag:{tag}"));
    let first: Vec<_> = address.into_iter().chain(tags).collect();
    let mut second = Vec::new();
    if peer.relays {
        second.push("relay".to_owned());
    }
    if !peer.services.is_empty() {
        second.push(format!("gives {}", peer.services.join(", ")));
    }
    let led = status.clusters.iter();
    let led: Vec<_> = led
        .filter(|cluster| cluster.gateways.contains(&peer.name))
        .map(|cluster| cluster.name.as_str())
        .collect();
    if !led.is_empty() {
        second.push(format!("leads to {}", led.join(", ")));
    }
    [first.join(" "), second.join("; ")]
}

/// What is written above and below the line to a node.
fn labels(peer: &PeerSummary, way: Way) -> [String; 2] {
    let time = peer.round_trip_us.map(milliseconds);
    let relay = peer.relay.as_deref().unwrap_or_default();
    match way {
        Way::Direct => [time.unwrap_or_else(|| "direct".to_owned()), String::new()],
        Way::Relayed => [time.unwrap_or_default(), format!("over {}", cut(relay, 9))],
        Way::Idle => ["idle".to_owned(), String::new()],
        Way::Lost => ["not reached".to_owned(), String::new()],
        Way::Forbidden => [String::new(), String::new()],
    }
}

/// All that is known, for who points at a card, escaped.
fn tooltip(peer: &PeerSummary, way: Way, facts: &[String; 2]) -> String {
    let mut lines = vec![peer.name.clone(), facts[0].clone()];
    if !facts[1].is_empty() {
        lines.push(facts[1].clone());
    }
    lines.push(format!("mode {}", peer.mode));
    lines.push(match way {
        Way::Forbidden => "no rule lets anything pass".to_owned(),
        Way::Lost => peer.unreachable.clone().unwrap_or_default(),
        Way::Idle => "may be spoken to; nothing was said yet".to_owned(),
        Way::Direct => match peer.endpoint {
            Some(at) => format!("direct, at {at}"),
            None => "direct".to_owned(),
        },
        Way::Relayed => format!(
            "over the relay {}",
            peer.relay.as_deref().unwrap_or_default()
        ),
    });
    if matches!(way, Way::Direct | Way::Relayed) {
        lines.push(format!(
            "{} bytes received, {} sent",
            peer.received, peer.sent
        ));
    }
    let lines: Vec<_> = lines.iter().map(|line| escape(line)).collect();
    lines.join("\n")
}

/// The lines on this node's card.
fn own(status: &NodeStatus) -> Vec<(String, &'static str)> {
    let mut lines = Vec::new();
    let addresses = status.addresses.first().map(ToString::to_string);
    let tags = status.tags.iter().map(|tag| format!("tag:{tag}"));
    let facts: Vec<_> = addresses.into_iter().chain(tags).collect();
    lines.push((facts.join(" "), "s"));
    lines.push((
        match status.mode.is_tun() {
            true => "with a device",
            false => "without a device",
        }
        .to_owned(),
        "s",
    ));
    if status.connected {
        lines.push(("the coordinator answers".to_owned(), "s"));
    } else {
        lines.push(("the coordinator does not answer".to_owned(), "lost"));
    }
    for (name, ready) in &status.services {
        let class = if *ready { "s" } else { "lost" };
        let ready = if *ready { "ready" } else { "not ready" };
        lines.push((format!("service {name}: {ready}"), class));
    }
    for relay in &status.relays {
        let (over, class) = match (relay.udp, relay.tls) {
            (true, _) => ("udp", "s"),
            (false, true) => ("tls", "s"),
            (false, false) => ("away", "lost"),
        };
        let time = relay.round_trip_us.map(milliseconds).unwrap_or_default();
        lines.push((format!("relay {}: {over} {time}", relay.name), class));
    }
    for cluster in &status.clusters {
        let (how, class) = match (&cluster.by, cluster.here) {
            (_, true) => ("behind this node".to_owned(), "s"),
            (Some(by), _) => (format!("by {by}"), "s"),
            (None, _) if !cluster.allowed => ("no rule".to_owned(), "s"),
            (None, _) => ("not reached".to_owned(), "lost"),
        };
        lines.push((format!("cluster {}: {how}", cluster.name), class));
    }
    let more = lines.len().saturating_sub(MOST);
    if more > 0 {
        lines.truncate(MOST - 1);
        lines.push((format!("and {} more", more + 1), "s"));
    }
    lines
}

/// The picture.
pub(super) fn picture(status: &NodeStatus) -> String {
    let mut peers: Vec<_> = status.peers.iter().collect();
    // Those who belong together stand together, and who is not spoken to last.
    peers.sort_by_key(|peer| (!peer.allowed, &peer.tags, &peer.name));
    let rows = u32::try_from(peers.len().div_ceil(2)).unwrap_or(u32::MAX / ROW / 2);
    let lines = own(status);
    let own_height = 44 + OWN_LINE * u32::try_from(lines.len()).unwrap_or(0);
    let body = (rows * ROW).max(own_height + 2 * MARGIN);
    let height = TOP + body + 56;
    let middle = TOP + body / 2;
    let mut svg = String::new();
    let _ = writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\">"
    );
    let title = format!("The mesh {} as {} sees it", status.domain, status.name);
    let _ = writeln!(svg, "<title>{}</title>\n{STYLE}", escape(&title));
    let _ = writeln!(
        svg,
        "<rect class=\"paper\" width=\"{WIDTH}\" height=\"{height}\"/>"
    );
    text(&mut svg, MARGIN, 38, "h", "start", &cut(&title, 90));
    let start = TOP + (body - rows * ROW) / 2;
    let places: Vec<_> = peers
        .iter()
        .zip(0_u32..)
        .map(|(peer, at)| {
            let left = at < rows;
            let y = start + (if left { at } else { at - rows }) * ROW;
            (*peer, Way::of(peer), left, y)
        })
        .collect();
    // Lines lie under cards.
    for (peer, way, left, y) in &places {
        line(&mut svg, peer, *way, *left, y + CARD_HEIGHT / 2, middle);
    }
    for (peer, way, left, y) in &places {
        card(&mut svg, status, peer, *way, (*left, *y));
    }
    centre(
        &mut svg,
        status,
        &lines,
        middle - own_height / 2,
        own_height,
    );
    legend(
        &mut svg,
        &places.iter().map(|place| place.1).collect::<Vec<_>>(),
        height - 24,
    );
    svg.push_str("</svg>\n");
    svg
}

fn line(svg: &mut String, peer: &PeerSummary, way: Way, left: bool, y: u32, middle: u32) {
    if way == Way::Forbidden {
        return;
    }
    let (from, to, words, anchor) = if left {
        ((WIDTH - OWN) / 2, MARGIN + CARD, MARGIN + CARD + 8, "start")
    } else {
        let to = WIDTH - MARGIN - CARD;
        ((WIDTH + OWN) / 2, to, to - 8, "end")
    };
    // The last part is straight, for what is written on it.
    let straight = if left { to + 90 } else { to - 90 };
    let bend = from.midpoint(straight);
    let class = way.class();
    let _ = writeln!(
        svg,
        "<path class=\"{class}\" d=\"M{from} {middle}C{bend} {middle} {bend} {y} {straight} {y}H{to}\"/>"
    );
    let class = if way == Way::Lost { "lost" } else { "s" };
    for (words_y, label) in [y - 6, y + 15].into_iter().zip(labels(peer, way)) {
        if !label.is_empty() {
            text(svg, words, words_y, class, anchor, &label);
        }
    }
}

fn card(svg: &mut String, status: &NodeStatus, peer: &PeerSummary, way: Way, at: (bool, u32)) {
    let (left, y) = at;
    let x = if left { MARGIN } else { WIDTH - MARGIN - CARD };
    let facts = facts(status, peer);
    let class = if way == Way::Forbidden {
        " class=\"away\""
    } else {
        ""
    };
    let lost = if way == Way::Lost { " lost" } else { "" };
    let tooltip = tooltip(peer, way, &facts);
    let _ = writeln!(
        svg,
        "<g{class}><title>{tooltip}</title>\n<rect class=\"card{lost}\" x=\"{x}\" y=\"{y}\" width=\"{CARD}\" height=\"{CARD_HEIGHT}\" rx=\"8\"/>"
    );
    text(svg, x + 10, y + 19, "b", "start", &cut(&peer.name, NAME));
    text(svg, x + CARD - 10, y + 19, "s", "end", mode(peer));
    text(svg, x + 10, y + 35, "s", "start", &cut(&facts[0], SMALL));
    let third = match way {
        Way::Forbidden if facts[1].is_empty() => "no rule",
        _ => &facts[1],
    };
    if !third.is_empty() {
        text(svg, x + 10, y + 50, "s", "start", &cut(third, SMALL));
    }
    svg.push_str("</g>\n");
}

fn centre(svg: &mut String, status: &NodeStatus, lines: &[(String, &str)], y: u32, height: u32) {
    let x = (WIDTH - OWN) / 2;
    let all: Vec<_> = lines.iter().map(|(line, _)| escape(line)).collect();
    let _ = writeln!(
        svg,
        "<g><title>{}\n{}</title>\n<rect class=\"own\" x=\"{x}\" y=\"{y}\" width=\"{OWN}\" height=\"{height}\" rx=\"10\"/>",
        escape(&status.name),
        all.join("\n")
    );
    text(
        svg,
        x + OWN / 2,
        y + 26,
        "b",
        "middle",
        &cut(&status.name, NAME),
    );
    for ((line, class), at) in lines.iter().zip(0_u32..) {
        let y = y + 46 + at * OWN_LINE;
        text(svg, x + OWN / 2, y, class, "middle", &cut(line, OWN_SMALL));
    }
    svg.push_str("</g>\n");
}

/// What the lines mean, and how many there are of each.
fn legend(svg: &mut String, ways: &[Way], y: u32) {
    let mut x = MARGIN;
    for (way, words) in [
        (Way::Direct, "direct"),
        (Way::Relayed, "over a relay"),
        (Way::Idle, "allowed, idle"),
        (Way::Lost, "not reached"),
        (Way::Forbidden, "no rule"),
    ] {
        let count = ways.iter().filter(|each| **each == way).count();
        let words = format!("{words}: {count}");
        if way != Way::Forbidden {
            let (class, end, y) = (way.class(), x + 40, y - 4);
            let _ = writeln!(
                svg,
                "<line class=\"{class}\" x1=\"{x}\" y1=\"{y}\" x2=\"{end}\" y2=\"{y}\"/>"
            );
            x += 48;
        }
        text(svg, x, y, "s", "start", &words);
        x += 130;
    }
}
