//! Reading the texts of flags as what they mean.

use std::time::Duration;

use crate::cli::RawConfig;
use crate::cli::value::{
    parse_bool, parse_duration, parse_hex_id, parse_int64, parse_texts, parse_uint64, parse_urls,
};
use crate::urls::Url;

use super::ConfigError;

/// Typed access to texts that were checked when they were set.
pub(super) struct Values<'r>(pub(super) &'r RawConfig);

impl Values<'_> {
    pub(super) fn text(&self, name: &str) -> String {
        self.0.text(name).to_owned()
    }

    pub(super) fn texts(&self, name: &str) -> Vec<String> {
        parse_texts(self.0.text(name))
    }

    /// Whether a list was given and is empty, which is not the same as not given.
    pub(super) fn is_set_to_nothing(&self, name: &str) -> bool {
        self.0.is_set(name) && self.0.text(name).is_empty()
    }

    pub(super) fn boolean(&self, name: &str) -> Result<bool, ConfigError> {
        parse_bool(self.0.text(name)).map_err(value_error)
    }

    pub(super) fn unsigned(&self, name: &str) -> Result<u64, ConfigError> {
        parse_uint64(self.0.text(name)).map_err(value_error)
    }

    pub(super) fn signed(&self, name: &str) -> Result<i64, ConfigError> {
        parse_int64(self.0.text(name)).map_err(value_error)
    }

    pub(super) fn urls(&self, name: &str) -> Result<Vec<Url>, ConfigError> {
        parse_urls(self.0.text(name)).map_err(value_error)
    }

    pub(super) fn identity(&self, name: &str) -> Result<Option<u64>, ConfigError> {
        match self.0.text(name) {
            "" => Ok(None),
            text => parse_hex_id(text).map(Some).map_err(value_error),
        }
    }

    /// None for zero and what is below it, which etcd reads as "off" or "the default".
    pub(super) fn duration(&self, name: &str) -> Result<Option<Duration>, ConfigError> {
        let nanos = parse_duration(self.0.text(name)).map_err(|error| value_error(error.into()))?;
        let nanos = u64::try_from(nanos).unwrap_or(0);
        Ok((nanos > 0).then(|| Duration::from_nanos(nanos)))
    }
}

pub(super) fn value_error(error: crate::cli::value::ValueError) -> ConfigError {
    ConfigError(error.to_string())
}
