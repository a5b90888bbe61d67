//! What the API says, and periods that are run again.

use super::bench::{STEP, bench};
use api::{Secret, error::ProblemBody};
use fleet::{
    moment::Span,
    policy::{Kind, Policy},
    replay::{RECORDED, replay},
    serve::{Door, Explanation, MachineView, PlanView, Recorded, Status, router},
};
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;

const TOKEN: &str = "a-token-that-nobody-guesses";

struct Caller {
    address: String,
    token: Option<&'static str>,
}

impl Caller {
    async fn text(&self, path: &str) -> (u16, String) {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut request = client.get(format!("http://{}{path}", self.address));
        if let Some(token) = self.token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        let (status, text) = self.text(path).await;
        assert_eq!(status, 200, "{path}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    async fn refused(&self, path: &str) -> ProblemBody {
        let (status, text) = self.text(path).await;
        let body: ProblemBody = serde_json::from_str(&text).unwrap();
        assert_eq!(status, body.code);
        assert!(body.remedy.is_some(), "{text}");
        body
    }
}

#[tokio::test]
async fn the_api_says_what_is_decided_and_why() {
    let mut bench = bench(2).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let door = Door::new(&address, Some(Secret::new(TOKEN))).unwrap();
    let routes = router(bench.fleet.shared(), door);
    let served = tokio::spawn(Door::serve(listener, routes, std::future::pending()));
    let address = address.to_string();
    let stranger = Caller {
        address: address.clone(),
        token: None,
    };
    let caller = Caller {
        address,
        token: Some(TOKEN),
    };

    assert_eq!(stranger.text("/health").await.0, 204);
    assert_eq!(stranger.refused("/v1/fleet/status").await.code, 401);
    assert_eq!(stranger.text("/metrics").await.0, 401);
    assert_eq!(caller.refused("/v1/fleet/machines").await.code, 503);

    bench.ask("a", 2, Some("m0"));
    bench.run(Span(20)).await;
    let begun = bench.now();
    let machines: Vec<MachineView> = caller.get("/v1/fleet/machines").await;
    assert_eq!(machines[0].used.cpu_millis, 2000);
    let status: Status = caller.get("/v1/fleet/status").await;
    assert_eq!(status.machines["on"], 2);
    let said: Explanation = caller.get("/v1/fleet/machines/m1/explain").await;
    assert_eq!(said.reason, "NotUnneededLongEnough");
    assert!(said.would.unwrap().starts_with("would sleep in"));
    bench.until("m1", false).await;
    bench.run(Span(60)).await;
    let said: Explanation = caller.get("/v1/fleet/machines/m1/explain").await;
    assert_eq!(said.reason, "Unneeded");
    assert!(said.since < bench.now() && said.since > begun);
    let before = format!("/v1/fleet/machines/m1/explain?at={}", begun.0);
    let said: Explanation = caller.get(&before).await;
    assert_eq!(said.reason, "NotUnneededLongEnough");
    let plan: PlanView = caller.get("/v1/fleet/plan").await;
    assert_eq!(plan.reasons["NotAutoscaled"], 1);

    for (path, code) in [
        ("/v1/fleet/machines/nobody/explain", 404),
        ("/v1/fleet/machines/m1/explain?at=yesterday", 400),
        ("/v1/fleet/machines/m1/explain?at=5", 404),
        ("/v1/fleet/record?from=9&until=3", 400),
        ("/nothing", 404),
    ] {
        assert_eq!(caller.refused(path).await.code, code, "{path}");
    }
    let (_, metrics) = caller.text("/metrics").await;
    for line in [
        "atoll_fleet_acting 1",
        "atoll_fleet_machines{state=\"off\"} 1",
        "atoll_fleet_decisions{reason=\"NotAutoscaled\"} 1",
        "atoll_fleet_power_actions_total{action=\"off\"} 1",
        "atoll_fleet_power_outcomes_total{outcome=\"done\"} 1",
        "atoll_fleet_power_failures_total 0",
        "atoll_fleet_forecast_used{group=\"pool\"} 0",
    ] {
        assert!(metrics.contains(&format!("{line}\n")), "{line}\n{metrics}");
    }
    served.abort();
}

#[tokio::test]
async fn a_period_is_run_again_under_another_policy() {
    let mut bench = bench(3).await;
    bench.ask("a", 3, Some("m0"));
    bench.run(STEP).await;
    let from = bench.now();
    bench.until("m1", false).await;
    bench.until("m2", false).await;
    bench.run(Span::minutes(20)).await;
    bench.ask("b", 3, None);
    bench.until("m1", true).await;
    bench.ask("b", 3, Some("m1"));
    bench.run(Span::minutes(20)).await;
    let until = bench.now();

    let recorded: Recorded = bench.fleet.shared().recorded(from, until).await.unwrap();
    // As it comes over the wire.
    let text = serde_json::to_string(&recorded).unwrap();
    let recorded: Recorded = serde_json::from_str(&text).unwrap();
    let policies = [Policy::of(Kind::Atoll), Policy::of(Kind::AlwaysOn)];
    let compared = replay(&recorded, from, until, &policies).unwrap();
    let energy = |name: &str| compared.row(name).unwrap().energy_kwh;
    let was = compared.row(RECORDED).unwrap();
    assert_eq!((was.requests, was.waited, was.cycles), (2, 1, 2), "{was:?}");
    assert!(was.longest_wait >= Span(40) && was.longest_wait <= Span(120));
    assert!(energy(RECORDED) < energy("always-on"));
    // What was, and what the same policy would do, differ only by how time passes in either.
    let ratio = energy("atoll") / energy(RECORDED);
    assert!((0.9..1.1).contains(&ratio), "{ratio}");
    assert_eq!(compared.row("always-on").unwrap().waited, 0);
    assert!(replay(&recorded, until.plus(Span(60)), until, &policies).is_err());
}
