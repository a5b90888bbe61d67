//! `multipart/form-data` as a stream (RFC 7578, RFC 2046): bytes go in as they come, the parts'
//! heads and bodies come out, and no more than one head or a boundary's length is ever held.

use bytes::{Buf, Bytes, BytesMut};

/// The longest head of a part.
const HEAD_LIMIT: usize = 16 << 10;
/// The longest boundary that the standard allows.
const BOUNDARY_LIMIT: usize = 70;

/// Why a body is not what its content type says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MultipartError {
    /// No boundary in the content type.
    #[error("no multipart boundary param in Content-Type")]
    NoBoundary,
    /// A part's head is too long.
    #[error("a part's header is longer than {HEAD_LIMIT} bytes")]
    LongHead,
    /// Something else stands where a boundary has to be.
    #[error("malformed boundary")]
    BadBoundary,
    /// The body ends within a part.
    #[error("unexpected end of the form")]
    Incomplete,
}

/// What comes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// A part begins.
    Head(PartHead),
    /// Some of its content.
    Data(Bytes),
    /// It ends.
    End,
}

/// The head of a part.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartHead {
    /// The field's name.
    pub name: String,
    /// The file's name, with its directories.
    pub file_name: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first boundary.
    Preamble,
    /// Right behind a boundary.
    AfterBoundary,
    Head,
    /// At the line's end before a part's content.
    BodyStart,
    Body,
    Done,
}

/// The parser.
#[derive(Debug)]
pub struct Multipart {
    /// `\r\n--boundary`.
    delimiter: Vec<u8>,
    buffer: BytesMut,
    state: State,
}

impl Multipart {
    /// A parser for a body with this content type.
    pub fn new(content_type: &str) -> Result<Self, MultipartError> {
        let boundary = parameters(content_type)
            .into_iter()
            .find(|(name, _)| name == "boundary")
            .map(|(_, value)| value)
            .filter(|boundary| !boundary.is_empty() && boundary.len() <= BOUNDARY_LIMIT)
            .ok_or(MultipartError::NoBoundary)?;
        let delimiter = format!("\r\n--{boundary}").into_bytes();
        // The first boundary may stand at the very start; this makes it look like the others.
        Ok(Self {
            delimiter,
            buffer: BytesMut::from(&b"\r\n"[..]),
            state: State::Preamble,
        })
    }

    /// Adds bytes that came in. Take all pieces out before pushing more.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether the last boundary was seen; what comes after it is ignored.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// To be called when no more bytes will come.
    pub fn finish(&self) -> Result<(), MultipartError> {
        // A form without any part may be empty altogether.
        match self.state {
            State::Done => Ok(()),
            State::Preamble if self.buffer.len() <= 2 => Ok(()),
            _ => Err(MultipartError::Incomplete),
        }
    }

    /// The next piece; `None` until more bytes are pushed.
    pub fn take(&mut self) -> Result<Option<Piece>, MultipartError> {
        loop {
            match self.state {
                State::Preamble => match find(&self.buffer, &self.delimiter) {
                    Some(at) => {
                        self.buffer.advance(at + self.delimiter.len());
                        self.state = State::AfterBoundary;
                    }
                    None => {
                        self.keep_tail();
                        return Ok(None);
                    }
                },
                State::AfterBoundary => {
                    // Blanks may stand between a boundary and its line's end.
                    let blanks = self
                        .buffer
                        .iter()
                        .take_while(|byte| matches!(byte, b' ' | b'\t'))
                        .count();
                    match self.buffer.get(blanks..) {
                        Some([b'-', b'-', ..]) if blanks == 0 => {
                            self.state = State::Done;
                            self.buffer.clear();
                        }
                        Some([b'\r', b'\n', ..]) => {
                            // The line's end stays: a part without headers has its blank line here.
                            self.buffer.advance(blanks);
                            self.state = State::Head;
                        }
                        Some(rest) if rest.len() >= 2 || blanks > HEAD_LIMIT => {
                            return Err(MultipartError::BadBoundary);
                        }
                        _ => return Ok(None),
                    }
                }
                State::Head => match find(&self.buffer, b"\r\n\r\n") {
                    Some(at) if at <= HEAD_LIMIT => {
                        let head = self.buffer.split_to(at);
                        // One line's end stays: the delimiter of an empty part may begin with it.
                        self.buffer.advance(2);
                        self.state = State::BodyStart;
                        return Ok(Some(Piece::Head(parse_head(&head))));
                    }
                    None if self.buffer.len() <= HEAD_LIMIT => return Ok(None),
                    _ => return Err(MultipartError::LongHead),
                },
                State::BodyStart => {
                    if self.buffer.len() < self.delimiter.len()
                        && self.delimiter.starts_with(&self.buffer)
                    {
                        return Ok(None);
                    }
                    if !self.buffer.starts_with(&self.delimiter) {
                        self.buffer.advance(2);
                    }
                    self.state = State::Body;
                }
                State::Body => {
                    if let Some(at) = find(&self.buffer, &self.delimiter) {
                        if at > 0 {
                            return Ok(Some(Piece::Data(self.buffer.split_to(at).freeze())));
                        }
                        self.buffer.advance(self.delimiter.len());
                        self.state = State::AfterBoundary;
                        return Ok(Some(Piece::End));
                    }
                    let safe = self.buffer.len().saturating_sub(self.delimiter.len() - 1);
                    if safe == 0 {
                        return Ok(None);
                    }
                    return Ok(Some(Piece::Data(self.buffer.split_to(safe).freeze())));
                }
                State::Done => {
                    self.buffer.clear();
                    return Ok(None);
                }
            }
        }
    }

    fn keep_tail(&mut self) {
        let excess = self.buffer.len().saturating_sub(self.delimiter.len() - 1);
        self.buffer.advance(excess);
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let (first, rest) = needle.split_first()?;
    let mut at = 0;
    while let Some(found) = haystack.get(at..)?.iter().position(|byte| byte == first) {
        at += found;
        let tail = haystack.get(at + 1..)?;
        if tail.len() < rest.len() {
            return None;
        }
        if tail.starts_with(rest) {
            return Some(at);
        }
        at += 1;
    }
    None
}

fn parse_head(head: &[u8]) -> PartHead {
    let text = String::from_utf8_lossy(head);
    let mut parsed = PartHead::default();
    for line in text.split("\r\n") {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        if !name.trim().eq_ignore_ascii_case("content-disposition") {
            continue;
        }
        let mut extended = None;
        for (name, value) in parameters(value) {
            match name.as_str() {
                "name" => parsed.name = value,
                "filename" => parsed.file_name = Some(value),
                "filename*" => extended = decode_extended(&value),
                _ => {}
            }
        }
        parsed.file_name = extended.or(parsed.file_name.take());
    }
    parsed
}

/// RFC 8187: `UTF-8''percent%20encoded`.
fn decode_extended(value: &str) -> Option<String> {
    let (charset, rest) = value.split_once('\'')?;
    let (_language, text) = rest.split_once('\'')?;
    let decoded = percent_encoding::percent_decode_str(text);
    charset
        .eq_ignore_ascii_case("utf-8")
        .then(|| decoded.decode_utf8_lossy().into_owned())
}

/// The parameters behind a header's value: `; name=value; name="quoted \" value"`. Names come out
/// in lower case.
fn parameters(header: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut characters = header.chars().peekable();
    while characters.by_ref().any(|character| character == ';') {
        let mut name = String::new();
        while let Some(character) = characters.next_if(|c| !matches!(c, '=' | ';')) {
            name.push(character);
        }
        if characters.next_if_eq(&'=').is_none() {
            continue;
        }
        let mut value = String::new();
        while characters.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        if characters.next_if_eq(&'"').is_some() {
            while let Some(character) = characters.next() {
                match character {
                    '"' => break,
                    // Browsers send Windows paths unescaped: only these two are escapes.
                    '\\' if matches!(characters.peek(), Some('"' | '\\')) => {
                        value.extend(characters.next());
                    }
                    other => value.push(other),
                }
            }
        } else {
            while let Some(character) = characters.next_if(|c| *c != ';') {
                value.push(character);
            }
            value.truncate(value.trim_end().len());
        }
        found.push((name.trim().to_ascii_lowercase(), value));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: &[u8] = b"preamble\r\n--xYz\r\nContent-Disposition: form-data; name=\"file\"; \
        filename=\"dir/a \\\"b\\\".txt\"\r\nContent-Type: text/plain\r\n\r\nhello\r\n--xY no\r\n--xYz\r\n\
        content-disposition: form-data; name=other; filename*=UTF-8''%C3%A9.txt\r\n\r\n\r\n--xYz--\r\nepilogue";

    fn parse(chunks: &[&[u8]]) -> Result<Vec<(PartHead, Vec<u8>)>, MultipartError> {
        let mut parser = Multipart::new("multipart/form-data; boundary=\"xYz\"")?;
        let mut parts: Vec<(PartHead, Vec<u8>)> = Vec::new();
        for chunk in chunks {
            parser.push(chunk);
            while let Some(piece) = parser.take()? {
                match piece {
                    Piece::Head(head) => parts.push((head, Vec::new())),
                    Piece::Data(data) => parts.last_mut().unwrap().1.extend_from_slice(&data),
                    Piece::End => {}
                }
            }
        }
        parser.finish()?;
        Ok(parts)
    }

    #[test]
    fn a_form_survives_any_cut() {
        for cut in 0..=FORM.len() {
            let parts = parse(&[&FORM[..cut], &FORM[cut..]]).unwrap();
            assert_eq!(parts.len(), 2, "cut at {cut}");
            assert_eq!(parts[0].0.name, "file");
            assert_eq!(parts[0].0.file_name.as_deref(), Some("dir/a \"b\".txt"));
            assert_eq!(parts[0].1, b"hello\r\n--xY no");
            assert_eq!(parts[1].0.file_name.as_deref(), Some("é.txt"));
            assert!(parts[1].1.is_empty());
        }
        let bytes: Vec<&[u8]> = FORM.chunks(1).collect();
        assert_eq!(parse(&bytes).unwrap().len(), 2);
    }

    #[test]
    fn an_incomplete_form_is_refused() {
        for cut in [FORM.len() - 12, 120, 60] {
            assert_eq!(
                parse(&[&FORM[..cut]]),
                Err(MultipartError::Incomplete),
                "{cut}"
            );
        }
        let endless = [b"--xYz\r\n".as_slice(), &vec![b'a'; HEAD_LIMIT + 1]].concat();
        assert_eq!(parse(&[&endless]), Err(MultipartError::LongHead));
        assert_eq!(parse(&[b"--xYzzz\r\n"]), Err(MultipartError::BadBoundary));
        assert!(Multipart::new("multipart/form-data").is_err());
    }
}
