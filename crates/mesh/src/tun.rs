//! The TUN device: where the kernel's packets come out and go in.
//!
//! The device is not persistent: when the last descriptor is closed, however the process ends, the kernel
//! removes it with its addresses and routes.

use std::fs::OpenOptions;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::error::Error;
use crate::link::Links;
use crate::namespace::Namespace;
use crate::offload::VIRTIO_HEADER;
use crate::prefix::Prefix;

const IFF_TUN: i32 = 1;
const IFF_NO_PI: i32 = 0x1000;
const IFF_VNET_HDR: i32 = 0x4000;

const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::Ioctl = 0x4004_54d8;

const TUN_F_CSUM: libc::c_ulong = 1;
const TUN_F_TSO4: libc::c_ulong = 2;
const TUN_F_TSO6: libc::c_ulong = 4;
const TUN_F_TSO_ECN: libc::c_ulong = 8;
const TUN_F_USO4: libc::c_ulong = 0x20;
const TUN_F_USO6: libc::c_ulong = 0x40;

/// What the names of devices begin with, unless another is asked for.
pub const DEVICES: &str = "atoll";

/// The largest packet the kernel hands over at once.
pub(crate) const LARGEST: usize = 65_536;

/// What of its work the kernel leaves to us, so that it passes many packets at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Offload {
    /// Nothing: one packet at a time.
    None,
    /// Cutting TCP, and checksums.
    Tcp,
    /// Cutting UDP too (Linux 6.2).
    TcpAndUdp,
}

/// How a device is to be made.
#[derive(Debug, Clone)]
pub struct TunOptions {
    /// The interface's name; `%d` in it becomes a free number.
    pub name: String,
    /// The longest packet, in bytes. 1420 leaves room for WireGuard over IPv6 in Ethernet's 1500.
    pub mtu: u16,
    /// Own addresses, each with the length of the range that is reached through the device.
    pub addresses: Vec<(IpAddr, u8)>,
    /// What else is reached through the device.
    pub routes: Vec<Prefix>,
    /// The most that is asked of the kernel; what it cannot do is left away.
    pub offload: Offload,
    /// How many packets (large ones count once) the kernel keeps for us before it drops.
    pub queue: u32,
}

impl Default for TunOptions {
    fn default() -> Self {
        Self {
            name: format!("{DEVICES}%d"),
            mtu: 1420,
            addresses: Vec::new(),
            routes: Vec::new(),
            offload: Offload::TcpAndUdp,
            queue: 500,
        }
    }
}

/// A TUN device that is up.
#[derive(Debug)]
pub struct Tun {
    fd: OwnedFd,
    name: String,
    index: u32,
    mtu: u16,
    offload: Offload,
}

/// `struct ifreq` as TUNSETIFF reads it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: i16,
    rest: [u8; 22],
}

impl Tun {
    /// Makes a device in the given network namespace, or in that of the calling thread, and switches it on.
    ///
    /// # Errors
    /// There is no `/dev/net/tun`, the caller may not use it (`CAP_NET_ADMIN` in the namespace), or the name, an address or
    /// a route is refused.
    pub fn create(options: &TunOptions, namespace: Option<&Namespace>) -> Result<Self, Error> {
        match namespace {
            Some(namespace) => namespace.within(|| Self::create_here(options, true)),
            None => Self::create_here(options, false),
        }
    }

    fn create_here(options: &TunOptions, theirs: bool) -> Result<Self, Error> {
        let name = options.name.as_bytes();
        let valid = !name.is_empty()
            && name.len() < libc::IFNAMSIZ
            && name
                .iter()
                .all(|byte| byte.is_ascii_graphic() && *byte != b'/' && *byte != b':')
            && options.name != "."
            && options.name != "..";
        if !valid {
            return Err(Error::InterfaceName(
                options.name.chars().take(64).collect(),
            ));
        }
        let mut tun = match options.offload {
            Offload::None => Self::open(&options.name, false)?,
            // Kernels and sandboxes that know no header refuse it when the device is made.
            _ => match Self::open(&options.name, true) {
                Err(Error::System { source, .. })
                    if source.raw_os_error() == Some(libc::EINVAL) =>
                {
                    Self::open(&options.name, false)?
                }
                other => other?,
            },
        };
        tun.offload = tun.offload.min(options.offload);
        tun.negotiate();
        tun.mtu = options.mtu;
        if theirs && options.addresses.iter().any(|(own, _)| own.is_ipv6()) {
            // A namespace that has no IPv6 elsewhere has it here. If that is refused, so is the address.
            let _ = std::fs::write(
                format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", tun.name),
                "0",
            );
        }
        let links = Links::open()?;
        links.bring_up(tun.index, options.mtu, options.queue)?;
        for (address, length) in &options.addresses {
            links.add_address(tun.index, *address, *length)?;
        }
        for range in &options.routes {
            links.add_route(tun.index, *range)?;
        }
        Ok(tun)
    }

    fn open(name: &str, header: bool) -> Result<Self, Error> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .map_err(|error| Error::io("open /dev/net/tun", error))?;
        let mut request = InterfaceRequest {
            name: [0; libc::IFNAMSIZ],
            flags: 0,
            rest: [0; 22],
        };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        let header_flag = if header { IFF_VNET_HDR } else { 0 };
        request.flags = (IFF_TUN | IFF_NO_PI | header_flag) as i16;
        let fd = OwnedFd::from(file);
        // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, which `request` has the size of.
        if unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETIFF, &raw mut request) } < 0 {
            return Err(Error::last("make the TUN device"));
        }
        let end = request
            .name
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(request.name.len());
        let name = String::from_utf8_lossy(&request.name[..end]).into_owned();
        let index = rustix::net::netdevice::name_to_index(&fd_socket()?, &name)
            .map_err(|error| Error::io("find the TUN device", error))?;
        let offload = if header {
            Offload::TcpAndUdp
        } else {
            Offload::None
        };
        Ok(Self {
            fd,
            name,
            index,
            mtu: 0,
            offload,
        })
    }

    /// Asks for as much as the kernel has.
    fn negotiate(&mut self) {
        if self.offload == Offload::None {
            return;
        }
        let size = VIRTIO_HEADER as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one int. Ten bytes are the default, so its failing changes nothing.
        unsafe { libc::ioctl(self.fd.as_raw_fd(), TUNSETVNETHDRSZ, &raw const size) };
        let tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
        for (offload, flags) in [
            (
                Offload::TcpAndUdp,
                tcp | TUN_F_TSO_ECN | TUN_F_USO4 | TUN_F_USO6,
            ),
            (Offload::Tcp, tcp | TUN_F_TSO_ECN),
            (Offload::Tcp, tcp),
        ] {
            if offload > self.offload {
                continue;
            }
            // SAFETY: TUNSETOFFLOAD takes its flags by value.
            if unsafe { libc::ioctl(self.fd.as_raw_fd(), TUNSETOFFLOAD, flags) } == 0 {
                self.offload = offload;
                return;
            }
        }
        // Nothing is refused by a kernel that knows the header; then there is one before each packet, and no more.
        self.offload = Offload::Tcp;
    }

    /// Sends a range of addresses through the device, unless somebody routes exactly that already. The caller's thread is in its namespace.
    ///
    /// # Errors
    /// There is such a route, or the kernel refuses.
    pub fn route(&self, range: Prefix) -> Result<(), Error> {
        Links::open()?.add_new_route(self.index, range)
    }

    /// Takes such a route away.
    ///
    /// # Errors
    /// There is none, or the kernel refuses.
    pub fn unroute(&self, range: Prefix) -> Result<(), Error> {
        Links::open()?.remove_route(self.index, range)
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The interface's number in its namespace.
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// The longest packet.
    pub const fn mtu(&self) -> u16 {
        self.mtu
    }

    /// What the kernel leaves to us.
    pub const fn offload(&self) -> Offload {
        self.offload
    }

    /// The bytes before each packet.
    pub(crate) const fn header(&self) -> usize {
        if matches!(self.offload, Offload::None) {
            0
        } else {
            VIRTIO_HEADER
        }
    }

    /// Reads one packet with the header before it; `None` if there is none now.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match rustix::io::read(&self.fd, buffer) {
            Ok(length) => Ok(Some(length)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes one packet from its pieces, the header first.
    pub(crate) fn write(&self, pieces: &[io::IoSlice<'_>]) -> io::Result<()> {
        rustix::io::writev(&self.fd, pieces)?;
        Ok(())
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Any socket of the calling thread's namespace.
fn fd_socket() -> Result<OwnedFd, Error> {
    rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|error| Error::io("open a socket", error))
}
