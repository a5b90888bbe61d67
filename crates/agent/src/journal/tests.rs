//! Whatever happens to the file, what is read from it is legal.

use super::{Journal, Ledger, Record, file};
use crate::states::StateKey;
use api::{
    ClusterId, NodeId, Resources, SandboxId, Secret,
    node::{CreateSandbox, EndReason, NetworkPolicy, OnTimeout, TemplateBuild},
};
use driver::MachineRecord;
use jiff::Timestamp;
use proptest::prelude::*;
use std::{os::unix::fs::PermissionsExt, path::Path, sync::Arc, time::Duration};

fn id(number: u32) -> SandboxId {
    format!("iclunode{number:013}").parse().unwrap()
}

fn moment(second: i64) -> Timestamp {
    // Recent, because what ended long ago is forgotten.
    Timestamp::from_second(Timestamp::now().as_second() / 1000 * 1000 + second).unwrap()
}

fn request(number: u32) -> Arc<CreateSandbox> {
    let random = &mut rand::rng();
    assert_eq!(id(number).cluster(), "clu".parse::<ClusterId>().unwrap());
    assert_eq!(id(number).node(), "node".parse::<NodeId>().unwrap());
    Arc::new(CreateSandbox {
        id: id(number),
        tenant: "t000000000000".parse().unwrap(),
        template: TemplateBuild {
            template: api::TemplateId::random(random),
            build: api::BuildId::random(random),
            alias: Some("base".into()),
            image: format!("sha256:{}", "0".repeat(64)).parse().unwrap(),
            environment: [("SECRET".to_owned(), "hunter2".to_owned())].into(),
            start_command: None,
            ready_command: None,
            user: "user".into(),
            working_directory: String::new(),
        },
        resources: Resources::default(),
        environment: [("KEY".to_owned(), "hunter2".to_owned())].into(),
        metadata: [("owner".to_owned(), "me\n".to_owned())].into(),
        timeout: Duration::from_secs(300),
        on_timeout: OnTimeout::Kill,
        pause_memory: true,
        auto_resume: false,
        network: NetworkPolicy::default(),
        access_token: Some(Secret::new("hunter2")),
        traffic_token: None,
        mesh: None,
    })
}

fn starting(number: u32) -> Record {
    Record::Starting {
        request: request(number),
        control_token: Secret::new("hunter2"),
        slot: number,
        at: moment(1),
    }
}

fn running(number: u32) -> Record {
    Record::Running {
        id: id(number),
        machine: MachineRecord {
            slot: number,
            pid: 100 + number,
            start_time: 7,
        },
        started_at: moment(2),
        deadline: moment(900),
        origin: None,
    }
}

fn ended(number: u32) -> Record {
    Record::Ended {
        id: id(number),
        reason: EndReason::OutOfMemory,
        at: moment(9),
        status: None,
    }
}

fn any_record() -> impl Strategy<Value = Record> {
    (0u32..4, 0u8..11).prop_map(|(number, kind)| match kind {
        0 => Record::Reserved { slot: number },
        1 => Record::Released { slot: number },
        2 => starting(number),
        3 => running(number),
        4 => Record::Deadline {
            id: id(number),
            deadline: moment(500),
        },
        5 => {
            let policy = NetworkPolicy {
                internet: false,
                ..NetworkPolicy::default()
            };
            Record::Network {
                id: id(number),
                policy,
            }
        }
        8 => Record::Pausing {
            id: id(number),
            state: (number % 2 == 0).then(|| StateKey::Paused {
                sandbox: id(number),
                count: 1,
            }),
            memory: true,
            at: moment(30),
        },
        9 => Record::Paused { id: id(number) },
        10 => Record::Resuming {
            id: id(number),
            slot: Some(number),
        },
        6 => Record::Stopping {
            id: id(number),
            reason: EndReason::Killed,
        },
        _ => ended(number),
    })
}

fn fold<'a>(records: impl IntoIterator<Item = &'a Record>) -> Ledger {
    let mut ledger = Ledger::default();
    for record in records {
        // What is illegal is left out, as it is when a journal is read.
        let _ = ledger.apply(record);
    }
    ledger
}

fn load(bytes: &[u8]) -> Ledger {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    file::load(&path, bytes).unwrap()
}

fn encode(records: &[Record]) -> (Vec<u8>, Vec<usize>) {
    let mut text = b"{\"journal\":\"atoll-agent\",\"version\":1}\n".to_vec();
    let mut ends = Vec::new();
    for record in records {
        serde_json::to_writer(&mut text, record).unwrap();
        text.push(b'\n');
        ends.push(text.len());
    }
    (text, ends)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_journal_that_is_cut_anywhere_says_what_was_written_before(
        records in proptest::collection::vec(any_record(), 0..30),
        cut in 0.0f64..=1.0,
    ) {
        let (text, ends) = encode(&records);
        let length = (text.len() as f64 * cut) as usize;
        let whole = ends.iter().filter(|end| **end <= length).count();
        prop_assert_eq!(load(&text[..length]), fold(&records[..whole]));
    }

    #[test]
    fn rewriting_loses_nothing(records in proptest::collection::vec(any_record(), 0..40)) {
        let ledger = fold(&records);
        let again = fold(&ledger.records());
        prop_assert_eq!(&again, &ledger);
    }

    #[test]
    fn damage_in_the_middle_costs_one_record_and_never_the_rest(
        records in proptest::collection::vec(any_record(), 1..20),
        at in any::<prop::sample::Index>(),
        garbage in "[ -~]{0,40}",
    ) {
        let (mut text, ends) = encode(&records);
        let at = at.index(records.len());
        text.splice(ends[at]..ends[at], format!("{garbage}\n").into_bytes());
        prop_assert_eq!(load(&text), fold(&records));
    }
}

#[tokio::test]
async fn what_is_written_is_read_again_and_secrets_of_the_ended_are_not_kept() {
    let directory = tempfile::tempdir().unwrap();
    let (journal, ledger) = Journal::open(directory.path()).unwrap();
    assert_eq!(ledger, Ledger::default());
    for record in [starting(1), running(1), starting(2), running(2), ended(2)] {
        journal.append(record).await.unwrap();
    }
    drop(journal);
    let path = directory.path().join("journal");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);

    let (journal, ledger) = Journal::open(directory.path()).unwrap();
    assert_eq!((ledger.live.len(), ledger.past.len()), (1, 1));
    assert!(ledger.live[&id(1)].machine.is_some());
    journal.append(ended(1)).await.unwrap();
    drop(journal);

    let (_journal, ledger) = Journal::open(directory.path()).unwrap();
    assert_eq!((ledger.live.len(), ledger.past.len()), (0, 2));
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(!text.contains("hunter2"), "{text}");
    assert_eq!(mode(&path), 0o600);
}

#[tokio::test]
async fn a_journal_that_grows_is_rewritten() {
    let directory = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(directory.path()).unwrap();
    journal.append(starting(1)).await.unwrap();
    journal.append(running(1)).await.unwrap();
    for second in 0..20_000 {
        let record = Record::Deadline {
            id: id(1),
            deadline: moment(second),
        };
        journal.append(record).await.unwrap();
    }
    let length = std::fs::metadata(directory.path().join("journal"))
        .unwrap()
        .len();
    assert!(length < (1 << 20) + 1000, "{length}");
    drop(journal);
    let (_journal, ledger) = Journal::open(directory.path()).unwrap();
    assert_eq!(ledger.live[&id(1)].deadline, moment(19_999));
}

#[test]
fn a_later_version_or_another_file_is_refused() {
    for text in [
        "{\"journal\":\"atoll-agent\",\"version\":2}\n",
        "{\"journal\":\"other\",\"version\":1}\n",
        "hello\n",
    ] {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("journal"), text).unwrap();
        let error = Journal::open(directory.path()).err().unwrap();
        assert!(error.to_string().contains("journal"), "{error}");
        let kept = std::fs::read_to_string(directory.path().join("journal")).unwrap();
        assert_eq!(kept, text, "the file must stay as it is");
    }
}

#[test]
fn the_past_is_bounded() {
    let mut ledger = fold(&[starting(1), running(1), ended(1)]);
    let later = crate::clock::after(moment(9), super::HISTORY_TIME + Duration::from_secs(1));
    ledger.prune(moment(10));
    assert_eq!(ledger.past.len(), 1);
    ledger.prune(later);
    assert_eq!(ledger.past.len(), 0);
}
