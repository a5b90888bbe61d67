//! Serves the control plane alone, without machines for sandboxes: what the mesh's coordinator is part of, for measurements of it.
//!
//! ```text
//! ATOLL_API_KEY=e2b_… cargo run --release -p control --example coordinate -- DIRECTORY ADDRESS
//! ```
//!
//! It prints `ready` once it serves, as `atoll up` does, and serves until it is killed. The routes and the store are those of `atoll up`; its gateway is not
//! there.

use std::{error::Error, path::Path, sync::Arc};

use api::{ClusterId, Secret};
use control::{Control, ControlOptions, FirstKey};
use store::SqliteStore;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().ok_or("DIRECTORY ADDRESS")?;
    let address = arguments.next().ok_or("DIRECTORY ADDRESS")?;
    let key = Secret::new(std::env::var("ATOLL_API_KEY")?);
    std::fs::create_dir_all(&directory)?;
    let store = SqliteStore::open(Path::new(&directory).join("store.sqlite")).await?;
    let mut options = ControlOptions::new(
        Arc::new(store),
        Vec::new(),
        ClusterId::random(&mut rand::rng()),
    );
    options.first_key = Some(FirstKey::Given(key));
    options.base = false;
    let control = Control::start(options)
        .await
        .map_err(|problem| problem.cause)?;
    let listener = tokio::net::TcpListener::bind(&address).await?;
    println!("ready http://{}", listener.local_addr()?);
    axum::serve(listener, control.router()).await?;
    Ok(())
}
