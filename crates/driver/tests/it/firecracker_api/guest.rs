//! Plays the guest: who it is, and that it is well. It answers nothing while its machine stands.

use super::server::Shared;
use driver::slot::machine;
use std::{
    fs::OpenOptions,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::Arc,
};

/// Where claims are written, in the root: what was said before, and the claim.
pub(super) const CLAIMS: &str = "claims";

pub(super) fn listen() -> TcpListener {
    TcpListener::bind((machine::ADDRESS, api::envd::PORT)).unwrap()
}

pub(super) fn serve(listener: TcpListener, shared: Arc<Shared>) {
    for stream in listener.incoming().flatten() {
        let shared = Arc::clone(&shared);
        std::thread::spawn(move || {
            let _ = answer(stream, &shared);
        });
    }
}

fn answer(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    let (head, body) = loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        text.extend_from_slice(&buffer[..length]);
        if let Some(parts) = super::server::split(&text) {
            break parts;
        }
    };
    let token = head
        .lines()
        .find_map(|line| line.strip_prefix("x-atoll-control: "))
        .unwrap_or_default()
        .to_owned();
    let line = head.lines().next().unwrap_or_default().to_owned();
    let mut machine = shared.running();
    let opens = token == machine.token;
    let status = match line.split(' ').collect::<Vec<_>>()[..] {
        ["GET", "/health", _] => 204,
        ["PUT" | "POST", _, _] if !opens => 403,
        ["PUT", "/_atoll/identity", _] => {
            let claim: serde_json::Value = serde_json::from_slice(&body)?;
            machine.token = claim["identity"]["control_token"].as_str().unwrap().into();
            // What a guest does changes its memory.
            machine.write(7, 7);
            let mut file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(format!("/{CLAIMS}"))?;
            writeln!(file, "{}", serde_json::to_string(&(line, claim))?)?;
            204
        }
        ["POST", path, _] if path.starts_with("/_atoll/settle") => 204,
        // `PUT /stress` touches all memory at once.
        ["PUT", "/stress", _] => {
            machine.stress();
            204
        }
        // `PUT /remove/NUMBER` gives a page back.
        ["PUT", path, _] if path.starts_with("/remove/") => {
            machine.remove(path["/remove/".len()..].parse().unwrap());
            204
        }
        // `PUT /page/NUMBER/BYTE` writes to the machine's memory.
        ["PUT", path, _] if path.starts_with("/page/") => {
            let mut numbers = path.split('/').skip(2).map(|text| text.parse().unwrap());
            let (page, byte): (u64, u64) = (numbers.next().unwrap(), numbers.next().unwrap());
            machine.write(page, byte as u8);
            204
        }
        _ => 404,
    };
    drop(machine);
    write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n")
}
