//! A real registry on loopback, and connections that misbehave on the way to it.
#![allow(dead_code, missing_docs, unreachable_pub)]

use super::Image;
use image::digest::Digest;
use std::{
    fs,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// `user` with the password `secret`, as `htpasswd -B` writes it.
const HTPASSWD: &str = "user:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// Debian's `docker-registry`, killed when dropped.
pub struct Registry {
    child: Child,
    pub address: String,
    _directory: tempfile::TempDir,
    password: Option<&'static str>,
}

impl Registry {
    pub async fn start(with_password: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let address = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().to_string()
        };
        let at = directory.path().display();
        let mut config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {at}/data}}}}\n\
             http: {{addr: '{address}'}}\n"
        );
        if with_password {
            fs::write(directory.path().join("htpasswd"), HTPASSWD).unwrap();
            config += &format!("auth: {{htpasswd: {{realm: test, path: {at}/htpasswd}}}}\n");
        }
        fs::write(directory.path().join("config.yml"), config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(directory.path().join("config.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(&address).await.is_err() {
            assert!(
                tokio::time::Instant::now() < deadline,
                "the registry does not come up"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let password = with_password.then_some("secret");
        Self {
            child,
            address,
            _directory: directory,
            password,
        }
    }

    fn request(&self, method: reqwest::Method, url: &str) -> reqwest::RequestBuilder {
        let request = reqwest::Client::new().request(method, url);
        match self.password {
            Some(password) => request.basic_auth("user", Some(password)),
            None => request,
        }
    }

    /// Pushes an image under a name and a tag.
    pub async fn push(&self, image: &Image, name: &str, tag: &str) {
        for (digest, content) in &image.blobs {
            if *digest != image.manifest {
                self.push_blob(name, digest, content).await;
            }
        }
        let kind = "application/vnd.oci.image.manifest.v1+json";
        self.push_manifest(name, tag, kind, &image.blobs[&image.manifest])
            .await;
    }

    pub async fn push_blob(&self, name: &str, digest: &Digest, content: &[u8]) {
        let url = format!("http://{}/v2/{name}/blobs/uploads/", self.address);
        let answer = self
            .request(reqwest::Method::POST, &url)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 202);
        let location = answer.headers()["location"].to_str().unwrap().to_owned();
        let url = format!("{location}&digest={digest}");
        let request = self
            .request(reqwest::Method::PUT, &url)
            .body(content.to_vec());
        assert_eq!(request.send().await.unwrap().status(), 201);
    }

    pub async fn push_manifest(&self, name: &str, tag: &str, kind: &str, content: &[u8]) {
        let url = format!("http://{}/v2/{name}/manifests/{tag}", self.address);
        let request = self
            .request(reqwest::Method::PUT, &url)
            .header("content-type", kind)
            .body(content.to_vec());
        assert_eq!(request.send().await.unwrap().status(), 201);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// A proxy that counts what the registry sends, and breaks connections.
pub struct Proxy {
    pub address: String,
    pub passed: Arc<AtomicU64>,
    /// After so many bytes in all, the connection under way is broken; then it is doubled.
    pub break_at: Arc<AtomicU64>,
    pub broken: Arc<AtomicU64>,
}

impl Proxy {
    pub async fn start(target: &str, break_at: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap().to_string(),
            passed: Arc::default(),
            break_at: Arc::new(AtomicU64::new(break_at)),
            broken: Arc::default(),
        };
        let (target, passed) = (target.to_owned(), proxy.passed.clone());
        let (break_at, broken) = (proxy.break_at.clone(), proxy.broken.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&target).await.unwrap();
                let (passed, break_at, broken) = (passed.clone(), break_at.clone(), broken.clone());
                tokio::spawn(async move {
                    let (mut from_client, mut to_client) = client.into_split();
                    let (mut from_server, mut to_server) = server.into_split();
                    let up = tokio::spawn(async move {
                        _ = tokio::io::copy(&mut from_client, &mut to_server).await;
                    });
                    let mut buffer = vec![0; 16 << 10];
                    while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
                        let all = passed.fetch_add(count as u64, Ordering::SeqCst);
                        if to_client.write_all(&buffer[..count]).await.is_err() {
                            break;
                        }
                        let limit = break_at.load(Ordering::SeqCst);
                        if all > limit {
                            break_at.store(limit * 2, Ordering::SeqCst);
                            broken.fetch_add(1, Ordering::SeqCst);
                            break;
                        }
                    }
                    up.abort();
                });
            }
        });
        proxy
    }
}

/// A server whose every answer is made by a function of the request's head. Each connection
/// serves one request.
pub async fn serve(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.windows(4).any(|window| window == b"\r\n\r\n") {
                    match client.read_buf(&mut head).await {
                        // Somebody tries TLS.
                        Ok(1..) if head[0] == 0x16 => return,
                        Ok(1..) => {}
                        _ => return,
                    }
                }
                let content = answer(&String::from_utf8_lossy(&head));
                _ = client.write_all(&content).await;
                _ = client.shutdown().await;
            });
        }
    });
    address
}

/// An HTTP answer.
pub fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}
