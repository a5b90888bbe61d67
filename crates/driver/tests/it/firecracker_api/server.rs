//! Plays Firecracker: one machine, its API, its snapshots.

use super::{
    Behaviour, USER,
    description::{self, State, Version},
    guest,
    userfault::Memory,
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    ffi::CString,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::AsRawFd,
        unix::{
            fs::FileExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard},
};

/// Where requests are written, in the root.
pub(super) const REQUESTS: &str = "requests";

const PAGE: usize = 4096;

/// The first pages of a memory are all that is looked at.
const MOST_PAGES: u64 = 600;

/// A machine, and a bell for its state.
pub(super) struct Shared {
    machine: Mutex<Machine>,
    news: Condvar,
}

#[derive(Default)]
pub(super) struct Machine {
    state: Option<State>,
    bodies: BTreeMap<String, Value>,
    /// What opens the guest.
    pub(super) token: String,
    memory_mib: u64,
    /// Pages that are not zero, or were written: each is one byte repeated.
    pages: BTreeMap<u64, u8>,
    dirty: BTreeSet<u64>,
    tracks: bool,
    /// What is not a file that was read.
    memory: Option<Memory>,
    tap: Option<File>,
}

impl Machine {
    fn state(&self) -> State {
        self.state.unwrap_or(State::NotStarted)
    }

    pub(super) fn write(&mut self, page: u64, byte: u8) {
        if let Some(memory) = &self.memory {
            memory.write(page, byte);
        }
        self.pages.insert(page, byte);
        self.dirty.insert(page);
    }

    /// The guest's balloon gives a page back.
    pub(super) fn remove(&mut self, page: u64) {
        if let Some(memory) = &self.memory {
            memory.remove(page);
        }
        self.pages.remove(&page);
        self.dirty.insert(page);
    }

    /// Touches all memory at once, while pages from 32 on are given back.
    pub(super) fn stress(&self) {
        let expected = |page| match self.pages.get(&page) {
            Some(byte) => *byte,
            None => booted(page),
        };
        if let Some(memory) = &self.memory {
            memory.stress(32..64, &expected);
        }
    }

    /// What is in memory that somebody else brought.
    fn look(&mut self) {
        let Some(memory) = &self.memory else { return };
        let pages = (self.memory_mib << 8).min(MOST_PAGES);
        let found = (0..pages).map(|page| (page, memory.read(page)));
        self.pages = found
            .filter(|(page, byte)| *byte != 0 || self.dirty.contains(page))
            .collect();
    }
}

impl Shared {
    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap()
    }

    /// The machine, once it runs.
    pub(super) fn running(&self) -> MutexGuard<'_, Machine> {
        let stands = |machine: &mut Machine| machine.state() != State::Running;
        self.news.wait_while(self.machine(), stands).unwrap()
    }
}

pub(super) fn run(root: &Path, behaviour: Behaviour) -> Result<(), String> {
    let arguments = env::var(super::ARGUMENTS).unwrap_or_default();
    let arguments: Vec<&str> = arguments.lines().collect();
    let ["--api-sock", socket, "--level", "Warning"] = arguments[..] else {
        return Err(format!("unexpected arguments: {arguments:?}"));
    };
    let user: u32 = env::var(USER).unwrap_or_default().parse().unwrap();
    lock_in(root, user).map_err(|error| error.to_string())?;
    let shared = Arc::new(Shared {
        machine: Mutex::default(),
        news: Condvar::new(),
    });
    let listener = UnixListener::bind(socket).map_err(|error| error.to_string())?;
    let version = behaviour
        .version
        .split('.')
        .map(|part| part.parse().unwrap());
    let version: Vec<u32> = version.collect();
    for stream in listener.incoming().flatten() {
        serve(stream, &shared, &behaviour, (version[0], version[1])).ok();
    }
    Ok(())
}

fn lock_in(root: &Path, user: u32) -> io::Result<()> {
    let path = CString::new(root.to_str().unwrap()).unwrap();
    // SAFETY: plain calls on this process; the path ends with a null byte.
    let failed = unsafe {
        libc::chroot(path.as_ptr()) != 0
            || libc::chdir(c"/".as_ptr()) != 0
            || libc::setgroups(0, std::ptr::null()) != 0
            || libc::setresgid(user, user, user) != 0
            || libc::setresuid(user, user, user) != 0
    };
    match failed {
        true => Err(io::Error::last_os_error()),
        false => Ok(()),
    }
}

/// Head and body of a request, once it is complete.
pub(super) fn split(text: &[u8]) -> Option<(String, Vec<u8>)> {
    let end = text.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&text[..end]).into_owned();
    let length = head
        .lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(0, |(_, value)| value.parse().unwrap());
    let body = &text[end + 4..];
    (body.len() >= length).then(|| (head, body[..length].to_vec()))
}

fn serve(
    mut stream: UnixStream,
    shared: &Arc<Shared>,
    behaviour: &Behaviour,
    version: Version,
) -> io::Result<()> {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    let (head, body) = loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            // Somebody who only looked whether it listens.
            return Ok(());
        }
        text.extend_from_slice(&buffer[..length]);
        if let Some(parts) = split(&text) {
            break parts;
        }
    };
    let mut words = head.split(' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let body: Option<Value> = match body.is_empty() {
        true => None,
        false => Some(serde_json::from_slice(&body)?),
    };
    let request = format!("{method} {path}");
    let mut log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(format!("/{REQUESTS}"))?;
    writeln!(log, "{}", json!([request, body]))?;
    if behaviour.dies_at.as_ref() == Some(&request) {
        std::process::exit(148);
    }
    if behaviour.hangs_at.as_ref() == Some(&request) {
        loop {
            std::thread::park();
        }
    }
    let answer = match &behaviour.refuses {
        Some((refused, message)) if *refused == request => Err(message.clone()),
        _ => act(method, path, body.as_ref(), shared, behaviour, version),
    };
    match answer {
        Ok(None) => write!(stream, "HTTP/1.1 204 \r\nServer: Firecracker API\r\n\r\n"),
        Ok(Some(body)) => respond(&mut stream, "200 ", &body),
        Err(message) => respond(&mut stream, "400 ", &json!({ "fault_message": message })),
    }
}

fn respond(stream: &mut UnixStream, status: &str, body: &Value) -> io::Result<()> {
    let body = body.to_string();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn act(
    method: &str,
    path: &str,
    body: Option<&Value>,
    shared: &Arc<Shared>,
    behaviour: &Behaviour,
    version: Version,
) -> Result<Option<Value>, String> {
    let mut machine = shared.machine();
    let configured = !machine.bodies.is_empty();
    description::check((method, path, body), machine.state(), configured, version)?;
    match (method, path, body) {
        ("GET", "/version", _) => Ok(Some(json!({ "firecracker_version": behaviour.version }))),
        ("GET", "/balloon/statistics", _) => {
            let balloon = machine.bodies.get("/balloon");
            match balloon.and_then(|body| body.get("stats_polling_interval_s")) {
                Some(_) => Ok(Some(json!({
                    "target_pages": 0, "actual_pages": 0, "target_mib": 0, "actual_mib": 0,
                    "total_memory": machine.memory_mib << 20, "free_memory": 4096,
                }))),
                None => Err("Statistics for the balloon device are not enabled".into()),
            }
        }
        ("GET", _, _) => Ok(Some(json!({
            "id": "anonymous-instance",
            "state": machine.state().name(),
            "vmm_version": behaviour.version,
            "app_name": "Firecracker",
        }))),
        (_, "/actions", _) => start(&mut machine, shared).map(|()| None),
        (_, "/vm", Some(body)) => {
            machine.state = Some(match body["state"] == "Paused" {
                true => State::Paused,
                false => State::Running,
            });
            shared.news.notify_all();
            Ok(None)
        }
        (_, "/snapshot/create", Some(body)) => create(&mut machine, body).map(|()| None),
        (_, "/snapshot/load", Some(body)) => {
            load(&mut machine, body, shared, behaviour).map(|()| None)
        }
        (_, _, Some(body)) => {
            for name in ["path_on_host", "kernel_image_path", "initrd_path"] {
                if let Some(file) = body.get(name).and_then(Value::as_str) {
                    let writes = body.get("is_read_only") == Some(&json!(false));
                    open(file, writes)?;
                }
            }
            if let Some(tap) = body.get("host_dev_name").and_then(Value::as_str) {
                machine.tap = Some(open_tap(tap)?);
            }
            machine.bodies.insert(path.to_owned(), body.clone());
            Ok(None)
        }
        _ => Err("Empty request.".into()),
    }
}

fn open(path: &str, writes: bool) -> Result<File, String> {
    OpenOptions::new()
        .read(true)
        .write(writes)
        .open(path)
        .map_err(|error| format!("Unable to open {path}: {error}"))
}

/// What is in a page of a machine that has booted.
fn booted(page: u64) -> u8 {
    match page {
        1 => 1,
        2 => 2,
        32..64 => 9,
        _ => 0,
    }
}

/// Opens a tap device as Firecracker does: whoever it does not belong to cannot.
fn open_tap(name: &str) -> Result<File, String> {
    const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
    let tap = open("/dev/net/tun", true)?;
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    let kind = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as u16;
    request[16..18].copy_from_slice(&kind.to_ne_bytes());
    // SAFETY: a complete `struct ifreq`, which outlives the call.
    match unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) } {
        0 => Ok(tap),
        _ => Err(format!(
            "Open tap device failed: Error while creating ifreq structure: {name}: {}",
            io::Error::last_os_error()
        )),
    }
}

fn start(machine: &mut Machine, shared: &Arc<Shared>) -> Result<(), String> {
    if machine.state() != State::NotStarted {
        return Err("The requested operation is not supported after starting the microVM.".into());
    }
    let source = machine.bodies.get("/boot-source");
    let source = source.ok_or("Cannot start microvm without kernel configuration.")?;
    let line = source["boot_args"].as_str().unwrap_or_default();
    machine.token = line
        .split(' ')
        .find_map(|word| word.strip_prefix("atoll.control="))
        .unwrap_or_default()
        .to_owned();
    let config = machine.bodies.get("/machine-config");
    machine.memory_mib = config.map_or(128, |config| config["mem_size_mib"].as_u64().unwrap());
    machine.tracks = config.is_some_and(|config| config["track_dirty_pages"] == true);
    for page in 0..64 {
        if booted(page) != 0 {
            machine.write(page, booted(page));
        }
    }
    go(machine, shared);
    println!("\n[    0.1] {}", api::boot::SERIAL_WAITING);
    Ok(())
}

fn go(machine: &mut Machine, shared: &Arc<Shared>) {
    machine.state = Some(State::Running);
    shared.news.notify_all();
    let shared = Arc::clone(shared);
    let listener = guest::listen();
    std::thread::spawn(move || guest::serve(listener, shared));
}

fn read_memory(machine: &mut Machine, path: &str) -> Result<(), String> {
    let memory = open(path, false)?;
    let read = |page: &mut [u8], at| memory.read_exact_at(page, at);
    let length = memory.metadata().map_or(0, |about| about.len());
    if length != machine.memory_mib << 20 {
        return Err("the memory file has another size".into());
    }
    let mut page = [0; PAGE];
    for number in 0..(length / PAGE as u64).min(MOST_PAGES) {
        read(&mut page, number * PAGE as u64).map_err(|error| error.to_string())?;
        if page[0] != 0 {
            machine.pages.insert(number, page[0]);
        }
    }
    Ok(())
}

/// The state of devices: what the real one has there in a format of its own.
fn create(machine: &mut Machine, body: &Value) -> Result<(), String> {
    let difference = body["snapshot_type"] == "Diff";
    if difference && !machine.tracks {
        return Err(
            "Diff snapshots are not allowed on uVMs with dirty page tracking disabled.".into(),
        );
    }
    machine.look();
    let write = || -> io::Result<()> {
        let bodies: BTreeMap<_, _> = machine.bodies.iter().collect();
        let devices = json!({
            "token": machine.token,
            "memory_mib": machine.memory_mib,
            "bodies": bodies,
        });
        fs::write(body["snapshot_path"].as_str().unwrap(), devices.to_string())?;
        let memory = File::create(body["mem_file_path"].as_str().unwrap())?;
        memory.set_len(machine.memory_mib << 20)?;
        if !difference {
            // All of it is written, zeros too.
            for at in 0..machine.memory_mib {
                memory.write_all_at(&vec![0; 1 << 20], at << 20)?;
            }
        }
        for (page, byte) in &machine.pages {
            if !difference || machine.dirty.contains(page) {
                memory.write_all_at(&[*byte; PAGE], page * PAGE as u64)?;
            }
        }
        Ok(())
    };
    write().map_err(|error| format!("Cannot write snapshot: {error}"))?;
    machine.dirty.clear();
    Ok(())
}

fn load(
    machine: &mut Machine,
    body: &Value,
    shared: &Arc<Shared>,
    behaviour: &Behaviour,
) -> Result<(), String> {
    let failed = |what: &dyn std::fmt::Display| format!("Load snapshot error: {what}");
    let mut devices = String::new();
    open(body["snapshot_path"].as_str().unwrap(), false)?
        .read_to_string(&mut devices)
        .map_err(|error| failed(&error))?;
    let devices: Value = serde_json::from_str(&devices).map_err(|error| failed(&error))?;
    machine.token = devices["token"].as_str().unwrap().into();
    machine.memory_mib = devices["memory_mib"].as_u64().unwrap();
    machine.bodies = serde_json::from_value(devices["bodies"].clone()).unwrap();
    let overrides = body["network_overrides"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    for (path, body) in &machine.bodies {
        if path.starts_with("/drives/") {
            open(
                body["path_on_host"].as_str().unwrap(),
                body["is_read_only"] == json!(false),
            )?;
        }
        if path.starts_with("/network-interfaces/") {
            let other = overrides
                .iter()
                .find(|other| other["iface_id"] == body["iface_id"]);
            let tap = other.unwrap_or(body)["host_dev_name"].as_str().unwrap();
            machine.tap = Some(open_tap(tap)?);
        }
    }
    let path = body["mem_backend"]["backend_path"].as_str().unwrap();
    let huge = machine.bodies["/machine-config"]["huge_pages"] == "2M";
    match body["mem_backend"]["backend_type"].as_str() {
        Some("Uffd") => {
            let page = if huge { 2 << 20 } else { PAGE };
            let memory = Memory::new(machine.memory_mib << 20, page, path, behaviour.lies);
            let memory = memory.map_err(|error| failed(&error))?;
            // Firecracker looks at the queues of devices.
            memory.read(0);
            machine.memory = Some(memory);
        }
        _ if huge => {
            return Err(failed(
                &"Cannot restore hugetlbfs backed snapshot by mapping",
            ));
        }
        _ => read_memory(machine, path).map_err(|error| failed(&error))?,
    }
    let tracks = ["track_dirty_pages", "enable_diff_snapshots"];
    machine.tracks = tracks.iter().any(|name| body[*name] == true);
    match body["resume_vm"] == true {
        true => go(machine, shared),
        false => machine.state = Some(State::Paused),
    }
    Ok(())
}
