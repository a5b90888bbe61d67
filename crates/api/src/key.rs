//! The form of API keys, in one place for all that check it.

/// What every API key begins with, as E2B's clients expect.
pub const API_KEY_PREFIX: &str = "e2b_";

/// How many hexadecimal digits follow.
pub const API_KEY_DIGITS: usize = 40;

/// Whether a text has the form of an API key: the prefix and the digits, in either case. Keys are
/// compared as they are written, so a key in capitals is another than the same in small letters.
pub fn is_api_key(text: &str) -> bool {
    text.strip_prefix(API_KEY_PREFIX).is_some_and(|digits| {
        digits.len() == API_KEY_DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_form_in_either_case() {
        let key = format!("e2b_{}", "0aF9".repeat(10));
        for good in [&key, &key.replace('a', "A"), &key.replace('F', "f")] {
            assert!(is_api_key(good), "{good}");
        }
        for bad in [
            "",
            "e2b_",
            "hunter2",
            &key[..43],
            &format!("{key}0"),
            &key.replace('F', "g"),
        ] {
            assert!(!is_api_key(bad), "{bad}");
        }
        assert!(!is_api_key(&key.replace("e2b_", "E2B_")));
    }
}
