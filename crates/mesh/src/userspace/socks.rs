//! What a client of SOCKS5 says (RFC 1928, RFC 1929), and what it is answered. No I/O.
//!
//! Each function looks at what came so far: `Ok(None)` if more has to come, else what it says and how many bytes it is. Nothing is longer than
//! [`LONGEST`], so whoever has that many bytes need not wait for more.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::credentials::Credentials;
use super::header::Refusal;

/// The version that everything but the password begins with.
pub const VERSION: u8 = 5;
/// The longest message of a client: user and password of 255 bytes each.
pub const LONGEST: usize = 513;
/// The version of the exchange of user and password.
const PASSWORD_VERSION: u8 = 1;

/// It is no SOCKS5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no SOCKS5")]
pub struct Malformed;

/// What was read, and how many bytes it took.
pub type Read<T> = Result<Option<(T, usize)>, Malformed>;

/// How a client can show who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Methods {
    /// Not at all.
    pub none: bool,
    /// With user and password.
    pub password: bool,
}

/// Reads the first message.
///
/// # Errors
/// It is another version's.
pub fn methods(bytes: &[u8]) -> Read<Methods> {
    match bytes {
        [] | [VERSION] => Ok(None),
        [VERSION, count, rest @ ..] => {
            let count = usize::from(*count);
            Ok(rest.get(..count).map(|all| {
                let methods = Methods {
                    none: all.contains(&0),
                    password: all.contains(&2),
                };
                (methods, 2 + count)
            }))
        }
        _ => Err(Malformed),
    }
}

/// The answer to it.
pub const fn chosen(password: bool) -> [u8; 2] {
    [VERSION, if password { 2 } else { 0 }]
}

/// The answer to it if none will do.
pub const NO_METHOD: [u8; 2] = [VERSION, 0xff];

/// Reads user and password.
///
/// # Errors
/// It is something else.
pub fn password(bytes: &[u8]) -> Read<Credentials> {
    if bytes
        .first()
        .is_some_and(|version| *version != PASSWORD_VERSION)
    {
        return Err(Malformed);
    }
    let read = || {
        let user_length = usize::from(*bytes.get(1)?);
        let user = bytes.get(2..2 + user_length)?;
        let length = usize::from(*bytes.get(2 + user_length)?);
        let from = 3 + user_length;
        let password = bytes.get(from..from + length)?;
        Some((Credentials::new(user, password), from + length))
    };
    Ok(read())
}

/// The answer to it.
pub const fn welcome(right: bool) -> [u8; 2] {
    [PASSWORD_VERSION, if right { 0 } else { 1 }]
}

/// What a client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A connection to this name or address and port.
    Connect(String, u16),
    /// To send datagrams; from this port, if it is not 0 (section 7).
    Associate(u16),
    /// Something that there is not: to be called.
    Other,
    /// A kind of address that is not known.
    Address,
}

/// Reads a request.
///
/// # Errors
/// It is something else, or the name is none.
pub fn request(bytes: &[u8]) -> Read<Request> {
    if bytes.first().is_some_and(|version| *version != VERSION)
        || bytes.get(2).is_some_and(|reserved| *reserved != 0)
    {
        return Err(Malformed);
    }
    let Some(kind) = bytes.get(3) else {
        return Ok(None);
    };
    let (from, length) = match kind {
        1 => (4, 4),
        4 => (4, 16),
        3 => match bytes.get(4) {
            Some(length) => (5, usize::from(*length)),
            None => return Ok(None),
        },
        _ => return Ok(Some((Request::Address, bytes.len()))),
    };
    let end = from + length + 2;
    let Some(host) = bytes.get(from..from + length) else {
        return Ok(None);
    };
    let Some(&[high, low]) = bytes.get(from + length..end) else {
        return Ok(None);
    };
    match bytes[1] {
        1 => {}
        // The address is often none, and the one that the client has is known.
        3 => {
            return Ok(Some((
                Request::Associate(u16::from_be_bytes([high, low])),
                end,
            )));
        }
        _ => return Ok(Some((Request::Other, end))),
    }
    let host = match kind {
        1 => <[u8; 4]>::try_from(host).map(|bytes| Ipv4Addr::from(bytes).to_string()),
        4 => <[u8; 16]>::try_from(host).map(|bytes| Ipv6Addr::from(bytes).to_string()),
        _ => {
            return match name(host) {
                Some(name) => Ok(Some((
                    Request::Connect(name, u16::from_be_bytes([high, low])),
                    end,
                ))),
                None => Err(Malformed),
            };
        }
    };
    let host = host.map_err(|_| Malformed)?;
    Ok(Some((
        Request::Connect(host, u16::from_be_bytes([high, low])),
        end,
    )))
}

/// Takes a datagram of a client apart: for whom it is, and what it carries. `None` if it is none, or a piece of one.
pub fn datagram(bytes: &[u8]) -> Option<(String, u16, &[u8])> {
    let rest = bytes.strip_prefix(&[0, 0, 0])?;
    let (kind, rest) = rest.split_first()?;
    let (host, rest) = match kind {
        1 => {
            let (address, rest) = rest.split_first_chunk::<4>()?;
            (Ipv4Addr::from(*address).to_string(), rest)
        }
        4 => {
            let (address, rest) = rest.split_first_chunk::<16>()?;
            (Ipv6Addr::from(*address).to_string(), rest)
        }
        3 => {
            let (length, rest) = rest.split_first()?;
            let (host, rest) = rest.split_at_checked(usize::from(*length))?;
            (name(host)?, rest)
        }
        _ => return None,
    };
    let (port, contents) = rest.split_first_chunk::<2>()?;
    Some((host, u16::from_be_bytes(*port), contents))
}

fn address(bytes: &mut Vec<u8>, at: SocketAddr) {
    match at.ip() {
        IpAddr::V4(ip) => {
            bytes.push(1);
            bytes.extend(ip.octets());
        }
        IpAddr::V6(ip) => {
            bytes.push(4);
            bytes.extend(ip.octets());
        }
    }
    bytes.extend(at.port().to_be_bytes());
}

/// What stands before a datagram that a client gets from there.
pub fn datagram_head(from: SocketAddr) -> Vec<u8> {
    let mut bytes = vec![0; 3];
    address(&mut bytes, from);
    bytes
}

/// The answer to who may send datagrams: where to.
pub fn associated(at: SocketAddr) -> Vec<u8> {
    let mut bytes = vec![VERSION, 0, 0];
    address(&mut bytes, at);
    bytes
}

/// A name or an address as people write it, if it may be one.
pub(super) fn name(bytes: &[u8]) -> Option<String> {
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(byte);
    (!bytes.is_empty() && bytes.len() <= 255 && bytes.iter().all(fits))
        .then(|| String::from_utf8_lossy(bytes).into_owned())
}

/// The answer to a request. It tells no address that the flow begins at, since none means anything to the client.
pub fn answer(outcome: Result<(), Reply>) -> [u8; 10] {
    let code = match outcome {
        Ok(()) => 0,
        Err(Reply::Refused(Refusal::Denied | Refusal::Undeclared)) => 2,
        Err(Reply::Refused(Refusal::Unknown | Refusal::Unreachable)) => 4,
        Err(Reply::Refused(Refusal::Closed)) => 5,
        Err(Reply::Refused(Refusal::Silent)) => 6,
        Err(Reply::Refused(Refusal::Busy | Refusal::Confused | Refusal::NoDatagrams)) => 1,
        Err(Reply::Command) => 7,
        Err(Reply::Address) => 8,
    };
    [VERSION, code, 0, 1, 0, 0, 0, 0, 0, 0]
}

/// Why a request is not granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// The mesh does not do it.
    Refused(Refusal),
    /// The command is not known here.
    Command,
    /// The kind of address is not known.
    Address,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_are_read_as_clients_write_them() {
        let read = methods(&[5, 2, 0, 2, 9]).unwrap().unwrap();
        let both = Methods {
            none: true,
            password: true,
        };
        assert_eq!(read, (both, 4));
        let (credentials, length) = password(b"\x01\x04user\x04wordmore").unwrap().unwrap();
        assert!(credentials.matches(&Credentials::new(b"user", b"word")));
        assert_eq!(length, 11);
        let connect = |bytes: &[u8]| request(bytes).unwrap().unwrap();
        assert_eq!(
            connect(b"\x05\x01\x00\x03\x02db\x15\x38"),
            (Request::Connect("db".to_owned(), 5432), 9)
        );
        assert_eq!(
            connect(b"\x05\x01\x00\x01\x64\x40\x00\x07\x00\x50!"),
            (Request::Connect("100.64.0.7".to_owned(), 80), 10)
        );
        let mut v6 = b"\x05\x01\x00\x04".to_vec();
        v6.extend("fd00::1".parse::<Ipv6Addr>().unwrap().octets());
        v6.extend([0, 80]);
        assert_eq!(
            connect(&v6),
            (Request::Connect("fd00::1".to_owned(), 80), 22)
        );
        assert_eq!(
            connect(b"\x05\x02\x00\x01\0\0\0\0\0\0"),
            (Request::Other, 10)
        );
        assert_eq!(
            connect(b"\x05\x03\x00\x01\0\0\0\0\x03\xe8"),
            (Request::Associate(1000), 10)
        );
        for from in ["192.0.2.1:53", "[2001:db8::1]:53"] {
            let from: SocketAddr = from.parse().unwrap();
            let bytes = [&datagram_head(from)[..], b"?"].concat();
            let expected = (from.ip().to_string(), 53, &b"?"[..]);
            assert_eq!(datagram(&bytes), Some(expected));
            assert_eq!(associated(from)[3..], datagram_head(from)[3..]);
            // A piece, and what is cut.
            assert_eq!(datagram(&[&[0, 0, 1], &bytes[3..]].concat()), None);
            assert_eq!(datagram(&bytes[..bytes.len() - 2]), None);
        }
        let named = datagram(b"\0\0\0\x03\x02db\x00\x35?");
        assert_eq!(named, Some(("db".to_owned(), 53, &b"?"[..])));
        assert_eq!(datagram(b"\0\0\0\x03\x02\n!\x00\x35?"), None);
        assert_eq!(connect(b"\x05\x01\x00\x02").0, Request::Address);
    }

    #[test]
    fn what_is_no_socks5_is_refused() {
        assert_eq!(methods(&[4, 1]), Err(Malformed));
        assert!(password(&[5]).is_err());
        for bytes in [
            &b"\x04"[..],
            b"\x05\x01\x01",
            b"\x05\x01\x00\x03\x00\x00\x50",
            b"\x05\x01\x00\x03\x01\n\x00\x50",
            b"\x05\x01\x00\x03\x02\xc3\xa9\x00\x50",
        ] {
            assert_eq!(request(bytes), Err(Malformed), "{bytes:?}");
        }
    }

    /// More bytes change nothing about what the first of them say, and enough of them say something.
    fn check<T: std::fmt::Debug>(
        parse: impl Fn(&[u8]) -> Read<T>,
        bytes: &[u8],
    ) -> Result<(), TestCaseError> {
        if let Ok(None) = parse(bytes) {
            prop_assert!(bytes.len() < LONGEST);
        }
        if let Ok(Some((_, length))) = parse(bytes) {
            prop_assert!(length <= bytes.len() && length <= LONGEST.max(bytes.len()));
            for cut in 0..length {
                let cut = parse(&bytes[..cut]);
                let less = matches!(cut, Ok(None));
                let address = format!("{cut:?}").contains("Address");
                prop_assert!(less || address, "part of a message is no message");
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(
            first in prop_oneof![Just(5u8), Just(1), any::<u8>()],
            rest in proptest::collection::vec(prop_oneof![0u8..6, any::<u8>()], 0..600),
        ) {
            let bytes = [&[first], &rest[..]].concat();
            check(methods, &bytes)?;
            check(password, &bytes)?;
            check(request, &bytes)?;
        }
    }
}
