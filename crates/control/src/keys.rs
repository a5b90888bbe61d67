//! API keys: made, listed, deleted by an administrator.

use crate::{
    catalogue::Collections,
    error::{invalid, not_found, shorten},
    plane::Plane,
    records::{Instance, Key, Tenant},
    tokens::{check_key, hexadecimal, key_prefix, random_key, random_key_id},
};
use api::{
    ErrorCode, Problem, Secret, TenantId,
    rest::v1::{self, Role},
};
use jiff::Timestamp;
use store::Transaction;

/// How many keys there may be.
const MAX_KEYS: usize = 10_000;

/// The longest name of a key.
const MAX_NAME: usize = 200;

/// A key as clients read it.
pub(crate) fn show(key: &Key) -> v1::Key {
    v1::Key {
        id: key.id.clone(),
        name: key.name.clone(),
        prefix: key.prefix.clone(),
        tenant: key.tenant.to_string(),
        role: key.role,
        created_at: key.created_at,
    }
}

fn record(instance: &Instance, secret: &Secret, tenant: &TenantId, name: &str, role: Role) -> Key {
    Key {
        id: random_key_id(),
        name: name.to_owned(),
        prefix: key_prefix(secret.expose()),
        digest: hexadecimal(&instance.digest(secret.expose())),
        tenant: tenant.clone(),
        role,
        created_at: Timestamp::now(),
    }
}

/// A key that an installation is opened with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirstKey {
    /// It was asked for now: it is added unless it is there.
    Given(Secret),
    /// It was made at an earlier start: it is added only as long as there are no keys at all, so
    /// a key that was deleted stays deleted.
    Kept(Secret),
}

impl FirstKey {
    fn secret(&self) -> &Secret {
        match self {
            Self::Given(secret) | Self::Kept(secret) => secret,
        }
    }
}

/// Makes the secrets, the tenant and the first key of an installation, so far as they are not
/// there.
pub(crate) async fn found(
    collections: &Collections,
    first_key: Option<&FirstKey>,
) -> Result<Instance, Problem> {
    if let Some(key) = first_key {
        check_key(key.secret())?;
    }
    let now = Timestamp::now();
    let instance = loop {
        if let Some(stored) = collections.instance.get("self").await? {
            break stored.record;
        }
        let instance = Instance::random(now);
        let tenant = Tenant {
            id: instance.tenant.clone(),
            name: "default".to_owned(),
            created_at: now,
        };
        collections
            .store
            .transact(Transaction {
                conditions: vec![collections.instance.absent("self")],
                then: vec![
                    collections.instance.put("self", &instance)?,
                    collections.tenants.put(tenant.id.as_str(), &tenant)?,
                ],
            })
            .await?;
    };
    if let Some(first) = first_key {
        let secret = first.secret();
        let key = record(&instance, secret, &instance.tenant, "first", Role::Admin);
        let (keys, _) = collections.keys.list().await?;
        let wanted = match first {
            FirstKey::Given(_) => !keys.iter().any(|stored| stored.record.digest == key.digest),
            FirstKey::Kept(_) => keys.is_empty(),
        };
        if wanted {
            collections.keys.insert(&key.id, &key).await?;
        }
    }
    Ok(instance)
}

/// Makes a key, and a tenant for it if one is wanted.
pub(crate) async fn create(
    plane: &Plane,
    caller: &TenantId,
    request: &v1::NewKey,
) -> Result<v1::CreatedKey, Problem> {
    if request.name.len() > MAX_NAME || request.name.contains(char::is_control) {
        return Err(invalid(format!(
            "name has more than {MAX_NAME} bytes or a control character"
        )));
    }
    if plane.catalogue.keys().len() >= MAX_KEYS {
        return Err(Problem::new(
            ErrorCode::LimitReached,
            format!("There are {MAX_KEYS} keys, which is the most"),
            "delete keys that are no longer needed",
        ));
    }
    let now = Timestamp::now();
    let Collections {
        keys,
        tenants,
        store,
        ..
    } = &plane.collections;
    let mut then = Vec::new();
    let tenant = match request.tenant.as_deref() {
        None => caller.clone(),
        Some("new") => {
            let id = TenantId::random(&mut rand::rng());
            let name = match request.name.is_empty() {
                true => id.to_string(),
                false => request.name.clone(),
            };
            then.push(tenants.put(
                id.as_str(),
                &Tenant {
                    id: id.clone(),
                    name,
                    created_at: now,
                },
            )?);
            id
        }
        Some(id) => {
            let known = id
                .parse::<TenantId>()
                .ok()
                .filter(|id| plane.catalogue.tenant(id).is_some());
            known.ok_or_else(|| not_found(format!("Tenant \"{}\" doesn't exist", shorten(id))))?
        }
    };
    let secret = random_key();
    let role = request.role.unwrap_or(Role::Member);
    let key = record(&plane.instance, &secret, &tenant, &request.name, role);
    then.push(keys.put(&key.id, &key)?);
    let outcome = store.transact(Transaction::always(then)).await?;
    plane.catalogue.reached(outcome.revision()).await?;
    Ok(v1::CreatedKey {
        key: show(&key),
        secret,
    })
}

/// Deletes a key; from then on it opens nothing. The last key of an administrator stays.
pub(crate) async fn delete(plane: &Plane, id: &str) -> Result<(), Problem> {
    let absent = || not_found(format!("Key \"{}\" doesn't exist", shorten(id)));
    let Collections { keys, store, .. } = &plane.collections;
    if !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) || id.is_empty() || id.len() > 64 {
        return Err(absent());
    }
    loop {
        let (all, _) = keys.list().await?;
        let stored = all
            .iter()
            .find(|stored| stored.id == id)
            .ok_or_else(absent)?;
        let mut conditions = vec![keys.unchanged(stored)];
        if stored.record.role == Role::Admin {
            let other = all
                .iter()
                .find(|other| other.id != id && other.record.role == Role::Admin);
            let Some(other) = other else {
                return Err(Problem::new(
                    ErrorCode::Conflict,
                    "This is the last admin key",
                    "make another admin key first",
                ));
            };
            // Two administrators may not delete each other's key at once.
            conditions.push(keys.unchanged(other));
        }
        let transaction = Transaction {
            conditions,
            then: vec![keys.delete(id)],
        };
        let outcome = store.transact(transaction).await?;
        if outcome.committed() {
            return plane.catalogue.reached(outcome.revision()).await;
        }
    }
}
