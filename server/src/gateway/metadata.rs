//! Headers of an HTTP request as metadata of a gRPC call, as grpc-gateway passes them on.

use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::listen::ConnectionInfo;

/// Headers with this prefix become metadata without it.
const METADATA_PREFIX: &str = "grpc-metadata-";
/// Well-known headers become metadata with this prefix.
const HEADER_PREFIX: &str = "grpcgateway-";
const TIMEOUT: &str = "grpc-timeout";
const FORWARDED_FOR: &str = "x-forwarded-for";
const FORWARDED_HOST: &str = "x-forwarded-host";

/// Headers that are passed on.
const WELL_KNOWN: [HeaderName; 24] = [
    header::ACCEPT,
    header::ACCEPT_CHARSET,
    header::ACCEPT_LANGUAGE,
    header::ACCEPT_RANGES,
    header::AUTHORIZATION,
    header::CACHE_CONTROL,
    header::CONTENT_TYPE,
    header::COOKIE,
    header::DATE,
    header::EXPECT,
    header::FROM,
    header::HOST,
    header::IF_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_NONE_MATCH,
    HeaderName::from_static("if-schedule-tag-match"),
    header::IF_UNMODIFIED_SINCE,
    header::MAX_FORWARDS,
    header::ORIGIN,
    header::PRAGMA,
    header::REFERER,
    header::USER_AGENT,
    header::VIA,
    header::WARNING,
];

/// What a call takes from the headers.
pub(super) struct Forwarded {
    pub(super) metadata: MetadataMap,
    /// At most 292 years, as everything that fits Go's durations.
    pub(super) timeout: Option<Duration>,
}

/// # Errors
/// When the time-out cannot be read.
pub(super) fn forwarded(
    headers: &HeaderMap,
    info: Option<&ConnectionInfo>,
) -> Result<Forwarded, Status> {
    let mut metadata = HeaderMap::new();
    for (name, value) in headers {
        // The token of etcd's clients; it is needed without a prefix too.
        if name == header::AUTHORIZATION {
            metadata.append(name, value.clone());
        }
        let passed_on = match name.as_str().strip_prefix(METADATA_PREFIX) {
            Some(rest) => rest.to_owned(),
            None if WELL_KNOWN.contains(name) => format!("{HEADER_PREFIX}{name}"),
            None => continue,
        };
        let is_text = value.as_bytes().iter().all(|byte| (0x20..=0x7e).contains(byte));
        if is_text && let Ok(passed_on) = HeaderName::try_from(passed_on) {
            metadata.append(passed_on, value.clone());
        }
    }
    if let Some(host) = headers.get(FORWARDED_HOST).or_else(|| headers.get(header::HOST)) {
        metadata.insert(FORWARDED_HOST, host.clone());
    }
    let senders = headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok());
    let mut senders: Vec<String> = senders.map(str::to_owned).collect();
    senders.extend(info.and_then(|info| info.remote).map(|remote| remote.ip().to_string()));
    if let Ok(senders) = HeaderValue::try_from(senders.join(", "))
        && !senders.is_empty()
    {
        metadata.insert(FORWARDED_FOR, senders);
    }
    let timeout = match headers.get(TIMEOUT).map(|value| String::from_utf8_lossy(value.as_bytes()))
    {
        Some(text) if !text.is_empty() => nanoseconds(&text)
            .ok_or_else(|| Status::invalid_argument(format!("invalid grpc-timeout: {text}")))?,
        _ => 0,
    };
    Ok(Forwarded { metadata: MetadataMap::from_headers(metadata), timeout: limit(timeout) })
}

/// Reads gRPC's form of a time-out, a number and the letter of its unit. The product wraps as in Go.
fn nanoseconds(text: &str) -> Option<i64> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: i64 = digits.parse().ok()?;
    let unit: i64 = match unit {
        "H" => 3_600_000_000_000,
        "M" => 60_000_000_000,
        "S" => 1_000_000_000,
        "m" => 1_000_000,
        "u" => 1_000,
        "n" => 1,
        _ => return None,
    };
    Some(number.wrapping_mul(unit))
}

/// No limit if there are none; time that is over before it begins if there are fewer.
fn limit(nanoseconds: i64) -> Option<Duration> {
    let left = u64::try_from(nanoseconds).unwrap_or(0);
    (nanoseconds != 0).then(|| Duration::from_nanos(left))
}

/// The method, which a form may override.
pub(super) fn http_method(parts: &Parts) -> Method {
    let is_form = parts
        .headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind == "application/x-www-form-urlencoded");
    let instead = parts.headers.get("x-http-method-override");
    match instead.and_then(|instead| instead.to_str().ok()) {
        Some(instead) if is_form && parts.method == Method::POST && !instead.is_empty() => {
            Method::try_from(instead.to_ascii_uppercase().as_str()).unwrap_or_default()
        }
        _ => parts.method.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn the_token_and_what_is_marked_as_metadata_are_passed_on() {
        let given = headers(&[
            ("authorization", "secret.7"),
            ("grpc-metadata-hasleader", "true"),
            ("accept", "*/*"),
            ("host", "here"),
            ("x-other", "no"),
            ("grpc-timeout", "250m"),
        ]);
        let forwarded = forwarded(&given, None).unwrap();
        let text = |name: &str| forwarded.metadata.get(name).and_then(|value| value.to_str().ok());
        assert_eq!(text("authorization"), Some("secret.7"));
        assert_eq!(text("grpcgateway-authorization"), Some("secret.7"));
        assert_eq!(text("hasleader"), Some("true"));
        assert_eq!(text("grpcgateway-accept"), Some("*/*"));
        assert_eq!(text("x-forwarded-host"), Some("here"));
        assert_eq!(text("x-other"), None);
        assert_eq!(forwarded.timeout, Some(Duration::from_millis(250)));
    }

    #[test]
    fn time_outs_have_units() {
        assert_eq!(nanoseconds("1H"), Some(3_600_000_000_000));
        assert_eq!(nanoseconds("5S"), Some(5_000_000_000));
        assert_eq!(nanoseconds("+5u"), Some(5000));
        assert_eq!(nanoseconds("-1m"), Some(-1_000_000));
        for text in ["5", "S", "xS", "5d", "\u{e4}", "9223372036854775808n"] {
            assert_eq!(nanoseconds(text), None, "{text}");
        }
        assert_eq!(limit(0), None);
        assert_eq!(limit(-1), Some(Duration::ZERO));
    }

    /// A deadline that no instant can hold once ended the process, asked for by anybody.
    #[test]
    fn every_time_out_is_one_that_the_clock_can_count_to() {
        let now = tokio::time::Instant::now();
        for number in [i64::MIN, i64::MIN + 1, -1, 0, 1, 5_124_095_576_030_431, i64::MAX] {
            for unit in ["H", "M", "S", "m", "u", "n"] {
                let text = format!("{number}{unit}");
                let left = limit(nanoseconds(&text).unwrap()).unwrap_or_default();
                assert!(now.checked_add(left).is_some(), "{text}");
            }
        }
    }
}
