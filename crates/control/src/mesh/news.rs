//! How nodes that wait hear of a change: all of the same frame, and before anybody asks anew.
//!
//! Most of ten thousand nodes know the same and wait for the same, so the frame for them is made once, with the change. Who was told asks again at once;
//! looking at those questions takes longer than telling, so they wait until everybody was told, or a while.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};
use std::time::Duration;

use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout_at},
};

/// How long questions wait at most after a change.
const TELLING: Duration = Duration::from_millis(500);

/// The last change.
#[derive(Debug, Clone, Default)]
struct Change {
    /// Up to where all is known with it.
    head: u64,
    /// For those who knew all up to there.
    from: u64,
    frame: Option<Arc<str>>,
}

/// What there is to tell, and who waits for it.
#[derive(Debug)]
pub(super) struct News {
    last: watch::Sender<Change>,
    waiting: AtomicUsize,
    /// Who waited at the last change and was not told yet.
    owed: AtomicUsize,
    /// When the last change was.
    at: Mutex<Option<Instant>>,
    told: Notify,
}

impl News {
    pub(super) fn new(head: u64) -> Self {
        let change = Change {
            head,
            ..Change::default()
        };
        Self {
            last: watch::Sender::new(change),
            waiting: AtomicUsize::new(0),
            owed: AtomicUsize::new(0),
            at: Mutex::default(),
            told: Notify::new(),
        }
    }

    /// Tells all who wait that everything is known up to `head`. `frame` makes what leads there; if there is none, each has to look for itself.
    pub(super) fn publish(&self, head: u64, frame: impl FnOnce(u64) -> Option<Arc<str>>) {
        let from = self.last.borrow().head;
        if head == from {
            return;
        }
        let waiting = self.waiting.load(Ordering::Relaxed);
        let frame = (waiting > 0 && from > 0).then(|| frame(from)).flatten();
        self.owed.store(waiting, Ordering::Relaxed);
        *self.at() = Some(Instant::now());
        self.last.send_replace(Change { head, from, frame });
    }

    fn at(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One who waits.
    pub(super) fn listen(&self) -> Listener<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Listener {
            news: self,
            last: self.last.subscribe(),
            woken: false,
        }
    }

    /// Waits until all were told of the last change, or a while.
    pub(super) async fn told(&self) {
        loop {
            let told = self.told.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            let since = *self.at();
            let Some(at) = since.filter(|_| self.owed.load(Ordering::Relaxed) > 0) else {
                return;
            };
            if timeout_at(at + TELLING, told).await.is_err() {
                return;
            }
        }
    }

    fn settle(&self) {
        let less = |owed: usize| owed.checked_sub(1);
        if self
            .owed
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            == Ok(1)
        {
            self.told.notify_waiters();
        }
    }
}

/// One who waits for news.
#[derive(Debug)]
pub(super) struct Listener<'a> {
    news: &'a News,
    last: watch::Receiver<Change>,
    /// It was woken, and did not take yet what for.
    woken: bool,
}

impl Listener<'_> {
    /// What was told last, if it is for one who knows all up to `cursor`.
    pub(super) fn take(&mut self, cursor: u64) -> Option<Arc<str>> {
        self.settle();
        let last = self.last.borrow_and_update();
        last.frame.clone().filter(|_| last.from == cursor)
    }

    /// Waits for something that was not taken; `false` if nothing comes any more.
    pub(super) async fn changed(&mut self) -> bool {
        self.woken |= self.last.changed().await.is_ok();
        self.woken
    }

    fn settle(&mut self) {
        if std::mem::take(&mut self.woken) || self.last.has_changed().unwrap_or(false) {
            self.news.settle();
        }
    }
}

impl Drop for Listener<'_> {
    fn drop(&mut self) {
        self.news.waiting.fetch_sub(1, Ordering::Relaxed);
        self.settle();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(from: u64) -> Option<Arc<str>> {
        Some(from.to_string().into())
    }

    #[tokio::test]
    async fn all_who_wait_for_the_same_get_it_and_questions_wait_for_them() {
        let news = News::new(7);
        news.told().await;
        let (mut one, mut two, mut late) = (news.listen(), news.listen(), news.listen());
        assert_eq!(one.take(7), None);
        // Nothing is new, so nobody is woken.
        news.publish(7, frame);
        news.publish(8, frame);
        assert!(one.changed().await && two.changed().await && late.changed().await);
        assert_eq!(one.take(7).as_deref(), Some("7"));
        assert_eq!(late.take(6), None);
        let mut told = Box::pin(news.told());
        assert!(futures::poll!(&mut told).is_pending());
        // Whoever goes untold holds nobody up.
        drop(two);
        told.await;
        news.publish(9, frame);
        assert_eq!(one.take(7), None);
        assert_eq!(one.take(8).as_deref(), Some("8"));
    }

    #[tokio::test]
    async fn nobody_is_waited_for_long() {
        let news = News::new(1);
        let mut asleep = news.listen();
        news.publish(2, frame);
        news.told().await;
        assert_eq!(asleep.take(1).as_deref(), Some("1"));
        drop(asleep);
        // Without anybody to tell, there is no frame.
        news.publish(3, |_| panic!("made in vain"));
        assert_eq!(news.listen().take(2), None);
    }
}
