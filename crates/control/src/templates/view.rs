//! The templates that one tenant may use, and those of them that it owns.

use crate::{
    error::{invalid, not_found, shorten},
    names::{Reference, check_tag},
    plane::Plane,
    records::{DEFAULT_TAG, Tag, Template},
};
use api::{
    BuildId, ErrorCode, Problem, TenantId, rest::template::BuildStatus, template::Requester,
};
use jiff::Timestamp;
use std::sync::Arc;

/// How many tags a template may have.
pub(super) const MAX_TAGS: usize = 64;

/// The templates that one tenant may use: its own and public ones. Others are not there.
pub(crate) struct Templates {
    pub(super) plane: Arc<Plane>,
    pub(super) tenant: TenantId,
    /// What the caller's builds may use of the node.
    pub(super) requester: Requester,
}

/// There is no such template for the caller.
pub(crate) fn absent(text: &str) -> Problem {
    not_found(format!(
        "Template \"{}\" doesn't exist or you don't have access to it",
        shorten(text)
    ))
}

/// What is known about a name.
pub(crate) enum Name {
    /// The caller may use the template that has it.
    Visible(Arc<Template>),
    /// Somebody else has it.
    Taken,
    /// Nobody has it.
    Free,
}

impl Templates {
    pub(crate) fn new(plane: Arc<Plane>, tenant: TenantId, requester: Requester) -> Self {
        Self {
            plane,
            tenant,
            requester,
        }
    }

    /// The templates of this tenant.
    pub(super) fn own(&self) -> Vec<Arc<Template>> {
        let mut all = self.plane.catalogue.templates();
        all.retain(|template| template.tenant == self.tenant);
        all
    }

    /// Those that it owns, then public ones; each by name.
    pub(crate) fn list(&self) -> Vec<Arc<Template>> {
        let mut all = self.plane.catalogue.templates();
        all.retain(|template| template.snapshot_of.is_none() && template.visible_to(&self.tenant));
        all.sort_by_key(|template| (template.tenant != self.tenant, template.name.clone()));
        all
    }

    /// One that it may use.
    pub(crate) fn find(&self, text: &str) -> Result<Arc<Template>, Problem> {
        let reference = Reference::parse(text).map_err(|_| absent(text))?;
        let found = self.plane.catalogue.resolve(&reference);
        found
            .filter(|template| template.visible_to(&self.tenant))
            .ok_or_else(|| absent(text))
    }

    /// One that it owns. What it may only use is refused with another word than what it cannot
    /// see.
    pub(crate) fn find_own(&self, text: &str) -> Result<Arc<Template>, Problem> {
        let found = self.find(text)?;
        if found.tenant == self.tenant {
            return Ok(found);
        }
        Err(Problem::new(
            ErrorCode::PermissionDenied,
            format!("Template \"{}\" is not yours to change", found.name),
            "build a template of your own",
        ))
    }

    /// Who has a name.
    pub(crate) fn name(&self, text: &str) -> Result<Name, Problem> {
        let reference = Reference::parse(text)?;
        Ok(match self.plane.catalogue.resolve(&reference) {
            Some(template) if template.visible_to(&self.tenant) => Name::Visible(template),
            // An id tells nothing to those who may not use it.
            Some(template) if template.name == reference.name => Name::Taken,
            _ => Name::Free,
        })
    }

    /// Whether it owns a template.
    pub(crate) fn owns(&self, template: &Template) -> bool {
        template.tenant == self.tenant
    }

    /// Lets other tenants use a template of this one, or not.
    pub(crate) async fn set_public(
        &self,
        text: &str,
        public: Option<bool>,
    ) -> Result<Template, Problem> {
        self.change(text, |template| {
            template.public = public.unwrap_or(template.public);
            Ok(())
        })
        .await
    }

    /// Gives tags to the build that `target` names.
    pub(crate) async fn assign(&self, target: &str, tags: &[String]) -> Result<BuildId, Problem> {
        let reference = Reference::parse(target)?;
        let tags = check_tags(tags)?;
        let mut named = None;
        self.change(target, |template| {
            let build = template
                .tagged(reference.tag())
                .filter(|build| build.status == BuildStatus::Ready)
                .map(|build| build.id.clone())
                .ok_or_else(|| no_tag(&template.name, reference.tag()))?;
            let now = Timestamp::now();
            for tag in &tags {
                let tag = (
                    tag.clone(),
                    Tag {
                        build: build.clone(),
                        assigned_at: now,
                    },
                );
                template.tags.extend([tag]);
            }
            if template.tags.len() > MAX_TAGS {
                return Err(invalid(format!("A template has at most {MAX_TAGS} tags")));
            }
            named = Some(build);
            Ok(())
        })
        .await?;
        named.ok_or_else(|| no_tag(target, reference.tag()))
    }

    /// Takes tags from a template. Builds that no tag names any more are removed.
    pub(crate) async fn unassign(&self, name: &str, tags: &[String]) -> Result<(), Problem> {
        let tags = check_tags(tags)?;
        if tags.iter().any(|tag| tag == DEFAULT_TAG) {
            return Err(invalid(format!(
                "The tag \"{DEFAULT_TAG}\" cannot be deleted: assign it to another build instead"
            )));
        }
        self.change(name, |template| {
            for tag in &tags {
                if template.tags.remove(tag).is_none() {
                    return Err(no_tag(&template.name, tag));
                }
            }
            Ok(())
        })
        .await
        .map(drop)
    }
}

fn check_tags(tags: &[String]) -> Result<Vec<String>, Problem> {
    if tags.is_empty() || tags.len() > MAX_TAGS {
        return Err(invalid(format!("Name 1 to {MAX_TAGS} tags")));
    }
    tags.iter().map(|tag| check_tag(tag)).collect()
}

fn no_tag(template: &str, tag: &str) -> Problem {
    not_found(format!(
        "Template \"{}\" has no tag \"{}\"",
        shorten(template),
        shorten(tag)
    ))
}
