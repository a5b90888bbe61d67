//! `docker://IMAGE`: an image in a registry.

use super::{
    manifest::{self, Document, ManifestError},
    stack::{self, Fetched},
};
use crate::{
    build::{Build, Counter, Made},
    digest::Digest,
    error::ImageError,
    registry::{client::Repository, download, reference::Reference},
};
use futures::{FutureExt, future::BoxFuture};
use std::sync::Arc;

pub(super) async fn make(build: &Build, text: &str) -> Result<Made, ImageError> {
    let reference: Reference =
        text.parse()
            .map_err(|error: crate::registry::reference::ParseReferenceError| {
                ImageError::source(
                    error.to_string(),
                    "write docker://[HOST/]NAME[:TAG][@sha256:DIGEST]",
                )
            })?;
    let fingerprint = |digest: &Digest| format!("manifest {digest} {}", manifest::architecture());
    // A digest never means anything else, so nobody needs to be asked.
    if let Some(image) = reference
        .digest
        .as_ref()
        .and_then(|digest| build.unchanged(&fingerprint(digest)))
    {
        return Ok(Made::Unchanged(image));
    }
    build.report.step(
        format!("asking {} for {reference}", reference.registry),
        None,
    );
    let broken = |error: ManifestError| {
        ImageError::source(
            format!("{reference} can't be used: {error}"),
            "choose another image or tag, one for Linux on this machine's architecture",
        )
    };
    let repository =
        Arc::new(Repository::open(&build.store, reference.clone(), build.requester).await?);
    let content = repository.manifest(&reference.manifest()).await?;
    let digest = Digest::of(&content);
    verify(reference.digest.as_ref(), &digest)?;
    let fingerprint = fingerprint(&digest);
    if let Some(image) = build.unchanged(&fingerprint) {
        return Ok(Made::Unchanged(image));
    }
    let image = match manifest::parse_document(&content).map_err(broken)? {
        Document::Manifest(image) => image,
        Document::Index(variants) => {
            let variant = manifest::choose(&variants, manifest::architecture())
                .map_err(broken)?
                .digest;
            let content = repository.manifest(&variant.to_string()).await?;
            verify(Some(&variant), &Digest::of(&content))?;
            match manifest::parse_document(&content).map_err(broken)? {
                Document::Manifest(image) => image,
                Document::Index(_) => return Err(broken(ManifestError::Malformed("manifest"))),
            }
        }
    };
    let path = format!("blobs/{}", image.config.digest);
    let configuration = repository.small(&path, manifest::CONFIG_MAX).await?;
    verify(Some(&image.config.digest), &Digest::of(&configuration))?;
    let configuration = manifest::parse_configuration(&configuration).map_err(broken)?;
    let limit = build.store.options.limits.layers;
    let layers = manifest::pair_layers(&image, &configuration, limit).map_err(broken)?;

    let fetch = |blob: &manifest::Descriptor, counter: &Counter| {
        let (blob, counter, repository) = (blob.clone(), counter.clone(), repository.clone());
        async move {
            let held = download::fetch(build, &repository, &blob, &counter).await?;
            let path = build.store.layout.blob(&blob.digest);
            Ok(Fetched::blob(path, held))
        }
        .boxed() as BoxFuture<'_, Result<Fetched, ImageError>>
    };
    let made = stack::make(build, &layers, &fetch).await?;
    for (blob, _) in &layers {
        build.store.drop_blob(&blob.digest);
    }
    Ok(Made::Image {
        layers: made,
        config: configuration.config,
        fingerprint,
    })
}

fn verify(expected: Option<&Digest>, found: &Digest) -> Result<(), ImageError> {
    match expected {
        Some(expected) if expected != found => Err(ImageError::Registry {
            cause: format!("what the registry sends for {expected} is something else"),
            remedy: "try again; if it stays so, a proxy or the registry is broken".into(),
        }),
        _ => Ok(()),
    }
}
