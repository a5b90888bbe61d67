//! The connections that are open, so that those of a former sandbox can be closed.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};
use tokio::sync::Notify;

/// Which connection a request came on; among its extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionId(u64);

/// All of them.
#[derive(Debug, Default)]
pub struct Connections {
    next: Cell<u64>,
    open: RefCell<BTreeMap<u64, Rc<Notify>>>,
}

impl Connections {
    /// Enters a new connection.
    pub(super) fn enter(self: &Rc<Self>) -> Entry {
        let number = self.next.get() + 1;
        self.next.set(number);
        let closing = Rc::new(Notify::new());
        self.open.borrow_mut().insert(number, Rc::clone(&closing));
        Entry {
            id: ConnectionId(number),
            closing,
            connections: Rc::clone(self),
        }
    }

    /// Closes all but one; what is being answered on them breaks off.
    pub fn close_others(&self, kept: Option<ConnectionId>) {
        for (number, closing) in &*self.open.borrow() {
            if kept != Some(ConnectionId(*number)) {
                closing.notify_one();
            }
        }
    }
}

/// A connection's place among those that are open, until it is dropped.
pub(super) struct Entry {
    pub(super) id: ConnectionId,
    closing: Rc<Notify>,
    connections: Rc<Connections>,
}

impl Entry {
    /// Returns when the connection is to be closed.
    pub(super) async fn closing(&self) {
        self.closing.notified().await;
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.connections.open.borrow_mut().remove(&self.id.0);
    }
}
