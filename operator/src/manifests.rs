//! The installation as text: everything in `manifests/` and the chart that can be derived from the
//! Rust types is made here, and a test compares it with the files.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::Serialize;

/// Several objects as one YAML text.
///
/// # Errors
/// An object cannot be written as YAML.
pub fn yaml_documents<T: Serialize>(objects: &[T]) -> Result<String, serde_yaml::Error> {
    let mut text = String::new();
    for object in objects {
        text.push_str("---\n");
        text.push_str(&serde_yaml::to_string(object)?);
    }
    Ok(text)
}

/// A definition as a template of the chart: kept when the chart is removed, since removing it
/// would remove every cluster.
///
/// # Errors
/// It cannot be written as YAML.
pub fn chart_template(definition: &CustomResourceDefinition) -> Result<String, serde_yaml::Error> {
    let mut definition = definition.clone();
    let annotations = definition.metadata.annotations.get_or_insert_default();
    annotations.insert("helm.sh/resource-policy".to_owned(), "keep".to_owned());
    let yaml = serde_yaml::to_string(&definition)?;
    Ok(format!("{{{{- if .Values.crds.enabled }}}}\n{yaml}{{{{- end }}}}\n"))
}
