//! From a template's source to a root file system on disk.
//!
//! What it is: a store ([`ImageStore`]) that builds images out of registries, OCI layouts, folders,
//! tarballs and Debian packages, unpacks their layers safely, keeps each once by its content, and
//! hands them out as read-only directories for overlayfs, or as one read-only disk image.
//!
//! What it is not: it mounts nothing for sandboxes, knows no tenants and no template names, and
//! keeps no image alive beyond the pins ([`RootFs`]) of whoever runs sandboxes from it.
//!
//! Start reading at [`store`], then [`unpack`] (the part that meets hostile input first) and
//! [`source`].

#![forbid(unsafe_code)]

pub mod archive;
mod build;
pub mod digest;
mod disk;
pub mod error;
pub mod limits;
pub mod registry;
pub mod source;
pub mod store;
pub mod unpack;

pub use error::ImageError;
pub use limits::Limits;
pub use store::{GarbageReport, ImageConfig, ImageDescription, ImageStore, RootFs, StoreOptions};
