//! What a process printed and who still has to see it.
//!
//! One sequence of chunks for all streams of the process, addressed by a byte offset that only
//! grows. Every subscriber has a position in it. What all subscribers have seen is let go; what
//! came while nobody listened is kept, up to a bound, and then the oldest is let go first.

use api::envd::process::{EndEvent, OutputStream};
use std::{
    collections::{BTreeMap, VecDeque},
    task::Waker,
    time::Instant,
};

/// Chunks of one stream are joined up to this size.
pub const CHUNK_LIMIT: usize = 64 << 10;
const JOIN_LIMIT: usize = 16 << 10;
/// A subscriber may be this far behind before the process has to wait for it.
pub const WINDOW: u64 = 256 << 10;

#[derive(Debug)]
struct Chunk {
    start: u64,
    stream: OutputStream,
    data: Vec<u8>,
}

impl Chunk {
    fn end(&self) -> u64 {
        self.start + self.data.len() as u64
    }
}

/// Somebody who listens.
#[derive(Debug)]
struct Subscriber {
    position: u64,
    /// When it last took something, or came to have nothing to take.
    progressed: Instant,
    waker: Option<Waker>,
    cut_off: bool,
}

/// What a subscriber gets next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<'a> {
    /// Output.
    Output(OutputStream, &'a [u8]),
    /// The process has ended, and all output was handed out.
    End(&'a EndEvent),
    /// It was too slow for too long while others waited.
    CutOff,
    /// Nothing yet.
    Wait,
}

/// The transcript of one process.
#[derive(Debug, Default)]
pub struct Transcript {
    chunks: VecDeque<Chunk>,
    /// The offset behind the last byte printed.
    end: u64,
    /// The offset behind the last byte that any subscriber took.
    delivered: u64,
    /// Bytes let go that nobody saw.
    lost: u64,
    subscribers: BTreeMap<u64, Subscriber>,
    next_id: u64,
    ended: Option<EndEvent>,
}

impl Transcript {
    /// Adds output, and lets go of the oldest unseen if more than `bound` bytes are held.
    pub fn push(&mut self, stream: OutputStream, data: &[u8], bound: usize) {
        match self.chunks.back_mut() {
            Some(last) if last.stream == stream && last.data.len() + data.len() <= JOIN_LIMIT => {
                last.data.extend_from_slice(data);
            }
            _ => self.chunks.push_back(Chunk {
                start: self.end,
                stream,
                data: data.to_vec(),
            }),
        }
        self.end += data.len() as u64;
        if !self.has_listener() {
            let floor = self.end.saturating_sub(bound as u64);
            while let Some(first) = self.chunks.front().filter(|first| first.end() <= floor) {
                self.lost += first.end() - first.start.max(self.delivered.min(first.end()));
                self.chunks.pop_front();
            }
        }
        self.wake();
    }

    /// Marks the end: after what is held there is nothing more.
    pub fn finish(&mut self, end: EndEvent) {
        self.ended = Some(end);
        self.wake();
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<&EndEvent> {
        self.ended.as_ref()
    }

    /// Bytes held.
    pub fn held(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.data.len()).sum()
    }

    /// Bytes that were let go before anybody saw them.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Forgets what was printed so far, seen or not.
    pub fn forget(&mut self) {
        self.chunks = VecDeque::new();
        self.delivered = self.end;
        self.lost = 0;
        for subscriber in self.subscribers.values_mut() {
            subscriber.position = self.end;
        }
    }

    /// Adds a subscriber: if it is alone, from the first byte that nobody saw; else from now on.
    pub fn subscribe(&mut self) -> u64 {
        let first = self.chunks.front().map_or(self.end, |chunk| chunk.start);
        let position = if self.has_listener() {
            self.end
        } else {
            self.delivered.max(first)
        };
        self.next_id += 1;
        let subscriber = Subscriber {
            position,
            progressed: Instant::now(),
            waker: None,
            cut_off: false,
        };
        self.subscribers.insert(self.next_id, subscriber);
        self.next_id
    }

    /// Removes a subscriber.
    pub fn unsubscribe(&mut self, id: u64) {
        self.subscribers.remove(&id);
        self.let_go();
    }

    /// What a subscriber gets next, without taking it.
    pub fn next(&self, id: u64) -> Next<'_> {
        let Some(subscriber) = self.subscribers.get(&id).filter(|entry| !entry.cut_off) else {
            return Next::CutOff;
        };
        let at = self
            .chunks
            .partition_point(|chunk| chunk.end() <= subscriber.position);
        if let Some(chunk) = self.chunks.get(at) {
            let skip = subscriber.position.saturating_sub(chunk.start) as usize;
            let rest = chunk.data.get(skip..).unwrap_or_default();
            return Next::Output(chunk.stream, &rest[..rest.len().min(CHUNK_LIMIT)]);
        }
        self.ended.as_ref().map_or(Next::Wait, Next::End)
    }

    /// Says that a subscriber took so many bytes.
    pub fn advance(&mut self, id: u64, count: usize) {
        if let Some(subscriber) = self.subscribers.get_mut(&id) {
            subscriber.position += count as u64;
            subscriber.progressed = Instant::now();
            self.delivered = self.delivered.max(subscriber.position);
        }
        self.let_go();
    }

    /// Whom to wake when there is something for a subscriber.
    pub fn set_waker(&mut self, id: u64, waker: &Waker) {
        if let Some(subscriber) = self.subscribers.get_mut(&id) {
            match &mut subscriber.waker {
                Some(known) => known.clone_from(waker),
                none => *none = Some(waker.clone()),
            }
        }
    }

    /// Whether the process may print more: nobody is too far behind.
    pub fn has_room(&self) -> bool {
        self.subscribers
            .values()
            .all(|subscriber| subscriber.cut_off || self.end - subscriber.position < WINDOW)
    }

    /// Cuts off who took nothing since `before` while somebody else has seen everything. True if
    /// there was one.
    pub fn cut_off_stalled(&mut self, before: Instant) -> bool {
        let end = self.end;
        if !self
            .subscribers
            .values()
            .any(|entry| !entry.cut_off && entry.position == end)
        {
            return false;
        }
        let mut any = false;
        for subscriber in self.subscribers.values_mut().filter(|entry| !entry.cut_off) {
            if end - subscriber.position >= WINDOW && subscriber.progressed < before {
                subscriber.cut_off = true;
                any = true;
                if let Some(waker) = subscriber.waker.take() {
                    waker.wake();
                }
            }
        }
        self.let_go();
        any
    }

    fn has_listener(&self) -> bool {
        self.subscribers
            .values()
            .any(|subscriber| !subscriber.cut_off)
    }

    fn wake(&mut self) {
        for subscriber in self.subscribers.values_mut() {
            if let Some(waker) = subscriber.waker.take() {
                waker.wake();
            }
        }
    }

    /// Lets go of what everybody has seen. Without subscribers that is what somebody has seen.
    fn let_go(&mut self) {
        let floor = self
            .subscribers
            .values()
            .filter(|subscriber| !subscriber.cut_off)
            .map(|subscriber| subscriber.position)
            .min()
            .unwrap_or(self.delivered);
        while self
            .chunks
            .front()
            .is_some_and(|first| first.end() <= floor)
        {
            self.chunks.pop_front();
        }
        if self.chunks.is_empty() {
            self.chunks.shrink_to(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use OutputStream::{Stderr, Stdout};

    fn take_all(transcript: &mut Transcript, id: u64) -> String {
        let mut text = String::new();
        while let Next::Output(_, data) = transcript.next(id) {
            let count = data.len();
            text.push_str(std::str::from_utf8(data).unwrap());
            transcript.advance(id, count);
        }
        text
    }

    #[test]
    fn who_comes_back_gets_what_nobody_saw() {
        let mut transcript = Transcript::default();
        let first = transcript.subscribe();
        transcript.push(Stdout, b"seen ", 1 << 20);
        assert_eq!(take_all(&mut transcript, first), "seen ");
        transcript.unsubscribe(first);
        transcript.push(Stdout, b"un", 1 << 20);
        transcript.push(Stderr, b"seen", 1 << 20);
        transcript.finish(EndEvent::exited(3));
        let second = transcript.subscribe();
        assert_eq!(transcript.next(second), Next::Output(Stdout, b"un"));
        assert_eq!(take_all(&mut transcript, second), "unseen");
        assert_eq!(transcript.next(second), Next::End(&EndEvent::exited(3)));
        transcript.unsubscribe(second);
        let third = transcript.subscribe();
        assert_eq!(transcript.next(third), Next::End(&EndEvent::exited(3)));
        assert_eq!((transcript.held(), transcript.lost()), (0, 0));
    }

    #[test]
    fn what_nobody_sees_is_bounded_and_the_newest_is_kept() {
        let mut transcript = Transcript::default();
        for number in 0..100_000 {
            transcript.push(Stdout, format!("{number}\n").as_bytes(), 100_000);
        }
        assert!(transcript.held() <= 100_000 + JOIN_LIMIT);
        assert!(transcript.has_room());
        let id = transcript.subscribe();
        let text = take_all(&mut transcript, id);
        assert!(text.ends_with("99998\n99999\n"));
        assert_eq!(transcript.lost() + text.len() as u64, 588_890);
    }

    #[test]
    fn a_slow_subscriber_holds_the_process_back() {
        let mut transcript = Transcript::default();
        let slow = transcript.subscribe();
        let quick = transcript.subscribe();
        while transcript.has_room() {
            transcript.push(Stdout, &[b'x'; 4096], 100);
        }
        assert!(transcript.held() as u64 <= WINDOW + 4096);
        assert_eq!(take_all(&mut transcript, quick).len() as u64, WINDOW);
        assert!(!transcript.has_room());
        assert!(!transcript.cut_off_stalled(Instant::now() - std::time::Duration::from_secs(9)));
        assert!(transcript.cut_off_stalled(Instant::now()));
        assert_eq!(transcript.next(slow), Next::CutOff);
        assert!(transcript.has_room() && transcript.held() == 0);
    }

    #[test]
    fn several_subscribers_each_see_everything() {
        let mut transcript = Transcript::default();
        let (one, two) = (transcript.subscribe(), transcript.subscribe());
        transcript.push(Stdout, b"abc", 100);
        assert_eq!(take_all(&mut transcript, one), "abc");
        transcript.push(Stdout, b"def", 100);
        assert_eq!(take_all(&mut transcript, two), "abcdef");
        assert_eq!(take_all(&mut transcript, one), "def");
    }
}
