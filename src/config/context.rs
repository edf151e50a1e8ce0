use serde::Deserialize;

/// Configuration of a context.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContextConfig {
    /// `cpu` or `cuda:N`; `cuda` means `cuda:0`.
    pub device: String,
}

impl Default for ContextConfig {
    fn default() -> Self {
        Self {
            device: "cpu".into(),
        }
    }
}
