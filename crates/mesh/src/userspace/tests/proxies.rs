//! The proxy against curl, and against clients that do not know what they say.

use proptest::prelude::*;

use super::*;

/// A web server that says one thing.
fn web(listener: TcpListener) {
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await?);
                }
                let said =
                    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
                stream.write_all(said).await?;
                stream.shutdown().await
            });
        }
    });
}

/// What curl prints, and the code it exits with.
async fn curl(arguments: &[&str]) -> (String, i32) {
    let fixed = [
        "--silent",
        "--max-time",
        "60",
        "--write-out",
        " %{http_code} %{http_connect}",
    ];
    let mut command = tokio::process::Command::new("curl");
    command.env_clear().args(fixed).args(arguments);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let output = command.env("PATH", path).output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (text, output.status.code().unwrap())
}

#[tokio::test]
async fn curl_gets_through_with_the_right_password_only() {
    let lab = Lab::new(2, &[(0, 1, "tcp/7000"), (0, 1, "tcp/7001")], &[7000, 7001]).await;
    web(lab.service(1, 7000).await);
    let proxy = lab.node(0).proxies()[0].to_string();
    let check = async |option: &str, user: &str, url: &str, expected: (&str, i32)| {
        let arguments = [option, &proxy, "--proxy-user", user, "--proxytunnel", url];
        let (text, code) = curl(&arguments).await;
        assert_eq!((&*text, code), expected, "{arguments:?}");
    };
    let name = format!("http://{}.mesh.internal:7000/", lab.members[1].name);
    let address = format!("http://[{}]:7000/", lab.members[1].v6);
    let nobody = format!("http://{}:7001/", lab.members[1].name);
    for url in [&*name, &address] {
        check("--socks5-hostname", "user:word", url, ("hello 200 000", 0)).await;
        check("--proxy", "user:word", url, ("hello 200 200", 0)).await;
    }
    // What is wrong is told apart.
    check("--socks5-hostname", "user:other", &name, (" 000 000", 97)).await;
    check("--proxy", "user:other", &name, (" 000 407", 56)).await;
    check("--socks5-hostname", "user:word", &nobody, (" 000 000", 97)).await;
    check("--proxy", "user:word", &nobody, (" 000 502", 56)).await;
    check(
        "--proxy",
        "user:word",
        "http://elsewhere.example/",
        (" 000 404", 56),
    )
    .await;
    let (text, code) = curl(&["--socks5-hostname", &proxy, &name]).await;
    assert_eq!((&*text, code), (" 000 000", 97));
    let (text, code) = curl(&["--proxy", &proxy, "--proxytunnel", &name]).await;
    assert_eq!((&*text, code), (" 000 407", 56));
    // Without a tunnel it would have to read along.
    let (text, _) = curl(&["--proxy", &proxy, "--output", "/dev/null", &name]).await;
    assert_eq!(text, " 405 000");
    lab.stop().await;
}

#[tokio::test]
async fn an_open_proxy_is_for_loopback_only() {
    let number = numbers(1)[0];
    let options = |listen: SocketAddr, credentials| {
        let gate = Arc::new(FilterGate::closed(Instant::now()));
        let directory = directory(&[member(number)], 0);
        let mut options = UserspaceOptions::new(identity(number), directory, gate);
        options.proxies = vec![ProxyOptions {
            listen,
            credentials,
        }];
        options
    };
    let everywhere: SocketAddr = (Ipv4Addr::UNSPECIFIED, 0).into();
    let open = Userspace::start(options(everywhere, None)).await;
    assert!(matches!(open, Err(UserspaceError::Open(at)) if at == everywhere));
    let secret = Some(Credentials::new(b"user", b"word"));
    let closed = Userspace::start(options(everywhere, secret)).await;
    closed.unwrap().stop().await;

    let open = Userspace::start(options((Ipv4Addr::LOCALHOST, 0).into(), None)).await;
    let open = open.unwrap();
    let mut client = TcpStream::connect(open.proxies()[0]).await.unwrap();
    client.write_all(b"\x05\x01\x00").await.unwrap();
    let mut chosen = [0; 2];
    in_time("a method", client.read_exact(&mut chosen))
        .await
        .unwrap();
    assert_eq!(chosen, [5, 0]);
    // Its own port is no service, and neither is another machine.
    let at = open.proxies()[0];
    for (target, fits) in [
        (Some(at), false),
        (Some((Ipv4Addr::UNSPECIFIED, 80).into()), false),
        (Some((Ipv4Addr::new(192, 0, 2, 1), 80).into()), false),
        (Some((Ipv4Addr::new(127, 127, 255, 250), 80).into()), false),
        (
            Some((loopback(member(number).v4).unwrap(), 80).into()),
            true,
        ),
        (Some((Ipv4Addr::LOCALHOST, 80).into()), true),
    ] {
        let service = Service { port: 80, target };
        assert_eq!(open.set_services(&[service]).is_ok(), fits, "{target:?}");
    }
    open.stop().await;
}

/// Says something to a proxy, half-closes, and returns what it answers until it closes.
async fn said(proxy: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut client = TcpStream::connect(proxy).await.unwrap();
    // It may have closed before all was said.
    let _ = client.write_all(bytes).await;
    let _ = client.shutdown().await;
    let mut all = Vec::new();
    let _ = in_time("the proxy closes", client.read_to_end(&mut all)).await;
    all
}

#[tokio::test]
async fn what_is_not_there_is_answered_as_the_standards_say() {
    let lab = Lab::new(1, &[], &[]).await;
    let proxy = lab.node(0).proxies()[0];
    let check = async |bytes: &[u8], expected: &[u8]| {
        let heard = said(proxy, bytes).await;
        let shown = String::from_utf8_lossy(bytes);
        assert!(
            heard.starts_with(expected) && heard.is_empty() == expected.is_empty(),
            "{shown}: {heard:?}"
        );
    };
    let hello = b"\x05\x01\x02\x01\x04user\x04word";
    let after = |request: &[u8]| [&hello[..], request].concat();
    // To be called, an unknown command, an unknown kind of address.
    for command in [2, 9] {
        let bytes = after(&[5, command, 0, 1, 127, 0, 0, 1, 0, 80]);
        check(&bytes, &[5, 2, 1, 0, 5, 7]).await;
    }
    check(&after(&[5, 1, 0, 2, 0]), &[5, 2, 1, 0, 5, 8]).await;
    // Addresses that are not the mesh's, this machine's own among them.
    for address in [[127, 0, 0, 1], [192, 0, 2, 1], [169, 254, 169, 254]] {
        let bytes = after(&[&[5, 1, 0, 1][..], &address, &[0, 80]].concat());
        check(&bytes, &[5, 2, 1, 0, 5, 4]).await;
    }
    check(b"\x05\x01\x00", &[5, 0xff]).await;
    check(b"\x05\x01\x02\x01\x04user\x04wort", &[5, 2, 1, 1]).await;
    check(b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00", b"").await;
    check(b"\x16\x03\x01\x02\x00", b"").await;
    check(b"HELLO\r\n\r\n", b"HTTP/1.1 400 ").await;
    check(&[b'C'; 9000], b"HTTP/1.1 431 ").await;
    check(b"CONNECT a:80 HTTP/1.1\r\n\r\n", b"HTTP/1.1 407 ").await;
    lab.stop().await;
}

#[test]
fn no_bytes_hold_a_proxy_up() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let lab = runtime.block_on(Lab::new(1, &[], &[7000]));
    let proxy = lab.node(0).proxies()[0];
    let piece = || {
        prop_oneof![
            Just(b"\x05\x01\x02".to_vec()),
            Just(b"\x01\x04user\x04word".to_vec()),
            Just(b"\x05\x01\x00\x03\x03all\x1b\x58".to_vec()),
            Just(b"CONNECT all:7000 HTTP/1.1\r\n".to_vec()),
            Just(b"Proxy-Authorization: Basic dXNlcjp3b3Jk\r\n".to_vec()),
            Just(b"\r\n".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..40),
        ]
    };
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|text| text.parse().ok());
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases.unwrap_or(64))
    };
    proptest!(config, |(pieces in proptest::collection::vec(piece(), 0..8))| {
        runtime.block_on(said(proxy, &pieces.concat()));
    });
    runtime.block_on(async {
        // It still serves, and keeps nothing of what was.
        assert_eq!(lab.flow(0, 0, 7000).await.err(), Some(5));
        until("nothing is left", || lab.node(0).status().flows == 0).await;
        lab.stop().await;
    });
}
