//! Templates: what a tenant may see and do ([`Templates`]), how they are built ([`Builder`]), and
//! the reconciler that keeps what Atoll came with, and removes what nobody needs ([`reconcile`]).

mod builder;
mod feed;
mod new;
pub(crate) mod reconcile;
mod show;
mod snapshot;
mod view;

pub(crate) use builder::{Builder, described};
pub(crate) use feed::{Feed, Subscription};
pub(crate) use show::entry;
pub(crate) use view::{Name, Templates, absent};
