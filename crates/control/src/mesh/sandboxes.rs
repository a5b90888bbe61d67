//! Sandboxes in the mesh: which of them may be there, as whom, and until when.
//!
//! The policy's table `[sandboxes]` says which tags a tenant may give to its sandboxes. Names matter too, as policy and people go by them: a tenant's names begin
//! with a tag that it may give, so it takes no name that is meant for somebody else.

use super::{Coordinator, now_ms};
use crate::{
    error::{invalid, shorten},
    nodes::{Nodes, ask},
    usage::is_live,
};
use api::{
    ErrorCode, Problem, SandboxId, Secret, TenantId, node::MeshMembership,
    rest::sandbox::NewMeshIdentity,
};
use mesh::{
    coordination::{Book, SandboxSeat},
    policy::Policy,
};
use rand::Rng;
use std::collections::BTreeSet;

/// The most tags of a sandbox.
const MOST_TAGS: usize = 32;
/// The address in tokens of sandboxes, which nobody asks: their nodes are where the coordinator is.
const HERE: &str = "atoll:here";

/// Who wants a sandbox in the mesh.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Applicant<'a> {
    pub(crate) tenant: &'a TenantId,
    /// Whether it is an administrator.
    pub(crate) admin: bool,
}

/// Checks what a template asks for. Whether a sandbox may have it is seen when it is created.
pub(crate) fn check_template(wanted: Option<&NewMeshIdentity>) -> Result<(), Problem> {
    let Some(wanted) = wanted else {
        return Ok(());
    };
    check_tags(wanted)?;
    if wanted.name.is_some() {
        return Err(invalid(
            "mesh: a template names tags only, as each of its sandboxes has another name",
        ));
    }
    Ok(())
}

fn check_tags(wanted: &NewMeshIdentity) -> Result<(), Problem> {
    if wanted.tags.is_empty() || wanted.tags.len() > MOST_TAGS {
        return Err(invalid(format!(
            "mesh.tags has {} tags: expected 1 to {MOST_TAGS}",
            wanted.tags.len()
        )));
    }
    Ok(())
}

fn refuse(cause: String, remedy: String) -> Problem {
    Problem::new(ErrorCode::PermissionDenied, cause, remedy)
}

/// Checks what a sandbox asks for; answers with the name that was chosen, if one was.
fn check<'a>(
    policy: &Policy,
    who: Applicant<'_>,
    wanted: &'a NewMeshIdentity,
) -> Result<Option<&'a str>, Problem> {
    check_tags(wanted)?;
    let may = match who.admin {
        true => policy.tags(),
        false => policy.sandbox_tags(who.tenant.as_str()),
    };
    if let Some(tag) = wanted.tags.iter().find(|tag| !may.contains(&***tag)) {
        let tag = shorten(tag);
        return Err(match who.admin {
            true => refuse(
                format!("The policy of the mesh names no tag `{tag}`"),
                "check how it is written, or name it with `atoll mesh policy set`".to_owned(),
            ),
            false => refuse(
                format!("Your sandboxes may not have the tag `{tag}` in the mesh"),
                format!(
                    "ask an administrator to allow it in the policy of the mesh, under [sandboxes]: \
                     {} = [\"tag:{tag}\"]",
                    who.tenant
                ),
            ),
        });
    }
    let Some(name) = wanted.name.as_deref() else {
        return Ok(None);
    };
    let begins = |tag: &String| {
        let rest = name.strip_prefix(&**tag);
        rest.is_some_and(|rest| rest.len() > 1 && rest.starts_with('-'))
    };
    if !who.admin && !wanted.tags.iter().any(begins) {
        let example = wanted.tags.first().map_or("", |tag| tag);
        return Err(refuse(
            format!(
                "Your sandboxes may not be called `{}` in the mesh",
                shorten(name)
            ),
            format!(
                "begin the name with one of the sandbox's tags, as in `{example}-1`, or leave it out"
            ),
        ));
    }
    if !who.admin && policy.names(name) {
        return Err(refuse(
            format!("The policy of the mesh says who `{}` is", shorten(name)),
            "choose another name, or leave it out".to_owned(),
        ));
    }
    Ok(Some(name))
}

impl Coordinator {
    /// Makes the token that a sandbox joins with, if it may.
    pub(crate) async fn invite(
        &self,
        who: Applicant<'_>,
        wanted: &NewMeshIdentity,
        id: &SandboxId,
    ) -> Result<MeshMembership, Problem> {
        let text = self.look(|book| book.policy().map(String::from)).await;
        let policy = text.and_then(|text| Policy::parse(&text).ok());
        let policy = policy.unwrap_or_else(Policy::none);
        let name = match check(&policy, who, wanted)? {
            Some(name) => name.to_owned(),
            None => format!("sandbox-{:010x}", rand::rng().random::<u64>() >> 24),
        };
        let seat = SandboxSeat {
            id: id.to_string(),
            name: name.clone(),
        };
        let now = now_ms();
        let plan = |book: &Book| book.sandbox_token(seat.clone(), wanted.tags.clone(), HERE, now);
        let token = self.step(plan).await?;
        Ok(MeshMembership {
            name,
            tags: wanted.tags.clone(),
            token: Secret::new(token.expose()),
        })
    }

    /// A sandbox is gone.
    pub(crate) async fn release(&self, id: &SandboxId) {
        match self.step(|book| book.release(id.as_str())).await {
            Ok(Some(_)) => tracing::debug!(sandbox = %id, "it is in the mesh no more"),
            Ok(None) => {}
            // It never was in the mesh, or is out already.
            Err(problem) if problem.code == ErrorCode::NotFound => {}
            Err(problem) => {
                tracing::warn!(sandbox = %id, %problem, "it stays in the mesh for now");
            }
        }
    }
}

/// Looks after sandboxes that ended without a word to the mesh, as when the program was killed meanwhile.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    /// Those that were not there at the last look: one that is being created may not be there yet.
    absent: BTreeSet<SandboxId>,
}

impl Ends {
    /// Takes out those that are gone at two looks in a row.
    pub(crate) async fn look(&mut self, mesh: &Coordinator, nodes: &Nodes) {
        let known = mesh.look(Book::sandboxes).await;
        let mut absent = BTreeSet::new();
        for id in known.iter().filter_map(|id| id.parse::<SandboxId>().ok()) {
            // A node that does not answer may have it.
            let Some(node) = nodes.of(&id) else { continue };
            if let Ok(status) = ask(node.get(&id)).await
                && !status.is_some_and(|status| is_live(&status))
            {
                absent.insert(id);
            }
        }
        for id in self.judge(absent) {
            mesh.release(&id).await;
        }
    }

    /// Which of those that are absent are gone.
    fn judge(&mut self, absent: BTreeSet<SandboxId>) -> BTreeSet<SandboxId> {
        let (gone, new) = absent.into_iter().partition(|id| self.absent.contains(id));
        self.absent = new;
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = r#"
[sandboxes]
t00000000000a = ["tag:ci", "tag:web"]

[[allow]]
from = ["tag:ci"]
to = ["tag:db", "node:ci-db"]
ports = ["tcp/5432"]
"#;

    fn asked(tenant: char, admin: bool, tags: &[&str], name: Option<&str>) -> Result<(), Problem> {
        let tenant = format!("t00000000000{tenant}").parse().unwrap();
        let wanted = NewMeshIdentity {
            tags: tags.iter().map(|tag| String::from(*tag)).collect(),
            name: name.map(String::from),
        };
        let who = Applicant {
            tenant: &tenant,
            admin,
        };
        check(&Policy::parse(POLICY).unwrap(), who, &wanted).map(drop)
    }

    #[test]
    fn a_tenant_has_the_tags_and_names_that_are_its_own() {
        asked('a', false, &["ci"], None).unwrap();
        asked('a', false, &["ci", "web"], Some("web-1")).unwrap();
        for (tenant, tags, name, cause) in [
            ('a', &["db"][..], None, "`db`"),
            ('a', &["ci", "db"], None, "`db`"),
            ('b', &["ci"], None, "`ci`"),
            ('a', &["ci"], Some("web-1"), "called"),
            ('a', &["ci"], Some("ci-"), "called"),
            ('a', &["ci"], Some("cinema"), "called"),
            ('a', &["ci"], Some("ci-db"), "says who"),
        ] {
            let problem = asked(tenant, false, tags, name).unwrap_err();
            assert_eq!(problem.code, ErrorCode::PermissionDenied);
            assert!(problem.cause.contains(cause), "{problem:?}");
            assert!(!problem.remedy.is_empty());
        }
        let problem = asked('a', false, &[], None).unwrap_err();
        assert_eq!(problem.code, ErrorCode::InvalidArgument);
    }

    #[test]
    fn an_administrator_has_what_the_policy_names() {
        asked('b', true, &["db"], Some("anything")).unwrap();
        let problem = asked('b', true, &["bd"], None).unwrap_err();
        assert!(problem.cause.contains("names no tag `bd`"), "{problem:?}");
    }

    #[test]
    fn who_is_gone_is_gone_at_the_second_look() {
        let ids = |numbers: &[u8]| -> BTreeSet<SandboxId> {
            let id = |number: &u8| format!("i{number:020}").parse().unwrap();
            numbers.iter().map(id).collect()
        };
        let mut ends = Ends::default();
        assert_eq!(ends.judge(ids(&[1, 2])), ids(&[]));
        // One was only being created; another is absent since.
        assert_eq!(ends.judge(ids(&[2, 3])), ids(&[2]));
        assert_eq!(ends.judge(ids(&[1])), ids(&[]));
    }

    #[test]
    fn a_template_names_no_name() {
        let mut wanted = NewMeshIdentity::default();
        assert!(check_template(None).is_ok());
        assert!(check_template(Some(&wanted)).is_err());
        wanted.tags.insert("ci".to_owned());
        assert!(check_template(Some(&wanted)).is_ok());
        wanted.name = Some("ci-1".to_owned());
        assert!(check_template(Some(&wanted)).is_err());
    }
}
