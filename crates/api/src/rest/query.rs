//! What queries have in common: numbers, and how a refusal quotes them.

use crate::{ErrorCode, Problem};

/// The request is malformed or asks for something impossible.
pub fn invalid(cause: impl Into<String>) -> Problem {
    Problem::new(ErrorCode::InvalidArgument, cause, "")
}

/// At most the first 80 characters of a text from outside, for messages.
pub fn shorten(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(80).collect()
}

/// A whole number out of a query, where absent means `default`.
///
/// # Errors
///
/// [`ErrorCode::InvalidArgument`] if it is no number in `range`, with `name`.
pub fn number(
    name: &str,
    text: Option<&str>,
    default: i64,
    range: std::ops::RangeInclusive<i64>,
) -> Result<i64, Problem> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(default);
    };
    match text.parse::<i64>() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(invalid(format!(
            "Invalid {name} `{}`: expected a whole number from {} to {}",
            shorten(text),
            range.start(),
            range.end()
        ))),
    }
}
