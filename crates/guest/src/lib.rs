//! The program inside a sandbox: it runs processes, serves files, and reaps.
//!
//! It speaks the protocol of E2B's envd (see [`api::envd`]) over HTTP/1.1, so that E2B's clients
//! work unchanged: [`process`] is `process.Process`, [`filesystem`] is `filesystem.Filesystem`,
//! [`files`] is `/files`. It is made to cost little while it idles: one thread, one memory arena.
//!
//! What it is not: a boundary. Whoever holds the sandbox's token may do anything inside; what
//! keeps a sandbox inside is the driver's business ([`cell`] for containers, [`machine`] for
//! microVMs). Like
//! envd it opens files as root and gives what it writes to the user named in the request.
//!
//! Start reading at [`serve`], then [`http`]. Parsers that face the public are modules without
//! I/O: [`accounts`], [`paths`], [`signature`], [`range`], [`encoding`], [`metadata`],
//! [`multipart`], and `api::envd::connect`.

pub mod accounts;
pub mod cell;
mod descriptor;
pub mod encoding;
pub mod files;
pub mod filesystem;
pub mod http;
pub mod logs;
pub mod machine;
pub mod metadata;
pub mod metrics;
pub mod multipart;
pub mod paths;
pub mod process;
pub mod range;
pub mod role;
mod serve;
pub mod signature;

pub use serve::{Settings, serve, serve_machine};
