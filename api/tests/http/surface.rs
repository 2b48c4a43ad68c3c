//! Everything that is not a generation: models, health, version, the cluster, and who may ask.

use std::sync::Arc;

use axum::body::Body;
use http::{Method, Request};
use insta::assert_snapshot;
use plexus_api::service::HealthStatus;
use plexus_api::{ApiConfig, router};
use tower::ServiceExt;

use crate::scripted::{Answered, Scripted, ask, config, get, post};

fn with(mut request: Request<Body>, headers: &[(&'static str, &str)]) -> Request<Body> {
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    request
}

#[tokio::test]
async fn models_are_listed_in_the_shape_of_the_vendor_who_is_asked() {
    // CX-20, CX-22, CX-28
    let cluster = Scripted::new(vec![]);
    let anthropic = [("anthropic-version", "2023-06-01")];
    let mut shown = String::new();
    for request in [
        get("/v1/models"),
        with(get("/v1/models?limit=1000"), &anthropic),
        get("/v1/models/Qwen/Qwen3-0.6B:Q8_0"),
        get("/v1/models/Qwen%2FQwen3-0.6B%3AQ8_0"),
        with(get("/v1/models/pip"), &anthropic),
        get("/v1/models/none/such"),
        with(get("/v1/models/none"), &anthropic),
    ] {
        let path = request.uri().to_string();
        shown += &format!("=== {path}\n{}\n\n", ask(&cluster, request).await.shown());
    }
    assert_snapshot!(shown);
}

#[tokio::test]
async fn a_client_is_told_where_a_model_is_served_and_what_it_can_do() {
    // CX-28, CX-44
    let cluster = Scripted::new(vec![]);
    let mut shown = String::new();
    for path in [
        "/v1/models/Qwen/Qwen3-0.6B:Q8_0/endpoint",
        "/models/Qwen%2FQwen3-0.6B%3AQ8_0/endpoint",
        "/v1/models/fast/endpoint",
        "/v1/models/shelf/endpoint",
        "/v1/models/pip/endpoint",
        "/v1/models/none/such/endpoint",
        "/v1/models/fast/capabilities",
        "/models/shelf/capabilities",
        "/v1/models/slow/capabilities",
        "/v1/models/none/capabilities",
    ] {
        shown += &format!("=== {path}\n{}\n\n", ask(&cluster, get(path)).await.shown());
    }
    let anthropic = with(get("/v1/models/none/endpoint"), &[("anthropic-version", "2023-06-01")]);
    shown += &format!("=== none, asked in the other dialect\n{}\n", ask(&cluster, anthropic).await.shown());
    assert_snapshot!(shown);
}

#[tokio::test]
async fn a_model_that_is_called_as_a_path_ends_is_found_first() {
    let mut cluster = Scripted::new(vec![]);
    Arc::get_mut(&mut cluster).unwrap().names_of_paths = true;
    for (path, field, expected) in [
        ("/v1/models/pip/endpoint", "id", "pip/endpoint"),
        ("/v1/models/pip/endpoint/endpoint", "model_id", "pip/endpoint"),
        ("/v1/models/pip/capabilities", "model_id", "pip"),
        ("/v1/models/load", "id", "load"),
        ("/v1/models/load/endpoint", "model_id", "load"),
    ] {
        let answered = ask(&cluster, get(path)).await;
        assert_eq!((answered.status.as_u16(), answered.json()[field].as_str()), (200, Some(expected)), "{path}: {}", answered.body);
    }
}

#[tokio::test]
async fn a_node_says_what_its_machine_is() {
    // CX-45
    let cluster = Scripted::new(vec![]);
    assert_snapshot!(ask(&cluster, get("/discovery")).await.shown());
    let nothing = ApiConfig { host: plexus_api::LookAtHost::default(), ..config() };
    let answered = Answered::of(router(cluster, nothing).oneshot(get("/discovery")).await.unwrap()).await.json();
    for field in ["hostname", "kernel", "cuda_version", "driver_version", "cuda_unavailable_reason", "memory_total_mb"] {
        assert!(answered.get(field).is_some_and(serde_json::Value::is_null), "what is not known is null: {field} in {answered}");
    }
}

#[tokio::test]
async fn health_is_200_only_while_something_can_be_served() {
    // CX-49
    for (health, status) in
        [(HealthStatus::Ok, 200), (HealthStatus::Loading, 503), (HealthStatus::Draining, 503), (HealthStatus::Unavailable, 503)]
    {
        let mut cluster = Scripted::new(vec![]);
        Arc::get_mut(&mut cluster).unwrap().health = health;
        let answered = ask(&cluster, get("/health")).await;
        assert_eq!((answered.status.as_u16(), answered.headers.contains_key("retry-after")), (status, status == 503));
        if health == HealthStatus::Loading {
            assert_snapshot!(answered.shown());
        }
    }
}

#[tokio::test]
async fn version_cluster_and_actors_are_shown() {
    // CX-12
    let cluster = Scripted::new(vec![]);
    let mut shown = String::new();
    for path in ["/", "/version", "/v1/cluster", "/v1/cluster/actors"] {
        shown += &format!("=== {path}\n{}\n\n", ask(&cluster, get(path)).await.shown());
    }
    assert_snapshot!(shown);
}

#[tokio::test]
async fn a_client_may_look_whether_anybody_is_there() {
    let request = Request::head("/").body(Body::empty()).unwrap();
    let answered = ask(&Scripted::new(vec![]), request).await;
    assert_eq!((answered.status.as_u16(), answered.body.as_str()), (200, ""));
}

#[tokio::test]
async fn actors_are_killed_only_where_test_hooks_are_switched_on() {
    let path = "/v1/cluster/actors/kill";
    let off = ask(&Scripted::new(vec![]), post(path, r#"{"path":"node/router"}"#)).await;
    assert_eq!((off.status.as_u16(), off.json()["error"]["message"].as_str()), (404, Some("test hooks are switched off")));
    let mut cluster = Scripted::new(vec![]);
    Arc::get_mut(&mut cluster).unwrap().test_hooks = true;
    for (json, status) in [(r#"{"path":"node/router"}"#, 200), (r#"{"path":"node/nobody"}"#, 404), ("{}", 400)] {
        assert_eq!(ask(&cluster, post(path, json)).await.status.as_u16(), status, "{json}");
    }
}

#[tokio::test]
async fn a_host_that_is_not_this_node_is_refused_on_every_path_and_method() {
    let cluster = Scripted::new(vec![]);
    for (method, path) in [(Method::GET, "/"), (Method::GET, "/health"), (Method::POST, "/v1/messages"), (Method::DELETE, "/nothing")] {
        let request = Request::builder().method(method).uri(path).header("host", "rebound.example:31313").body(Body::empty()).unwrap();
        assert_eq!(ask(&cluster, request).await.status.as_u16(), 403, "{path}");
    }
    let named = ApiConfig { host_names: Some(vec!["rebound.example".to_owned()]), ..config() };
    let request = with(get("/health"), &[("host", "rebound.example:31313")]);
    assert_eq!(router(cluster, named).oneshot(request).await.unwrap().status().as_u16(), 200);
}

#[tokio::test]
async fn pages_of_other_origins_may_not_ask_unless_they_are_invited() {
    let preflight = |origin: &str| {
        let request = Request::builder().method(Method::OPTIONS).uri("/v1/chat/completions").body(Body::empty()).unwrap();
        let headers = [
            ("host", "localhost"),
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization,content-type"),
        ];
        with(request, &headers)
    };
    let behind_the_back = |origin: &str| {
        with(post("/v1/chat/completions", "{}"), &[("origin", origin), ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "cors")])
    };
    let (good, bad) = ("https://chat.example", "https://evil.example");
    let app = router(Scripted::new(vec![]), ApiConfig { cors_origins: vec![good.to_owned()], ..config() });
    let answer = async |request| Answered::of(app.clone().oneshot(request).await.unwrap()).await;

    assert_snapshot!(answer(preflight(good)).await.shown());
    let invited = answer(behind_the_back(good)).await;
    assert_eq!((invited.status.as_u16(), &invited.headers["access-control-allow-origin"]), (400, &good.parse().unwrap()));
    for request in [preflight(bad), behind_the_back(bad)] {
        let refused = answer(request).await;
        assert_eq!((refused.status.as_u16(), refused.headers.contains_key("access-control-allow-origin")), (403, false));
    }
    // A link that somebody follows, and a program that names an origin of its own.
    assert_eq!(answer(with(get("/"), &[("sec-fetch-site", "cross-site")])).await.status.as_u16(), 200);
    assert_eq!(answer(with(get("/v1/models"), &[("origin", "app://desktop")])).await.status.as_u16(), 200);
}
