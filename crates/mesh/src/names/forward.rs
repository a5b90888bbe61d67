//! Questions about other names: asked on.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};

use crate::namespace::{Namespace, socket_in};

/// How long one server may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// The most servers that are asked.
const MOST: usize = 3;

/// The servers that a `resolv.conf` names, other than those in `own`.
pub fn upstream_of(text: &str, own: &[IpAddr]) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let address = line.trim().strip_prefix("nameserver")?.trim();
        // A zone behind an address of a link is left out: such servers are rare.
        address.parse::<IpAddr>().ok()
    };
    let servers = text
        .lines()
        .filter_map(server)
        .filter(|address| !own.contains(address));
    servers
        .take(MOST)
        .map(|address| (address, 53).into())
        .collect()
}

/// Asks the servers in turn, from a namespace if one is named; the first answer, with the question's id.
pub(super) async fn ask(
    servers: &[SocketAddr],
    question: &[u8],
    datagram: bool,
    namespace: Option<&Namespace>,
) -> Option<Vec<u8>> {
    for server in servers.iter().take(MOST) {
        let answer = async {
            if datagram {
                over_udp(*server, question, namespace).await
            } else {
                over_tcp(*server, question, namespace).await
            }
        };
        if let Ok(Some(answer)) = tokio::time::timeout(PATIENCE, answer).await {
            return Some(answer);
        }
    }
    None
}

async fn over_udp(
    server: SocketAddr,
    question: &[u8],
    namespace: Option<&Namespace>,
) -> Option<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() {
        [0, 0, 0, 0].into()
    } else {
        [0_u16; 8].into()
    };
    // A port and an id that nobody can guess, and only the server's own datagrams.
    let bind = || {
        let socket = std::net::UdpSocket::bind((any, 0))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    let socket = UdpSocket::from_std(socket_in(namespace, bind).ok()?).ok()?;
    socket.connect(server).await.ok()?;
    let random = crate::key::random().ok()?;
    let mut asked = question.to_vec();
    asked.get_mut(..2)?.copy_from_slice(&random[..2]);
    socket.send(&asked).await.ok()?;
    let mut answer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut answer).await.ok()?;
        if fits(&asked, &answer[..length]) {
            answer.truncate(length);
            answer[..2].copy_from_slice(&question[..2]);
            return Some(answer);
        }
    }
}

async fn over_tcp(
    server: SocketAddr,
    question: &[u8],
    namespace: Option<&Namespace>,
) -> Option<Vec<u8>> {
    let make = || match server {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    };
    let socket = socket_in(namespace, make).ok()?;
    let mut stream = socket.connect(server).await.ok()?;
    let length = u16::try_from(question.len()).ok()?.to_be_bytes();
    stream.write_all(&[&length, question].concat()).await.ok()?;
    let length = stream.read_u16().await.ok()?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await.ok()?;
    fits(question, &answer).then_some(answer)
}

/// Whether it answers the question: same id, and the same words.
fn fits(question: &[u8], answer: &[u8]) -> bool {
    let (Some(header), Some(asked)) = (answer.get(..12), words(question)) else {
        return false;
    };
    let refused = header[4..6] == [0, 0];
    header[..2] == question[..2]
        && header[2] & 0x80 != 0
        && (refused || words(answer).is_some_and(|said| said.eq_ignore_ascii_case(asked)))
}

/// The first question's bytes, which begin right after the header and are never compressed.
fn words(packet: &[u8]) -> Option<&[u8]> {
    let mut at = 12;
    loop {
        let length = usize::from(*packet.get(at)?);
        if length == 0 {
            return packet.get(12..at + 5);
        }
        if length > 63 {
            return None;
        }
        at += length + 1;
    }
}
