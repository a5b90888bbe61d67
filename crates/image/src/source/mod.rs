//! Where images come from: one file for each kind of source.

pub mod apt_sources;
mod base;
mod debian;
mod mmdebstrap;
pub mod progress;
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
        _ => Err(ImageError::source("not there yet", "")),
    }
}
