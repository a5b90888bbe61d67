//! The machine protocol (QMP): questions and answers in JSON lines over a Unix socket.
//!
//! <https://www.qemu.org/docs/master/interop/qmp-spec.html>. The peer runs a hostile guest and may
//! be hostile itself: lines, waiting questions and kept events are bounded, and every question has
//! a deadline.

use crate::{DriverError, doing, microvm::socket};
use rustix::{
    io::IoSlice,
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    io,
    mem::MaybeUninit,
    os::fd::BorrowedFd,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::Interest,
    net::UnixStream,
    sync::{broadcast, oneshot},
    task::JoinHandle,
};

/// The longest line that is taken.
const LONGEST_LINE: usize = 256 << 10;

/// Events that are kept for a listener that is late.
const KEPT_EVENTS: usize = 64;

/// Something that QEMU told without being asked.
#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) name: String,
    pub(super) data: Value,
}

/// A connection to one QEMU.
#[derive(Debug)]
pub(super) struct Qmp {
    stream: Arc<UnixStream>,
    shared: Arc<Shared>,
    /// Commands are written whole, one after another.
    writing: tokio::sync::Mutex<()>,
    last: AtomicU64,
    reader: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Waiting>,
    events: broadcast::Sender<Event>,
}

#[derive(Debug, Default)]
struct Waiting {
    ended: bool,
    answers: HashMap<u64, oneshot::Sender<Result<Value, String>>>,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        let mut waiting = self.waiting();
        waiting.ended = true;
        waiting.answers.clear();
    }
}

impl Qmp {
    /// Connects to the socket `name` in `directory`, and agrees on the protocol.
    pub(super) async fn connect(
        directory: &Path,
        name: &str,
        patience: Duration,
    ) -> Result<Self, DriverError> {
        let socket = socket::connect(directory, name).map_err(doing("connect to QEMU"))?;
        let stream = std::os::unix::net::UnixStream::from(socket);
        let stream = UnixStream::from_std(stream).map_err(doing("connect to QEMU"))?;
        let stream = Arc::new(stream);
        let shared = Arc::new(Shared {
            waiting: Mutex::default(),
            events: broadcast::channel(KEPT_EVENTS).0,
        });
        let (greeted, greeting) = oneshot::channel();
        let reader = tokio::spawn(read(Arc::clone(&stream), Arc::clone(&shared), greeted));
        let qmp = Self {
            stream,
            shared,
            writing: tokio::sync::Mutex::default(),
            last: AtomicU64::new(1),
            reader,
        };
        match tokio::time::timeout(patience, greeting).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(DriverError::Guest("QEMU has ended".into())),
            Err(_) => return Err(late("greet", patience)),
        }
        qmp.call("qmp_capabilities", json!({}), patience).await?;
        Ok(qmp)
    }

    /// Events from now on.
    pub(super) fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// Asks, and waits for the answer.
    pub(super) async fn call(
        &self,
        command: &str,
        arguments: Value,
        patience: Duration,
    ) -> Result<Value, DriverError> {
        self.call_with(command, arguments, &[], patience).await
    }

    /// The same, with descriptors.
    pub(super) async fn call_with(
        &self,
        command: &str,
        arguments: Value,
        descriptors: &[BorrowedFd<'_>],
        patience: Duration,
    ) -> Result<Value, DriverError> {
        let id = self.last.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        {
            let mut waiting = self.shared.waiting();
            if waiting.ended {
                return Err(gone());
            }
            waiting.answers.insert(id, sender);
        }
        let text = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        let asked = async {
            self.write(format!("{text}\n").as_bytes(), descriptors)
                .await
                .map_err(doing(format!("ask QEMU to `{command}`")))?;
            match receiver.await {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(refusal)) => Err(doing(format!("let QEMU `{command}`"))(io::Error::other(
                    refusal,
                ))),
                Err(_) => Err(gone()),
            }
        };
        let answer = tokio::time::timeout(patience, asked).await;
        self.shared.waiting().answers.remove(&id);
        answer.unwrap_or_else(|_| Err(late(command, patience)))
    }

    async fn write(&self, mut text: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let _alone = self.writing.lock().await;
        let mut descriptors = descriptors;
        while !text.is_empty() {
            let written = self
                .stream
                .async_io(Interest::WRITABLE, || {
                    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
                    let mut ancillary = SendAncillaryBuffer::new(&mut space);
                    if !descriptors.is_empty() {
                        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
                    }
                    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                    let text = [IoSlice::new(text)];
                    Ok(sendmsg(&self.stream, &text, &mut ancillary, flags)?)
                })
                .await?;
            // They travel with the first byte.
            descriptors = &[];
            text = text.get(written..).unwrap_or_default();
        }
        Ok(())
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
        self.shared.end();
    }
}

async fn read(stream: Arc<UnixStream>, shared: Arc<Shared>, greeted: oneshot::Sender<()>) {
    let mut greeted = Some(greeted);
    let mut buffer: Vec<u8> = Vec::with_capacity(4096);
    loop {
        if stream.readable().await.is_err() {
            break;
        }
        match stream.try_read_buf(&mut buffer) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => break,
        }
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(message) => dispatch(message, &shared, &mut greeted),
                Err(error) => {
                    tracing::warn!(%error, "QEMU is not understood");
                    shared.end();
                    return;
                }
            }
        }
        if buffer.len() > LONGEST_LINE {
            tracing::warn!("QEMU says too much at once");
            break;
        }
    }
    shared.end();
}

fn dispatch(message: Value, shared: &Shared, greeted: &mut Option<oneshot::Sender<()>>) {
    if message.get("QMP").is_some() {
        if let Some(greeted) = greeted.take() {
            let _ = greeted.send(());
        }
    } else if let Some(name) = message.get("event").and_then(Value::as_str) {
        let event = Event {
            name: name.to_owned(),
            data: message.get("data").cloned().unwrap_or_default(),
        };
        // Nobody may be listening.
        let _ = shared.events.send(event);
    } else if let Some(id) = message.get("id").and_then(Value::as_u64) {
        let answer = match message.get("error") {
            Some(error) => Err(error
                .get("desc")
                .and_then(Value::as_str)
                .unwrap_or("it refuses")
                .chars()
                .take(500)
                .collect()),
            None => Ok(message.get("return").cloned().unwrap_or_default()),
        };
        let waiting = shared.waiting().answers.remove(&id);
        if let Some(waiting) = waiting {
            // Whoever asked may have lost patience.
            let _ = waiting.send(answer);
        }
    }
}

fn gone() -> DriverError {
    DriverError::Guest("QEMU has ended".into())
}

fn late(command: &str, patience: Duration) -> DriverError {
    DriverError::Guest(format!(
        "QEMU did not answer `{command}` within {patience:?}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

    const PATIENCE: Duration = Duration::from_secs(5);

    /// A peer that greets, agrees, and then says to each command what `answer` returns.
    async fn peer(
        answer: impl Fn(&Value) -> Option<String> + Send + 'static,
    ) -> (tempfile::TempDir, JoinHandle<()>) {
        let directory = tempfile::tempdir().unwrap();
        let listener = tokio::net::UnixListener::bind(directory.path().join("qmp")).unwrap();
        let task = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (read, mut write) = stream.into_split();
            write.write_all(b"{\"QMP\": {}}\r\n").await.unwrap();
            let mut lines = BufReader::new(read).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let command: Value = serde_json::from_str(&line).unwrap();
                let text = if command["execute"] == "qmp_capabilities" {
                    Some(json!({"return": {}, "id": command["id"]}).to_string())
                } else {
                    answer(&command)
                };
                let Some(text) = text else { return };
                write
                    .write_all(format!("{text}\n").as_bytes())
                    .await
                    .unwrap();
            }
        });
        (directory, task)
    }

    #[tokio::test]
    async fn answers_and_events_find_who_waits() {
        let (directory, _peer) = peer(|command| {
            let id = &command["id"];
            Some(match command["execute"].as_str() {
                Some("refused") => json!({"error": {"desc": "no"}, "id": id}).to_string(),
                _ => format!(
                    "{}\n{}",
                    json!({"event": "STOP", "data": {"a": 1}}),
                    json!({"return": {"b": 2}, "id": id})
                ),
            })
        })
        .await;
        let qmp = Qmp::connect(directory.path(), "qmp", PATIENCE)
            .await
            .unwrap();
        let mut events = qmp.events();
        let answer = qmp.call("stop", json!({}), PATIENCE).await.unwrap();
        assert_eq!(answer["b"], 2);
        let event = events.recv().await.unwrap();
        assert_eq!((event.name.as_str(), &event.data["a"]), ("STOP", &json!(1)));
        let refused = qmp.call("refused", json!({}), PATIENCE).await.unwrap_err();
        assert!(refused.to_string().contains("refused"), "{refused}");
    }

    #[tokio::test]
    async fn an_end_or_an_endless_line_ends_all_waiting() {
        for answer in [None, Some("x".repeat(LONGEST_LINE + 10))] {
            let (directory, _peer) = peer(move |_| answer.clone()).await;
            let qmp = Qmp::connect(directory.path(), "qmp", PATIENCE)
                .await
                .unwrap();
            assert!(qmp.call("stop", json!({}), PATIENCE).await.is_err());
            assert!(qmp.call("cont", json!({}), PATIENCE).await.is_err());
        }
    }

    #[tokio::test]
    async fn silence_has_a_deadline() {
        let (directory, _peer) = peer(|_| Some(json!({"event": "OTHER"}).to_string())).await;
        let qmp = Qmp::connect(directory.path(), "qmp", PATIENCE)
            .await
            .unwrap();
        let patience = Duration::from_millis(20);
        assert!(qmp.call("stop", json!({}), patience).await.is_err());
    }
}
