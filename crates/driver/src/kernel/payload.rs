//! The ELF image inside a bzImage.
//!
//! The header is that of the kernel's `Documentation/arch/x86/boot.rst`: a signature `HdrS` at
//! 0x202, the number of 512-byte sectors before the protected-mode part at 0x1f1, and where in that
//! part the compressed image lies at 0x248 and 0x24c.

use super::{elf, lz4};
use std::io::{Read, Write as _};

/// No kernel is larger unpacked.
const LIMIT: usize = 256 << 20;

const GZIP: &[u8] = b"\x1f\x8b";
const XZ: &[u8] = b"\xfd7zXZ\0";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";

/// Why no image came out.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// Neither form.
    #[error("it is neither an ELF image nor a bzImage of version 2.08 or later")]
    Form,
    /// A compression that is not known here.
    #[error("its compression is not known (known are gzip, LZ4, xz and zstd)")]
    Compression,
    /// The compressed image is damaged.
    #[error("its {0} data is damaged")]
    Damaged(&'static str),
    /// `xz` is needed and missing.
    #[error("the program `xz` that unpacks it cannot be run: {0}")]
    Xz(std::io::Error),
}

fn number(file: &[u8], at: usize) -> Option<usize> {
    let bytes = file.get(at..)?.first_chunk::<4>()?;
    usize::try_from(u32::from_le_bytes(*bytes)).ok()
}

fn is_boot_image(file: &[u8]) -> bool {
    file.get(0x202..0x206) == Some(b"HdrS")
        && file
            .get(0x206..)
            .and_then(|rest| rest.first_chunk::<2>())
            .is_some_and(|version| u16::from_le_bytes(*version) >= 0x208)
}

/// What the kernel calls itself: the first word of its version line.
pub fn release(file: &[u8]) -> Option<String> {
    let text = if is_boot_image(file) {
        let at = u16::from_le_bytes(*file.get(0x20e..)?.first_chunk::<2>()?);
        file.get(usize::from(at) + 0x200..)?
    } else if file.starts_with(elf::MAGIC) {
        const BANNER: &[u8] = b"Linux version ";
        let at = file
            .windows(BANNER.len())
            .position(|window| window == BANNER)?;
        file.get(at + BANNER.len()..)?
    } else {
        return None;
    };
    let word = text
        .iter()
        .take(128)
        .take_while(|byte| byte.is_ascii_graphic());
    let word: String = word.map(|byte| char::from(*byte)).collect();
    word.starts_with(|first: char| first.is_ascii_digit())
        .then_some(word)
}

/// The ELF image of a kernel, which may be one already.
pub fn extract(file: &[u8]) -> Result<Vec<u8>, PayloadError> {
    if file.starts_with(elf::MAGIC) {
        return Ok(file.to_vec());
    }
    if !is_boot_image(file) {
        return Err(PayloadError::Form);
    }
    let payload = || {
        let sectors = match usize::from(*file.get(0x1f1)?) {
            0 => 4,
            sectors => sectors,
        };
        let start = (sectors + 1) * 512 + number(file, 0x248)?;
        file.get(start..start.checked_add(number(file, 0x24c)?)?)
    };
    let image = decompress(payload().ok_or(PayloadError::Form)?)?;
    if image.starts_with(elf::MAGIC) {
        Ok(image)
    } else {
        Err(PayloadError::Form)
    }
}

/// Unpacks by what the data begins with. What follows it is ignored.
pub(super) fn decompress(data: &[u8]) -> Result<Vec<u8>, PayloadError> {
    if data.starts_with(GZIP) {
        read(flate2::read::GzDecoder::new(data), "gzip")
    } else if data.starts_with(ZSTD) {
        let decoder = zstd::stream::read::Decoder::with_buffer(data);
        let decoder = decoder.map_err(|_| PayloadError::Damaged("zstd"))?;
        read(decoder.single_frame(), "zstd")
    } else if data.starts_with(&lz4::MAGIC) {
        lz4::decompress(data, LIMIT).ok_or(PayloadError::Damaged("LZ4"))
    } else if data.starts_with(XZ) {
        decompress_xz(data)
    } else {
        Err(PayloadError::Compression)
    }
}

fn read(source: impl Read, kind: &'static str) -> Result<Vec<u8>, PayloadError> {
    let mut output = Vec::new();
    match source.take(LIMIT as u64 + 1).read_to_end(&mut output) {
        Ok(_) if output.len() <= LIMIT => Ok(output),
        _ => Err(PayloadError::Damaged(kind)),
    }
}

/// By the program: this is done once for a kernel, and not worth a library.
fn decompress_xz(data: &[u8]) -> Result<Vec<u8>, PayloadError> {
    use std::process::{Command, Stdio};
    let mut child = Command::new("xz")
        .args(["--decompress", "--stdout", "--single-stream"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(PayloadError::Xz)?;
    let (input, output) = (child.stdin.take(), child.stdout.take());
    let image = std::thread::scope(|scope| {
        // Stops early at what follows the data; then writing fails, and that is well.
        scope.spawn(move || input.map(|mut input| input.write_all(data)));
        output.map(|output| read(output, "xz"))
    });
    // It complains of what follows the data; the image tells whether it is whole.
    let _ = child.wait();
    image.unwrap_or(Err(PayloadError::Damaged("xz")))
}
