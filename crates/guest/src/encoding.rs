//! Content codings: which one to answer with, which one a request came in (RFC 9110, 12.5.3).

/// How bytes are coded on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// As they are.
    Identity,
    /// With gzip.
    Gzip,
}

/// Chooses the coding of an answer from `Accept-Encoding`; `None` if all that we have is refused.
///
/// Without the header, and where the caller leaves it open, bytes go out as they are.
pub fn choose(accept: Option<&str>) -> Option<Coding> {
    let Some(accept) = accept.filter(|accept| !accept.trim().is_empty()) else {
        return Some(Coding::Identity);
    };
    let mut gzip = None;
    let mut identity = None;
    let mut rest = None;
    for item in accept.split(',') {
        let mut parts = item.split(';');
        let name = parts.next().unwrap_or_default().trim().to_ascii_lowercase();
        let quality = parts
            .filter_map(|part| {
                part.trim()
                    .to_ascii_lowercase()
                    .strip_prefix("q=")?
                    .parse()
                    .ok()
            })
            .next_back()
            .filter(|quality: &f32| quality.is_finite())
            .unwrap_or(1.0);
        match name.as_str() {
            "gzip" | "x-gzip" => gzip = Some(quality),
            "identity" => identity = Some(quality),
            "*" => rest = Some(quality),
            _ => {}
        }
    }
    let identity_quality = identity
        .or(rest.filter(|quality| *quality <= 0.0))
        .unwrap_or(0.001);
    let gzip_quality = gzip
        .or(rest.filter(|_| identity_quality <= 0.0))
        .unwrap_or(0.0);
    if gzip_quality > 0.0 && gzip_quality >= identity_quality {
        Some(Coding::Gzip)
    } else if identity_quality > 0.0 {
        Some(Coding::Identity)
    } else {
        None
    }
}

/// The coding of a request's body from `Content-Encoding`; `None` if it is one that we don't know.
pub fn of_request(header: Option<&str>) -> Option<Coding> {
    match header
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
        .as_str()
    {
        "" | "identity" => Some(Coding::Identity),
        "gzip" | "x-gzip" => Some(Coding::Gzip),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_only_if_asked_for() {
        for (header, coding) in [
            (None, Some(Coding::Identity)),
            (Some(""), Some(Coding::Identity)),
            (Some("gzip"), Some(Coding::Gzip)),
            (Some("GZIP;q=0.5, identity;q=0.2"), Some(Coding::Gzip)),
            (Some("gzip;q=0.2, identity"), Some(Coding::Identity)),
            (Some("gzip, deflate, br"), Some(Coding::Gzip)),
            (Some("br"), Some(Coding::Identity)),
            (Some("*"), Some(Coding::Identity)),
            (Some("gzip;q=0"), Some(Coding::Identity)),
            (Some("identity;q=0, *"), Some(Coding::Gzip)),
            (Some("identity;q=0"), None),
            (Some("identity;q=0, gzip;q=0"), None),
            (Some("br, *;q=0"), None),
            (Some("gzip, *;q=0"), Some(Coding::Gzip)),
        ] {
            assert_eq!(choose(header), coding, "{header:?}");
        }
    }
}
