//! What sandboxes use and log.

use crate::{
    caller::Caller,
    error::{Answer, invalid, shorten},
    extract::{Parameters, Segments, number},
    templates::entry,
};
use api::{
    Problem,
    error::ProblemBody,
    node::{LogLevel, MetricSample},
    rest::{
        listing::microseconds,
        log::{LogText, Logs, LogsQuery, LogsQueryV2, LogsV2},
        metric::{Metric, MetricsQuery, SandboxesMetrics, SandboxesMetricsQuery},
    },
};
use axum::Json as Body;
use jiff::Timestamp;

/// How many ids one question may name.
const MOST_IDS: usize = 100;

/// How many log lines an answer holds at most.
const MOST_LINES: i64 = 1000;

/// How many lines are looked through for those that an answer should hold.
const SEARCHED_LINES: usize = 10_000;

fn metric(sample: MetricSample) -> Metric {
    Metric {
        timestamp: microseconds(sample.at),
        timestamp_unix: sample.at.as_second(),
        cpu_count: sample.vcpus,
        cpu_used_pct: sample.cpu_used_percent,
        mem_used: sample.memory_used.0,
        mem_total: sample.memory_total.0,
        mem_cache: sample.memory_cache.0,
        disk_used: sample.disk_used.0,
        disk_total: sample.disk_total.0,
    }
}

/// A moment in a query, given in some unit since 1970.
fn moment(
    name: &str,
    text: Option<&str>,
    read: impl Fn(i64) -> Result<Timestamp, jiff::Error>,
) -> Result<Option<Timestamp>, Problem> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let number = number(name, Some(text), 0, 0..=i64::MAX)?;
    read(number)
        .map(Some)
        .map_err(|_| invalid(format!("{name} is not a moment")))
}

/// Read what a sandbox used
#[utoipa::path(
    get, path = "/sandboxes/{sandboxID}/metrics", operation_id = "getMetrics", tag = "sandboxes",
    params(("sandboxID" = String, Path), MetricsQuery),
    responses((status = 200, body = Vec<Metric>), (status = "4XX", body = ProblemBody)),
)]
pub(super) async fn metrics(
    caller: Caller,
    Segments(id): Segments<String>,
    Parameters(query): Parameters<MetricsQuery>,
) -> Answer<Body<Vec<Metric>>> {
    let from = moment("start", query.start.as_deref(), Timestamp::from_second)?;
    // The last second counts to its end.
    let to = moment("end", query.end.as_deref(), |second| {
        Timestamp::new(second, 999_999_999)
    })?;
    if from.zip(to).is_some_and(|(from, to)| from > to) {
        return Err(invalid("start is after end").into());
    }
    let samples = caller.sandboxes().metrics(&id, from, to).await?;
    Ok(Body(samples.into_iter().map(metric).collect()))
}

/// Read what several sandboxes use now
#[utoipa::path(
    get, path = "/sandboxes/metrics", operation_id = "getMetricsOfMany", tag = "sandboxes",
    params(SandboxesMetricsQuery),
    responses((status = 200, body = SandboxesMetrics), (status = "4XX", body = ProblemBody)),
)]
pub(super) async fn metrics_of_many(
    caller: Caller,
    Parameters(query): Parameters<SandboxesMetricsQuery>,
) -> Answer<Body<SandboxesMetrics>> {
    let ids: Vec<&str> = query
        .sandbox_ids
        .split(',')
        .filter(|id| !id.is_empty())
        .collect();
    if ids.is_empty() || ids.len() > MOST_IDS {
        return Err(invalid(format!("sandbox_ids takes 1 to {MOST_IDS} ids")).into());
    }
    let sandboxes = caller.sandboxes();
    let mut answer = SandboxesMetrics::default();
    for id in ids {
        // Those that are not there are left out.
        let Ok(samples) = sandboxes.metrics(id, None, None).await else {
            continue;
        };
        if let Some(sample) = samples.into_iter().next_back() {
            answer.sandboxes.insert(id.to_owned(), metric(sample));
        }
    }
    Ok(Body(answer))
}

/// Read what a sandbox logged, oldest first
#[utoipa::path(
    get, path = "/sandboxes/{sandboxID}/logs", operation_id = "getLogsV1", tag = "sandboxes",
    params(("sandboxID" = String, Path), LogsQuery),
    responses((status = 200, body = Logs), (status = "4XX", body = ProblemBody)),
)]
pub(super) async fn logs_v1(
    caller: Caller,
    Segments(id): Segments<String>,
    Parameters(query): Parameters<LogsQuery>,
) -> Answer<Body<Logs>> {
    let from = moment("start", query.start.as_deref(), Timestamp::from_millisecond)?;
    let limit = number("limit", query.limit.as_deref(), MOST_LINES, 1..=MOST_LINES)?;
    let limit = usize::try_from(limit).unwrap_or(1);
    let lines = caller.sandboxes().logs(&id, from, limit).await?;
    let entries: Vec<_> = lines.into_iter().take(limit).map(entry).collect();
    let text = entries.iter().map(|entry| LogText {
        timestamp: entry.timestamp,
        line: entry.message.clone(),
    });
    Ok(Body(Logs {
        logs: text.collect(),
        log_entries: entries,
    }))
}

/// Search what a sandbox logged
#[utoipa::path(
    get, path = "/v2/sandboxes/{sandboxID}/logs", operation_id = "getLogs", tag = "sandboxes",
    params(("sandboxID" = String, Path), LogsQueryV2),
    responses((status = 200, body = LogsV2), (status = "4XX", body = ProblemBody)),
)]
pub(super) async fn logs_v2(
    caller: Caller,
    Segments(id): Segments<String>,
    Parameters(query): Parameters<LogsQueryV2>,
) -> Answer<Body<LogsV2>> {
    let cursor = moment(
        "cursor",
        query.cursor.as_deref(),
        Timestamp::from_millisecond,
    )?;
    let limit = number("limit", query.limit.as_deref(), MOST_LINES, 1..=MOST_LINES)?;
    let limit = usize::try_from(limit).unwrap_or(1);
    let backward = match query.direction.as_deref() {
        None | Some("" | "forward") => false,
        Some("backward") => true,
        Some(other) => {
            return Err(invalid(format!("Invalid direction `{}`", shorten(other))).into());
        }
    };
    let least = match query.level.as_deref() {
        None | Some("" | "debug") => LogLevel::Debug,
        Some("info") => LogLevel::Info,
        Some("warn") => LogLevel::Warn,
        Some("error") => LogLevel::Error,
        Some(other) => return Err(invalid(format!("Invalid level `{}`", shorten(other))).into()),
    };
    let search = query.search.unwrap_or_default();
    let from = if backward { None } else { cursor };
    let mut lines = caller.sandboxes().logs(&id, from, SEARCHED_LINES).await?;
    lines.retain(|line| {
        line.level >= least
            && line.message.contains(&search)
            && (!backward || cursor.is_none_or(|cursor| line.at <= cursor))
    });
    if backward {
        lines.reverse();
    }
    lines.truncate(limit);
    Ok(Body(LogsV2 {
        logs: lines.into_iter().map(entry).collect(),
    }))
}
