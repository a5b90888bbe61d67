//! Does what the jailer's documentation says that it does.

use super::{BEHAVIOUR, Behaviour, ROOT, USER};
use std::{
    env,
    ffi::CString,
    fs,
    os::{
        fd::AsRawFd,
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

#[derive(Default)]
struct Options {
    id: String,
    program: PathBuf,
    user: u32,
    group: u32,
    base: PathBuf,
    network: Option<PathBuf>,
    version: String,
    parent: String,
    groups: Vec<(String, String)>,
    new_pids: bool,
    rest: Vec<String>,
}

fn parse(text: &str) -> Result<Options, String> {
    let mut options = Options {
        version: "1".into(),
        ..Options::default()
    };
    let mut words = text.lines().map(str::to_owned);
    while let Some(word) = words.next() {
        if word == "--" {
            options.rest = words.collect();
            break;
        }
        if word == "--new-pid-ns" {
            options.new_pids = true;
            continue;
        }
        let value = words.next().ok_or(format!("`{word}` has no value"))?;
        match word.as_str() {
            "--id" => options.id = value,
            "--exec-file" => options.program = value.into(),
            "--uid" => options.user = value.parse().map_err(|_| "an odd --uid")?,
            "--gid" => options.group = value.parse().map_err(|_| "an odd --gid")?,
            "--chroot-base-dir" => options.base = value.into(),
            "--netns" => options.network = Some(value.into()),
            "--cgroup-version" if ["1", "2"].contains(&&*value) => options.version = value,
            "--parent-cgroup" => options.parent = value,
            "--cgroup" => {
                let (file, value) = value.split_once('=').ok_or("an odd --cgroup")?;
                options.groups.push((file.into(), value.into()));
            }
            "--resource-limit" => {
                let (name, number) = value.split_once('=').ok_or("an odd --resource-limit")?;
                if !["fsize", "no-file"].contains(&name) || number.parse::<u64>().is_err() {
                    return Err(format!("the resource limit {value}"));
                }
            }
            _ => return Err(format!("Found argument '{word}' which wasn't expected")),
        }
    }
    let of_id = |letter: char| letter.is_ascii_alphanumeric() || letter == '-';
    if options.id.is_empty() || options.id.len() > 64 || !options.id.chars().all(of_id) {
        return Err(format!("Invalid instance ID: {}", options.id));
    }
    let name = options.program.file_name().unwrap_or_default();
    if !name.to_string_lossy().contains("firecracker") {
        return Err("the name of the exec file must contain firecracker".into());
    }
    Ok(options)
}

pub(super) fn run(text: &str, behaviour: &Behaviour) -> Result<(), String> {
    if let Some(failure) = &behaviour.jailer_fails {
        return Err(failure.clone());
    }
    let options = parse(text)?;
    lock_up(&options).map_err(|error| error.to_string())
}

fn lock_up(options: &Options) -> std::io::Result<()> {
    let name = options.program.file_name().unwrap_or_default();
    let root = options.base.join(name).join(&options.id).join("root");
    fs::create_dir_all(&root)?;
    fs::copy(&options.program, root.join(name))?;
    for folder in ["", "dev", "dev/net", "run"] {
        let path = root.join(folder);
        fs::create_dir_all(&path)?;
        std::os::unix::fs::chown(&path, Some(options.user), Some(options.group))?;
    }
    let owner = (options.user, options.group);
    make_device(&root.join("dev/net/tun"), (10, 200), owner)?;
    // Only where the host has it.
    if let Ok(device) = fs::metadata("/dev/userfaultfd") {
        let number = device.rdev();
        let number = (libc::major(number), libc::minor(number));
        make_device(&root.join("dev/userfaultfd"), number, owner)?;
    }
    for (file, value) in &options.groups {
        let controller = file.split('.').next().unwrap_or_default();
        let group = mount_of(controller, &options.version)?
            .join(&options.parent)
            .join(&options.id);
        fs::create_dir_all(&group)?;
        fs::write(group.join(file), value)?;
        let members = if options.version == "1" {
            "tasks"
        } else {
            "cgroup.procs"
        };
        // The jailer has one thread, a test more: it is this one that goes on.
        // SAFETY: takes and changes nothing.
        let own = unsafe { libc::gettid() };
        fs::write(group.join(members), own.to_string())?;
    }
    if let Some(network) = &options.network {
        let network = fs::File::open(network)?;
        // SAFETY: moves this thread, which is the one that goes on.
        if unsafe { libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        // The guest's address, for what stands in for the guest.
        let address = format!("{}/32", driver::slot::machine::ADDRESS);
        Command::new("/usr/sbin/ip")
            .args(["addr", "add", &address, "dev", "lo"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
    }
    assert!(
        options.new_pids,
        "the driver finds the process by its pid file"
    );
    // SAFETY: only later children are in the other namespace.
    if unsafe { libc::unshare(libc::CLONE_NEWPID) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    let own = env::current_exe()?;
    let child = Command::new(own)
        .args([
            "jailer_process",
            "--exact",
            "--nocapture",
            "--test-threads=1",
        ])
        .env_clear()
        .env(BEHAVIOUR, env::var(BEHAVIOUR).unwrap_or_default())
        .env(ROOT, &root)
        .env(USER, options.user.to_string())
        .env(super::ARGUMENTS, options.rest.join("\n"))
        .spawn()?;
    let mut file = name.to_owned();
    file.push(".pid");
    fs::write(root.join(file), child.id().to_string())
}

fn make_device(path: &Path, (major, minor): (u32, u32), owner: (u32, u32)) -> std::io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mode = libc::S_IFCHR | 0o600;
    // SAFETY: the name ends with a null byte.
    if unsafe { libc::mknod(name.as_ptr(), mode, libc::makedev(major, minor)) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    std::os::unix::fs::chown(path, Some(owner.0), Some(owner.1))
}

/// Where a controller is mounted.
fn mount_of(controller: &str, version: &str) -> std::io::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let found = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (place, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
        let fits = match version {
            "1" => kind == "cgroup" && options.split(',').any(|option| option == controller),
            _ => kind == "cgroup2",
        };
        fits.then(|| Path::new(place).to_owned())
    });
    found.ok_or_else(|| std::io::Error::other(format!("no mount of {controller}")))
}
