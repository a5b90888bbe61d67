//! The public API: which request goes where, and its OpenAPI document, both from the same lines.

mod later;
mod life;
mod mesh;
mod observe;
mod sandbox;
mod state;
mod tag;
mod template;
mod v1;

use crate::{error::plain, plane::Plane};
use api::error::ProblemBody;
use axum::{Router, routing::get};
use http::StatusCode;
use std::sync::Arc;
use utoipa::{
    Modify, OpenApi,
    openapi::security::{ApiKey, ApiKeyValue, SecurityScheme},
};
use utoipa_axum::{router::OpenApiRouter, routes};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Atoll",
        description = "E2B's REST API, and under `/v1` what E2B has no words for.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    components(schemas(ProblemBody)),
    modifiers(&Security),
    security(("key" = [])),
)]
struct Document;

struct Security;

impl Modify for Security {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let key = ApiKey::Header(ApiKeyValue::new("X-API-KEY"));
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("key", SecurityScheme::ApiKey(key));
    }
}

fn assembled() -> OpenApiRouter<Arc<Plane>> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(v1::health))
        .routes(routes!(sandbox::create_v1, sandbox::list_v1))
        .routes(routes!(sandbox::create_v2, sandbox::list_v2))
        .routes(routes!(sandbox::get_one, sandbox::delete_one))
        .routes(routes!(life::set_timeout))
        .routes(routes!(life::connect_v1))
        .routes(routes!(life::connect_v2))
        .routes(routes!(life::refresh))
        .routes(routes!(life::set_network))
        .routes(routes!(observe::metrics))
        .routes(routes!(observe::metrics_of_many))
        .routes(routes!(observe::logs_v1))
        .routes(routes!(observe::logs_v2))
        .routes(routes!(state::pause))
        .routes(routes!(state::resume))
        .routes(routes!(state::fork))
        .routes(routes!(state::snapshot))
        .routes(routes!(state::list_snapshots))
        .routes(routes!(later::new_template))
        .routes(routes!(later::template_file))
        .routes(routes!(later::start_build))
        .routes(routes!(template::teams))
        .routes(routes!(template::list))
        .routes(routes!(
            template::get_one,
            template::delete_one,
            template::update_v1
        ))
        .routes(routes!(template::update_v2))
        .routes(routes!(template::alias))
        .routes(routes!(template::build_status))
        .routes(routes!(tag::assign, tag::unassign))
        .routes(routes!(tag::list))
        .routes(routes!(v1::nodes))
        .routes(routes!(v1::collect_garbage))
        .routes(routes!(v1::keys, v1::create_key))
        .routes(routes!(v1::delete_key))
        .routes(routes!(v1::sandboxes))
        .routes(routes!(v1::sandbox))
        .routes(routes!(v1::templates, v1::build_template))
        .routes(routes!(mesh::tokens, mesh::create_token))
        .routes(routes!(mesh::remove_token))
        .routes(routes!(mesh::nodes))
        .routes(routes!(mesh::revoke))
        .routes(routes!(mesh::policy, mesh::set_policy))
        .routes(routes!(mesh::join))
        .routes(routes!(mesh::update))
        .routes(routes!(mesh::watch))
        .routes(routes!(mesh::certify))
}

/// The OpenAPI document of the public API, as `docs/openapi.json` holds it and
/// `/v1/openapi.json` serves it.
pub fn openapi() -> String {
    let (_, document) = assembled().split_for_parts();
    let mut text = document.to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

/// The public API.
pub(crate) fn router(plane: Arc<Plane>) -> Router {
    let (router, document) = assembled().split_for_parts();
    let document: Arc<str> = document.to_json().unwrap_or_default().into();
    let serve_document = move || {
        let document = document.clone();
        async move {
            (
                [(http::header::CONTENT_TYPE, "application/json")],
                document.to_string(),
            )
        }
    };
    router
        .route("/v1/openapi.json", get(serve_document))
        .fallback(|| async { plain(StatusCode::NOT_FOUND, "There is no such path in this API") })
        .method_not_allowed_fallback(|| async {
            plain(
                StatusCode::METHOD_NOT_ALLOWED,
                "This path does not take this method",
            )
        })
        .with_state(plane)
}
