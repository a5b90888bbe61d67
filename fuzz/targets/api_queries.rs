//! Filters and pages of the list of sandboxes.
#![no_main]

use api::{node::SandboxStatus, rest::{
    listing::{Cursor, Selection, parse_metadata},
    sandbox::ListQuery,
}};
use libfuzzer_sys::fuzz_target;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

fuzz_target!(|data: &[u8]| {
    let Some([name, value, token, state, order, started, metadata]) = fuzz::texts(data) else {
        return;
    };
    // As clients do it: each quoted, joined, and the whole quoted once more for the URL, which
    // whoever reads the query undoes.
    let quote = |text: &str| {
        let once = utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        utf8_percent_encode(&once, NON_ALPHANUMERIC).to_string()
    };
    let pair = format!("{}={}", quote(name), quote(value));
    if pair.len() <= 16 << 10 {
        let labels = parse_metadata(&pair).expect("what clients write is read");
        assert_eq!(labels, [(name.to_owned(), value.to_owned())]);
    }
    let _ = parse_metadata(metadata);
    for ascending in [false, true] {
        if let Ok(cursor) = Cursor::parse(token, ascending) {
            let again = Cursor::parse(&cursor.token(ascending), ascending);
            assert_eq!(again.as_ref(), Ok(&cursor), "{token:?}");
        }
    }
    let query = ListQuery {
        state: Some(state.to_owned()),
        order: Some(order.to_owned()),
        started_after: Some(started.to_owned()),
        next_token: Some(token.to_owned()),
        metadata: Some(metadata.to_owned()),
        ..ListQuery::default()
    };
    if let Ok(selection) = Selection::parse(&query) {
        selection.apply::<SandboxStatus>(&[]);
    }
});
