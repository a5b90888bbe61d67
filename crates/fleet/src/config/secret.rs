//! Where a password is read from. It is never written in the file itself.

use api::{ErrorCode, Problem, Secret};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de};
use std::{fmt, path::PathBuf};

/// The longest secret, in bytes.
const LONGEST: u64 = 4096;

/// A file or an environment variable that holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum SecretSource {
    /// The first line of this file.
    File(PathBuf),
    /// The value of this variable.
    Env(String),
}

impl SecretSource {
    /// Reads the secret.
    ///
    /// # Errors
    /// When the file cannot be read or the variable is not set, or if it is empty.
    pub fn read(&self) -> Result<Secret, Problem> {
        let text = match self {
            Self::File(path) => {
                let problem = |cause: String| {
                    Problem::new(
                        ErrorCode::InvalidArgument,
                        format!("the secret in {} cannot be read: {cause}", path.display()),
                        "write the secret alone into that file, readable by Atoll",
                    )
                };
                let size = std::fs::metadata(path)
                    .map_err(|e| problem(e.to_string()))?
                    .len();
                if size > LONGEST {
                    return Err(problem(format!("it is longer than {LONGEST} bytes")));
                }
                std::fs::read_to_string(path).map_err(|e| problem(e.to_string()))?
            }
            Self::Env(name) => std::env::var(name).map_err(|_| {
                Problem::new(
                    ErrorCode::InvalidArgument,
                    format!("the environment variable {name} is not set"),
                    format!("set {name}, or name a file instead"),
                )
            })?,
        };
        let line = text.lines().next().unwrap_or_default().to_owned();
        if line.is_empty() {
            return Err(Problem::new(
                ErrorCode::InvalidArgument,
                format!("the secret in {self} is empty"),
                "write the secret there",
            ));
        }
        Ok(Secret::new(line))
    }
}

impl fmt::Display for SecretSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(formatter, "file {}", path.display()),
            Self::Env(name) => write!(formatter, "variable {name}"),
        }
    }
}

impl<'de> Deserialize<'de> for SecretSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        /// What was written is not repeated: it may be the secret.
        fn refuse<T, E: de::Error>() -> Result<T, E> {
            Err(E::custom(
                "a secret is not written into this file: write { file = \"/path\" } or { env = \"NAME\" }",
            ))
        }

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = SecretSource;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("{ file = \"/path\" } or { env = \"NAME\" }")
            }

            fn visit_str<E: de::Error>(self, _: &str) -> Result<SecretSource, E> {
                refuse()
            }

            fn visit_i64<E: de::Error>(self, _: i64) -> Result<SecretSource, E> {
                refuse()
            }

            fn visit_f64<E: de::Error>(self, _: f64) -> Result<SecretSource, E> {
                refuse()
            }

            fn visit_map<A: de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<SecretSource, A::Error> {
                let Some(key) = map.next_key::<String>()? else {
                    return refuse();
                };
                let source = match key.as_str() {
                    "file" => SecretSource::File(map.next_value()?),
                    "env" => SecretSource::Env(map.next_value()?),
                    _ => return refuse(),
                };
                match map.next_key::<String>()? {
                    None => Ok(source),
                    Some(_) => refuse(),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_the_first_line_of_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        std::fs::write(&path, "hunter2\n").unwrap();
        let secret = SecretSource::File(path.clone()).read().unwrap();
        assert_eq!(secret.expose(), "hunter2");
        std::fs::write(&path, "\n").unwrap();
        assert!(SecretSource::File(path).read().is_err());
        let missing = SecretSource::Env("SURELY_NOT_SET_ANYWHERE".into()).read();
        assert!(
            missing
                .unwrap_err()
                .remedy
                .contains("SURELY_NOT_SET_ANYWHERE")
        );
    }
}
