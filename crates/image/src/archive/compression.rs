//! Telling and undoing the compression of a layer.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip (RFC 1952).
    Gzip,
    /// Zstandard (RFC 8878).
    Zstd,
}

/// The largest window that a Zstandard stream may ask for, as a power of two: 128 MiB.
const WINDOW_LOG_MAX: u32 = 27;

impl Compression {
    /// Tells the compression from the first bytes.
    pub fn detect(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame, with which some compressors begin.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

type Peeked<R> = BufReader<Chain<Cursor<Vec<u8>>, R>>;

/// A stream without its compression, whatever that was.
pub enum Decompressed<R: Read> {
    /// Was not compressed.
    Plain(Peeked<R>),
    /// Was gzip, perhaps of several members.
    Gzip(Box<flate2::bufread::MultiGzDecoder<Peeked<R>>>),
    /// Was Zstandard, perhaps of several frames.
    Zstd(Box<zstd::stream::read::Decoder<'static, Peeked<R>>>),
}

impl<R: Read> Decompressed<R> {
    /// Looks at the first bytes of `inner` and undoes what they tell.
    pub fn new(mut inner: R) -> io::Result<Self> {
        let mut start = Vec::with_capacity(4);
        (&mut inner).take(4).read_to_end(&mut start)?;
        let compression = Compression::detect(&start);
        let stream = BufReader::with_capacity(128 << 10, Cursor::new(start).chain(inner));
        Ok(match compression {
            Compression::None => Self::Plain(stream),
            Compression::Gzip => Self::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(stream))),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(stream)?;
                decoder.window_log_max(WINDOW_LOG_MAX)?;
                Self::Zstd(Box::new(decoder))
            }
        })
    }

    /// How the stream was compressed.
    pub fn compression(&self) -> Compression {
        match self {
            Self::Plain(_) => Compression::None,
            Self::Gzip(_) => Compression::Gzip,
            Self::Zstd(_) => Compression::Zstd,
        }
    }
}

impl<R: Read> Read for Decompressed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => {
                // Large reads would go around the buffer one syscall at a time; small ones, such
                // as headers, come out of it.
                let available = stream.fill_buf()?;
                let count = available.len().min(buffer.len());
                buffer[..count].copy_from_slice(&available[..count]);
                stream.consume(count);
                Ok(count)
            }
            Self::Gzip(stream) => stream.read(buffer),
            Self::Zstd(stream) => stream.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn check(compressed: &[u8], compression: Compression, plain: &[u8]) {
        let mut stream = Decompressed::new(compressed).unwrap();
        assert_eq!(stream.compression(), compression);
        let mut read = Vec::new();
        stream.read_to_end(&mut read).unwrap();
        assert_eq!(read, plain);
    }

    #[test]
    fn all_compressions_are_undone() {
        let plain = b"some text that repeats, some text that repeats".repeat(100);
        check(&plain, Compression::None, &plain);
        check(b"", Compression::None, b"");
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).unwrap();
        let member = gzip.finish().unwrap();
        check(
            &[member.clone(), member].concat(),
            Compression::Gzip,
            &plain.repeat(2),
        );
        check(
            &zstd::encode_all(&plain[..], 1).unwrap(),
            Compression::Zstd,
            &plain,
        );
    }
}
