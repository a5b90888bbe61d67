//! Scalars as ProtoJSON writes and reads them.

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const STANDARD_LENIENT: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE_LENIENT: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// Bytes, written in base64; read in either alphabet, with or without padding.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Base64(pub Bytes);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        let engine = if text.contains(['-', '_']) {
            &URL_SAFE_LENIENT
        } else {
            &STANDARD_LENIENT
        };
        engine
            .decode(text.as_bytes())
            .map(|bytes| Self(bytes.into()))
            .map_err(|_| D::Error::custom("bytes must be in base64"))
    }
}

/// Reads `null` as the default.
pub fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Integer(i128),
    Float(f64),
    Text(String),
}

fn integer<E: serde::de::Error>(number: Number) -> Result<i128, E> {
    match number {
        Number::Integer(value) => Ok(value),
        Number::Float(value) if value.fract() == 0.0 && value.abs() < 9.1e15 => Ok(value as i128),
        Number::Text(text) => text.parse().map_err(|_| E::custom("expected an integer")),
        Number::Float(_) => Err(E::custom("expected an integer")),
    }
}

/// A `uint32`, as a number or a string; `null` is 0.
pub fn uint32<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    Ok(optional_uint32(deserializer)?.unwrap_or_default())
}

/// A `uint32` that may be absent.
pub fn optional_uint32<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<u32>, D::Error> {
    let Some(number) = Option::<Number>::deserialize(deserializer)? else {
        return Ok(None);
    };
    u32::try_from(integer::<D::Error>(number)?)
        .map(Some)
        .map_err(|_| D::Error::custom("out of range for an unsigned 32-bit integer"))
}

/// An `int64`: written as a string, read as a number or a string.
pub mod int64 {
    use super::{Number, integer};
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    /// Writes the string.
    pub fn serialize<S: Serializer>(value: &i64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    /// Reads a number or a string.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
        let Some(number) = Option::<Number>::deserialize(deserializer)? else {
            return Ok(0);
        };
        i64::try_from(integer::<D::Error>(number)?)
            .map_err(|_| D::Error::custom("out of range for a 64-bit integer"))
    }
}

/// Whether a value is the default of its type, and so left out.
pub fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_in_every_base64_that_protojson_allows() {
        for text in ["\"+/8=\"", "\"+/8\"", "\"-_8=\"", "\"-_8\""] {
            let Base64(bytes) = serde_json::from_str(text).unwrap();
            assert_eq!(&bytes[..], &[0xfb, 0xff], "{text}");
        }
        assert!(serde_json::from_str::<Base64>("\"!\"").is_err());
        assert_eq!(
            serde_json::to_string(&Base64(Bytes::from_static(b"hi"))).unwrap(),
            "\"aGk=\""
        );
    }

    #[test]
    fn integers_are_read_as_numbers_or_strings() {
        #[derive(Deserialize)]
        struct Holder {
            #[serde(default, deserialize_with = "uint32")]
            value: u32,
        }
        let read = |text: &str| serde_json::from_str::<Holder>(text).map(|holder| holder.value);
        assert_eq!(read(r#"{"value":7}"#).unwrap(), 7);
        assert_eq!(read(r#"{"value":7.0}"#).unwrap(), 7);
        assert_eq!(read(r#"{"value":"7"}"#).unwrap(), 7);
        assert_eq!(read(r#"{"value":null}"#).unwrap(), 0);
        assert_eq!(read("{}").unwrap(), 0);
        assert!(read(r#"{"value":-1}"#).is_err());
        assert!(read(r#"{"value":4294967296}"#).is_err());
    }
}
