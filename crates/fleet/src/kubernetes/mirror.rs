//! A copy of all resources of one kind, kept by list and watch.
//!
//! ```text
//! list, page by page ──▶ watch from there ──▶ watch from the last event, every minute anew
//!        ▲                                          │
//!        └────── the server forgot, or failed ◀─────┘
//! ```

use super::{
    client::{Api, ApiError, failed},
    resources::{Metadata, Resource},
};
use serde::Deserialize;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// So many are listed at once.
const PAGE: &str = "500";
/// The server ends a watch after so many seconds; it is begun anew then.
const WATCH: &str = "60";
/// If it does not, we do.
const LONGEST_WATCH: Duration = Duration::from_secs(75);
/// A copy that nobody has heard about for so long is not believed.
const STALE: Duration = Duration::from_secs(150);
/// Time until the next attempt after a failure, and at the most.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// One event is no longer, in bytes.
const LONGEST_EVENT: usize = 4 << 20;
/// More are not kept.
const MOST: usize = 500_000;

struct State<T> {
    objects: HashMap<String, Arc<T>>,
    heard: Option<Instant>,
    error: Option<String>,
}

/// The copy. It is kept as long as this lives.
pub(super) struct Mirror<T> {
    state: Arc<Mutex<State<T>>>,
    _task: JoinSet<()>,
}

impl<T: Resource> Mirror<T> {
    /// Begins to keep it.
    pub(super) fn start(api: Api) -> Self {
        let state = Arc::new(Mutex::new(State {
            objects: HashMap::new(),
            heard: None,
            error: None,
        }));
        let mut task = JoinSet::new();
        task.spawn(keep(api, state.clone()));
        Self { state, _task: task }
    }

    /// All of them, as they were heard of last.
    pub(super) fn read(&self) -> Result<Vec<Arc<T>>, String> {
        let state = lock(&self.state);
        if state.heard.is_some_and(|at| at.elapsed() < STALE) {
            return Ok(state.objects.values().cloned().collect());
        }
        let error = state.error.clone();
        Err(error.unwrap_or_else(|| format!("{} were not listed yet", T::PATH)))
    }
}

fn lock<T>(state: &Mutex<State<T>>) -> std::sync::MutexGuard<'_, State<T>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn keep<T: Resource>(api: Api, state: Arc<Mutex<State<T>>>) {
    let mut pause = PAUSE;
    loop {
        let begun = Instant::now();
        let error = match follow(&api, &state).await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        if !matches!(error, ApiError::TooOld) {
            tracing::warn!(path = T::PATH, %error, "a watch failed");
        }
        lock(&state).error = Some(error.to_string());
        if begun.elapsed() > LONGEST_PAUSE {
            pause = PAUSE;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Lists, and watches until something fails.
async fn follow<T: Resource>(
    api: &Api,
    state: &Mutex<State<T>>,
) -> Result<std::convert::Infallible, ApiError> {
    let (objects, mut version) = list::<T>(api).await?;
    {
        let mut state = lock(state);
        (state.objects, state.heard, state.error) = (objects, Some(Instant::now()), None);
    }
    loop {
        watch(api, state, &mut version).await?;
    }
}

#[derive(Deserialize)]
#[serde(bound = "T: Resource")]
struct List<T> {
    #[serde(default)]
    metadata: ListMetadata,
    #[serde(default = "Vec::new")]
    items: Vec<T>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ListMetadata {
    resource_version: String,
    #[serde(rename = "continue")]
    next: Option<String>,
}

async fn list<T: Resource>(api: &Api) -> Result<(HashMap<String, Arc<T>>, String), ApiError> {
    let mut objects = HashMap::new();
    let mut next = String::new();
    loop {
        let mut query = vec![("limit", PAGE)];
        if !next.is_empty() {
            query.push(("continue", next.as_str()));
        }
        let page: List<T> = api.get(T::PATH, &query).await?;
        for one in page.items {
            objects.insert(one.metadata().key(), Arc::new(one));
        }
        if objects.len() > MOST {
            return Err(ApiError::Failed(format!("there are more than {MOST}")));
        }
        match page.metadata.next.filter(|next| !next.is_empty()) {
            Some(token) => next = token,
            None => return Ok((objects, page.metadata.resource_version)),
        }
    }
}

/// An event, whatever it is about.
#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
#[serde(bound = "T: Resource")]
struct Event<T> {
    object: T,
}

#[derive(Deserialize)]
struct Failure {
    object: FailureObject,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct FailureObject {
    code: u16,
    message: String,
}

/// A bookmark has nothing but this.
#[derive(Deserialize)]
struct Bookmark {
    object: BookmarkObject,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct BookmarkObject {
    metadata: Metadata,
}

/// Watches until the server ends it in order.
async fn watch<T: Resource>(
    api: &Api,
    state: &Mutex<State<T>>,
    version: &mut String,
) -> Result<(), ApiError> {
    let query = [
        ("watch", "1"),
        ("allowWatchBookmarks", "true"),
        ("timeoutSeconds", WATCH),
        ("resourceVersion", version.as_str()),
    ];
    let mut response = api.watch(T::PATH, &query, LONGEST_WATCH).await?;
    lock(state).heard = Some(Instant::now());
    let mut buffer: Vec<u8> = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        buffer.extend_from_slice(&chunk);
        let mut begin = 0;
        while let Some(length) = buffer[begin..].iter().position(|byte| *byte == b'\n') {
            let line = &buffer[begin..begin + length];
            if !line.iter().all(u8::is_ascii_whitespace) {
                take(line, state, version)?;
            }
            begin += length + 1;
        }
        buffer.drain(..begin);
        if buffer.len() > LONGEST_EVENT {
            return Err(ApiError::Failed("an event is too long".to_owned()));
        }
    }
    Ok(())
}

/// Takes one event.
fn take<T: Resource>(
    line: &[u8],
    state: &Mutex<State<T>>,
    version: &mut String,
) -> Result<(), ApiError> {
    let unread =
        |error: serde_json::Error| ApiError::Failed(format!("an event is not understood: {error}"));
    let kind: Kind = serde_json::from_slice(line).map_err(unread)?;
    let mut state = lock(state);
    state.heard = Some(Instant::now());
    match kind.kind.as_str() {
        "ADDED" | "MODIFIED" | "DELETED" => {
            let event: Event<T> = serde_json::from_slice(line).map_err(unread)?;
            let metadata = event.object.metadata();
            version.clone_from(&metadata.resource_version);
            let key = metadata.key();
            if kind.kind == "DELETED" {
                state.objects.remove(&key);
            } else if state.objects.len() < MOST {
                state.objects.insert(key, Arc::new(event.object));
            } else {
                return Err(ApiError::Failed(format!("there are more than {MOST}")));
            }
            Ok(())
        }
        "BOOKMARK" => {
            let event: Bookmark = serde_json::from_slice(line).map_err(unread)?;
            *version = event.object.metadata.resource_version;
            Ok(())
        }
        "ERROR" => {
            let event: Failure = serde_json::from_slice(line).map_err(unread)?;
            match event.object.code {
                410 => Err(ApiError::TooOld),
                _ => Err(ApiError::Failed(event.object.message)),
            }
        }
        // What is not known yet may be skipped.
        _ => Ok(()),
    }
}
