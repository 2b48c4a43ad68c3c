//! Fields of a JSON configuration, by name, with errors that name the file and the field.

use std::path::Path;

use serde_json::Value;

use crate::error::EngineError;

/// An object of a JSON file.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    pub(super) file: &'a Path,
    pub(super) json: &'a Value,
}

impl<'a> Fields<'a> {
    /// A field that is there and not null.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    /// An object under this one; an empty one if it is not there.
    pub(super) fn object(&self, key: &str) -> Fields<'a> {
        static NULL: Value = Value::Null;
        Fields { file: self.file, json: self.get(key).filter(|value| value.is_object()).unwrap_or(&NULL) }
    }

    pub(super) fn wrong(&self, key: &str, what: &str) -> EngineError {
        EngineError::malformed(self.file, format!("{key} is not {what}"))
    }

    pub(super) fn missing(&self, key: &str) -> EngineError {
        EngineError::malformed(self.file, format!("{key} is missing"))
    }

    pub(super) fn size(&self, key: &str) -> Result<Option<usize>, EngineError> {
        self.get(key).map(|value| value.as_u64().and_then(|n| n.try_into().ok()).ok_or_else(|| self.wrong(key, "a size"))).transpose()
    }

    pub(super) fn size_required(&self, key: &str) -> Result<usize, EngineError> {
        self.size(key)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn u32(&self, key: &str) -> Result<Option<u32>, EngineError> {
        self.size(key)?.map(|n| u32::try_from(n).map_err(|_| self.wrong(key, "a number of 32 bits"))).transpose()
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, EngineError> {
        self.get(key).map(|value| value.as_f64().ok_or_else(|| self.wrong(key, "a number"))).transpose()
    }

    pub(super) fn f32(&self, key: &str) -> Result<Option<f32>, EngineError> {
        Ok(self.number(key)?.map(|x| x as f32))
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, EngineError> {
        self.get(key).map(|value| value.as_bool().ok_or_else(|| self.wrong(key, "true or false"))).transpose()
    }

    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        self.get(key).and_then(Value::as_str)
    }

    /// A list; none if the field is not there.
    pub(super) fn list(&self, key: &str) -> Result<Option<&'a [Value]>, EngineError> {
        self.get(key).map(|value| value.as_array().map(Vec::as_slice).ok_or_else(|| self.wrong(key, "a list"))).transpose()
    }

    /// A list of numbers.
    pub(super) fn numbers(&self, key: &str) -> Result<Option<Vec<f32>>, EngineError> {
        let Some(list) = self.list(key)? else { return Ok(None) };
        let numbers: Option<Vec<f32>> = list.iter().map(|value| value.as_f64().map(|x| x as f32)).collect();
        numbers.map(Some).ok_or_else(|| self.wrong(key, "a list of numbers"))
    }

    /// One id, or a list of ids.
    pub(super) fn ids(&self, key: &str) -> Vec<u32> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        match self.get(key) {
            Some(Value::Array(list)) => list.iter().filter_map(id).collect(),
            Some(value) => id(value).into_iter().collect(),
            None => Vec::new(),
        }
    }
}
