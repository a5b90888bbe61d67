//! The `WWW-Authenticate` header (RFC 9110, section 11.6.1). Pure.

use std::collections::BTreeMap;

/// One way in which a server lets itself be convinced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// In lower case: `bearer`, `basic`.
    pub scheme: String,
    /// Parameters, their names in lower case.
    pub parameters: BTreeMap<String, String>,
}

/// The longest header that is looked at.
const HEADER_MAX: usize = 8 << 10;

/// Reads the challenges of one header. What is malformed ends the list.
pub fn parse_challenges(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    if header.len() > HEADER_MAX {
        return challenges;
    }
    let mut rest = header.trim_start_matches(separator);
    while !rest.is_empty() {
        let (word, after) = token(rest);
        if word.is_empty() {
            break;
        }
        let after = after.trim_start_matches([' ', '\t']);
        if let Some(value) = after.strip_prefix('=') {
            let Some(challenge) = challenges.last_mut() else {
                break;
            };
            let value = value.trim_start_matches([' ', '\t']);
            let Some((value, after)) = quoted(value).or_else(|| Some(owned(token(value)))) else {
                break;
            };
            challenge
                .parameters
                .insert(word.to_ascii_lowercase(), value);
            rest = after.trim_start_matches(separator);
        } else {
            challenges.push(Challenge {
                scheme: word.to_ascii_lowercase(),
                parameters: BTreeMap::new(),
            });
            rest = after.trim_start_matches(separator);
        }
    }
    challenges
}

fn separator(character: char) -> bool {
    matches!(character, ' ' | '\t' | ',')
}

fn token(text: &str) -> (&str, &str) {
    let end = text
        .find(|character: char| separator(character) || matches!(character, '=' | '"'))
        .unwrap_or(text.len());
    text.split_at(end)
}

fn owned<'a>((value, rest): (&'a str, &'a str)) -> (String, &'a str) {
    (value.to_owned(), rest)
}

fn quoted(text: &str) -> Option<(String, &str)> {
    let text = text.strip_prefix('"')?;
    let mut value = String::new();
    let mut escaped = false;
    for (at, character) in text.char_indices() {
        match character {
            _ if escaped => {
                value.push(character);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return Some((value, &text[at + 1..])),
            _ => value.push(character),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let read = parse_challenges(
            "Bearer realm=\"https://auth.example/token\",service=\"a \\\"b\\\"\", \
             scope=\"repository:x:pull,push\", Basic realm=plain",
        );
        assert_eq!(read.len(), 2);
        assert_eq!(read[0].scheme, "bearer");
        assert_eq!(read[0].parameters["realm"], "https://auth.example/token");
        assert_eq!(read[0].parameters["service"], "a \"b\"");
        assert_eq!(read[0].parameters["scope"], "repository:x:pull,push");
        assert_eq!(read[1].parameters["realm"], "plain");
    }

    #[test]
    fn malformed_ones_end_the_list() {
        for text in [
            "",
            "=",
            "Bearer realm=\"open",
            "a=b",
            ",,,",
            "\"",
            "Bearer =",
            "Basic",
        ] {
            assert!(parse_challenges(text).len() <= 1, "{text}");
        }
        assert!(parse_challenges(&"a ".repeat(10_000)).is_empty());
    }
}
