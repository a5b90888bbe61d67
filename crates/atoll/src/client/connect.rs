//! The Connect protocol as the guest speaks it: JSON, uncompressed, unary or server streaming.
//!
//! A streamed message is an envelope: one byte of flags, the length as a big-endian 32-bit number,
//! then JSON. The last envelope has flag `0x02` and tells whether the stream ended well
//! (<https://connectrpc.com/docs/protocol>).

use anyhow::{Context, bail};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::VecDeque;

/// No message of a guest is larger; a guest that sends more is not believed.
const MESSAGE_MAX: usize = 16 << 20;
const FLAG_COMPRESSED: u8 = 0x01;
const FLAG_END: u8 = 0x02;

/// An error as the protocol words it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub(crate) struct RpcError {
    /// `not_found`, `invalid_argument`, `unauthenticated`, …
    pub(crate) code: String,
    /// For people.
    #[serde(default)]
    pub(crate) message: String,
}

#[derive(Debug, Default, Deserialize)]
struct EndOfStream {
    error: Option<RpcError>,
}

/// What a stream brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// One message, as JSON.
    Message(Bytes),
    /// The end; an error if it did not end well.
    End(Option<RpcError>),
}

/// Wraps one message for sending.
pub(crate) fn envelope(message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(5 + message.len());
    bytes.put_u8(0);
    bytes.put_u32(message.len() as u32);
    bytes.put_slice(message);
    bytes.freeze()
}

/// Cuts a stream of bytes into frames.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    buffer: BytesMut,
    ready: VecDeque<Frame>,
    ended: bool,
}

impl Decoder {
    /// Takes what arrived.
    ///
    /// # Errors
    /// When the bytes break the protocol: too large, compressed, or something after the end.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.buffer.extend_from_slice(bytes);
        while self.buffer.len() >= 5 {
            let flags = self.buffer[0];
            let length = u32::from_be_bytes([
                self.buffer[1],
                self.buffer[2],
                self.buffer[3],
                self.buffer[4],
            ]) as usize;
            if length > MESSAGE_MAX {
                bail!("the sandbox sent a message of {length} bytes, more than {MESSAGE_MAX}");
            }
            if flags & FLAG_COMPRESSED != 0 {
                bail!("the sandbox sent a compressed message, which was not asked for");
            }
            if self.ended {
                bail!("the sandbox went on after the end of its stream");
            }
            if self.buffer.len() < 5 + length {
                break;
            }
            self.buffer.advance(5);
            let message = self.buffer.split_to(length).freeze();
            self.ready.push_back(if flags & FLAG_END != 0 {
                self.ended = true;
                let end: EndOfStream =
                    serde_json::from_slice(&message).context("the stream's end is not JSON")?;
                Frame::End(end.error)
            } else {
                Frame::Message(message)
            });
        }
        Ok(())
    }

    /// The next complete frame.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        self.ready.pop_front()
    }
}

/// The messages of a server stream, one after another.
#[derive(Debug)]
pub(crate) struct Messages {
    response: reqwest::Response,
    decoder: Decoder,
}

impl Messages {
    /// Reads what the response's body brings.
    pub(crate) fn new(response: reqwest::Response) -> Self {
        Self {
            response,
            decoder: Decoder::default(),
        }
    }

    /// The next message; `None` at an orderly end.
    ///
    /// # Errors
    /// [`RpcError`] when the guest says so; another when the connection broke.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> anyhow::Result<Option<T>> {
        loop {
            match self.decoder.next() {
                Some(Frame::Message(message)) => {
                    return serde_json::from_slice(&message)
                        .map(Some)
                        .context("the sandbox sent something that is not understood");
                }
                Some(Frame::End(None)) => return Ok(None),
                Some(Frame::End(Some(error))) => return Err(error.into()),
                None => match self.response.chunk().await {
                    Ok(Some(bytes)) => self.decoder.push(&bytes)?,
                    Ok(None) => bail!("the connection to the sandbox ended before its stream did"),
                    Err(error) => {
                        return Err(error).context("the connection to the sandbox broke");
                    }
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a guest answers to `echo hi`, byte for byte.
    fn recorded() -> Vec<u8> {
        let mut bytes = Vec::new();
        for message in [
            r#"{"event":{"start":{"pid":7}}}"#,
            r#"{"event":{"data":{"stdout":"aGkK"}}}"#,
            r#"{"event":{"end":{"exited":true,"status":"exit status 0"}}}"#,
        ] {
            bytes.extend_from_slice(&envelope(message.as_bytes()));
        }
        bytes.extend_from_slice(b"\x02\x00\x00\x00\x02{}");
        bytes
    }

    fn drain(decoder: &mut Decoder) -> Vec<Frame> {
        std::iter::from_fn(|| decoder.next()).collect()
    }

    #[test]
    fn frames_survive_any_cut() {
        let bytes = recorded();
        let mut whole = Decoder::default();
        whole.push(&bytes).unwrap();
        let expected = drain(&mut whole);
        assert_eq!(expected.len(), 4);
        assert_eq!(expected[3], Frame::End(None));
        for size in 1..bytes.len() {
            let mut decoder = Decoder::default();
            let mut frames = Vec::new();
            for part in bytes.chunks(size) {
                decoder.push(part).unwrap();
                frames.extend(drain(&mut decoder));
            }
            assert_eq!(frames, expected, "cut every {size} bytes");
        }
    }

    #[test]
    fn the_end_may_carry_an_error() {
        let body = br#"{"error":{"code":"not_found","message":"process with pid 9 not found"}}"#;
        let mut bytes = vec![FLAG_END];
        bytes.extend_from_slice(&(body.len() as u32).to_be_bytes());
        bytes.extend_from_slice(body);
        let mut decoder = Decoder::default();
        decoder.push(&bytes).unwrap();
        let Some(Frame::End(Some(error))) = decoder.next() else {
            panic!("no error")
        };
        assert_eq!(error.code, "not_found");
    }

    #[test]
    fn a_hostile_guest_cannot_fill_memory() {
        assert!(Decoder::default().push(b"\x00\xff\xff\xff\xff").is_err());
        assert!(Decoder::default().push(b"\x01\x00\x00\x00\x00").is_err());
        let mut decoder = Decoder::default();
        assert!(
            decoder
                .push(b"\x02\x00\x00\x00\x02{}\x00\x00\x00\x00\x00")
                .is_err()
        );
    }
}
