//! `atoll up`: control plane, agent and gateway in one process on one address.

mod driver;

use crate::client::connection::DEFAULT_ADDRESS;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  sudo atoll up
  sudo atoll up --data-dir /srv/atoll --listen 0.0.0.0:3000
  sudo ATOLL_API_KEY=e2b_… atoll up --domain sandboxes.example.com --tls-cert a.pem --tls-key a.key

It prints `ready http://HOST:PORT` to standard output once it serves, and all else to standard
error. The first key is that of ATOLL_API_KEY (`e2b_` and 40 hexadecimal digits), or one that is
made and kept in `api-key` in the data directory.

Ctrl-C ends it in good order; the second Ctrl-C ends it at once.";

/// Run Atoll on this machine: control plane, node and gateway in one
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Where it keeps its data [default: /var/lib/atoll for root, else ~/.local/share/atoll]
    #[arg(
        long,
        value_name = "DIR",
        env = "ATOLL_DATA_DIR",
        hide_env_values = true
    )]
    data_dir: Option<PathBuf>,

    /// Address to serve the API and the sandboxes at; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT", default_value = DEFAULT_ADDRESS)]
    listen: String,

    /// How sandboxes run
    #[arg(long, value_enum, default_value = "auto")]
    driver: driver::Choice,

    /// What becomes of running sandboxes when it stops
    #[arg(long, value_enum, default_value = "kill")]
    on_exit: OnExit,

    /// Domain whose names lead to sandboxes: PORT-SANDBOX.DOMAIN
    #[arg(long, value_name = "DOMAIN")]
    domain: Option<String>,

    /// Certificate chain (PEM), to serve HTTPS
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// Private key (PEM) of the certificate
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// Fewest sandboxes that are kept prepared
    #[arg(long, value_name = "COUNT")]
    pool_min: Option<u32>,

    /// Most sandboxes that are kept prepared
    #[arg(long, value_name = "COUNT")]
    pool_max: Option<u32>,

    /// Most sandboxes at once [default: what memory allows]
    #[arg(long, value_name = "COUNT")]
    max_sandboxes: Option<u32>,

    /// Name servers of sandboxes, separated by commas [default: this machine's]
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    dns: Vec<std::net::IpAddr>,

    /// Log in JSON, one object a line
    #[arg(long)]
    json: bool,
}

/// What becomes of running sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum OnExit {
    /// They end, and nothing is left behind
    Kill,
    /// They go on, and the next start finds them again
    Keep,
}

/// The threads to serve with.
pub(crate) fn runtime() -> tokio::runtime::Builder {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2);
    builder
}

/// Serves until it is told to stop.
pub(crate) async fn execute(arguments: Arguments) -> anyhow::Result<u8> {
    let _ = arguments;
    anyhow::bail!("later")
}
