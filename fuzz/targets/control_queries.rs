//! Filters and pages of the list of sandboxes.
#![no_main]

use control::fuzzing::{decode_labels, list_query, page_token_round_trips};
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
        assert_eq!(decode_labels(&pair), Some(vec![(name.to_owned(), value.to_owned())]));
    }
    let _ = decode_labels(metadata);
    for ascending in [false, true] {
        assert!(page_token_round_trips(token, ascending), "{token:?}");
    }
    list_query([state, order, started, token, metadata]);
});
