//! The mesh's data plane: WireGuard in user space.
//!
//! An [`Engine`] joins a TUN device ([`Tun`]), UDP sockets ([`Wire`]) and a cryptographic core ([`crypto::Core`]) into a
//! WireGuard node: it speaks the protocol of <https://www.wireguard.com/papers/wireguard.pdf> with any other
//! implementation. What makes it fast is that packets travel by the dozen everywhere: the kernel hands over and takes up to
//! 64 KiB at once at the device ([`tun`](Offload)), up to 64 datagrams at once at the socket, and keys are used for whole batches.
//!
//! It is not: who the peers are, or what they are called. It holds no state on disk and makes no
//! decision that outlives a packet. Peers are told to it ([`Engine::set_peer`]) and may be added, changed and removed while it
//! runs. A peer is its public key; the mesh's other identities live with whoever calls this.
//!
//! A peer that is such an engine too ([`PeerOptions::paths`]) is reached over a [`Relay`] at once, and directly as soon as probes inside the
//! session prove that this works; [`path`] decides, without I/O. What a node has to be told for that: the relays ([`Engine::set_relays`], with a ticket
//! that a [`relay::TicketCheck`] accepts) and the peers' keys. Where peers are they tell each other inside their sessions: what relays see of them, and
//! what [`Engine::set_candidates`] adds. Any other WireGuard node is a peer without `paths`; packets go to where it was heard last.
//!
//! What `examples/throughput.rs` printed on two shared processors (Linux 6.18, reno, medians of 3 rounds of 2 s),
//! beside Debian 12's wireguard-go (0.0.20220316), which has no offloads:
//!
//! | | 1 TCP stream | back | 4 streams | CPU s/Gbit, both daemons | ping, idle | with 1 stream | with 4 | peak memory |
//! | --- | --- | --- | --- | --- | --- | --- | --- | --- |
//! | this | 3.90 Gb/s | 3.84 | 3.22 | 0.45 | 0.24 ms | 1.9 ms | 3.1 ms | 7.7 MiB |
//! | wireguard-go | 0.54 Gb/s | 0.58 | 0.66 | 2.28 | 0.38 ms | 1.2 ms | 1.4 ms | 37.5 MiB |
//!
//! Its pings are shorter under load as it carries a sixth of the traffic. With other work on the machine, this one's single
//! stream went down to 1.2 Gb/s and the ratios lay between 3.8 and 7.3. `make bench-mesh` measures this and more; `bench/README.md` has the figures.
//!
//! Around it stand [`coordination`] (who belongs to the mesh), [`policy`] (what may pass), [`names`] (DNS), [`services`] (which endpoint is tried), [`flows`] (who talked to
//! whom) and [`node`], which puts them together. None of them is needed by the engine, which only asks a [`policy::Gate`] if it is given one.
//!
//! Start reading at [`engine`] and [`relay`]; then `crypto` for what the core must do, `offload` for cutting and joining
//! packets, `wire` for sockets, `tun` for the device.
//!
//! ```no_run
//! use std::sync::Arc;
//! use mesh::{Engine, PeerOptions, PrivateKey, SystemClock, Tun, TunOptions, Wire, WireOptions};
//!
//! # fn main() -> Result<(), mesh::Error> {
//! let clock = Arc::new(SystemClock);
//! let key = PrivateKey::generate()?;
//! let core = mesh::crypto::NoiseCore::new(&key, 500, clock.clone());
//! let tun = Tun::create(
//!     &TunOptions { addresses: vec![([10, 7, 0, 1].into(), 24)], ..TunOptions::default() },
//!     None,
//! )?;
//! let wire = Wire::bind(&WireOptions { port: 51820, ..WireOptions::default() }, None)?;
//! let engine = Engine::start(tun, wire, Arc::new(core), clock)?;
//! engine.set_peer(&PeerOptions {
//!     endpoint: Some(([192, 0, 2, 7], 51820).into()),
//!     ..PeerOptions::new(
//!         "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=".parse()?,
//!         vec!["10.7.0.2".parse()?],
//!     )
//! })?;
//! # Ok(())
//! # }
//! ```

pub mod batch;
mod clock;
pub mod clusters;
pub mod coordination;
pub mod crypto;
pub mod engine;
mod error;
pub mod flows;
#[doc(hidden)]
pub mod fuzzing;
mod identity;
mod key;
mod link;
pub mod names;
mod namespace;
pub mod node;
mod offload;
mod packet;
pub mod path;
pub mod policy;
mod prefix;
pub mod relay;
pub mod services;
mod surroundings;
mod tun;
pub mod userspace;
mod ways;
mod wire;
pub mod workload;

pub use clock::{Clock, ShiftedClock, SystemClock};
pub use engine::{Engine, EngineStatus, PathOptions, PeerOptions, PeerStatus};
pub use error::Error;
pub use key::{PresharedKey, PrivateKey, PublicKey};
pub use namespace::Namespace;
pub use prefix::Prefix;
pub use relay::{Relay, RelayAddress, RelayOptions, RelayStatus};
pub use surroundings::{MappedPort, MappingProtocol};
pub use tun::{DEVICES, Offload, Tun, TunOptions};
pub use ways::PeerWay;
pub use wire::{Wire, WireOptions};
