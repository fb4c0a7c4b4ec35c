//! What people were told of the checks.

use std::ops::ControlFlow;

use super::{Catalogue, CatalogueError, put};
use crate::control::checks::Mark;
use crate::store::Space;

const PREFIX: &str = "check/";

impl Catalogue {
    /// The marks of all checks. One that cannot be read is none: at the worst somebody is told again.
    ///
    /// # Errors
    /// Of the store.
    pub fn check_marks(&self) -> Result<Vec<(String, Mark)>, CatalogueError> {
        let mut marks = Vec::new();
        self.store.scan(Space::Catalogue, PREFIX.as_bytes(), &mut |key, value| {
            let Some(name) = key.strip_prefix(PREFIX.as_bytes()) else {
                return ControlFlow::Break(());
            };
            if let Ok(mark) = serde_json::from_slice(value) {
                marks.push((String::from_utf8_lossy(name).into_owned(), mark));
            }
            ControlFlow::Continue(())
        })?;
        Ok(marks)
    }

    /// Notes what people know of a check; nothing is kept of one that works.
    ///
    /// # Errors
    /// Of the store.
    pub fn set_check_mark(&self, name: &str, mark: &Mark) -> Result<(), CatalogueError> {
        let (mut batch, key) = (self.store.batch(), format!("{PREFIX}{name}"));
        if *mark == Mark::default() {
            batch.delete(Space::Catalogue, key);
        } else {
            put(&mut batch, Space::Catalogue, &key, mark)?;
        }
        Ok(self.store.commit(batch)?)
    }
}
