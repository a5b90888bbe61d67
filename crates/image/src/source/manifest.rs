//! Indexes, manifests and configurations: OCI image specification 1.1 and Docker's schema 2. Pure.

use crate::{digest::Digest, store::ImageConfig};
use serde::Deserialize;
use std::collections::BTreeMap;

/// The largest index or manifest that is read.
pub const MANIFEST_MAX: u64 = 4 << 20;
/// The largest configuration that is read.
pub const CONFIG_MAX: u64 = 8 << 20;
/// The media types that are asked for.
pub const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// Why a document is not one of an image that can run here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It has another form.
    #[error("its {0} is not of a known form")]
    Malformed(&'static str),
    /// It is Docker's schema 1.
    #[error("it is in Docker's old format, schema 1")]
    Schema1,
    /// It holds something else than a root file system.
    #[error("it is no image of a root file system: it has a layer of type `{0}`")]
    NotAnImage(String),
    /// It has no variant for this machine.
    #[error("it has no variant for {wanted}; there are: {there}")]
    Platform {
        /// What was looked for.
        wanted: String,
        /// What there is.
        there: String,
    },
    /// Its documents contradict each other, or there are too many layers.
    #[error(
        "it has {layers} layers and {diffs} digests of their content; at most {limit} are allowed"
    )]
    Layers {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diffs: usize,
        /// The most that are allowed.
        limit: usize,
    },
}

/// A blob that a document names.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Descriptor {
    /// What it is.
    #[serde(default, rename = "mediaType")]
    pub media_type: String,
    /// Its content.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// The machine that it is for.
    #[serde(default)]
    pub platform: Option<Platform>,
    /// Labels.
    #[serde(default)]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// A kind of machine.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Platform {
    /// `amd64`, `arm64`.
    #[serde(default)]
    pub architecture: String,
    /// `linux`.
    #[serde(default)]
    pub os: String,
}

/// An image's layers and its configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Manifest {
    /// Its configuration.
    pub config: Descriptor,
    /// Its layers, lowest first.
    pub layers: Vec<Descriptor>,
}

/// A document that an image's name leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// Variants of an image.
    Index(Vec<Descriptor>),
    /// One image.
    Manifest(Manifest),
}

/// What matters of an image's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    /// Digests of the uncompressed layers, lowest first.
    pub diffs: Vec<Digest>,
    /// How its processes run.
    pub config: ImageConfig,
}

/// This machine's architecture, as images name it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Reads an index or a manifest; tells them apart by what they hold, because media types lie.
pub fn parse_document(content: &[u8]) -> Result<Document, ManifestError> {
    #[derive(Deserialize)]
    struct Any {
        #[serde(default, rename = "schemaVersion")]
        schema: Option<u32>,
        manifests: Option<Vec<Descriptor>>,
        config: Option<Descriptor>,
        layers: Option<Vec<Descriptor>>,
    }
    let any: Any = serde_json::from_slice(content).map_err(|_| {
        // Its layers are named in another way, so it does not parse.
        ManifestError::Malformed("manifest")
    })?;
    match any {
        Any {
            schema: Some(1), ..
        } => Err(ManifestError::Schema1),
        // A document that claims to be both could be read differently by two readers.
        Any {
            manifests: Some(manifests),
            config: None,
            layers: None,
            ..
        } => Ok(Document::Index(manifests)),
        Any {
            manifests: None,
            config: Some(config),
            layers: Some(layers),
            ..
        } => {
            let image = |layer: &Descriptor| {
                let known = layer.media_type.is_empty() || layer.media_type.contains(".tar");
                known && !layer.media_type.contains("encrypted")
            };
            match layers.iter().find(|layer| !image(layer)) {
                Some(layer) => Err(ManifestError::NotAnImage(
                    layer.media_type.chars().take(100).collect(),
                )),
                None => Ok(Document::Manifest(Manifest { config, layers })),
            }
        }
        _ => Err(ManifestError::Malformed("manifest")),
    }
}

/// The variant for Linux on `architecture`.
pub fn choose<'a>(
    variants: &'a [Descriptor],
    architecture: &str,
) -> Result<&'a Descriptor, ManifestError> {
    let fits = |variant: &&Descriptor| {
        variant
            .platform
            .as_ref()
            .is_some_and(|platform| platform.os == "linux" && platform.architecture == architecture)
    };
    // An index with one variant and no platform is how some tools write a single image.
    let only = match variants {
        [only] if only.platform.is_none() => Some(only),
        _ => None,
    };
    variants.iter().find(fits).or(only).ok_or_else(|| {
        let there: Vec<String> = variants
            .iter()
            .filter_map(|variant| variant.platform.as_ref())
            .take(20)
            .map(|platform| format!("{:.20}/{:.20}", platform.os, platform.architecture))
            .collect();
        ManifestError::Platform {
            wanted: format!("linux/{architecture}"),
            there: there.join(", "),
        }
    })
}

/// Reads an image's configuration.
pub fn parse_configuration(content: &[u8]) -> Result<Configuration, ManifestError> {
    #[derive(Deserialize)]
    struct File {
        rootfs: RootFs,
        #[serde(default)]
        config: Option<Runtime>,
    }
    #[derive(Deserialize)]
    struct RootFs {
        diff_ids: Vec<Digest>,
    }
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "PascalCase", default)]
    struct Runtime {
        user: Option<String>,
        env: Option<Vec<String>>,
        entrypoint: Option<Vec<String>>,
        cmd: Option<Vec<String>>,
        working_dir: Option<String>,
    }
    let file: File =
        serde_json::from_slice(content).map_err(|_| ManifestError::Malformed("configuration"))?;
    let runtime = file.config.unwrap_or_default();
    let set = |text: Option<String>| text.filter(|text| !text.is_empty());
    let environment = runtime
        .env
        .unwrap_or_default()
        .iter()
        .filter_map(|variable| variable.split_once('='))
        .filter(|(name, _)| !name.is_empty())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let mut command = runtime.entrypoint.unwrap_or_default();
    command.extend(runtime.cmd.unwrap_or_default());
    Ok(Configuration {
        diffs: file.rootfs.diff_ids,
        config: ImageConfig {
            environment,
            user: set(runtime.user),
            working_directory: set(runtime.working_dir),
            command,
        },
    })
}

/// The layers of an image with the digests of their content, lowest first.
pub fn pair_layers(
    manifest: &Manifest,
    configuration: &Configuration,
    limit: usize,
) -> Result<Vec<(Descriptor, Digest)>, ManifestError> {
    let (layers, diffs) = (manifest.layers.len(), configuration.diffs.len());
    if layers != diffs || layers == 0 || layers > limit {
        return Err(ManifestError::Layers {
            layers,
            diffs,
            limit,
        });
    }
    Ok(manifest
        .layers
        .iter()
        .cloned()
        .zip(configuration.diffs.iter().copied())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(platform: Option<(&str, &str)>) -> String {
        let platform = platform.map_or(String::new(), |(os, architecture)| {
            format!(r#", "platform": {{"os": "{os}", "architecture": "{architecture}"}}"#)
        });
        format!(
            r#"{{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": "{}", "size": 3{platform}}}"#,
            Digest::of(platform.as_bytes())
        )
    }

    #[test]
    fn the_variant_for_this_machine_is_chosen() {
        let index = format!(
            r#"{{"schemaVersion": 2, "manifests": [{}, {}]}}"#,
            descriptor(Some(("linux", "arm64"))),
            descriptor(Some(("linux", "amd64")))
        );
        let Document::Index(variants) = parse_document(index.as_bytes()).unwrap() else {
            panic!("not an index")
        };
        assert_eq!(choose(&variants, "amd64").unwrap(), &variants[1]);
        let error = choose(&variants, "riscv64").unwrap_err();
        assert_eq!(
            error.to_string(),
            "it has no variant for linux/riscv64; there are: linux/arm64, linux/amd64"
        );
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let plain = descriptor(None);
        let chart = plain.replace("oci.image.layer.v1.tar+gzip", "helm.chart");
        let check = |text: String, expected: &str| {
            let error = parse_document(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(r#"{"schemaVersion": 1, "name": "x"}"#.into(), "schema 1");
        check(
            format!(r#"{{"config": {plain}, "layers": [{chart}]}}"#),
            "no image",
        );
        check(
            format!(r#"{{"config": {plain}, "layers": [], "manifests": []}}"#),
            "known form",
        );
        check("{}".into(), "known form");
        check("[".into(), "known form");
    }

    #[test]
    fn a_configuration_tells_how_to_run() {
        let digest = Digest::of(b"");
        let text = format!(
            r#"{{"rootfs": {{"type": "layers", "diff_ids": ["{digest}"]}}, "config": {{
                "Env": ["A=b=c", "NONSENSE"], "Entrypoint": ["/init"], "Cmd": ["x"],
                "User": "", "WorkingDir": "/srv"}}}}"#
        );
        let read = parse_configuration(text.as_bytes()).unwrap();
        assert_eq!(read.diffs, [digest]);
        assert_eq!(read.config.environment["A"], "b=c");
        assert_eq!(read.config.command, ["/init", "x"]);
        assert_eq!(
            (read.config.user, read.config.working_directory),
            (None, Some("/srv".into()))
        );
    }
}
