//! The mesh: what administrators ask (by key), and what nodes ask (by token and signature).

use crate::{
    caller::Admin,
    error::{Answer, not_found},
    extract::{Json, Segments},
    mesh::now_ms,
    plane::Plane,
};
use api::{
    Secret,
    error::ProblemBody,
    rest::mesh::{CreatedMeshToken, MeshNode, MeshPolicy, MeshToken, NewMeshToken},
};
use axum::{
    Json as Body,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{StatusCode, header};
use mesh::coordination::{
    Book, JoinAnswer, JoinRequest, MemberStatus, NewToken, NodeRecord, Signed, TokenStatus,
    WatchRequest,
};
use mesh::workload::{Certificate, CertifyRequest};
use std::sync::Arc;

/// Make a join token of the mesh (admin keys only)
///
/// The answer is the only place where the token itself is shown.
#[utoipa::path(
    post, path = "/v1/mesh/tokens", operation_id = "createMeshToken", tag = "mesh",
    request_body = NewMeshToken,
    responses((status = 201, body = CreatedMeshToken), (status = "4XX", body = ProblemBody)),
)]
pub(super) async fn create_token(
    Admin(plane): Admin,
    Json(request, _): Json<NewMeshToken>,
) -> Answer<(StatusCode, Body<CreatedMeshToken>)> {
    let now = now_ms();
    let allows = NewToken {
        tags: request.tags,
        ephemeral: request.ephemeral,
        reuse: request.reuse,
        valid_seconds: request.valid_seconds,
    };
    let plan = |book: &Book| book.new_token(allows.clone(), &request.url, now);
    let token = plane.mesh.step(plan).await?;
    let created = CreatedMeshToken {
        id: token.id.clone(),
        token: Secret::new(token.expose()),
    };
    Ok((StatusCode::CREATED, Body(created)))
}

/// List the join tokens of the mesh, without their secrets (admin keys only)
#[utoipa::path(
    get, path = "/v1/mesh/tokens", operation_id = "listMeshTokens", tag = "mesh",
    responses((status = 200, body = Vec<MeshToken>), (status = 403, body = ProblemBody)),
)]
pub(super) async fn tokens(Admin(plane): Admin) -> Answer<Body<Vec<MeshToken>>> {
    let show = |token: TokenStatus| MeshToken {
        id: token.id,
        tags: token.allows.tags,
        ephemeral: token.allows.ephemeral,
        reuse: token.allows.reuse,
        expires_ms: token.expires_ms,
        uses: token.uses,
    };
    let tokens = plane.mesh.look(Book::tokens).await;
    Ok(Body(tokens.into_iter().map(show).collect()))
}

/// Remove a join token of the mesh; nodes that joined with it stay (admin keys only)
#[utoipa::path(
    delete, path = "/v1/mesh/tokens/{id}", operation_id = "deleteMeshToken", tag = "mesh",
    params(("id" = String, Path)),
    responses((status = 204), (status = "4XX", body = ProblemBody)),
)]
pub(super) async fn remove_token(
    Admin(plane): Admin,
    Segments(id): Segments<String>,
) -> Answer<StatusCode> {
    plane.mesh.step(|book| book.remove_token(&id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// List the nodes of the mesh (admin keys only)
#[utoipa::path(
    get, path = "/v1/mesh/nodes", operation_id = "listMeshNodes", tag = "mesh",
    responses((status = 200, body = Vec<MeshNode>), (status = 403, body = ProblemBody)),
)]
pub(super) async fn nodes(Admin(plane): Admin) -> Answer<Body<Vec<MeshNode>>> {
    let show = |node: MemberStatus| MeshNode {
        identity: node.voucher.identity.to_string(),
        wireguard: node.wireguard.to_string(),
        plain: node.plain,
        addresses: vec![node.voucher.v4.into(), node.voucher.v6.into()],
        name: node.voucher.name,
        tags: node.voucher.tags,
        ephemeral: node.voucher.ephemeral,
        mode: node.mode.to_string(),
        endpoints: node.endpoints,
        flows: node.flows,
        unready: node.unready,
        token: node.token,
        sandbox: node.sandbox,
        seen_ms: node.seen_ms,
    };
    let nodes = plane.mesh.look(Book::members).await;
    Ok(Body(nodes.into_iter().map(show).collect()))
}

/// Put a node out of the mesh for good, by its name or identity (admin keys only)
#[utoipa::path(
    delete, path = "/v1/mesh/nodes/{name}", operation_id = "revokeMeshNode", tag = "mesh",
    params(("name" = String, Path)),
    responses((status = 204), (status = "4XX", body = ProblemBody)),
)]
pub(super) async fn revoke(
    Admin(plane): Admin,
    Segments(name): Segments<String>,
) -> Answer<StatusCode> {
    let identity = plane.mesh.step(|book| book.revoke(&name)).await?;
    tracing::info!(%identity, "a node of the mesh was revoked");
    Ok(StatusCode::NO_CONTENT)
}

/// Read the policy of the mesh (admin keys only)
#[utoipa::path(
    get, path = "/v1/mesh/policy", operation_id = "getMeshPolicy", tag = "mesh",
    responses((status = 200, body = MeshPolicy), (status = "4XX", body = ProblemBody)),
)]
pub(super) async fn policy(Admin(plane): Admin) -> Answer<Body<MeshPolicy>> {
    let read = |book: &Book| book.policy().map(String::from);
    let text = plane.mesh.look(read).await;
    let text = text.ok_or_else(|| not_found("No policy was set yet, so nothing is allowed"))?;
    Ok(Body(MeshPolicy { text }))
}

/// Put a policy of the mesh in force, if its own tests hold (admin keys only)
#[utoipa::path(
    put, path = "/v1/mesh/policy", operation_id = "setMeshPolicy", tag = "mesh",
    request_body = MeshPolicy,
    responses((status = 204), (status = "4XX", body = ProblemBody)),
)]
pub(super) async fn set_policy(
    Admin(plane): Admin,
    Json(request, _): Json<MeshPolicy>,
) -> Answer<StatusCode> {
    plane
        .mesh
        .step(|book| book.set_policy(&request.text))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Join the mesh, or learn again that one is in (for nodes: a token's admission, and a signed record)
#[utoipa::path(
    post, path = "/v1/mesh/join", operation_id = "joinMesh", tag = "mesh", security(()),
    request_body = Object,
    responses((status = 200, body = Object, description = "what the coordinator vouches for, signed"),
        (status = "4XX", body = ProblemBody)),
)]
pub(super) async fn join(
    State(plane): State<Arc<Plane>>,
    Json(request, _): Json<JoinRequest>,
) -> Answer<Body<JoinAnswer>> {
    Ok(Body(plane.mesh.join(request).await?))
}

/// Say something else of oneself (for nodes: a signed record)
#[utoipa::path(
    post, path = "/v1/mesh/record", operation_id = "updateMeshRecord", tag = "mesh", security(()),
    request_body = Object,
    responses((status = 204), (status = "4XX", body = ProblemBody)),
)]
pub(super) async fn update(
    State(plane): State<Arc<Plane>>,
    Json(record, _): Json<Signed<NodeRecord>>,
) -> Answer<StatusCode> {
    plane.mesh.step(|book| book.update(&record)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ask for what changed, and wait a while if nothing did (for nodes: a signed request)
#[utoipa::path(
    post, path = "/v1/mesh/watch", operation_id = "watchMesh", tag = "mesh", security(()),
    request_body = Object,
    responses((status = 200, body = Object, description = "what changed since, signed"),
        (status = 204, description = "nothing did"),
        (status = 410, body = Object, description = "the node is in no more, signed"),
        (status = "4XX", body = ProblemBody)),
)]
pub(super) async fn watch(
    State(plane): State<Arc<Plane>>,
    Json(request, _): Json<Signed<WatchRequest>>,
) -> Answer<Response> {
    let answer = plane.mesh.watch(&request).await;
    if answer.is_err()
        && let Some(farewell) = plane.mesh.farewell(&request).await
    {
        return Ok((StatusCode::GONE, Body(farewell)).into_response());
    }
    Ok(match answer? {
        Some(frame) => (
            [(header::CONTENT_TYPE, "application/json")],
            Bytes::from_owner(Text(frame)),
        )
            .into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    })
}

/// Ask for a certificate of a program (for nodes: a signed request)
#[utoipa::path(
    post, path = "/v1/mesh/certificate", operation_id = "certifyMeshWorkload", tag = "mesh", security(()),
    request_body = Object,
    responses((status = 200, body = Object, description = "the certificate, signed"),
        (status = "4XX", body = ProblemBody)),
)]
pub(super) async fn certify(
    State(plane): State<Arc<Plane>>,
    Json(request, _): Json<Signed<CertifyRequest>>,
) -> Answer<Body<Signed<Certificate>>> {
    Ok(Body(plane.mesh.certify(&request).await?))
}

/// A frame as a body: the same memory for all who get it.
struct Text(Arc<str>);

impl AsRef<[u8]> for Text {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}
