//! Reading a request's body: how large, how long, and what is wrong with it.

use std::error::Error;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::LengthLimitError;
use serde::de::DeserializeOwned;

use crate::config::ApiConfig;
use crate::failure::Failure;
use crate::wire::Object;

mod wrong;

/// Longest time for a body to arrive. 16 MiB take it at 2 Mbit/s; whoever is slower holds a connection to no end.
const BODY_TIME_MAX: Duration = Duration::from_secs(60);

/// The whole body of a request that says that it is JSON.
pub(crate) async fn read(config: &ApiConfig, request: Request) -> Result<Bytes, Failure> {
    let (parts, body) = request.into_parts();
    check_content_type(&parts.headers)?;
    let too_large = || Failure::BodyTooLarge { limit: config.body_max };
    // Refused before it is read, if the client says how much it will be.
    let announced =
        parts.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()).and_then(|length| length.parse::<u64>().ok());
    if announced.is_some_and(|length| length > config.body_max.0) {
        return Err(too_large());
    }
    match tokio::time::timeout(BODY_TIME_MAX, collect(body, config.body_max.0)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_length_limit(&error) => Err(too_large()),
        Ok(Err(_)) => Err(Failure::BodyMissing("the connection broke")),
        Err(_) => Err(Failure::BodyMissing("it took longer than a minute")),
    }
}

async fn collect(body: Body, limit: u64) -> Result<Bytes, axum::Error> {
    axum::body::to_bytes(body, usize::try_from(limit).unwrap_or(usize::MAX)).await
}

fn is_length_limit(error: &axum::Error) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<LengthLimitError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

fn check_content_type(headers: &HeaderMap) -> Result<(), Failure> {
    let given = headers.get(header::CONTENT_TYPE).map_or("absent".into(), |value| String::from_utf8_lossy(value.as_bytes()));
    let essence = given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let json = essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"));
    if json { Ok(()) } else { Err(Failure::ContentType { given: given.chars().take(100).collect() }) }
}

/// Reads a JSON object into `T`. A value of the wrong type is reported with the field's path, itself and what it must be; unknown fields are
/// ignored.
pub(crate) fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, Failure> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let Object(value) = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let reason = error.inner();
        match reason.classify() {
            serde_json::error::Category::Data => wrong::refusal(json, error.path(), reason).into(),
            _ => wrong::unreadable(reason),
        }
    })?;
    deserializer.end().map_err(|error| Failure::Json(error.to_string()))?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use plexus_types::RequestError;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Outer {
        #[serde(rename = "inner")]
        _inner: Vec<Object<Inner>>,
    }
    #[derive(Debug, Deserialize)]
    struct Inner {
        #[serde(rename = "n")]
        _n: Option<u32>,
        #[serde(rename = "flag")]
        _flag: Option<bool>,
    }

    #[test]
    fn a_wrong_type_is_reported_with_its_path_its_value_and_what_is_wanted() {
        for (json, path, expected) in [
            (
                r#"{"inner":[{"n":1},{"n":"2, expected 3"}]}"#,
                "inner[1].n",
                "inner[1].n is \"2, expected 3\"; it must be an integer, 0 or more",
            ),
            (r#"{"inner":[{"n":-1}]}"#, "inner[0].n", "inner[0].n is -1; it must be an integer, 0 or more"),
            (r#"{"inner":[{"n":1.5}]}"#, "inner[0].n", "inner[0].n is 1.5; it must be an integer, 0 or more"),
            (r#"{"inner":[{"flag":"yes"}]}"#, "inner[0].flag", "inner[0].flag is \"yes\"; it must be true or false"),
            (r#"{"inner":[[1,true]]}"#, "inner[0]", "inner[0] is [1,true]; it must be an object"),
            (r#"{"inner":{}}"#, "inner", "inner is {}; it must be an array"),
            (r#"{"inner":[{"n":1,"n":2}]}"#, "inner[0]", "inner[0] has the field `n` twice; send it once"),
        ] {
            let failure = parse::<Outer>(json.as_bytes()).unwrap_err();
            let Failure::Request(RequestError::Invalid { message, param }) = failure else { panic!("{failure:?}") };
            assert_eq!((message.as_str(), param.as_deref()), (expected, Some(path)));
        }
    }

    #[test]
    fn a_body_that_is_no_object_is_told_what_it_must_be() {
        for (json, expected) in [
            ("[]", "the body is []; it must be an object"),
            ("[1,[2]]", "the body is [1,[2]]; it must be an object"),
            ("\"x\"", "the body is \"x\"; it must be an object"),
            ("null", "the body is null; it must be an object"),
        ] {
            let failure = parse::<Outer>(json.as_bytes()).unwrap_err();
            assert_eq!(failure.to_string(), expected);
        }
    }

    #[test]
    fn json_that_is_too_deep_is_not_called_broken() {
        let deep = format!(r#"{{"inner":{}"#, "[".repeat(200));
        let refusal = parse::<serde_json::Value>(deep.as_bytes()).unwrap_err().to_string();
        assert!(refusal.starts_with("the body is nested too deep at line 1 column "), "{refusal}");
        let deep = format!(r#"{{"inner":{}{}}}"#, "[".repeat(126), "]".repeat(126));
        assert!(parse::<serde_json::Value>(deep.as_bytes()).is_ok());
    }

    #[test]
    fn what_is_not_json_is_told_from_what_is_wrong() {
        for broken in ["", "{", "{\"inner\":[]} x", "nope", "{\"inner\":[}"] {
            assert!(matches!(parse::<Outer>(broken.as_bytes()), Err(Failure::Json(_))), "{broken}");
        }
        assert!(matches!(parse::<Outer>(b"[1]"), Err(Failure::Request(RequestError::Invalid { .. }))));
    }

    #[test]
    fn only_json_is_read() {
        for (value, good) in [
            (Some("application/json"), true),
            (Some("Application/JSON; charset=utf-8"), true),
            (Some("application/vnd.api+json"), true),
            (Some("text/plain"), false),
            (Some("application/x-www-form-urlencoded"), false),
            (None, false),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert(header::CONTENT_TYPE, value.parse().unwrap());
            }
            assert_eq!(check_content_type(&headers).is_ok(), good, "{value:?}");
        }
    }
}
