//! Where images come from: one file for each kind of source.

pub mod apt_sources;
mod base;
mod debian;
mod directory;
pub mod manifest;
mod mmdebstrap;
mod oci;
pub mod progress;
mod registry;
mod stack;
mod tarball;

use crate::{
    build::{Build, Made},
    error::ImageError,
};
use api::template::TemplateSource;

/// Makes the image of the build's source, or finds that nothing changed.
pub(crate) async fn make(build: &Build) -> Result<Made, ImageError> {
    match &build.source {
        TemplateSource::Tarball(path) => tarball::make(build, path).await,
        TemplateSource::Debian { suite, packages } => debian::make(build, suite, packages).await,
        TemplateSource::Base => base::make(build).await,
        TemplateSource::Directory(path) => directory::make(build, path).await,
        TemplateSource::OciLayout { path, tag } => oci::make(build, path, tag.as_deref()).await,
        TemplateSource::Registry(reference) => registry::make(build, reference).await,
    }
}
