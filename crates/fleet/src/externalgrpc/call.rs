//! The calls that there are.

/// What the names of all of Cluster Autoscaler's calls to a cloud begin with.
const CLOUD: &str = "/clusterautoscaler.cloudprovider.v1.externalgrpc.CloudProvider/";
/// What the names of its calls to an expander begin with.
const EXPANDER: &str = "/grpcplugin.Expander/";

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident of $service:ident = $text:literal,)*) => {
        /// A call.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Call {
            $($(#[$doc])* $name,)*
        }

        impl Call {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its name, without the service's.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// What its path begins with.
            const fn service(self) -> &'static str {
                match self {
                    $(Self::$name => $service,)*
                }
            }
        }
    };
}

calls! {
    /// Called first in every loop.
    Refresh of CLOUD = "Refresh",
    /// All groups.
    NodeGroups of CLOUD = "NodeGroups",
    /// The group of a node.
    NodeGroupForNode of CLOUD = "NodeGroupForNode",
    /// How many machines of a group are promised.
    NodeGroupTargetSize of CLOUD = "NodeGroupTargetSize",
    /// Promises more.
    NodeGroupIncreaseSize of CLOUD = "NodeGroupIncreaseSize",
    /// Gives machines back.
    NodeGroupDeleteNodes of CLOUD = "NodeGroupDeleteNodes",
    /// Takes promises back that were not fulfilled.
    NodeGroupDecreaseTargetSize of CLOUD = "NodeGroupDecreaseTargetSize",
    /// The machines of a group that are there, come or go.
    NodeGroupNodes of CLOUD = "NodeGroupNodes",
    /// What a node of a group will look like.
    NodeGroupTemplateNodeInfo of CLOUD = "NodeGroupTemplateNodeInfo",
    /// How a group is scaled.
    NodeGroupGetOptions of CLOUD = "NodeGroupGetOptions",
    /// What a node costs.
    PricingNodePrice of CLOUD = "PricingNodePrice",
    /// What a pod costs.
    PricingPodPrice of CLOUD = "PricingPodPrice",
    /// The label of nodes with accelerators.
    GpuLabel of CLOUD = "GPULabel",
    /// The kinds of accelerators.
    GetAvailableGpuTypes of CLOUD = "GetAvailableGPUTypes",
    /// Called at the end.
    Cleanup of CLOUD = "Cleanup",
    /// Which way to scale up is best.
    BestOptions of EXPANDER = "BestOptions",
}

impl Call {
    /// The call of a path.
    pub fn of_path(path: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|call| {
            path.strip_prefix(call.service())
                .is_some_and(|name| name == call.name())
        })
    }

    /// The path by which it is called.
    pub fn path(self) -> String {
        format!("{}{}", self.service(), self.name())
    }

    /// Whether it belongs to the expander, which changes nothing and says nothing of the fleet.
    pub fn is_expander(self) -> bool {
        self == Self::BestOptions
    }
}
