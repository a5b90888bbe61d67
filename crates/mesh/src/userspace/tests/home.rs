//! Nodes that offer what listens at their own addresses, and how far they are.

use super::*;

async fn lab(allowed: Allowed<'_>, except: &'static [u16]) -> Lab {
    Lab::with(3, allowed, &[], |options| {
        options.reach = Reach::Home {
            except: except.iter().copied().collect(),
        };
    })
    .await
}

#[tokio::test]
async fn what_listens_at_the_own_address_is_reached_as_policy_says() {
    let lab = lab(&[(0, 1, "tcp/7000-7002")], &[7001]).await;
    let service = lab.service(1, 7000).await;
    let own_server = lab.service(1, 7001).await;
    // At 127.0.0.1 alone: for this machine's programs, unless somebody declares it.
    let inner = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = inner.local_addr().unwrap().port();
    let mut flow = lab.flow(0, 1, 7000).await.unwrap();
    let (mut called, _) = in_time("a caller", service.accept()).await.unwrap();
    called.write_all(b"hello").await.unwrap();
    drop(called);
    assert_eq!(rest(&mut flow).await.unwrap(), b"hello");
    // Not what is excepted, not where nobody listens, not for whom no rule is, and no proxy.
    assert!(lab.flow(0, 1, 7001).await.is_err());
    assert!(lab.flow(0, 1, 7002).await.is_err());
    assert!(lab.flow(2, 1, 7000).await.is_err());
    lab.allow(&[(0, 1, "tcp/*")]);
    let proxy = lab.node(1).proxies()[0].port();
    assert!(lab.flow(0, 1, proxy).await.is_err());
    assert!(lab.flow(0, 1, port).await.is_err());
    let declared = Service { port, target: None };
    lab.node(1).set_services(&[declared]).unwrap();
    let _flow = lab.flow(0, 1, port).await.unwrap();
    in_time("a caller", inner.accept()).await.unwrap();
    drop((service, own_server));
    lab.stop().await;
}

#[tokio::test]
async fn a_round_trip_is_measured_with_whom_something_may_pass() {
    let lab = lab(&[(0, 1, "tcp/7000")], &[]).await;
    let identity = |at: usize| lab.members[at].identity;
    assert_eq!(lab.node(0).peer(&identity(1)), LinkStatus::default());
    // In both directions, though only one may begin flows; over one connection.
    for (from, to) in [(0, 1), (1, 0)] {
        let other = identity(to);
        let time = in_time("an answer", lab.node(from).probe(&other)).await;
        assert!(time.unwrap() > Duration::ZERO);
        let known = lab.node(from).peer(&other);
        assert!(known.open.is_some() && known.round_trip.is_some());
        assert!(known.sent > 0 && known.received > 0);
        assert_eq!(lab.node(from).status().connections, 1);
    }
    let way = lab.node(0).peer(&identity(1)).way;
    assert_eq!(way, Some(crate::PeerWay::Direct(lab.node(1).address())));
    assert_eq!(
        lab.node(0).probe(&identity(2)).await,
        Err(Refusal::Denied),
        "no rule"
    );
    // Who is asked looks for itself.
    lab.gates[1].set(Filter::default());
    let other = identity(1);
    let refused = in_time("a refusal", lab.node(0).probe(&other)).await;
    assert_eq!(refused, Err(Refusal::Denied));
    lab.stop().await;
}

#[tokio::test]
async fn who_cannot_be_connected_to_connects_to_those_who_may_call() {
    let mut lab = Lab::with(3, &[], &[7000], |options| options.keep_in_touch = true).await;
    let service = lab.service(1, 7000).await;
    // Nobody knows where the second is.
    let hidden = std::mem::take(&mut lab.members[1].endpoints);
    lab.allow(&[(0, 1, "tcp/7000")]);
    let touch = || lab.node(0).peer(&lab.members[1].identity).open.is_some();
    until("a connection is opened ahead", touch).await;
    let _flow = lab.flow(0, 1, 7000).await.unwrap();
    in_time("a caller", service.accept()).await.unwrap();
    // Not with the one who may do nothing, and not twice.
    let connections = |at: usize| lab.node(at).status().connections;
    assert_eq!((connections(0), connections(1), connections(2)), (1, 1, 0));
    assert_eq!(hidden.len(), 1);
    lab.stop().await;
}
