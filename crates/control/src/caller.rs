//! Who sends a request, and what he can see.
//!
//! A handler has no other way to sandboxes and templates than through a [`Caller`], whose views
//! are those of one tenant. What belongs to another tenant is not there.

use crate::{
    error::ApiError, plane::Plane, records::Key, sandboxes::Sandboxes, templates::Templates,
};
use api::{ErrorCode, Problem, TenantId, rest::v1::Role, template::Requester};
use axum::extract::FromRequestParts;
use http::request::Parts;
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// Whoever sent the request, known by his key.
pub(crate) struct Caller {
    plane: Arc<Plane>,
    key: Arc<Key>,
}

impl Caller {
    /// His tenant.
    pub(crate) fn tenant(&self) -> &TenantId {
        &self.key.tenant
    }

    /// His key.
    pub(crate) fn key(&self) -> &Key {
        &self.key
    }

    /// The sandboxes of his tenant.
    pub(crate) fn sandboxes(&self) -> Sandboxes {
        Sandboxes::new(self.plane.clone(), self.key.tenant.clone(), self.is_admin())
    }

    /// The templates that his tenant may use.
    pub(crate) fn templates(&self) -> Templates {
        let requester = match self.key.role {
            Role::Admin => Requester::Administrator,
            Role::Member => Requester::Tenant,
        };
        Templates::new(self.plane.clone(), self.key.tenant.clone(), requester)
    }

    /// Whether he is the administrator of this installation.
    pub(crate) fn is_admin(&self) -> bool {
        self.key.role == Role::Admin
    }

    /// The tenant's name.
    pub(crate) fn tenant_name(&self) -> String {
        let tenant = self.plane.catalogue.tenant(&self.key.tenant);
        tenant.map_or_else(String::new, |tenant| tenant.name.clone())
    }

    /// Whether his tenant is the one that came with the installation.
    pub(crate) fn is_default_tenant(&self) -> bool {
        self.key.tenant == self.plane.instance.tenant
    }
}

impl FromRequestParts<Arc<Plane>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(
        parts: &mut Parts,
        plane: &Arc<Plane>,
    ) -> Result<Self, Self::Rejection> {
        let refuse = |cause: &str| {
            ApiError::from(Problem::new(
                ErrorCode::Unauthenticated,
                cause,
                "send a key of this Atoll in the header X-API-KEY; `atoll up` prints where the \
                 first one is",
            ))
        };
        let header = |name: &str| {
            parts
                .headers
                .get(name)
                .and_then(|value| value.to_str().ok())
        };
        let key = header("x-api-key").or_else(|| {
            let (scheme, token) = header("authorization")?.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token)
        });
        let Some(key) = key.map(str::trim).filter(|key| !key.is_empty()) else {
            return Err(refuse("The request carries no API key"));
        };
        // The look-up is by a keyed digest: how long it takes tells nothing about any key.
        let digest = plane.instance.digest(key);
        let found = plane.catalogue.key_by_digest(&digest).filter(|found| {
            let expected = crate::tokens::parse_digest(&found.digest).unwrap_or_default();
            bool::from(expected.ct_eq(&digest))
        });
        match found {
            Some(key) => Ok(Self {
                plane: plane.clone(),
                key,
            }),
            None => Err(refuse("The API key is not known")),
        }
    }
}

/// The administrator of this installation, known by his key.
pub(crate) struct Admin(pub(crate) Arc<Plane>);

impl FromRequestParts<Arc<Plane>> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(
        parts: &mut Parts,
        plane: &Arc<Plane>,
    ) -> Result<Self, Self::Rejection> {
        let caller = Caller::from_request_parts(parts, plane).await?;
        if !caller.is_admin() {
            return Err(Problem::new(
                ErrorCode::PermissionDenied,
                "Only an admin key may do this",
                "use the key that Atoll was started with, or another one of role admin",
            )
            .into());
        }
        Ok(Self(plane.clone()))
    }
}
