//! Who may ask: the `Host` header against DNS rebinding, the `Origin` header against web pages that were not invited.
//!
//! A browser sends a page's JSON to another site only after a preflight, which is answered for the configured origins alone; bodies that
//! are not declared as JSON are refused in [`crate::body`].

use std::net::{IpAddr, Ipv6Addr};

use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, HOST, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use crate::Shared;
use crate::config::ApiConfig;
use crate::dialect::Exchange;
use crate::failure::Failure;

/// What a page may read of an answer's headers.
const EXPOSED: HeaderValue = HeaderValue::from_static("x-request-id, request-id, retry-after, x-plexus-node, x-plexus-route");
/// How long a browser may remember a preflight: long enough for a conversation, short enough for a change of configuration.
const PREFLIGHT_AGE_S: HeaderValue = HeaderValue::from_static("600");

/// Refuses requests that name another host or come from a page that is not invited; answers preflights.
pub(crate) async fn check(State(api): State<Shared>, Extension(exchange): Extension<Exchange>, request: Request, next: Next) -> Response {
    let authority =
        request.headers().get(HOST).map(HeaderValue::as_bytes).or_else(|| request.uri().authority().map(|it| it.as_str().as_bytes()));
    if let Some(authority) = authority
        && !host_allowed(&api.config, authority)
    {
        let message = "the Host header names a host that this server does not know; call it by its IP address or as localhost, or add the \
                       name to its configured host names";
        return exchange.failure(&Failure::Forbidden(message.to_owned()));
    }
    let origin = request.headers().get(ORIGIN).filter(|origin| origin_allowed(&api.config, origin)).cloned();
    if origin.is_none() && is_foreign_page(request.method(), request.headers()) {
        let message = "web pages of this origin may not call this server; add the origin to its configured CORS origins";
        return exchange.failure(&Failure::Forbidden(message.to_owned()));
    }
    let mut response = match &origin {
        Some(_) if is_preflight(request.method(), request.headers()) => preflight(request.headers()),
        _ => next.run(request).await,
    };
    if let Some(origin) = origin {
        let headers = response.headers_mut();
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        headers.append(VARY, HeaderValue::from_static("origin"));
    }
    response
}

/// IP addresses cannot be rebound; `localhost` and the names under it are this machine's by definition (RFC 6761).
fn host_allowed(config: &ApiConfig, authority: &[u8]) -> bool {
    let Some(names) = &config.host_names else { return true };
    let Ok(authority) = str::from_utf8(authority) else { return false };
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split_once(']').is_some_and(|(address, _)| address.parse::<Ipv6Addr>().is_ok());
    }
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    host.parse::<IpAddr>().is_ok()
        || host == "localhost"
        || host.ends_with(".localhost")
        || names.iter().any(|name| name.eq_ignore_ascii_case(&host))
}

fn origin_allowed(config: &ApiConfig, origin: &HeaderValue) -> bool {
    config.cors_origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes())
}

/// True for what a page of another site does behind its reader's back. Following a link here is not that: the page cannot read the answer.
fn is_foreign_page(method: &Method, headers: &HeaderMap) -> bool {
    let cross_site = headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site");
    let preflight = is_preflight(method, headers);
    preflight || (cross_site && !matches!(*method, Method::GET | Method::HEAD))
}

fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    method == Method::OPTIONS && headers.contains_key(ORIGIN) && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

fn preflight(request: &HeaderMap) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, HEAD, OPTIONS"));
    // The vendors' SDKs send headers of their own, more with each release: an invited origin may send any.
    if let Some(wanted) = request.get(ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
    }
    headers.insert(ACCESS_CONTROL_MAX_AGE, PREFLIGHT_AGE_S);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::VersionInfo;

    fn config(host_names: Option<&[&str]>) -> ApiConfig {
        let text = String::new;
        let version =
            VersionInfo { version: text(), git_sha: text(), build_time: text(), rustc: text(), profile: text(), features: Vec::new() };
        let host_names = host_names.map(|names| names.iter().map(ToString::to_string).collect());
        ApiConfig { host_names, ..ApiConfig::new(version) }
    }

    #[test]
    fn only_addresses_localhost_and_configured_names_are_hosts_of_this_node() {
        let config = config(Some(&["plexus.lan"]));
        for good in [
            "127.0.0.1",
            "127.0.0.1:31313",
            "10.1.2.3:80",
            "[::1]",
            "[::1]:31313",
            "localhost",
            "LOCALHOST:31313",
            "localhost.",
            "app.localhost:1",
            "Plexus.LAN:31313",
        ] {
            assert!(host_allowed(&config, good.as_bytes()), "{good}");
        }
        for bad in
            ["evil.example", "evil.example:31313", "127.0.0.1.evil.example", "localhost.evil.example", "[evil]", "[::1", "", "xlocalhost"]
        {
            assert!(!host_allowed(&config, bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn a_node_behind_a_proxy_may_take_any_host() {
        assert!(host_allowed(&config(None), b"anything.example"));
    }
}
