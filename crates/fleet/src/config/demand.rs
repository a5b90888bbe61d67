//! Where one reads what is asked for.

use super::secret::SecretSource;
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::PathBuf;

/// Where one reads what is asked for, and what machines carry.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Deserialize)]
#[serde(tag = "source", rename_all = "kebab-case", deny_unknown_fields)]
pub enum DemandEntry {
    /// A file with a line for each workload: `name,cpu_millis,memory_mebibytes,machine,moving`. It
    /// is read anew each time.
    File {
        /// The file.
        path: PathBuf,
    },
    /// The sandboxes of Atoll's own nodes, as its API says. A machine is the node of the same host
    /// name.
    Atoll {
        /// The address of the API: `http://10.0.0.1:3000`.
        url: String,
        /// Where the key is: one of an administrator.
        key: SecretSource,
    },
    /// A Kubernetes cluster: pods that run and wait. A machine is the node with its `provider_id`,
    /// or of its name.
    Kubernetes {
        /// The API server's address; that of the cluster which this process runs in if left out.
        url: Option<String>,
        /// The file that holds the token; that of the pod's own account if left out.
        token: Option<PathBuf>,
        /// The authority that signed the API server's certificate, as PEM; that of the pod's own
        /// account if left out, or those of the system outside a cluster.
        certificate_authority: Option<PathBuf>,
    },
}
