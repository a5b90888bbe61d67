//! Builds one image and prints what happens: `build STORE SOURCE [REGISTRY-WITHOUT-TLS]`.

use api::node::BuildEvent;
use api::template::Requester;
use futures::StreamExt;
use image::{ImageStore, StoreOptions};
use std::time::Instant;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(directory), Some(source)) = (arguments.next(), arguments.next()) else {
        return Err("usage: build STORE SOURCE [REGISTRY-WITHOUT-TLS]".into());
    };
    let mut options = StoreOptions::new(directory);
    options.insecure_registries.extend(arguments.next());
    let store = ImageStore::open(options)?;
    let started = Instant::now();
    let mut events = store.build(source.parse()?, Requester::Administrator);
    while let Some(event) = events.next().await {
        let at = started.elapsed().as_secs_f64();
        match event {
            BuildEvent::Step { name, total } => println!("{at:7.2} {name} (of {total:?})"),
            BuildEvent::Progress { done } => println!("{at:7.2}   {done}"),
            BuildEvent::Log(line) => println!("{at:7.2}   {}", line.message),
            BuildEvent::Ready(image) => {
                println!("{at:7.2} ready: {image:?}");
                for layer in store.root(&image.digest)?.layers {
                    println!("{}", layer.display());
                }
            }
            BuildEvent::Failed { cause, remedy } => {
                return Err(format!("{cause}\nhint: {remedy}").into());
            }
        }
    }
    Ok(())
}
