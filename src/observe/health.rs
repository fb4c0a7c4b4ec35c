//! Whether the process is alive, as its own answers tell.

use serde_json::Value;

/// What keeps the process from being alive, from dispatch's part of a status; empty if it is.
pub fn liveness(dispatch: &Value) -> Vec<String> {
    if dispatch.is_null() {
        return vec!["the dispatch thread does not answer".to_owned()];
    }
    if let Some(error) = dispatch["store_error"].as_str() {
        return vec![format!("the store does not answer: {error}")];
    }
    if dispatch["unsaved_results"].as_u64().unwrap_or(0) > 0 {
        return vec!["the store takes no results; is the disk full?".to_owned()];
    }
    Vec::new()
}
