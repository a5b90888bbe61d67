//! The HTTP API of a fleet: it only answers, and never switches anything.
//!
//! | path | what |
//! | --- | --- |
//! | `GET /health` | 204 while the process serves |
//! | `GET /metrics` | Prometheus' text format |
//! | `GET /v1/fleet/status` | [`Status`](super::Status) |
//! | `GET /v1/fleet/machines` | [`MachineView`]s |
//! | `GET /v1/fleet/machines/{name}/explain?at=` | [`Explanation`] |
//! | `GET /v1/fleet/plan` | [`PlanView`] |
//! | `GET /v1/fleet/record?from=&until=` | [`Recorded`] |
//!
//! Moments are seconds since 1970.

use super::{
    counts::Counts,
    door::Door,
    metrics, record,
    view::{Explanation, MachineView, PlanView, Recorded, Standing, Status, View},
};
use crate::{
    config::File,
    explain::{History, Record},
    inventory::{Group, Inventory, Machine},
    moment::Moment,
    policy::Policy,
};
use api::{ErrorCode, Problem};
use axum::{
    Json, Router,
    extract::{Path, Query, Request, State},
    http::{StatusCode, header},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Deserialize;
use std::sync::{Arc, PoisonError, RwLock};
use store::{Store, StoreError};

/// What the API answers from: the last tick in memory, and the history in the store.
pub struct Shared {
    view: RwLock<Arc<View>>,
    store: Arc<dyn Store>,
    history: History,
    counts: Arc<Counts>,
    groups: Vec<Group>,
    machines: Vec<Machine>,
    policy: Policy,
    more: RwLock<Option<Measure>>,
}

/// Figures of somebody else, in Prometheus' text format.
type Measure = Box<dyn Fn() -> String + Send + Sync>;

impl Shared {
    pub(super) fn new(
        store: Arc<dyn Store>,
        counts: Arc<Counts>,
        file: &File,
        base: &Inventory,
    ) -> Self {
        Self {
            view: RwLock::default(),
            history: History::new(store.clone()),
            store,
            counts,
            groups: base.groups().to_vec(),
            machines: base.machines().to_vec(),
            policy: file.policy.clone(),
            more: RwLock::new(None),
        }
    }

    pub(super) fn publish(&self, view: View) {
        let mut current = self.view.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(view);
    }

    /// Shows these figures with the others, in Prometheus' text format.
    pub fn also_measure(&self, more: impl Fn() -> String + Send + Sync + 'static) {
        let mut current = self.more.write().unwrap_or_else(PoisonError::into_inner);
        *current = Some(Box::new(more));
    }

    fn measure(&self) -> String {
        let mut text = metrics::text(&self.view(), self.counts());
        let more = self.more.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(more) = more.as_ref() {
            text.push_str(&more());
        }
        text
    }

    fn view(&self) -> Arc<View> {
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        view.clone()
    }

    /// How the fleet is.
    pub fn status(&self) -> Status {
        self.view().status.clone()
    }

    /// All machines.
    pub fn machines(&self) -> Vec<MachineView> {
        self.view().machines.clone()
    }

    /// The last plan.
    pub fn plan(&self) -> PlanView {
        self.view().plan.clone()
    }

    pub(super) fn count_failure(&self) {
        use std::sync::atomic::Ordering::Relaxed;
        self.counts.tick_failures.fetch_add(1, Relaxed);
    }

    pub(super) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Why a machine is as it is, or was as it was at a moment.
    ///
    /// # Errors
    /// When there is no such machine, nothing is known of that moment, or the store fails.
    pub async fn explain(&self, name: &str, at: Option<Moment>) -> Result<Explanation, Problem> {
        if !self.machines.iter().any(|one| one.name == name) {
            return Err(Problem::new(
                ErrorCode::NotFound,
                format!("there is no machine `{}`", shorten(name)),
                "see `atoll fleet status`",
            ));
        }
        let view = self.view();
        let current = view.find(name).zip(view.status.at);
        match (at, current) {
            (Some(at), _) => {
                let found = self.history.at(name, at).await.map_err(of_store)?;
                let record = found.ok_or_else(|| {
                    Problem::new(
                        ErrorCode::NotFound,
                        format!("nothing was decided about {name} at that time"),
                        "decisions are kept for 30 days, from when `atoll fleet serve` first ran",
                    )
                })?;
                let since = record.from;
                Ok(explanation(record, at, since, &view))
            }
            (None, Some((place, now))) => {
                let record = view.decisions[place].clone();
                let found = self.history.at(name, now).await.map_err(of_store)?;
                // What is kept was written when it was decided first.
                let since = found
                    .filter(|one| one.reason == record.reason && one.action == record.action)
                    .map_or(now, |one| one.from);
                let mut said = explanation(record, now, since, &view);
                said.power = Some(view.machines[place].power);
                let mut open = view.status.under_way.iter();
                said.under_way = open.find(|one| one.machine == name).cloned();
                said.trouble = view.troubles.get(name).cloned();
                Ok(said)
            }
            (None, None) => Err(not_acting(view.status.standing)),
        }
    }

    /// What happened between two moments, with all that is needed to run it again.
    ///
    /// # Errors
    /// When the store fails, or the period makes no sense.
    pub async fn recorded(&self, from: Moment, until: Moment) -> Result<Recorded, Problem> {
        if until <= from {
            return Err(Problem::new(
                ErrorCode::InvalidArgument,
                "the period ends before it begins",
                "name an earlier `from` or a later `until`",
            ));
        }
        let segments = record::read(&self.store, from, until).await;
        Ok(Recorded {
            groups: self.groups.clone(),
            machines: self.machines.clone(),
            policy: self.policy.clone(),
            segments: segments.map_err(of_store)?,
        })
    }
}

fn explanation(record: Record, at: Moment, since: Moment, view: &View) -> Explanation {
    Explanation {
        machine: record.machine,
        at,
        power: None,
        action: record.action,
        reason: record.reason,
        because: record.because,
        would: record.would,
        since,
        under_way: None,
        trouble: None,
        dry_run: view.status.dry_run,
    }
}

fn not_acting(standing: Standing) -> Problem {
    let cause = match standing {
        Standing::StandingBy => "another instance of Atoll acts for this fleet",
        Standing::Starting | Standing::Acting => "this instance has not looked around yet",
    };
    Problem::new(
        ErrorCode::Unavailable,
        cause,
        "ask the other one, or again in a moment",
    )
}

fn of_store(error: StoreError) -> Problem {
    Problem::new(
        ErrorCode::Unavailable,
        format!("what was written down cannot be read: {error}"),
        "try again in a moment",
    )
}

fn shorten(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}

/// A problem on its way to the caller.
pub(super) struct Refusal(pub(super) Problem);

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.status());
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0.body())).into_response()
    }
}

type Answer<T> = Result<Json<T>, Refusal>;

/// The API. Everything but `/health` is behind the door.
pub fn router(shared: Arc<Shared>, door: Door) -> Router {
    let door = Arc::new(door);
    let behind = Router::new()
        .route("/metrics", get(show_metrics))
        .route("/v1/fleet/status", get(status))
        .route("/v1/fleet/machines", get(machines))
        .route("/v1/fleet/machines/{name}/explain", get(explain))
        .route("/v1/fleet/plan", get(show_plan))
        .route("/v1/fleet/record", get(recorded))
        .layer(from_fn(move |request: Request, next: Next| {
            let door = door.clone();
            async move {
                match door.admit(request.headers()) {
                    Ok(()) => next.run(request).await,
                    Err(problem) => Refusal(problem).into_response(),
                }
            }
        }))
        .with_state(shared);
    Router::new()
        .route("/health", get(async || StatusCode::NO_CONTENT))
        .merge(behind)
        .fallback(async || {
            Refusal(Problem::new(
                ErrorCode::NotFound,
                "there is nothing here",
                "see docs/fleet.md for the paths that there are",
            ))
        })
}

async fn status(State(shared): State<Arc<Shared>>) -> Json<Status> {
    Json(shared.status())
}

/// What only the one who acts can say.
fn acting(shared: &Shared) -> Result<Arc<View>, Refusal> {
    let view = shared.view();
    match view.status.at {
        Some(_) => Ok(view),
        None => Err(not_acting(view.status.standing).into()),
    }
}

async fn machines(State(shared): State<Arc<Shared>>) -> Answer<Vec<MachineView>> {
    Ok(Json(acting(&shared)?.machines.clone()))
}

async fn show_plan(State(shared): State<Arc<Shared>>) -> Answer<PlanView> {
    Ok(Json(acting(&shared)?.plan.clone()))
}

#[derive(Deserialize)]
struct When {
    at: Option<String>,
}

async fn explain(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    Query(when): Query<When>,
) -> Answer<Explanation> {
    let at = when.at.map(|text| moment("at", &text)).transpose()?;
    Ok(Json(shared.explain(&name, at).await?))
}

#[derive(Deserialize)]
struct Period {
    from: Option<String>,
    until: Option<String>,
}

async fn recorded(
    State(shared): State<Arc<Shared>>,
    Query(period): Query<Period>,
) -> Answer<Recorded> {
    let from = moment("from", period.from.as_deref().unwrap_or_default())?;
    let until = moment("until", period.until.as_deref().unwrap_or_default())?;
    Ok(Json(shared.recorded(from, until).await?))
}

fn moment(name: &str, text: &str) -> Result<Moment, Problem> {
    let parsed = text.parse().map(Moment).ok();
    parsed.filter(|one| one.0 < 1 << 40).ok_or_else(|| {
        Problem::new(
            ErrorCode::InvalidArgument,
            format!("{name} is `{}`", shorten(text)),
            "write seconds since 1970",
        )
    })
}

async fn show_metrics(State(shared): State<Arc<Shared>>) -> Response {
    let text = shared.measure();
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (kind, text).into_response()
}
