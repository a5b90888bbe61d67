//! Turns at searching for the sandbox that signed a URL.
//!
//! A search hashes once for each sandbox, and anyone can ask for one, so one goes on at a time.
//! Others wait: so many of one client, so many in all, and none for ever.

use crate::{options::Limits, refusal::Refusal};
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Who searches and who waits.
pub(crate) struct Searches {
    turn: Semaphore,
    most: usize,
    most_of_one: usize,
    patience: Duration,
    asking: Mutex<Asking>,
}

#[derive(Default)]
struct Asking {
    all: usize,
    of: HashMap<IpAddr, usize>,
}

/// A turn. The next one's begins when it is dropped.
pub(crate) struct Turn<'a> {
    // In this order: the permit is given back first.
    _permit: SemaphorePermit<'a>,
    _place: Place<'a>,
}

/// One of those who search or wait.
struct Place<'a> {
    searches: &'a Searches,
    client: IpAddr,
}

impl Searches {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            turn: Semaphore::new(1),
            most: limits.searches,
            most_of_one: limits.searches_per_client,
            patience: limits.locate_timeout,
            asking: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Asking> {
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn, unless too many do already.
    pub(crate) async fn wait(&self, client: IpAddr) -> Result<Turn<'_>, Refusal> {
        let place = self.enter(client)?;
        match tokio::time::timeout(self.patience, self.turn.acquire()).await {
            Ok(Ok(permit)) => Ok(Turn {
                _permit: permit,
                _place: place,
            }),
            _ => Err(Refusal::SearchesFull),
        }
    }

    fn enter(&self, client: IpAddr) -> Result<Place<'_>, Refusal> {
        let mut asking = self.lock();
        let mine = asking.of.get(&client).copied().unwrap_or(0);
        if mine >= self.most_of_one {
            return Err(Refusal::TooManySearches);
        }
        if asking.all >= self.most {
            return Err(Refusal::SearchesFull);
        }
        asking.all += 1;
        asking.of.insert(client, mine + 1);
        Ok(Place {
            searches: self,
            client,
        })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut asking = self.searches.lock();
        asking.all -= 1;
        if let Some(mine) = asking.of.get_mut(&self.client) {
            *mine -= 1;
            if *mine == 0 {
                asking.of.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn client(number: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, number))
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_are_bounded_by_client_in_all_and_in_time() {
        let searches = Searches::new(&Limits {
            searches: 3,
            searches_per_client: 2,
            ..Limits::default()
        });
        let turn = searches.wait(client(1)).await.unwrap();
        let mut second = Box::pin(searches.wait(client(1)));
        assert!(futures::poll!(&mut second).is_pending());
        let refused = searches.wait(client(1)).await.err();
        assert_eq!(refused, Some(Refusal::TooManySearches));
        let mut other = Box::pin(searches.wait(client(2)));
        assert!(futures::poll!(&mut other).is_pending());
        let refused = searches.wait(client(3)).await.err();
        assert_eq!(refused, Some(Refusal::SearchesFull));
        // Who goes away makes room, and nobody waits for ever.
        drop(second);
        assert_eq!(other.await.err(), Some(Refusal::SearchesFull));
        drop(turn);
        drop(searches.wait(client(1)).await.unwrap());
        let asking = searches.lock();
        assert_eq!((asking.all, asking.of.len()), (0, 0));
    }
}
