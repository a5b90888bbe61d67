//! `atoll fleet serve`: carries plans out by itself.

use super::{ask, keep};
use crate::{data_dir, failure::Failure, signals::Signals, style};
use anyhow::Context;
use fleet::{
    config::{DemandEntry, File},
    externalgrpc::{self, Service, Settings, Tls, TlsFiles},
    kubernetes::{Api, KubernetesSource, Place},
    power::transition::Patience,
    serve::{
        AtollSource, Door, FileSource, Fleet, NoDemand, Setup, Shared, Source, is_loopback, router,
        run,
    },
};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

const EXAMPLES: &str = "\
Examples:
  atoll fleet serve --config fleet.toml --dry-run       says what it would do, and does nothing
  atoll fleet serve --config fleet.toml
  atoll fleet serve --config fleet.toml --grpc 0.0.0.0:8086 \\
      --tls-cert server.pem --tls-key server.key --tls-client-ca ca.pem

Beside it: `atoll fleet status`, `atoll fleet explain NODE`, `atoll fleet replay`. Killed at any
moment, it goes on where it was when it is started again. A second one with the same data
directory stands by.";

/// Time between two looks whether the other instance is gone.
const STAND_BY: Duration = Duration::from_secs(1);

/// Switch machines on and off as they are needed
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,

    /// Where status, explanations and metrics are served; any address but this machine's own needs
    /// a token
    #[arg(long, value_name = "HOST:PORT", default_value = ask::DEFAULT_LISTEN)]
    listen: String,

    /// File that holds the token whoever asks must have [default: ATOLL_FLEET_TOKEN]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// Where Kubernetes' Cluster Autoscaler asks (externalgrpc), for groups with `cluster_autoscaler = true`
    #[arg(long, value_name = "HOST:PORT")]
    grpc: Option<String>,

    /// The certificate for it, as PEM; it must name the host by which Cluster Autoscaler calls
    #[arg(long, value_name = "FILE", requires_all = ["grpc", "tls_key"])]
    tls_cert: Option<PathBuf>,

    /// The certificate's key, as PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// The authority that signs Cluster Autoscaler's certificate, as PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,

    /// Answer the expander's question also to clients without a certificate
    #[arg(long, requires = "tls_client_ca")]
    open_expander: bool,

    /// Where everything is kept that must outlive the process
    #[arg(
        long,
        value_name = "DIR",
        env = "ATOLL_DATA_DIR",
        hide_env_values = true
    )]
    data_dir: Option<PathBuf>,

    /// Switch nothing: write down and show what would be done. It is kept apart from real decisions
    #[arg(long)]
    dry_run: bool,

    /// Log as JSON
    #[arg(long)]
    log_json: bool,
}

/// Does it, until it is told to stop.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    let file = super::file::read(&arguments.config)?;
    let source = source(&file)?;
    let calls = Calls::prepare(&arguments, &file)?;
    let token = ask::token(arguments.token_file.as_ref())?;
    crate::up::log::begin(arguments.log_json);
    let mut signals = Signals::listen()?;
    let folder = arguments.data_dir.clone();
    let folder = folder.unwrap_or_else(data_dir::default_path);
    let path = folder.join(match arguments.dry_run {
        true => "fleet-dry-run.sqlite",
        false => keep::FILE,
    });
    let kept = tokio::select! {
        _ = signals.stop() => return Ok(0),
        kept = wait_for(&path) => kept?,
    };
    let listener = TcpListener::bind(&arguments.listen)
        .await
        .with_context(|| format!("cannot listen on {}", arguments.listen))?;
    let address = listener.local_addr()?;
    let door = Door::new(&address, token)?;
    let mut fleet = Fleet::open(Setup {
        file,
        store: kept.store.clone(),
        source,
        patience: Patience::default(),
        dry_run: arguments.dry_run,
    })?;
    let shared = fleet.shared();
    let routes = router(shared.clone(), door);
    let serving = tokio::spawn(Door::serve(listener, routes, std::future::pending()));
    style::note(&format!("serving http://{address}/v1/fleet"));
    let end = async {
        signals.stop().await;
    };
    let mut calls = calls.map(|calls| calls.answering(shared));
    run(&mut fleet, end, |fleet, acts| {
        if let Some(calls) = &mut calls {
            match fleet.targets().filter(|_| acts) {
                Some(targets) => calls.begin(targets),
                None => calls.end(),
            }
        }
    })
    .await;
    serving.abort();
    Ok(0)
}

/// Waits until no other process uses the store.
async fn wait_for(path: &std::path::Path) -> anyhow::Result<keep::Kept> {
    let mut said = false;
    loop {
        if let Some(kept) = keep::open(path).await? {
            return Ok(kept);
        }
        if !said {
            style::note("standing by, as another instance acts");
            said = true;
        }
        tokio::time::sleep(STAND_BY).await;
    }
}

/// Where demand is read.
fn source(file: &File) -> anyhow::Result<Arc<dyn Source>> {
    Ok(match &file.demand {
        Some(DemandEntry::File { path }) => Arc::new(FileSource::new(path.clone())),
        Some(DemandEntry::Atoll { url, key }) => Arc::new(AtollSource::open(url, key.read()?)?),
        Some(DemandEntry::Kubernetes {
            url,
            token,
            certificate_authority,
        }) => {
            let api = Api::open(&Place {
                url: url.clone(),
                token: token.clone(),
                certificate_authority: certificate_authority.clone(),
            })?;
            Arc::new(KubernetesSource::start(api, file))
        }
        None if file.groups.iter().all(|group| group.cluster_autoscaler) => Arc::new(NoDemand),
        None => {
            return Err(Failure::new(
                "the configuration does not say where demand is read",
                "add `[demand]` with `source` \"atoll\", \"kubernetes\" or \"file\", or let Cluster Autoscaler plan \
                 every group with `cluster_autoscaler = true`",
            )
            .into());
        }
    })
}

/// What is needed to answer Cluster Autoscaler.
struct Calls {
    address: String,
    tls: Option<Tls>,
    settings: Settings,
    shared: Option<Arc<Shared>>,
    serving: Option<(JoinHandle<()>, CancellationToken)>,
}

impl Calls {
    fn prepare(arguments: &Arguments, file: &File) -> anyhow::Result<Option<Self>> {
        let foreign = file.groups.iter().any(|group| group.cluster_autoscaler);
        let Some(address) = arguments.grpc.clone() else {
            if foreign {
                return Err(Failure::new(
                    "Cluster Autoscaler plans groups of the configuration, and has no address to ask",
                    "add --grpc HOST:PORT, or remove `cluster_autoscaler = true`",
                )
                .into());
            }
            return Ok(None);
        };
        if !foreign {
            return Err(Failure::new(
                "Cluster Autoscaler would find no group",
                "write `cluster_autoscaler = true` in the groups that it plans",
            )
            .into());
        }
        let files = arguments.tls_cert.clone().zip(arguments.tls_key.clone());
        let tls = files.map(|(certificate, key)| {
            Tls::read(TlsFiles {
                certificate,
                key,
                client_ca: arguments.tls_client_ca.clone(),
                open_expander: arguments.open_expander,
            })
            .map_err(api::Problem::from)
        });
        let tls = tls.transpose()?;
        let local = address.parse().is_ok_and(|address| is_loopback(&address));
        if !local && (tls.is_none() || arguments.tls_client_ca.is_none()) {
            return Err(Failure::new(
                format!("whoever reaches {address} could switch machines"),
                "add --tls-cert, --tls-key and --tls-client-ca, or listen on 127.0.0.1",
            )
            .into());
        }
        Ok(Some(Self {
            address,
            tls,
            settings: Settings {
                tariff: file.policy.tariff.clone(),
                options: file.options(),
                dry_run: arguments.dry_run,
                ..Settings::default()
            },
            shared: None,
            serving: None,
        }))
    }

    fn answering(mut self, shared: Arc<Shared>) -> Self {
        self.shared = Some(shared);
        self
    }

    /// Answers for these promises from now on.
    fn begin(&mut self, targets: fleet::targets::Targets) {
        self.end();
        let service = Arc::new(Service::new(targets, self.settings.clone()));
        if let Some(shared) = &self.shared {
            let service = service.clone();
            shared.also_measure(move || service.metrics().render());
        }
        let stop = CancellationToken::new();
        let (address, tls, ended) = (self.address.clone(), self.tls.clone(), stop.clone());
        let serving = tokio::spawn(async move {
            let listener = match TcpListener::bind(&address).await {
                Ok(listener) => listener,
                Err(error) => {
                    tracing::error!(%address, %error, "Cluster Autoscaler cannot ask");
                    return;
                }
            };
            tracing::info!(%address, "Cluster Autoscaler may ask");
            let served = externalgrpc::serve(listener, tls, service, ended.cancelled_owned());
            if let Err(error) = served.await {
                tracing::error!(%error, "Cluster Autoscaler cannot ask any more");
            }
        });
        self.serving = Some((serving, stop));
    }

    /// Answers no more.
    fn end(&mut self) {
        if let Some((_, stop)) = self.serving.take() {
            stop.cancel();
        }
    }
}
