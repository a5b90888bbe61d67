//! What the control plane keeps in the store.
//!
//! | key | record |
//! | --- | --- |
//! | `atoll/instance/self` | [`Instance`]: secrets of this installation, made at its first start |
//! | `atoll/tenants/TENANT` | [`Tenant`] |
//! | `atoll/keys/ID` | [`Key`]: the digest of an API key |
//! | `atoll/templates/TEMPLATE` | [`Template`] with its builds and tags |
//! | `atoll/names/NAME` | the id of the template that has the name, so that no two have it |
//! | `atoll/garbage/UUID` | [`Garbage`]: root file systems that nodes should remove |

use api::{
    BuildId, Bytes, ImageDigest, NodeId, Resources, SandboxId, Secret, TemplateId, TenantId,
    rest::{sandbox::NewMeshIdentity, template::BuildStatus, v1::Role},
    template::{Requester, TemplateSource},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The id of the template that Atoll comes with.
pub(crate) const BASE_TEMPLATE: &str = "base0000000000000000";

/// Its name.
pub(crate) const BASE_NAME: &str = "base";

/// The owner of what Atoll comes with. Nobody has a key of this tenant.
pub(crate) const SYSTEM_TENANT: &str = "t000000000000";

/// The tag that a reference without one means.
pub(crate) const DEFAULT_TAG: &str = "default";

/// Secrets of this installation. They never leave the store and this process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Instance {
    /// What the tokens of sandboxes are derived from: 64 hexadecimal digits.
    pub(crate) seed: Secret,
    /// What API keys are hashed with: 64 hexadecimal digits.
    pub(crate) pepper: Secret,
    /// The tenant that the first key belongs to.
    pub(crate) tenant: TenantId,
    /// When it was made.
    pub(crate) created_at: Timestamp,
}

/// Who owns things.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Tenant {
    pub(crate) id: TenantId,
    pub(crate) name: String,
    pub(crate) created_at: Timestamp,
}

/// An API key.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Key {
    pub(crate) id: String,
    pub(crate) name: String,
    /// Its first characters, for telling keys apart.
    pub(crate) prefix: String,
    /// HMAC-SHA-256 of the key under the installation's pepper, in hexadecimal digits.
    pub(crate) digest: String,
    pub(crate) tenant: TenantId,
    pub(crate) role: Role,
    pub(crate) created_at: Timestamp,
}

/// What sandboxes start from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Template {
    pub(crate) id: TemplateId,
    pub(crate) tenant: TenantId,
    pub(crate) name: String,
    /// Whether other tenants may use it.
    pub(crate) public: bool,
    /// The sandbox that it is a snapshot of, if it is one.
    #[serde(default)]
    pub(crate) snapshot_of: Option<SandboxId>,
    pub(crate) created_at: Timestamp,
    pub(crate) updated_at: Timestamp,
    /// Newest first, never empty.
    pub(crate) builds: Vec<Build>,
    pub(crate) tags: BTreeMap<String, Tag>,
}

/// The build that a tag names.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Tag {
    pub(crate) build: BuildId,
    pub(crate) assigned_at: Timestamp,
}

/// One build of a template.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Build {
    pub(crate) id: BuildId,
    pub(crate) status: BuildStatus,
    /// Why it failed.
    pub(crate) reason: Option<String>,
    /// The tag that it gets when it is ready.
    pub(crate) tag: String,
    pub(crate) recipe: Recipe,
    /// What came out, once it is ready.
    pub(crate) product: Option<Product>,
    pub(crate) created_at: Timestamp,
    pub(crate) updated_at: Timestamp,
    pub(crate) finished_at: Option<Timestamp>,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Recipe {
    pub(crate) source: TemplateSource,
    /// Who asked for it: decides what the node lends to the build.
    #[serde(default)]
    pub(crate) requester: Requester,
    pub(crate) resources: Resources,
    pub(crate) start_command: Option<String>,
    #[serde(default)]
    pub(crate) ready_command: Option<String>,
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) user: Option<String>,
    pub(crate) working_directory: Option<String>,
    /// Who its sandboxes are to be in the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mesh: Option<NewMeshIdentity>,
}

/// What came out of a build: the recipe and the image's own configuration merged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Product {
    /// The root file system on each node that holds it.
    pub(crate) images: BTreeMap<NodeId, ImageDigest>,
    pub(crate) size: Bytes,
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) user: String,
    pub(crate) working_directory: String,
}

/// Root file systems that nodes should remove once nothing uses them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Garbage {
    pub(crate) images: Vec<(NodeId, ImageDigest)>,
}

impl Garbage {
    /// A new id for a record of garbage.
    pub(crate) fn random_id() -> String {
        BuildId::random(&mut rand::rng()).into()
    }
}

impl Product {
    /// Its root file systems, as garbage.
    pub(crate) fn garbage(&self) -> Garbage {
        let images = self
            .images
            .iter()
            .map(|(node, image)| (node.clone(), image.clone()));
        Garbage {
            images: images.collect(),
        }
    }
}

impl Template {
    /// The build of an id.
    pub(crate) fn build(&self, id: &BuildId) -> Option<&Build> {
        self.builds.iter().find(|build| build.id == *id)
    }

    /// The build that a tag names.
    pub(crate) fn tagged(&self, tag: &str) -> Option<&Build> {
        self.build(&self.tags.get(tag)?.build)
    }

    /// The newest build.
    pub(crate) fn newest(&self) -> Option<&Build> {
        self.builds.first()
    }

    /// Whether Atoll came with it.
    pub(crate) fn built_in(&self) -> bool {
        self.tenant.as_str() == SYSTEM_TENANT
    }

    /// Whether a tenant may use it.
    pub(crate) fn visible_to(&self, tenant: &TenantId) -> bool {
        self.public || self.tenant == *tenant
    }

    /// Its name with the owner before it, as E2B's clients know it.
    pub(crate) fn full_name(&self) -> String {
        if self.built_in() {
            self.name.clone()
        } else {
            format!("{}/{}", self.tenant, self.name)
        }
    }

    /// The root file systems of all its builds.
    pub(crate) fn images(&self) -> impl Iterator<Item = (&NodeId, &ImageDigest)> {
        self.builds
            .iter()
            .filter_map(|build| build.product.as_ref())
            .flat_map(|p| &p.images)
    }
}
