//! Pages and filters hold for any sandboxes and any query.

use super::*;
use crate::{
    Resources,
    node::{EndReason, NetworkPolicy, OnTimeout, TemplateBuild},
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn sandbox(number: u32, start: i64, state: SandboxState) -> SandboxStatus {
    let started_at = Timestamp::from_microsecond(1_700_000_000_000_000 + start).unwrap();
    SandboxStatus {
        id: format!("i000aaaa{number:013}").parse().unwrap(),
        tenant: "t000000000001".parse().unwrap(),
        template: TemplateBuild {
            template: format!("{:020}", number % 2).parse().unwrap(),
            build: "00000000-0000-4000-8000-000000000000".parse().unwrap(),
            alias: Some(
                if number.is_multiple_of(2) {
                    "base"
                } else {
                    "other"
                }
                .to_owned(),
            ),
            image: format!("sha256:{:064}", 0).parse().unwrap(),
            environment: BTreeMap::new(),
            start_command: None,
            ready_command: None,
            user: "user".to_owned(),
            working_directory: String::new(),
        },
        resources: Resources::default(),
        metadata: BTreeMap::from([("parity".to_owned(), (number % 2).to_string())]),
        state,
        started_at,
        deadline: started_at,
        on_timeout: OnTimeout::Kill,
        auto_resume: false,
        network: NetworkPolicy::default(),
        secure: true,
        address: None,
        paused_with_memory: None,
        paused_at: None,
        mesh: None,
    }
}

fn any_sandboxes() -> impl Strategy<Value = Vec<SandboxStatus>> {
    let state = prop_oneof![
        4 => Just(SandboxState::Running),
        1 => Just(SandboxState::Starting),
        2 => Just(SandboxState::Paused),
        1 => Just(SandboxState::Ended { reason: EndReason::Killed, at: Timestamp::UNIX_EPOCH }),
    ];
    // Few different moments, so that many sandboxes share one.
    prop::collection::vec((0..6i64, state), 0..40).prop_map(|all| {
        let all = all.into_iter().enumerate();
        all.map(|(number, (start, state))| sandbox(number as u32, start, state))
            .collect()
    })
}

fn query(pairs: &[(&str, &str)]) -> ListQuery {
    let fields = pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).into()));
    serde_json::from_value(serde_json::Value::Object(fields.collect())).unwrap()
}

fn pages(all: &[SandboxStatus], mut query: ListQuery) -> Vec<String> {
    let mut ids = Vec::new();
    loop {
        let listing_query = Selection::parse(&query).unwrap();
        let listing = listing_query.apply(all);
        assert!(listing.page.len() <= listing_query.limit);
        ids.extend(listing.page.iter().map(|status| status.id.to_string()));
        match listing.next_token {
            Some(token) => query.next_token = Some(token),
            None => return ids,
        }
        assert!(ids.len() <= all.len(), "pages go round in circles");
    }
}

proptest! {
    #[test]
    fn pages_together_are_the_whole_list(
        all in any_sandboxes(),
        limit in 1..10u32,
        ascending: bool,
        states in prop_oneof![Just(""), Just("running"), Just("paused"), Just("running,paused")],
    ) {
        let order = if ascending { "asc" } else { "desc" };
        let limit = limit.to_string();
        let whole = pages(&all, query(&[("order", order), ("state", states)]));
        let paged =
            pages(&all, query(&[("order", order), ("state", states), ("limit", &limit)]));
        prop_assert_eq!(&whole, &paged);

        let expected: BTreeSet<String> = all
            .iter()
            .filter(|status| match status.state {
                SandboxState::Running | SandboxState::Starting => states != "paused",
                SandboxState::Paused => states != "running",
                _ => false,
            })
            .map(|status| status.id.to_string())
            .collect();
        prop_assert_eq!(&expected, &whole.iter().cloned().collect::<BTreeSet<String>>());
        prop_assert_eq!(expected.len(), whole.len(), "none twice");

        let start = |id: &String| all.iter().find(|s| s.id.as_str() == id).unwrap().started_at;
        let ordered = whole.windows(2).all(|pair| match ascending {
            true => start(&pair[0]) <= start(&pair[1]),
            false => start(&pair[0]) >= start(&pair[1]),
        });
        prop_assert!(ordered);
    }

    #[test]
    fn a_page_goes_on_where_the_last_one_ended_though_sandboxes_come_and_go(
        before in any_sandboxes(),
        gone in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
    ) {
        let first = Selection::parse(&query(&[("limit", "3")])).unwrap();
        let listing = first.apply(&before);
        let Some(token) = listing.next_token else { return Ok(()) };
        let seen: Vec<String> = listing.page.iter().map(|s| s.id.to_string()).collect();
        let mut after = before.clone();
        for index in gone {
            if !after.is_empty() {
                after.remove(index.index(after.len()));
            }
        }
        let rest = pages(&after, ListQuery { next_token: Some(token), ..query(&[("limit", "3")]) });
        prop_assert!(rest.iter().all(|id| !seen.contains(id)), "none is seen twice");
        let alive = after.iter().filter(|status| !matches!(status.state, SandboxState::Ended { .. }));
        for status in alive {
            let id = status.id.to_string();
            prop_assert!(seen.contains(&id) || rest.contains(&id), "none is left out");
        }
    }

    #[test]
    fn labels_survive_the_clients_encoding(
        labels in prop::collection::btree_map("\\PC{1,8}", "\\PC{0,8}", 1..4),
    ) {
        let quote = |text: &str| {
            percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC)
                .to_string()
        };
        // What the SDKs do: quote names and values, then encode the pairs as a query string.
        let pairs: Vec<String> = labels
            .iter()
            .map(|(name, value)| format!("{}={}", quote(&quote(name)), quote(&quote(value))))
            .collect();
        let parsed: BTreeMap<String, String> =
            parse_metadata(&pairs.join("&")).unwrap().into_iter().collect();
        prop_assert_eq!(parsed, labels);
    }

    #[test]
    fn no_query_makes_it_panic(fields in prop::collection::vec("\\PC{0,40}", 7)) {
        let names = ["metadata", "state", "order", "startedAfter", "template", "nextToken", "limit"];
        let pairs: Vec<(&str, &str)> =
            names.into_iter().zip(fields.iter().map(String::as_str)).collect();
        if let Ok(selection) = Selection::parse(&query(&pairs)) {
            selection.apply::<SandboxStatus>(&[]);
        }
    }
}

#[test]
fn filters_hold() {
    let all: Vec<SandboxStatus> = (0..6)
        .map(|n| sandbox(n, i64::from(n), SandboxState::Running))
        .collect();
    let check = |pairs: &[(&str, &str)], expected: &[u32]| {
        let listing_query = Selection::parse(&query(pairs)).unwrap();
        let found: Vec<String> = listing_query
            .apply(&all)
            .page
            .iter()
            .map(|s| s.id.to_string())
            .collect();
        let expected: Vec<String> = expected
            .iter()
            .map(|n| format!("i000aaaa{n:013}"))
            .collect();
        assert_eq!(found, expected, "{pairs:?}");
    };
    check(&[], &[5, 4, 3, 2, 1, 0]);
    check(&[("metadata", "parity=1"), ("order", "asc")], &[1, 3, 5]);
    check(&[("metadata", "parity=1&none=x")], &[]);
    check(&[("template", "base")], &[4, 2, 0]);
    check(&[("template", "00000000000000000001")], &[5, 3, 1]);
    check(&[("template", "unknown")], &[]);
    // A moment counts to the microsecond; a plus sign may have become a space.
    check(
        &[("startedAfter", "2023-11-14T22:13:20.000004+00:00")],
        &[5, 4],
    );
    check(
        &[("startedAfter", "2023-11-14T22:13:20.000004 00:00")],
        &[5, 4],
    );
    check(&[("startedAfter", "2023-11-14T22:13:20.000004Z")], &[5, 4]);
    check(&[("startedAfter", "2023-11-14T22:13:20.000005")], &[5]);
}

#[test]
fn bad_queries_are_refused() {
    for pairs in [
        [("limit", "0")],
        [("limit", "101")],
        [("limit", "many")],
        [("state", "dead")],
        [("order", "up")],
        [("startedAfter", "yesterday")],
        [("nextToken", "!!!")],
        [("nextToken", "YWJj")],
        [("metadata", "a=%FF%FE")],
    ] {
        assert!(Selection::parse(&query(&pairs)).is_err(), "{pairs:?}");
    }
    let descending = Cursor {
        started_at: Timestamp::UNIX_EPOCH,
        id: "i".to_owned(),
    }
    .token(false);
    let mixed = query(&[("order", "asc"), ("nextToken", &descending)]);
    assert!(Selection::parse(&mixed).is_err());
}
