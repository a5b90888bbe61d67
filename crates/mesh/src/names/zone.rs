//! What the mesh's names mean: a pure function from question to answer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use simple_dns::rdata::{A, AAAA, NS, OPT, PTR, RData, SOA, SRV};
use simple_dns::{
    CLASS, Name, OPCODE, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, ResourceRecord, TYPE,
};

use crate::policy::{Policy, Subject};
use crate::prefix::Prefix;
use crate::userspace::loopback;

/// How long answers may be kept, in seconds: nodes come and go.
const LIFE: u32 = 2;
/// How long it may be kept that there is nothing.
const NEGATIVE_LIFE: u32 = 1;
/// What fits in a datagram without EDNS.
const SMALL: usize = 512;
/// What is sent at most in one: what no path cuts.
const LARGE: usize = 1232;
/// What stands before a service's name for all its nodes.
const ALL: &str = "all";
/// The most nodes of a service in an answer.
const MOST: usize = 64;

/// A node as names know it.
#[derive(Debug, Clone, Copy)]
pub struct ZoneNode<'a> {
    /// Its name and tags.
    pub subject: Subject<'a>,
    /// Its address.
    pub v4: Ipv4Addr,
    /// Its address.
    pub v6: Ipv6Addr,
    /// The loopback address that names lead to instead of these, where programs have to use that. There is none for IPv6.
    pub door: Option<Ipv4Addr>,
    /// The services that it says it is not ready to give.
    pub unready: &'a BTreeSet<String>,
}

/// What becomes of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// This is the answer.
    Reply(Vec<u8>),
    /// These servers know; those that were there before, if none are named.
    Forward(Vec<IpAddr>),
    /// It is no question.
    Silence,
}

impl ZoneNode<'_> {
    /// What its name leads to.
    fn addresses(&self) -> (Ipv4Addr, Option<Ipv6Addr>) {
        match self.door {
            Some(door) => (door, None),
            None => (self.v4, Some(self.v6)),
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Data {
    addresses: Vec<(Ipv4Addr, Option<Ipv6Addr>)>,
    /// Port and the name of the node.
    ports: Vec<(u16, String)>,
}

/// All names of the mesh at one moment.
#[derive(Debug, Clone)]
pub struct Zone {
    domain: String,
    names: HashMap<String, Data>,
    owners: HashMap<IpAddr, String>,
    ranges: Vec<Prefix>,
    split: Vec<(String, Vec<IpAddr>)>,
    serial: u32,
    services: BTreeSet<String>,
}

impl Zone {
    /// The names of these nodes and of the policy's services. A service's name is not a node's, whatever a node calls itself. Nodes that are
    /// not ready to give a service are left out of it, unless none is. Before the name of a service, `all` means its nodes whatever its own name leads to.
    pub fn new<'a>(policy: &Policy, nodes: &[ZoneNode<'a>], v6_range: Prefix, serial: u64) -> Self {
        let mut names: HashMap<String, Data> = HashMap::new();
        let mut owners = HashMap::new();
        for node in nodes {
            let Some(name) = node.subject.name else {
                continue;
            };
            owners.insert(IpAddr::V4(node.v4), name.to_owned());
            owners.insert(IpAddr::V6(node.v6), name.to_owned());
            if let Some(door) = loopback(node.v4) {
                owners.insert(IpAddr::V4(door), name.to_owned());
            }
            let data = names.entry(name.to_owned()).or_default();
            data.addresses.push(node.addresses());
        }
        for (name, service) in policy.services() {
            let members: Vec<_> = nodes
                .iter()
                .filter(|node| policy.serves(service, node.subject))
                .collect();
            let ready = members.iter().filter(|node| !node.unready.contains(name));
            let ready: Vec<_> = ready.copied().collect();
            // If none is ready, maybe it is not them who are ill: better all of them than nobody.
            let members = if ready.is_empty() { members } else { ready };
            let addresses = members.iter().map(|node| node.addresses()).collect();
            let data = Data {
                addresses,
                ports: Vec::new(),
            };
            names.insert(format!("{ALL}.{name}"), data.clone());
            names.insert(name.clone(), data);
            for (protocol, port) in service.ports.iter().filter_map(|ports| ports.single()) {
                let at = format!("_{name}._{protocol}");
                // What is above a name exists too.
                names.entry(format!("_{protocol}")).or_default();
                let targets = members.iter().filter_map(|node| node.subject.name);
                let data = names.entry(at).or_default();
                data.ports
                    .extend(targets.map(|target| (port, target.to_owned())));
            }
        }
        Self {
            domain: policy.domain().to_owned(),
            names,
            owners,
            ranges: vec![
                Prefix::new([100, 64, 0, 0].into(), 10),
                Prefix::new([127, 64, 0, 0].into(), 10),
                v6_range,
            ],
            split: policy.split().to_vec(),
            serial: serial as u32,
            services: policy.services().keys().cloned().collect(),
        }
    }

    /// The same, but that the names of these services lead to an address of their own.
    #[must_use]
    pub fn with_services(mut self, services: &BTreeMap<String, Ipv4Addr>) -> Self {
        for (name, address) in services {
            if let Some(data) = self.names.get_mut(name) {
                data.addresses = vec![(*address, None)];
                self.owners.insert(IpAddr::V4(*address), name.clone());
            }
        }
        self
    }

    /// The service that a question is about, if it is about one.
    pub fn service_asked_for(&self, question: &[u8]) -> Option<&str> {
        let asked = Packet::parse(question).ok()?;
        let [one] = &asked.questions[..] else {
            return None;
        };
        let name = one.qname.to_string().to_ascii_lowercase();
        let Some(Place::Name(name)) = self.place(name.trim_end_matches('.')) else {
            return None;
        };
        self.services.get(&name).map(String::as_str)
    }

    /// What names end with.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Answers a question that came in a datagram (`datagram`), or over a connection.
    pub fn answer(&self, question: &[u8], datagram: bool) -> Answer {
        // Without a header there is nobody to answer; an answer is not answered.
        if question.len() < 12 || question[2] & 0x80 != 0 {
            return Answer::Silence;
        }
        let Ok(asked) = Packet::parse(question) else {
            return Answer::Reply(refusal(question, RCODE::FormatError));
        };
        if asked.opcode() != OPCODE::StandardQuery {
            return Answer::Reply(refusal(question, RCODE::NotImplemented));
        }
        let [one] = &asked.questions[..] else {
            return Answer::Reply(refusal(question, RCODE::FormatError));
        };
        let name = one.qname.to_string().to_ascii_lowercase();
        let name = name.trim_end_matches('.');
        let place = self.place(name);
        let Some(place) = place else {
            return Answer::Forward(self.servers_of(name));
        };
        let mut reply = Packet::new_reply(asked.id());
        reply.set_flags(PacketFlag::RECURSION_AVAILABLE | PacketFlag::AUTHORITATIVE_ANSWER);
        if asked.has_flags(PacketFlag::RECURSION_DESIRED) {
            reply.set_flags(PacketFlag::RECURSION_DESIRED);
        }
        let mut limit = if datagram {
            SMALL
        } else {
            usize::from(u16::MAX)
        };
        if let Some(edns) = asked.opt() {
            *reply.opt_mut() = Some(OPT {
                opt_codes: Vec::new(),
                udp_packet_size: LARGE as u16,
                version: 0,
            });
            if datagram {
                limit = usize::from(edns.udp_packet_size).clamp(SMALL, LARGE);
            }
        }
        reply.questions.push(one.clone());
        if matches!(one.qtype, QTYPE::AXFR | QTYPE::IXFR) || !internet(one.qclass) {
            *reply.rcode_mut() = RCODE::Refused;
        } else if self
            .fill(&mut reply, one, &place, usize::from(asked.id()))
            .is_none()
        {
            *reply.rcode_mut() = RCODE::ServerFailure;
        }
        match encode(&reply, limit) {
            Some(bytes) => Answer::Reply(bytes),
            None => Answer::Reply(refusal(question, RCODE::ServerFailure)),
        }
    }

    /// Where a name is in this zone; `None` if it is elsewhere.
    fn place(&self, name: &str) -> Option<Place> {
        if name == self.domain {
            return Some(Place::Top);
        }
        if let Some(rest) = name
            .strip_suffix(&self.domain)
            .and_then(|rest| rest.strip_suffix('.'))
        {
            return Some(Place::Name(rest.to_owned()));
        }
        // A short name that is known.
        if !name.contains('.') && self.names.contains_key(name) {
            return Some(Place::Name(name.to_owned()));
        }
        let address = reversed(name)?;
        self.ranges
            .iter()
            .any(|range| range.contains(address))
            .then_some(Place::Address(address))
    }

    fn servers_of(&self, name: &str) -> Vec<IpAddr> {
        let fits = |suffix: &str| {
            name == suffix
                || name
                    .strip_suffix(suffix)
                    .is_some_and(|rest| rest.ends_with('.'))
        };
        let all = self.split.iter().filter(|(suffix, _)| fits(suffix));
        all.max_by_key(|(suffix, _)| suffix.len())
            .map(|(_, servers)| servers.clone())
            .unwrap_or_default()
    }

    /// Puts the answer in.
    fn fill(
        &self,
        reply: &mut Packet<'_>,
        question: &Question<'_>,
        place: &Place,
        turn: usize,
    ) -> Option<()> {
        let wants =
            |kind: TYPE| question.qtype == QTYPE::TYPE(kind) || question.qtype == QTYPE::ANY;
        let owner = question.qname.clone().into_owned();
        let mut answers: Vec<RData<'static>> = Vec::new();
        let mut exists = true;
        let mut targets = Vec::new();
        match place {
            Place::Top => {
                if wants(TYPE::SOA) {
                    answers.push(RData::SOA(self.authority()?));
                }
                if wants(TYPE::NS) {
                    answers.push(RData::NS(NS(self.full("ns")?)));
                }
            }
            Place::Address(address) => match self.owners.get(address) {
                Some(name) if wants(TYPE::PTR) => answers.push(RData::PTR(PTR(self.full(name)?))),
                found => exists = found.is_some(),
            },
            Place::Name(name) => match self.names.get(name) {
                None => exists = false,
                Some(data) => {
                    let some = rotated(&data.addresses, turn);
                    if wants(TYPE::A) {
                        answers.extend(some.iter().map(|(v4, _)| RData::A(A::from(*v4))));
                    }
                    if wants(TYPE::AAAA) {
                        let some = some.iter().filter_map(|(_, v6)| *v6);
                        answers.extend(some.map(|v6| RData::AAAA(AAAA::from(v6))));
                    }
                    if wants(TYPE::SRV) {
                        targets = rotated(&data.ports, turn);
                    }
                }
            },
        }
        for (port, target) in &targets {
            answers.push(RData::SRV(SRV {
                priority: 0,
                weight: 1,
                port: *port,
                target: self.full(target)?,
            }));
            // Saves the second question.
            for (v4, v6) in self
                .names
                .get(target)
                .map_or(&[][..], |data| &data.addresses)
            {
                let v6 = v6.map(|v6| RData::AAAA(AAAA::from(v6)));
                for data in [RData::A(A::from(*v4))].into_iter().chain(v6) {
                    reply
                        .additional_records
                        .push(record(self.full(target)?, LIFE, data));
                }
            }
        }
        if answers.is_empty() {
            if !exists {
                *reply.rcode_mut() = RCODE::NameError;
            }
            let top = Name::new(&self.domain).ok()?.into_owned();
            let authority = RData::SOA(self.authority()?);
            reply
                .name_servers
                .push(record(top, NEGATIVE_LIFE, authority));
        }
        reply.answers.extend(
            answers
                .into_iter()
                .map(|data| record(owner.clone(), LIFE, data)),
        );
        Some(())
    }

    fn full(&self, name: &str) -> Option<Name<'static>> {
        Some(
            Name::new(&format!("{name}.{}", self.domain))
                .ok()?
                .into_owned(),
        )
    }

    fn authority(&self) -> Option<SOA<'static>> {
        Some(SOA {
            mname: self.full("ns")?,
            rname: self.full("nobody")?,
            serial: self.serial,
            refresh: 60,
            retry: 10,
            expire: 3600,
            minimum: NEGATIVE_LIFE,
        })
    }
}

enum Place {
    Top,
    Name(String),
    Address(IpAddr),
}

fn internet(class: QCLASS) -> bool {
    matches!(class, QCLASS::CLASS(CLASS::IN) | QCLASS::ANY)
}

fn record(name: Name<'static>, life: u32, data: RData<'static>) -> ResourceRecord<'static> {
    ResourceRecord::new(name, CLASS::IN, life, data)
}

/// Some of them, beginning with another one each time, so that clients that take the first are spread.
fn rotated<T: Clone>(all: &[T], turn: usize) -> Vec<T> {
    let first = turn % all.len().max(1);
    all.iter()
        .cycle()
        .skip(first)
        .take(all.len().min(MOST))
        .cloned()
        .collect()
}

/// The address that a name for looking addresses up stands for.
fn reversed(name: &str) -> Option<IpAddr> {
    if let Some(rest) = name.strip_suffix(".in-addr.arpa") {
        let parts: Vec<_> = rest.split('.').rev().collect();
        return (parts.len() == 4)
            .then(|| parts.join(".").parse::<Ipv4Addr>().ok())?
            .map(IpAddr::V4);
    }
    let digits: Vec<_> = name.strip_suffix(".ip6.arpa")?.split('.').rev().collect();
    if digits.len() != 32 || digits.iter().any(|digit| digit.len() != 1) {
        return None;
    }
    let bits = u128::from_str_radix(&digits.concat(), 16).ok()?;
    Some(Ipv6Addr::from_bits(bits).into())
}

/// The reply as bytes; one that says "ask again over TCP" if it does not fit.
fn encode(reply: &Packet<'_>, limit: usize) -> Option<Vec<u8>> {
    let bytes = reply.build_bytes_vec_compressed().ok()?;
    if bytes.len() <= limit {
        return Some(bytes);
    }
    let mut short = reply.clone();
    short.additional_records.clear();
    let bytes = short.build_bytes_vec_compressed().ok()?;
    if bytes.len() <= limit {
        return Some(bytes);
    }
    short.answers.clear();
    short.name_servers.clear();
    short.set_flags(PacketFlag::TRUNCATION);
    short.build_bytes_vec_compressed().ok()
}

/// An answer without anything in it, to a question that has at least a header.
pub(super) fn refusal(question: &[u8], code: RCODE) -> Vec<u8> {
    let mut reply = vec![0; 12];
    reply[..2].copy_from_slice(&question[..2]);
    // It is an answer, of the same kind, with the wish for recursion repeated and recursion available.
    reply[2] = 0x80 | (question[2] & 0x79);
    reply[3] = 0x80 | (code as u16 & 15) as u8;
    reply
}
