//! The guest's public API, asked from inside its sandbox's network.

use super::PORT;
use driver::{Machine, slot::machine};
use std::{
    fs,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    os::fd::AsRawFd,
    time::Duration,
};

/// How long an answer may take: under translation, beside other tests.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether the guest says that it is well.
pub fn is_healthy(machine: &dyn Machine) -> bool {
    ask(machine, "/health").is_ok_and(|(status, _)| status == 204)
}

/// What a file inside holds, if it is there.
pub fn read(machine: &dyn Machine, path: &str) -> Option<String> {
    let (status, body) = ask(machine, &format!("/files?path={path}&username=root")).ok()?;
    (status == 200).then_some(body)
}

/// Status and body of a GET request.
pub fn ask(machine: &dyn Machine, path: &str) -> io::Result<(u16, String)> {
    let namespace = format!("/proc/{}/ns/net", machine.record().pid);
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    std::thread::spawn(move || {
        let namespace = fs::File::open(namespace)?;
        // SAFETY: moves this thread alone, which ends with the question.
        if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut stream = connect()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.get(9..12).and_then(|status| status.parse().ok());
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body);
        status
            .zip(body.map(str::to_owned))
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
    })
    .join()
    .unwrap()
}

/// A machine has an address of its own; a container is at home in the namespace.
fn connect() -> io::Result<TcpStream> {
    let has_tap = fs::read_to_string("/proc/thread-self/net/dev")?.contains(machine::TAP);
    let address: IpAddr = match has_tap {
        true => machine::ADDRESS.into(),
        false => Ipv4Addr::LOCALHOST.into(),
    };
    TcpStream::connect_timeout(&SocketAddr::new(address, PORT), PATIENCE)
}
