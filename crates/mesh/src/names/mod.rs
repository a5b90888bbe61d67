//! Names: a DNS server on every node.
//!
//! [`Zone`] answers for the mesh from what the node knows, so it needs no coordinator: nodes (A, AAAA), services (A: their own address where this node has doors there,
//! else their nodes'; `all.SERVICE` is always the nodes), ports of services (SRV at `_SERVICE._tcp.DOMAIN`, which names nodes), addresses (PTR). A name that exists without the record asked for is NODATA, never
//! NXDOMAIN: resolvers of small C libraries give up on a name at the first NXDOMAIN. Other names go to servers of their own
//! (split DNS), or to those that this machine used before. [`Server`] carries questions and answers, over UDP and TCP.
//!
//! It answers this machine only, and writes no `resolv.conf`.

mod forward;
mod server;
#[cfg(test)]
mod tests;
mod zone;

pub use forward::upstream_of;
pub use server::{Server, ServerOptions};
pub use zone::{Answer, Zone, ZoneNode};
