//! Configurations: lists of calls, by subsystem, as `save_config` writes them and `-c` reads them.
//!
//! [`Document`] is what a file says, [`load`] runs it, [`crate::subsystems`] makes one of what is.

mod comments;
pub(crate) mod load;

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

/// One call.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub(crate) struct Entry {
    /// The method.
    pub(crate) method: String,
    /// Its params, an object; none for a method that takes none.
    #[serde(default)]
    pub(crate) params: Option<Value>,
}

impl Entry {
    /// A call with params.
    pub(crate) fn new(method: impl Into<String>, params: Value) -> Entry {
        Entry { method: method.into(), params: Some(params) }
    }

    /// As it stands in a file.
    pub(crate) fn to_value(&self) -> Value {
        let mut entry = Map::new();
        entry.insert("method".into(), self.method.clone().into());
        if let Some(params) = &self.params {
            entry.insert("params".into(), params.clone());
        }
        Value::Object(entry)
    }
}

/// The calls of one subsystem.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Section {
    /// Its name.
    pub(crate) subsystem: String,
    /// Its calls; those of a batch stand in their places.
    pub(crate) entries: Vec<Entry>,
}

/// What a file says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Document(pub(crate) Vec<Section>);

/// Why a file says nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// It cannot be read.
    #[error("Cannot read the configuration {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The kernel's word.
        source: std::io::Error,
    },
    /// It is not JSON.
    #[error("The configuration {path} is not valid JSON: {source}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// It is JSON of another shape.
    #[error("The configuration {path} has a wrong shape: {source}")]
    Shape {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
}

#[derive(Deserialize)]
struct RawDocument {
    subsystems: Option<Vec<RawSection>>,
}

#[derive(Deserialize)]
struct RawSection {
    subsystem: String,
    config: Option<Vec<OneOrBatch>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrBatch {
    One(Entry),
    Batch(Vec<Entry>),
}

impl Document {
    /// Reads a file. Comments are allowed; root keys but `subsystems` are ignored.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub(crate) fn read(path: &Path) -> Result<Document, ConfigError> {
        let text = std::fs::read(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        Document::parse(path, text)
    }

    fn parse(path: &Path, mut text: Vec<u8>) -> Result<Document, ConfigError> {
        comments::blank(&mut text);
        let value: Value = serde_json::from_slice(&text)
            .map_err(|source| ConfigError::Syntax { path: path.to_owned(), source })?;
        let document = Document::of(value);
        document.map_err(|source| ConfigError::Shape { path: path.to_owned(), source })
    }

    /// What a JSON value says.
    pub(crate) fn of(value: Value) -> Result<Document, serde_json::Error> {
        let raw: RawDocument = serde_json::from_value(value)?;
        if raw.subsystems.is_none() {
            tracing::warn!("the configuration has no \"subsystems\"; nothing is loaded");
        }
        let section = |raw: RawSection| Section {
            subsystem: raw.subsystem,
            entries: raw.config.into_iter().flatten().flat_map(OneOrBatch::entries).collect(),
        };
        Ok(Document(raw.subsystems.into_iter().flatten().map(section).collect()))
    }
}

impl OneOrBatch {
    fn entries(self) -> Vec<Entry> {
        match self {
            OneOrBatch::One(entry) => vec![entry],
            OneOrBatch::Batch(entries) => entries,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(text: &str) -> Result<Document, ConfigError> {
        Document::parse(Path::new("x"), text.as_bytes().to_vec())
    }

    #[test]
    fn comments_batches_and_foreign_keys_are_read() {
        let document = parse(
            r#"{ // what we have
                "version": 3, /* ignored */
                "subsystems": [
                    {"subsystem": "scsi", "config": null},
                    {"subsystem": "bdev", "config": [
                        {"method": "a", "params": {"path": "//x/*"}},
                        [{"method": "b"}, {"method": "c"}]
                    ]}
                ]}"#,
        );
        let bare = |method: &str| Entry { method: method.into(), params: None };
        let entries = vec![Entry::new("a", json!({"path": "//x/*"})), bare("b"), bare("c")];
        let bdev = Section { subsystem: "bdev".into(), entries };
        let scsi = Section { subsystem: "scsi".into(), entries: Vec::new() };
        assert_eq!(document.unwrap(), Document(vec![scsi, bdev]));
    }

    #[test]
    fn other_shapes_are_told_apart_from_bad_syntax() {
        assert!(matches!(parse("{"), Err(ConfigError::Syntax { .. })));
        assert!(matches!(parse("{} x"), Err(ConfigError::Syntax { .. })));
        assert!(matches!(parse("[]"), Err(ConfigError::Shape { .. })));
        assert!(matches!(parse(r#"{"subsystems": {}}"#), Err(ConfigError::Shape { .. })));
        let no_method = r#"{"subsystems": [{"subsystem": "bdev", "config": [{"params": {}}]}]}"#;
        assert!(matches!(parse(no_method), Err(ConfigError::Shape { .. })));
        assert_eq!(parse("{}").unwrap(), Document::default());
    }
}
