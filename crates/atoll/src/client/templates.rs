//! Templates over the REST API.

use crate::client::{Client, encode};
use anyhow::{Context, bail};
use api::{
    node::BuildEvent,
    rest::{
        template::{AssignTags, DeleteTags},
        v1::{BuildLine, NewTemplate, Template, TemplateLine},
    },
};
use bytes::BytesMut;

/// No line of a build's events is longer.
const LINE_MAX: usize = 1 << 20;

/// The next thing that a build tells.
#[derive(Debug)]
pub(crate) enum BuildNews {
    /// Something happened on the node.
    Event(BuildEvent),
    /// The template is made; nothing follows.
    Template(Box<Template>),
}

/// A build under way.
#[derive(Debug)]
pub(crate) struct Build {
    response: reqwest::Response,
    buffer: BytesMut,
}

impl Build {
    /// The next piece of news; `None` at the end.
    ///
    /// # Errors
    /// When the connection broke or the answer is not understood.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<BuildNews>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return parse_news(&line).map(Some);
            }
            if self.buffer.len() > LINE_MAX {
                bail!("the server sent a line of more than {LINE_MAX} bytes");
            }
            match self
                .response
                .chunk()
                .await
                .context("the connection broke during the build")?
            {
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
                None if self.buffer.trim_ascii().is_empty() => return Ok(None),
                None => return parse_news(&self.buffer.split()).map(Some),
            }
        }
    }
}

fn parse_news(line: &[u8]) -> anyhow::Result<BuildNews> {
    let line = serde_json::from_slice(line).context("the build's news is not understood")?;
    Ok(match line {
        BuildLine::Template(TemplateLine::Template { template }) => {
            BuildNews::Template(Box::new(template))
        }
        BuildLine::Event(event) => BuildNews::Event(event),
    })
}

impl Client {
    /// Begins to build a template.
    ///
    /// # Errors
    /// [`api::Problem`] when it is refused.
    pub(crate) async fn build(&self, template: &NewTemplate) -> anyhow::Result<Build> {
        let response = self.post_streamed("/v1/templates", template).await?;
        Ok(Build {
            response,
            buffer: BytesMut::new(),
        })
    }

    /// All templates.
    ///
    /// # Errors
    /// [`api::Problem`] when it is refused.
    pub(crate) async fn templates(&self) -> anyhow::Result<Vec<Template>> {
        self.get("/v1/templates").await
    }

    /// Removes a template, by id or name.
    ///
    /// # Errors
    /// [`api::Problem`] when it is refused.
    pub(crate) async fn remove_template(&self, name: &str) -> anyhow::Result<()> {
        self.delete(&format!("/templates/{}", encode(name))).await
    }

    /// Gives further tags to the build that `target` (`name:tag`) names.
    ///
    /// # Errors
    /// [`api::Problem`] when it is refused.
    pub(crate) async fn tag(&self, target: &str, tags: &[String]) -> anyhow::Result<()> {
        let body = AssignTags {
            target: target.to_owned(),
            tags: tags.to_vec(),
        };
        self.tell("/templates/tags", &body).await
    }

    /// Takes tags away from a template.
    ///
    /// # Errors
    /// [`api::Problem`] when it is refused.
    pub(crate) async fn untag(&self, name: &str, tags: &[String]) -> anyhow::Result<()> {
        let body = DeleteTags {
            name: name.to_owned(),
            tags: tags.to_vec(),
        };
        self.delete_with("/templates/tags", &body).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_is_told_apart() {
        let step = br#"{"event":"step","name":"unpacking","total":10}"#;
        assert!(matches!(
            parse_news(step).unwrap(),
            BuildNews::Event(BuildEvent::Step {
                total: Some(10),
                ..
            })
        ));
        let done = br#"{"event":"template","template":{"id":"x","names":["web"],"public":false,
            "own":true,"builtIn":false,"createdAt":"2026-01-01T00:00:00Z","tags":{},"builds":[]}}"#;
        assert!(matches!(parse_news(done).unwrap(), BuildNews::Template(_)));
        assert!(parse_news(b"nonsense").is_err());
    }
}
