//! `oci:PATH[:TAG]`: an OCI image layout, as a folder or an archive, or what `docker save` writes.

use super::{
    manifest::{self, Descriptor, Document, Manifest, ManifestError},
    stack::{self, Fetched},
    tarball,
};
use crate::{
    archive::{
        ArchiveReader, EntryKind,
        compression::{Compression, Decompressed},
    },
    build::{Build, Content, Made, Report, Watched},
    digest::Digest,
    error::ImageError,
    store::{Inner, Temporary},
};
use futures::FutureExt;
use serde::Deserialize;
use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Files that are looked for in an archive.
const FILES_MAX: usize = 10_000;

pub(super) async fn make(
    build: &Build,
    path: &Path,
    tag: Option<&str>,
) -> Result<Made, ImageError> {
    let archive_state = match path.is_dir() {
        true => None,
        false => Some(format!("{} {tag:?}", tarball::open(path)?.2)),
    };
    if let Some(image) = archive_state
        .as_deref()
        .and_then(|state| build.unchanged(state))
    {
        return Ok(Made::Unchanged(image));
    }
    let (store, place) = (build.store.clone(), path.to_owned());
    let shown = path.display().to_string();
    let step = build.report.step(format!("reading {shown}"), None);
    let layout = build
        .blocking(move |report| Layout::open(&place, &store, report, &step))
        .await?;
    let layout = Arc::new(layout);
    let (reader, wanted_tag) = (layout.clone(), tag.map(str::to_owned));
    let limit = build.store.options.limits.layers;
    let read = move |_: &Report| {
        reader
            .image(wanted_tag.as_deref(), limit)
            .map_err(|fault| fault.explain(&shown))
    };
    let image = build.blocking(read).await?;
    let fingerprint = archive_state.unwrap_or_else(|| format!("manifest {}", image.digest));
    if let Some(image) = build.unchanged(&fingerprint) {
        return Ok(Made::Unchanged(image));
    }
    let names: HashMap<Digest, String> = image
        .layers
        .iter()
        .zip(&image.names)
        .map(|((blob, _), name)| (blob.digest, name.clone()))
        .collect();
    let fetch = |blob: &Descriptor, counter: &crate::build::Counter| {
        let name = names.get(&blob.digest).cloned().unwrap_or_default();
        let (layout, digest, counter, size) =
            (layout.clone(), blob.digest, counter.clone(), blob.size);
        let is_diff = image.named_by_diff;
        async move {
            // What a layout calls a blob by its digest may still be something else.
            let content = match is_diff {
                true => layout.content(name)?,
                false => {
                    build
                        .blocking(move |report| layout.verified(name, digest, report))
                        .await?
                }
            };
            counter.add(size);
            Ok(Fetched::local(content))
        }
        .boxed()
    };
    let layers = stack::make(build, &image.layers, &fetch).await?;
    Ok(Made::Image {
        layers,
        config: image.config.clone(),
        fingerprint,
    })
}

/// What a layout says about one image.
struct Image {
    digest: Digest,
    layers: Vec<(Descriptor, Digest)>,
    /// The layers' files.
    names: Vec<String>,
    config: crate::store::ImageConfig,
    /// Whether the layers are named by their uncompressed content, which unpacking verifies.
    named_by_diff: bool,
}

/// Why a layout can't be used.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("it has no readable `{0}`: {1}")]
    File(String, #[source] io::Error),
    #[error("`{0}` is not what its name says")]
    Digest(String),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("it has no image with the tag `{0}`; there are: {1}")]
    NoTag(String, String),
    #[error("it has several images: {0}")]
    Several(String),
}

impl Fault {
    fn explain(self, path: &str) -> ImageError {
        let remedy = match self {
            Self::NoTag(..) | Self::Several(_) => "name one: oci:PATH:TAG",
            _ => {
                "export the image again; what is read is an OCI image layout, or what \
                  `docker save` writes"
            }
        };
        ImageError::source(format!("`{path}` can't be used: {self}"), remedy)
    }
}

/// Files by name.
enum Layout {
    Folder(PathBuf),
    Archive {
        path: PathBuf,
        /// Where each file lies.
        files: HashMap<String, (u64, u64)>,
        /// The archive without its compression, if it had one.
        _plain: Option<Temporary>,
    },
}

impl Layout {
    fn open(
        path: &Path,
        store: &Arc<Inner>,
        report: &Report,
        counter: &crate::build::Counter,
    ) -> Result<Self, ImageError> {
        if path.is_dir() {
            return Ok(Self::Folder(path.to_owned()));
        }
        let (file, _, _) = tarball::open(path)?;
        let refuse = |error| ImageError::path("read", path)(error);
        let stream = Watched::new(file, report.clone(), counter.clone());
        let mut stream = Decompressed::new(stream).map_err(refuse)?;
        let (mut place, mut plain) = (path.to_owned(), None);
        if stream.compression() != Compression::None {
            let made = store.layout.temporary()?;
            place = made.path().join("archive.tar");
            let limit = store.options.limits.compressed_bytes;
            let mut file = File::create(&place).map_err(ImageError::path("create", &place))?;
            let copied = io::copy(&mut (&mut stream).take(limit), &mut file).map_err(refuse)?;
            if copied == limit {
                return Err(ImageError::source(
                    format!("`{}` is larger than {limit} bytes", path.display()),
                    "use a smaller image",
                ));
            }
            plain = Some(made);
        }
        let file = File::open(&place).map_err(refuse)?;
        let mut archive = ArchiveReader::new(io::BufReader::with_capacity(256 << 10, file));
        let mut files = HashMap::new();
        let broken = |error| {
            ImageError::source(
                format!("`{}` can't be used: {error}", path.display()),
                "write tar:PATH for an archive of a root file system",
            )
        };
        while let Some(entry) = archive.next().map_err(broken)? {
            report.check().map_err(|_| ImageError::Cancelled)?;
            if entry.kind == EntryKind::File && entry.sparse.is_none() && files.len() < FILES_MAX {
                let name = String::from_utf8_lossy(&entry.path).into_owned();
                let name = name.trim_start_matches("./").to_owned();
                files.insert(name, (archive.position(), entry.size));
            }
        }
        Ok(Self::Archive {
            path: place,
            files,
            _plain: plain,
        })
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Self::Folder(path) => path.join(name).is_file(),
            Self::Archive { files, .. } => files.contains_key(name),
        }
    }

    fn stream(&self, name: &str) -> io::Result<(Box<dyn Read + Send>, u64)> {
        match self {
            Self::Folder(path) => {
                let outside = Path::new(name)
                    .components()
                    .any(|part| !matches!(part, std::path::Component::Normal(_)));
                if outside {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
                let file = File::open(path.join(name))?;
                let size = file.metadata()?.len();
                Ok((Box::new(file), size))
            }
            Self::Archive { path, files, .. } => {
                let (offset, size) = *files.get(name).ok_or(io::ErrorKind::NotFound)?;
                let mut file = File::open(path)?;
                file.seek(SeekFrom::Start(offset))?;
                Ok((Box::new(file.take(size)), size))
            }
        }
    }

    fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, Fault> {
        let mut content = Vec::new();
        self.stream(name)
            .and_then(|(stream, size)| {
                if size > limit {
                    return Err(io::ErrorKind::FileTooLarge.into());
                }
                stream.take(limit).read_to_end(&mut content)
            })
            .map_err(|error| Fault::File(name.to_owned(), error))?;
        Ok(content)
    }

    fn read_blob(&self, blob: &Digest, limit: u64) -> Result<Vec<u8>, Fault> {
        let name = blob_name(blob);
        let content = self.read(&name, limit)?;
        match Digest::of(&content) == *blob {
            true => Ok(content),
            false => Err(Fault::Digest(name)),
        }
    }

    fn content(self: &Arc<Self>, name: String) -> Result<Content, ImageError> {
        let layout = self.clone();
        Ok(Box::new(move || Ok(layout.stream(&name)?.0)))
    }

    /// A layer's archive after its digest was checked: what is unpacked is what was meant.
    fn verified(
        self: &Arc<Self>,
        name: String,
        digest: Digest,
        report: &Report,
    ) -> Result<Content, ImageError> {
        let (stream, _) = self
            .stream(&name)
            .map_err(ImageError::store(format!("can't read `{name}`")))?;
        let stream = Watched::new(stream, report.clone(), Default::default());
        let found =
            crate::digest::HashingReader::new(io::BufReader::with_capacity(256 << 10, stream))
                .finish()
                .map_err(ImageError::store(format!("can't read `{name}`")))?;
        if found != digest {
            return Err(Fault::Digest(name.clone()).explain(&name));
        }
        self.content(name)
    }

    fn image(&self, tag: Option<&str>, limit: usize) -> Result<Image, Fault> {
        if !self.has("index.json") && self.has("manifest.json") {
            return self.saved_image(tag, limit);
        }
        let content = self.read("index.json", manifest::MANIFEST_MAX)?;
        let Document::Index(variants) = manifest::parse_document(&content)? else {
            return Err(ManifestError::Malformed("index").into());
        };
        let mut chosen = choose_tag(&variants, tag)?.clone();
        // An image's name may lead to an index of its variants.
        for _ in 0..3 {
            let content = self.read_blob(&chosen.digest, manifest::MANIFEST_MAX)?;
            match manifest::parse_document(&content)? {
                Document::Manifest(image) => return self.layers(chosen.digest, &image, limit),
                Document::Index(variants) => {
                    chosen = manifest::choose(&variants, manifest::architecture())?.clone();
                }
            }
        }
        Err(ManifestError::Malformed("index").into())
    }

    fn layers(&self, digest: Digest, image: &Manifest, limit: usize) -> Result<Image, Fault> {
        let content = self.read_blob(&image.config.digest, manifest::CONFIG_MAX)?;
        let configuration = manifest::parse_configuration(&content)?;
        let layers = manifest::pair_layers(image, &configuration, limit)?;
        let names = layers
            .iter()
            .map(|(blob, _)| blob_name(&blob.digest))
            .collect();
        Ok(Image {
            digest,
            layers,
            names,
            config: configuration.config,
            named_by_diff: false,
        })
    }

    /// What `docker save` wrote before it wrote OCI layouts.
    fn saved_image(&self, tag: Option<&str>, limit: usize) -> Result<Image, Fault> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Saved {
            config: String,
            repo_tags: Option<Vec<String>>,
            layers: Vec<String>,
        }
        let content = self.read("manifest.json", manifest::MANIFEST_MAX)?;
        let images: Vec<Saved> = serde_json::from_slice(&content)
            .map_err(|_| ManifestError::Malformed("manifest.json"))?;
        let named = |image: &&Saved, tag: &str| {
            image
                .repo_tags
                .iter()
                .flatten()
                .any(|name| name_has_tag(name, tag))
        };
        let tags = || {
            let names = images
                .iter()
                .flat_map(|image| image.repo_tags.iter().flatten());
            names.take(20).cloned().collect::<Vec<_>>().join(", ")
        };
        let image = match (tag, images.as_slice()) {
            (Some(tag), all) => all
                .iter()
                .find(|image| named(image, tag))
                .ok_or_else(|| Fault::NoTag(tag.to_owned(), tags()))?,
            (None, [only]) => only,
            (None, _) => return Err(Fault::Several(tags())),
        };
        let content = self.read(&image.config, manifest::CONFIG_MAX)?;
        let configuration = manifest::parse_configuration(&content)?;
        let mut manifest = Manifest {
            config: blob(Digest::of(&content), 0),
            layers: Vec::new(),
        };
        for (name, diff) in image.layers.iter().zip(&configuration.diffs) {
            let (_, size) = self
                .stream(name)
                .map_err(|error| Fault::File(name.clone(), error))?;
            manifest.layers.push(blob(*diff, size));
        }
        let layers = manifest::pair_layers(&manifest, &configuration, limit)?;
        Ok(Image {
            digest: manifest.config.digest,
            layers,
            names: image.layers.clone(),
            config: configuration.config,
            named_by_diff: true,
        })
    }
}

fn blob(digest: Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: String::new(),
        digest,
        size,
        platform: None,
        annotations: None,
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn choose_tag<'a>(variants: &'a [Descriptor], tag: Option<&str>) -> Result<&'a Descriptor, Fault> {
    let names = |variant: &Descriptor| -> Vec<String> {
        let annotations = variant.annotations.iter().flatten();
        annotations
            .filter(|(key, _)| {
                [
                    "org.opencontainers.image.ref.name",
                    "io.containerd.image.name",
                ]
                .contains(&key.as_str())
            })
            .map(|(_, name)| name.clone())
            .collect()
    };
    let all = || {
        variants
            .iter()
            .flat_map(names)
            .take(20)
            .collect::<Vec<_>>()
            .join(", ")
    };
    match (tag, variants) {
        (Some(tag), _) => variants
            .iter()
            .find(|variant| names(variant).iter().any(|name| name_has_tag(name, tag)))
            .ok_or_else(|| Fault::NoTag(tag.to_owned(), all())),
        (None, [only]) => Ok(only),
        (None, _) if variants.iter().all(|variant| variant.platform.is_some()) => {
            Ok(manifest::choose(variants, manifest::architecture())?)
        }
        (None, _) => Err(Fault::Several(all())),
    }
}

/// Whether `name`, a tag or a whole image reference, has the tag.
fn name_has_tag(name: &str, tag: &str) -> bool {
    name == tag
        || name
            .strip_suffix(tag)
            .is_some_and(|rest| rest.ends_with(':'))
}
