//! The Connect protocol: error codes, and the envelopes that streams are made of.
//!
//! <https://connectrpc.com/docs/protocol>

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// The content type of unary requests and answers.
pub const UNARY_JSON: &str = "application/json";
/// The content type of streams.
pub const STREAM_JSON: &str = "application/connect+json";
/// Set in an envelope's flags if its message is compressed.
pub const FLAG_COMPRESSED: u8 = 0b01;
/// Set in the flags of the last envelope of a stream.
pub const FLAG_END: u8 = 0b10;
/// Bytes before an envelope's message: flags and length.
pub const ENVELOPE_HEADER: usize = 5;

/// Why a call failed, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// Given up by the caller.
    Canceled,
    /// Of unclear origin.
    Unknown,
    /// The request is wrong, whatever the state of the system.
    InvalidArgument,
    /// It took longer than the caller allowed.
    DeadlineExceeded,
    /// There is no such thing.
    NotFound,
    /// There is such a thing already.
    AlreadyExists,
    /// The caller may not do this.
    PermissionDenied,
    /// Something is used up.
    ResourceExhausted,
    /// The system is in a state in which this cannot be done.
    FailedPrecondition,
    /// Stopped because of concurrent work.
    Aborted,
    /// Past the valid range.
    OutOfRange,
    /// There is no such operation.
    Unimplemented,
    /// Something broke that should not break.
    Internal,
    /// Not possible now; try again later.
    Unavailable,
    /// Data is lost for good.
    DataLoss,
    /// The caller did not say who it is, or nobody knows it.
    Unauthenticated,
}

impl Code {
    /// The HTTP status of a unary error.
    pub const fn status(self) -> u16 {
        match self {
            Self::Canceled => 499,
            Self::InvalidArgument | Self::FailedPrecondition | Self::OutOfRange => 400,
            Self::DeadlineExceeded => 504,
            Self::NotFound => 404,
            Self::AlreadyExists | Self::Aborted => 409,
            Self::PermissionDenied => 403,
            Self::ResourceExhausted => 429,
            Self::Unimplemented => 501,
            Self::Unknown | Self::Internal | Self::DataLoss => 500,
            Self::Unavailable => 503,
            Self::Unauthenticated => 401,
        }
    }
}

/// A failed call: the body of a unary error, or the `error` of a stream's last envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ConnectError {
    /// For programs.
    pub code: Code,
    /// For people.
    #[serde(default)]
    pub message: String,
}

impl ConnectError {
    /// An error with its code and text.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// `invalid_argument`.
    pub fn invalid_argument(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    /// `not_found`.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, message)
    }

    /// `internal`.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }
}

/// What the last envelope of a stream holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndOfStream {
    /// Why the call failed; absent if it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ConnectError>,
}

/// One message of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// [`FLAG_COMPRESSED`] and [`FLAG_END`].
    pub flags: u8,
    /// The message.
    pub message: Bytes,
}

impl Envelope {
    /// Whether the stream ends with it.
    pub fn is_end(&self) -> bool {
        self.flags & FLAG_END != 0
    }
}

/// Puts a message into an envelope.
pub fn seal(flags: u8, message: &[u8]) -> Bytes {
    let mut sealed = BytesMut::with_capacity(ENVELOPE_HEADER + message.len());
    sealed.put_u8(flags);
    sealed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    sealed.put_slice(message);
    sealed.freeze()
}

/// The last envelope of a stream.
pub fn seal_end(error: Option<ConnectError>) -> Bytes {
    seal(
        FLAG_END,
        &serde_json::to_vec(&EndOfStream { error }).unwrap_or_else(|_| b"{}".to_vec()),
    )
}

/// Takes a byte stream apart into envelopes. Holds at most one message of the given limit, and
/// what was pushed last.
#[derive(Debug)]
pub struct EnvelopeReader {
    buffer: BytesMut,
    limit: usize,
}

impl EnvelopeReader {
    /// A reader that refuses messages longer than `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            limit,
        }
    }

    /// Adds bytes that came in. Take all envelopes out before pushing more.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole envelope, if there is one; `resource_exhausted` if it is too long.
    pub fn take(&mut self) -> Result<Option<Envelope>, ConnectError> {
        let Some(header) = self.buffer.first_chunk::<ENVELOPE_HEADER>() else {
            return Ok(None);
        };
        let [flags, a, b, c, d] = *header;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > self.limit {
            return Err(ConnectError::new(
                Code::ResourceExhausted,
                format!(
                    "message of {length} bytes is larger than the limit of {}",
                    self.limit
                ),
            ));
        }
        if self.buffer.len() < ENVELOPE_HEADER + length {
            return Ok(None);
        }
        self.buffer.advance(ENVELOPE_HEADER);
        let message = self.buffer.split_to(length).freeze();
        Ok(Some(Envelope { flags, message }))
    }

    /// Whether nothing is left of a message that was begun.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envelopes_survive_any_cut() {
        let wire = [seal(0, b"{\"a\":1}"), seal(0, b""), seal_end(None)].concat();
        for cut in 0..=wire.len() {
            let mut reader = EnvelopeReader::new(100);
            let mut got = Vec::new();
            for part in [&wire[..cut], &wire[cut..]] {
                reader.push(part);
                while let Some(envelope) = reader.take().unwrap() {
                    got.push(envelope);
                }
            }
            assert_eq!(got.len(), 3);
            assert_eq!(&got[0].message[..], b"{\"a\":1}");
            assert!(got[2].is_end() && reader.is_empty());
        }
    }

    #[test]
    fn an_oversized_envelope_is_refused_before_its_body_arrives() {
        let mut reader = EnvelopeReader::new(10);
        reader.push(&[0, 0, 0, 0, 11]);
        assert_eq!(reader.take().unwrap_err().code, Code::ResourceExhausted);
    }

    #[test]
    fn the_end_says_why() {
        let end = seal_end(Some(ConnectError::not_found(
            "process with pid 7 not found",
        )));
        assert_eq!(
            &end[5..],
            br#"{"error":{"code":"not_found","message":"process with pid 7 not found"}}"#
        );
        assert_eq!(&seal_end(None)[..], b"\x02\0\0\0\x02{}");
    }
}
