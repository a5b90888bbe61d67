//! The guest's protocol, as E2B's clients speak it to envd: the Connect protocol with its JSON
//! codec, the services `process.Process` and `filesystem.Filesystem`, and plain HTTP for files.
//!
//! Messages follow ProtoJSON: names in lower camel case (snake case is accepted too), bytes in
//! base64, 64-bit integers as strings, enums by name, timestamps per RFC 3339, defaults left out,
//! `null` the same as absent, unknown fields ignored.
//!
//! Start reading at [`connect`], then [`process`].

pub mod connect;
pub mod files;
pub mod filesystem;
pub mod process;
pub mod scalar;

pub use connect::{Code, ConnectError};

/// The version of envd's protocol that guests speak: what `envdVersion` says.
pub const VERSION: &str = "0.6.13";

/// The port that guests serve on.
pub const PORT: u16 = 49983;
