//! The table of calls: which path is which call of which kind.

use super::{
    Guest, access,
    reply::Reply,
    rpc::{
        Kind, Messages, check_codec, client_stream, deadline, keepalive, read_unary, stream, unary,
        within,
    },
};
use crate::{filesystem, process};
use api::envd::{
    connect::ConnectError,
    process::{Empty, SelectRequest, StartRequest, StreamInputRequest},
};
use http::Request;
use hyper::body::Incoming;
use std::rc::Rc;

/// Answers a call; `None` if there is no such call.
pub(super) async fn answer(guest: &Rc<Guest>, request: Request<Incoming>) -> Option<Reply> {
    let path = request.uri().path();
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    let kind = match (service, method) {
        ("process.Process", "Start" | "Connect" | "StreamInput")
        | ("filesystem.Filesystem", "WatchDir") => Kind::Stream,
        ("process.Process" | "filesystem.Filesystem", _) => Kind::Unary,
        _ => return None,
    };
    if let Some(refusal) = check_codec(&request, kind) {
        return Some(refusal);
    }
    let method = method.to_owned();
    match (service, kind) {
        ("process.Process", Kind::Unary) => process_unary(guest, &method, request).await,
        ("process.Process", Kind::Stream) => Some(process_stream(guest, &method, request).await),
        (_, Kind::Unary) => filesystem_unary(guest, &method, request).await,
        (_, Kind::Stream) => Some(stream(watch(guest, request).await)),
    }
}

async fn process_unary(
    guest: &Rc<Guest>,
    method: &str,
    request: Request<Incoming>,
) -> Option<Reply> {
    use process::service;
    let deadline = match deadline(request.headers()) {
        Ok(deadline) => deadline,
        Err(error) => return Some(unary::<Empty>(Err(error))),
    };
    // An unknown user is refused even where the user does not matter, as envd does.
    if let Err(error) = access::call_user(guest, request.headers()) {
        return Some(unary::<Empty>(Err(error)));
    }
    Some(match method {
        "List" => unary(
            read_unary::<Empty>(request)
                .await
                .map(|_| service::list(guest)),
        ),
        "SendInput" => unary(
            within(deadline, async {
                service::send_input(guest, read_unary(request).await?).await
            })
            .await,
        ),
        "CloseStdin" => unary(
            within(deadline, async {
                service::close_stdin(guest, read_unary(request).await?).await
            })
            .await,
        ),
        "Update" => {
            let request = read_unary(request).await;
            unary(request.and_then(|request| service::update(guest, &request)))
        }
        "SendSignal" => {
            let sent = async { service::send_signal(guest, read_unary(request).await?).await };
            unary(sent.await)
        }
        _ => return None,
    })
}

async fn process_stream(guest: &Rc<Guest>, method: &str, request: Request<Incoming>) -> Reply {
    match method {
        "Start" => stream(start(guest, request).await),
        "Connect" => stream(connect(guest, request).await),
        _ => client_stream(stream_input(guest, request).await),
    }
}

async fn start(
    guest: &Rc<Guest>,
    request: Request<Incoming>,
) -> Result<process::events::Events, ConnectError> {
    let user = access::call_user(guest, request.headers())?;
    let deadline = deadline(request.headers())?;
    let interval = keepalive(request.headers());
    let request: StartRequest =
        within(deadline, async { Messages::new(request)?.only().await }).await?;
    let process = process::service::start(guest, &user, request, deadline)?;
    Ok(process::service::events(process, interval, deadline))
}

async fn connect(
    guest: &Rc<Guest>,
    request: Request<Incoming>,
) -> Result<process::events::Events, ConnectError> {
    access::call_user(guest, request.headers())?;
    let deadline = deadline(request.headers())?;
    let interval = keepalive(request.headers());
    let request: SelectRequest =
        within(deadline, async { Messages::new(request)?.only().await }).await?;
    let process = guest.processes.find_any(&request.process)?;
    Ok(process::service::events(process, interval, deadline))
}

async fn stream_input(
    guest: &Rc<Guest>,
    request: Request<Incoming>,
) -> Result<Empty, ConnectError> {
    access::call_user(guest, request.headers())?;
    let deadline = deadline(request.headers())?;
    let mut messages = Messages::new(request)?;
    within(deadline, async {
        let mut process = None;
        while let Some(message) = messages.next::<StreamInputRequest>().await? {
            if let Some(start) = message.start {
                process = Some(guest.processes.find(&start.process)?);
            } else if let Some(data) = message.data {
                let process = process.as_ref().ok_or_else(|| {
                    ConnectError::invalid_argument("the first message must be start")
                })?;
                process.input.write(&data.input).await?;
            }
        }
        Ok(Empty {})
    })
    .await
}

async fn filesystem_unary(
    guest: &Rc<Guest>,
    method: &str,
    request: Request<Incoming>,
) -> Option<Reply> {
    use filesystem::service;
    let prepared = deadline(request.headers())
        .and_then(|deadline| Ok((deadline, access::call_user(guest, request.headers())?)));
    let (deadline, user) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return Some(unary::<Empty>(Err(error))),
    };
    macro_rules! call {
        ($call:path) => {
            unary(
                within(deadline, async {
                    $call(guest, user, read_unary(request).await?).await
                })
                .await,
            )
        };
    }
    Some(match method {
        "Stat" => call!(service::stat),
        "MakeDir" => call!(service::make_dir),
        "Move" => call!(service::rename),
        "ListDir" => call!(service::list_dir),
        "Remove" => call!(service::remove),
        "CreateWatcher" => call!(service::create_watcher),
        "GetWatcherEvents" => call!(service::get_watcher_events),
        "RemoveWatcher" => call!(service::remove_watcher),
        _ => return None,
    })
}

async fn watch(
    guest: &Rc<Guest>,
    request: Request<Incoming>,
) -> Result<filesystem::stream::WatchStream, ConnectError> {
    let user = access::call_user(guest, request.headers())?;
    let deadline = deadline(request.headers())?;
    let interval = keepalive(request.headers());
    within(deadline, async {
        let request = Messages::new(request)?.only().await?;
        filesystem::service::watch_dir(guest, user, request, interval, deadline).await
    })
    .await
}
