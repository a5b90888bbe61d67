//! The mesh's coordinator over HTTP: who gets in, who hears of it, who gets out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::common::{Answer, FIRST_KEY, FakeNode, PATIENCE, Plane};

use mesh::PrivateKey;
use mesh::coordination::{
    Farewell, Frame, Identity, JoinAnswer, JoinRequest, NodeRecord, Signed, Token, View, Voucher,
    WatchRequest,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

const POLICY: &str = "[[allow]]\nfrom = [\"tag:web\"]\nto = [\"tag:db\"]\nports = [\"tcp/5432\"]\n";

async fn start() -> Plane {
    Plane::start_with(|options| options.base = false).await
}

/// A machine that joined, or means to.
struct Machine {
    identity: Identity,
    seed: u8,
    epoch: u64,
    at_ms: u64,
    view: View,
}

impl Machine {
    fn new(seed: u8, token: &Token) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        Self {
            identity: Identity::from_seed([seed; 32]),
            seed,
            epoch: 1,
            at_ms: now.as_millis() as u64,
            view: View::new(token.coordinator),
        }
    }

    fn record(&self) -> Signed<NodeRecord> {
        self.identity.sign(&NodeRecord {
            identity: self.identity.public(),
            epoch: self.epoch,
            name: format!("machine-{}", self.seed),
            wireguard: PrivateKey::from_bytes([self.seed; 32]).public(),
            renewal: None,
            endpoints: vec![([192, 0, 2, self.seed], 51820).into()],
            flows: Vec::new(),
            underlay: None,
            relay: None,
            plain: false,
            mode: Default::default(),
            unready: Default::default(),
        })
    }

    async fn join(&self, plane: &Plane, token: &Token) -> Answer {
        let request = JoinRequest {
            token: token.id.clone(),
            admission: token.admission(self.identity.public()),
            record: self.record(),
        };
        tell(plane, "/v1/mesh/join", &request).await
    }

    fn question(&mut self) -> Signed<WatchRequest> {
        self.at_ms += 1;
        self.identity.sign(&WatchRequest {
            identity: self.identity.public(),
            cursor: self.view.cursor(),
            at_ms: self.at_ms,
        })
    }

    /// Takes the next frame.
    async fn watch(&mut self, plane: &Plane) {
        let question = self.question();
        let answer = tell(plane, "/v1/mesh/watch", &question).await.expect(200);
        let frame: Signed<Frame> = read(&answer);
        self.view.apply(&frame).unwrap();
    }

    fn knows(&self) -> Vec<String> {
        let nodes = self.view.nodes().map(|known| known.voucher.name.clone());
        nodes.collect()
    }
}

fn read<T: DeserializeOwned>(answer: &Answer) -> T {
    serde_json::from_str(&answer.text).unwrap()
}

/// Without any key.
async fn tell(plane: &Plane, path: &str, body: &impl serde::Serialize) -> Answer {
    let body = serde_json::to_value(body).unwrap();
    plane.call("POST", path, "", Some(body)).await
}

async fn token(plane: &Plane, body: Value) -> Token {
    let mut body = body;
    body["url"] = "http://192.0.2.1:3000".into();
    let created = plane.post("/v1/mesh/tokens", body).await.expect(201);
    created.json()["token"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn machines_join_and_hear_of_each_other_also_after_a_restart() {
    let plane = start().await;
    let once = token(&plane, json!({"tags": ["web"]})).await;
    let many = token(&plane, json!({"tags": ["db"], "reuse": true})).await;
    let mut web = Machine::new(1, &once);
    let answer: JoinAnswer = read(&web.join(&plane, &once).await.expect(200));
    let voucher: Voucher = answer.voucher.verify(&once.coordinator).unwrap();
    assert_eq!(voucher.name, "machine-1");
    assert!(voucher.tags.contains("web"));
    web.watch(&plane).await;
    // Who knows everything waits, and hears of what comes meanwhile.
    let db = Machine::new(2, &many);
    let question = web.question();
    let waiting = tell(&plane, "/v1/mesh/watch", &question);
    let coming = async {
        db.join(&plane, &many).await.expect(200);
    };
    let (answer, ()) = tokio::join!(waiting, coming);
    web.view.apply(&read(&answer.expect(200))).unwrap();
    assert_eq!(web.knows().len(), 2);
    // The same question again is nobody's.
    tell(&plane, "/v1/mesh/watch", &question).await.expect(409);
    // A token for one is used up, and one of many is not good for another's admission.
    let refused = Machine::new(3, &once).join(&plane, &once).await.expect(401);
    assert!(refused.message().contains("used up"));
    let stolen = JoinRequest {
        token: many.id.clone(),
        admission: many.admission(db.identity.public()),
        record: Machine::new(4, &many).record(),
    };
    tell(&plane, "/v1/mesh/join", &stolen).await.expect(401);
    let shown = plane.get("/v1/mesh/tokens").await.expect(200);
    assert!(!shown.text.contains(&many.expose()) && !shown.text.contains("key"));
    assert_eq!(shown.json().as_array().unwrap().len(), 2);

    let cursor = web.view.cursor();
    let plane = plane.restart(|options| options.base = false).await;
    Machine::new(5, &many).join(&plane, &many).await.expect(200);
    web.watch(&plane).await;
    assert!(web.view.cursor() > cursor);
    assert_eq!(web.knows().len(), 3);
    let nodes = plane.get("/v1/mesh/nodes").await.expect(200).json();
    assert_eq!(nodes.as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn many_join_at_once_and_a_token_for_one_still_lets_one_in() {
    let plane = start().await;
    let once = token(&plane, json!({"tags": ["web"]})).await;
    let many = token(&plane, json!({"tags": ["db"], "reuse": true})).await;
    let machines: Vec<_> = (1..=100).map(|seed| Machine::new(seed, &many)).collect();
    // Two of every three hold the token for many, and everybody asks twice.
    let held = |machine: &Machine| {
        if machine.seed.is_multiple_of(3) {
            &once
        } else {
            &many
        }
    };
    let asked = machines.iter().chain(&machines);
    let asked = asked.map(|machine| machine.join(&plane, held(machine)));
    let answers = futures::future::join_all(asked).await;
    let mut numbers = std::collections::BTreeMap::new();
    for (machine, answer) in machines.iter().chain(&machines).zip(answers) {
        if answer.status == 200 {
            let answer: JoinAnswer = read(&answer);
            let voucher: Voucher = answer.voucher.verify(&many.coordinator).unwrap();
            assert_eq!(voucher.identity, machine.identity.public());
            let before = numbers.insert(machine.seed, voucher.number);
            assert!(before.is_none_or(|before| before == voucher.number));
        } else {
            assert!(answer.expect(401).message().contains("used up"));
        }
    }
    let alone = numbers.keys().filter(|seed| seed.is_multiple_of(3)).count();
    assert_eq!((alone, numbers.len()), (1, 68));
    let distinct: std::collections::BTreeSet<_> = numbers.values().collect();
    assert_eq!(distinct.len(), numbers.len());
    // All of it was written.
    let plane = plane.restart(|options| options.base = false).await;
    let nodes = plane.get("/v1/mesh/nodes").await.expect(200).json();
    assert_eq!(nodes.as_array().unwrap().len(), 68);
}

#[tokio::test]
async fn a_policy_is_taken_only_if_its_tests_hold() {
    let plane = start().await;
    plane.get("/v1/mesh/policy").await.expect(404);
    let put = async |text: &str| {
        let body = json!({ "text": text });
        plane
            .call(
                "PUT",
                "/v1/mesh/policy",
                crate::common::FIRST_KEY,
                Some(body),
            )
            .await
    };
    put(POLICY).await.expect(204);
    let failing = format!(
        "{POLICY}\n[[test]]\nfrom = [\"tag:web\"]\nto = [\"tag:db\"]\nport = \"tcp/22\"\nexpect = \"allow\"\n"
    );
    let refused = put(&failing).await.expect(400);
    assert!(refused.message().contains("line 6"), "{}", refused.text);
    put("no policy").await.expect(400);
    let shown = plane.get("/v1/mesh/policy").await.expect(200).json();
    assert_eq!(shown["text"], POLICY);
}

#[tokio::test]
async fn who_is_revoked_hears_it_at_once_and_stays_out() {
    let plane = start().await;
    let many = token(&plane, json!({"reuse": true})).await;
    let (mut one, mut two) = (Machine::new(1, &many), Machine::new(2, &many));
    for machine in [&mut one, &mut two] {
        machine.join(&plane, &many).await.expect(200);
        machine.watch(&plane).await;
    }
    one.watch(&plane).await;
    let (to_one, to_two) = (one.question(), two.question());
    let (frame, farewell, ()) = tokio::join!(
        tell(&plane, "/v1/mesh/watch", &to_one),
        tell(&plane, "/v1/mesh/watch", &to_two),
        async {
            let path = "/v1/mesh/nodes/machine-2";
            plane
                .call("DELETE", path, crate::common::FIRST_KEY, None)
                .await
                .expect(204);
        }
    );
    one.view.apply(&read(&frame.expect(200))).unwrap();
    assert_eq!(one.knows(), ["machine-1"]);
    let farewell: Signed<Farewell> = read(&farewell.expect(410));
    let said = farewell.verify(&many.coordinator).unwrap();
    assert!(said.revoked && said.identity == two.identity.public());
    two.join(&plane, &many).await.expect(403);
    let record = two.record();
    tell(&plane, "/v1/mesh/record", &record).await.expect(403);
}

#[tokio::test]
async fn only_administrators_ask_for_what_is_theirs() {
    let plane = start().await;
    let member = plane.post("/v1/keys", json!({"role": "member"})).await;
    let member = member.expect(201).json()["secret"].clone();
    for (method, path) in [
        ("GET", "/v1/mesh/tokens"),
        ("POST", "/v1/mesh/tokens"),
        ("DELETE", "/v1/mesh/tokens/0011223344556677"),
        ("GET", "/v1/mesh/nodes"),
        ("DELETE", "/v1/mesh/nodes/a"),
        ("GET", "/v1/mesh/policy"),
        ("PUT", "/v1/mesh/policy"),
    ] {
        let body = json!({"url": "http://a", "text": ""});
        for (key, status) in [("", 401), (member.as_str().unwrap(), 403)] {
            plane
                .call(method, path, key, Some(body.clone()))
                .await
                .expect(status);
        }
    }
    // Nor do nodes get in by nonsense.
    for path in [
        "/v1/mesh/join",
        "/v1/mesh/record",
        "/v1/mesh/watch",
        "/v1/mesh/certificate",
    ] {
        for body in [json!({}), json!({"body": "{}", "signature": "AAAA"})] {
            let answer = plane.call("POST", path, "", Some(body)).await;
            assert!(matches!(answer.status.as_u16(), 400 | 401), "{answer:?}");
        }
    }
}

/// Two processes over one store, as in a cluster: what one writes, nodes hear from the other.
#[tokio::test]
async fn two_coordinators_over_one_store_agree() {
    let plane = start().await;
    let options = |store| {
        let node = FakeNode::new("n1de");
        let mut options = control::ControlOptions::new(store, vec![node], "c1u".parse().unwrap());
        options.base = false;
        options
    };
    let other = control::Control::start(options(plane.store.clone()))
        .await
        .unwrap();
    let router = other.router();
    let many = token(&plane, json!({"reuse": true})).await;
    let mut one = Machine::new(1, &many);
    one.join(&plane, &many).await.expect(200);
    one.watch(&plane).await;
    let question = one.question();
    let second = Machine::new(2, &many);
    let request = JoinRequest {
        token: many.id.clone(),
        admission: many.admission(second.identity.public()),
        record: second.record(),
    };
    let request = http::Request::post("/v1/mesh/join")
        .body(axum::body::Body::from(
            serde_json::to_string(&request).unwrap(),
        ))
        .unwrap();
    let (answer, joined) = tokio::join!(
        tell(&plane, "/v1/mesh/watch", &question),
        tower::ServiceExt::oneshot(router, request)
    );
    assert_eq!(joined.unwrap().status(), 200);
    one.view.apply(&read(&answer.expect(200))).unwrap();
    assert_eq!(one.knows().len(), 2);
    // Who joined at one asks the other, and goes on where it was.
    let mut third = Machine::new(3, &many);
    third.join(&plane, &many).await.expect(200);
    one.watch(&plane).await;
    let one_cursor = one.view.cursor();
    for machine in [&mut third, &mut one] {
        let question = serde_json::to_string(&machine.question()).unwrap();
        let request = http::Request::post("/v1/mesh/watch")
            .body(axum::body::Body::from(question))
            .unwrap();
        let asking = tower::ServiceExt::oneshot(other.router(), request);
        // The second knows everything: it is kept waiting, and not sent away.
        match tokio::time::timeout(std::time::Duration::from_millis(300), asking).await {
            Ok(answer) => assert_eq!(answer.unwrap().status(), 200),
            Err(_) => assert_eq!(machine.view.cursor(), one_cursor),
        }
    }
    // A token that one took back is gone for the other, though no node was told.
    let path = format!("/v1/mesh/tokens/{}", many.id);
    plane
        .call("DELETE", &path, crate::common::FIRST_KEY, None)
        .await
        .expect(204);
    Machine::new(4, &many).join(&plane, &many).await.expect(401);
    let stop = tokio::time::timeout(PATIENCE, other.stop()).await;
    assert!(stop.is_ok(), "it stops though it follows the store");
}

#[tokio::test]
async fn a_sandbox_is_invited_as_far_as_the_policy_lets_its_tenant() {
    let plane = Plane::start().await;
    let body = json!({"name": "ci", "tenant": "new"});
    let key = plane.post("/v1/keys", body).await.expect(201).json();
    let (secret, tenant) = (
        key["secret"].as_str().unwrap(),
        key["tenant"].as_str().unwrap(),
    );
    let policy = format!("{POLICY}\n[sandboxes]\n{tenant} = [\"tag:web\"]\n");
    let body = json!({"text": policy});
    plane
        .call("PUT", "/v1/mesh/policy", FIRST_KEY, Some(body))
        .await
        .expect(204);

    let create = async |key: &str, mesh: Value| {
        let body = json!({"templateID": "base", "mesh": mesh});
        plane.call("POST", "/v2/sandboxes", key, Some(body)).await
    };
    let refused = create(secret, json!({"tags": ["db"]})).await.expect(403);
    assert!(
        refused.json()["remedy"]
            .as_str()
            .unwrap()
            .contains("[sandboxes]"),
        "{refused:?}"
    );
    let stranger = plane.stranger().await;
    create(&stranger, json!({"tags": ["web"]}))
        .await
        .expect(403);
    create(secret, json!({"tags": []})).await.expect(400);
    assert!(plane.node.requests().is_empty());

    // What the node is told is enough to join, once.
    create(secret, json!({"tags": ["web"], "name": "web-1"}))
        .await
        .expect(201);
    let membership = plane.node.requests()[0].mesh.clone().unwrap();
    assert_eq!(membership.name, "web-1");
    let token: Token = membership.token.expose().parse().unwrap();
    let machine = Machine::new(1, &token);
    let answer: JoinAnswer = read(&machine.join(&plane, &token).await.expect(200));
    let voucher = answer.voucher.verify(&token.coordinator).unwrap();
    assert_eq!((&*voucher.name, voucher.ephemeral), ("web-1", true));
    Machine::new(2, &token)
        .join(&plane, &token)
        .await
        .expect(401);
    // The table is no business of nodes; all else is theirs.
    let mut machine = machine;
    machine.watch(&plane).await;
    let told = machine.view.policy().unwrap();
    assert!(!told.contains(tenant) && told.contains("tag:db"), "{told}");

    // A name that somebody has is nobody else's; an administrator has every tag of the policy.
    create(secret, json!({"tags": ["web"], "name": "web-1"}))
        .await
        .expect(400);
    create(FIRST_KEY, json!({"tags": ["db"]})).await.expect(201);
    create(FIRST_KEY, json!({"tags": ["bd"]})).await.expect(403);

    // It is gone with the sandbox, and so is a token that nobody used.
    let id = plane.node.requests()[0].id.clone();
    plane.control.mesh().release(&id).await;
    let nodes = plane.get("/v1/mesh/nodes").await.expect(200).json();
    assert_eq!(nodes, json!([]));
    let problem = api::Problem::new(api::ErrorCode::Unsupported, "no such driver", "");
    plane.node.refuse_next(problem);
    create(FIRST_KEY, json!({"tags": ["db"], "name": "db-9"}))
        .await
        .expect(501);
    let tokens = plane.get("/v1/mesh/tokens").await.expect(200).json();
    assert_eq!(tokens.as_array().unwrap().len(), 1, "{tokens}");
}

#[tokio::test]
async fn sandboxes_of_a_template_are_in_the_mesh_if_it_says_so() {
    let plane = Plane::start().await;
    let body = json!({"text": POLICY});
    plane
        .call("PUT", "/v1/mesh/policy", FIRST_KEY, Some(body))
        .await
        .expect(204);
    let template = json!({"name": "web", "source": "debian:slow", "mesh": {"tags": ["web"]}});
    let lines = plane.build(FIRST_KEY, template.clone()).await;
    let built = &lines.last().unwrap()["template"]["builds"][0];
    assert_eq!(built["mesh"], json!({"tags": ["web"]}), "{lines:?}");
    plane.sandbox(FIRST_KEY, json!({"templateID": "web"})).await;
    plane
        .sandbox(
            FIRST_KEY,
            json!({"templateID": "web", "mesh": {"tags": ["db"]}}),
        )
        .await;
    plane.sandbox(FIRST_KEY, json!({})).await;
    let tags = |request: &api::node::CreateSandbox| {
        let mesh = request.mesh.as_ref();
        mesh.map(|mesh| mesh.tags.iter().cloned().collect::<Vec<_>>())
    };
    let asked: Vec<_> = plane.node.requests().iter().map(tags).collect();
    let one = |tag: &str| Some(vec![tag.to_owned()]);
    assert_eq!(asked, [one("web"), one("db"), None]);
    let mut named = template;
    named["mesh"]["name"] = "web-1".into();
    plane.post("/v1/templates", named).await.expect(400);
}
