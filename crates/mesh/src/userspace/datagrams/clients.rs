//! Programs that send datagrams to one socket: each has a flow of its own, or one for each place that it sends to.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::MOST_WAITING;

#[derive(Debug)]
struct Client {
    queue: mpsc::Sender<Vec<u8>>,
    last: Instant,
}

/// The flows of one socket, told apart by what `K` is. If there are too many, the one that was silent for the longest gives way.
#[derive(Debug)]
pub(in crate::userspace) struct Clients<K> {
    flows: HashMap<K, Client>,
    most: usize,
}

impl<K: Hash + Eq + Clone> Clients<K> {
    pub(super) fn new(most: usize) -> Self {
        Self {
            flows: HashMap::new(),
            most: most.max(1),
        }
    }

    /// Takes a datagram. If it begins a flow, what is returned holds it and what follows; when that is dropped the flow is over.
    pub(super) fn take(
        &mut self,
        key: K,
        datagram: Vec<u8>,
        now: Instant,
    ) -> Option<mpsc::Receiver<Vec<u8>>> {
        let mut datagram = datagram;
        if let Some(client) = self.flows.get_mut(&key) {
            client.last = now;
            match client.queue.try_send(datagram) {
                // What finds no room is lost.
                Ok(()) | Err(TrySendError::Full(_)) => return None,
                Err(TrySendError::Closed(back)) => datagram = back,
            }
        }
        self.flows.remove(&key);
        if self.flows.len() >= self.most {
            self.flows.retain(|_, client| !client.queue.is_closed());
        }
        if self.flows.len() >= self.most {
            let silent = self.flows.iter().min_by_key(|(_, client)| client.last);
            if let Some(key) = silent.map(|(key, _)| key.clone()) {
                self.flows.remove(&key);
            }
        }
        let (queue, sent) = mpsc::channel(MOST_WAITING);
        // There is room for the first.
        let _ = queue.try_send(datagram);
        self.flows.insert(key, Client { queue, last: now });
        Some(sent)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_client_has_a_flow_and_the_most_silent_gives_way() {
        let start = Instant::now();
        let mut clients = Clients::new(2);
        let mut at = 0;
        let mut take = |key: u8, text: &str| {
            at += 1;
            let now = start + Duration::from_secs(at);
            clients.take(key, text.as_bytes().to_vec(), now)
        };
        let mut one = take(1, "a").unwrap();
        let mut two = take(2, "b").unwrap();
        assert!(take(1, "c").is_none());
        assert_eq!(one.try_recv().unwrap(), b"a");
        assert_eq!(one.try_recv().unwrap(), b"c");
        // The third takes the second's place, who said nothing for longer.
        let three = take(3, "d").unwrap();
        assert_eq!(two.try_recv().unwrap(), b"b");
        assert_eq!(two.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
        // A flow that is over is begun again, and there is room where one was.
        drop(three);
        let mut again = take(3, "e").unwrap();
        assert_eq!(again.try_recv().unwrap(), b"e");
        assert!(take(1, "f").is_none());
        // What nobody takes does not pile up.
        for _ in 0..2 * MOST_WAITING {
            assert!(take(1, "g").is_none());
        }
        assert_eq!(one.len(), MOST_WAITING);
    }
}
