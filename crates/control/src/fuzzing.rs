//! What fuzzers reach of the private parts.

use crate::sandboxes::list;
use api::rest::sandbox::ListQuery;

/// Reads a filter by labels; `None` if it is refused.
pub fn decode_labels(filter: &str) -> Option<Vec<(String, String)>> {
    list::parse_metadata(filter).ok()
}

/// Whether a page's token, if it is one, says the same when it is written again.
pub fn page_token_round_trips(token: &str, ascending: bool) -> bool {
    let Ok(cursor) = list::Cursor::parse(token, ascending) else {
        return true;
    };
    list::Cursor::parse(&cursor.token(ascending), ascending).is_ok_and(|again| again == cursor)
}

/// Checks a query: states, order, start, token and labels.
pub fn list_query([state, order, started_after, next_token, metadata]: [&str; 5]) -> bool {
    let query = ListQuery {
        state: Some(state.to_owned()),
        order: Some(order.to_owned()),
        started_after: Some(started_after.to_owned()),
        next_token: Some(next_token.to_owned()),
        metadata: Some(metadata.to_owned()),
        ..ListQuery::default()
    };
    list::Selection::parse(&query).is_ok()
}
