//! What people were told, and what they still have to hear: over restarts.
//!
//! | key | value |
//! |---|---|
//! | `alarm/BACKUP` | [`Alarm`]: something bad was told of it, and no good run came since |
//! | `owed/RUN` | nothing; the run has ended, and nobody was told yet |
//! | `tell/CHANNEL/ID` | [`Message`]: it has not arrived yet |

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::{Catalogue, CatalogueError};
use crate::control::notify::event::Message;
use crate::store::Space;

/// Something bad that was told of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    /// When it was told first, Unix milliseconds.
    pub since_ms: u64,
}

impl Catalogue {
    /// Notes that something bad is told of a backup; the first time counts.
    ///
    /// # Errors
    /// Of the store.
    pub fn raise_alarm(&self, backup: &str, now_ms: u64) -> Result<(), CatalogueError> {
        let _change = self.lock();
        let key = format!("alarm/{backup}");
        if self.read::<Alarm>(Space::Catalogue, &key)?.is_some() {
            return Ok(());
        }
        self.write(Space::Catalogue, &key, &Alarm { since_ms: now_ms })
    }

    /// The alarm of a backup, if there is one.
    ///
    /// # Errors
    /// Of the store.
    pub fn alarm(&self, backup: &str) -> Result<Option<Alarm>, CatalogueError> {
        self.read(Space::Catalogue, &format!("alarm/{backup}"))
    }

    /// Takes the alarm of a backup back.
    ///
    /// # Errors
    /// Of the store.
    pub fn clear_alarm(&self, backup: &str) -> Result<(), CatalogueError> {
        let _change = self.lock();
        self.remove(&format!("alarm/{backup}"))
    }

    /// The runs of whose end nobody was told yet.
    ///
    /// # Errors
    /// Of the store.
    pub fn owed(&self) -> Result<Vec<String>, CatalogueError> {
        let mut owed = Vec::new();
        self.each("owed/", &mut |run_id| {
            owed.push(run_id.to_owned());
            ControlFlow::Continue(())
        })?;
        Ok(owed)
    }

    /// Notes that a run's end was told.
    ///
    /// # Errors
    /// Of the store.
    pub fn settle_owed(&self, run_id: &str) -> Result<(), CatalogueError> {
        self.remove(&format!("owed/{run_id}"))
    }

    /// Forgets the alarms of backups that are not known any more.
    ///
    /// # Errors
    /// Of the store.
    pub fn keep_alarms(&self, known: &dyn Fn(&str) -> bool) -> Result<(), CatalogueError> {
        let mut gone = Vec::new();
        self.each("alarm/", &mut |backup| {
            if !known(backup) {
                gone.push(format!("alarm/{backup}"));
            }
            ControlFlow::Continue(())
        })?;
        gone.iter().try_for_each(|key| self.remove(key))
    }

    /// Keeps a message until [`Self::forget_message`].
    ///
    /// # Errors
    /// Of the store.
    pub fn keep_message(&self, channel: &str, message: &Message) -> Result<(), CatalogueError> {
        self.write(Space::Catalogue, &format!("tell/{channel}/{}", message.id), message)
    }

    /// Forgets a message.
    ///
    /// # Errors
    /// Of the store.
    pub fn forget_message(&self, channel: &str, id: &str) -> Result<(), CatalogueError> {
        self.remove(&format!("tell/{channel}/{id}"))
    }

    /// The messages that are kept, with their channels; those of a channel in the order of their time.
    ///
    /// # Errors
    /// Of the store.
    pub fn kept_messages(&self) -> Result<Vec<(String, Message)>, CatalogueError> {
        let mut keys = Vec::new();
        self.each("tell/", &mut |rest| {
            keys.push(rest.to_owned());
            ControlFlow::Continue(())
        })?;
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            let Some((channel, _)) = key.split_once('/') else { continue };
            let message = self.read(Space::Catalogue, &format!("tell/{key}"))?;
            found.extend(message.map(|message| (channel.to_owned(), message)));
        }
        Ok(found)
    }

    fn remove(&self, key: &str) -> Result<(), CatalogueError> {
        let mut batch = self.store.batch();
        batch.delete(Space::Catalogue, key.to_owned());
        Ok(self.store.commit(batch)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::SPACES;
    use super::*;
    use crate::control::notify::Failure;
    use crate::secret::Secret;
    use crate::store::{Store, StoreKeys};

    fn catalogue(dir: &std::path::Path) -> Catalogue {
        let keys = StoreKeys { current: Secret::new("bkpy_test_key"), previous: None };
        Catalogue::new(Store::open(dir, &SPACES, &keys).unwrap())
    }

    #[test]
    fn an_alarm_stands_from_the_first_time_until_it_is_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let catalogue = catalogue(dir.path());
        assert_eq!(catalogue.alarm("shop").unwrap(), None);
        for now_ms in [5, 9] {
            catalogue.raise_alarm("shop", now_ms).unwrap();
        }
        catalogue.raise_alarm("old", 1).unwrap();
        catalogue.keep_alarms(&|backup| backup == "shop").unwrap();
        assert_eq!(catalogue.alarm("old").unwrap(), None);
        assert_eq!(catalogue.alarm("shop").unwrap(), Some(Alarm { since_ms: 5 }));
        catalogue.clear_alarm("shop").unwrap();
        assert_eq!(catalogue.alarm("shop").unwrap(), None, "told once");
        assert!(catalogue.is_empty().unwrap(), "it is no run");
    }

    #[test]
    fn messages_come_back_in_the_order_of_their_time() {
        let dir = tempfile::tempdir().unwrap();
        let catalogue = catalogue(dir.path());
        let message = |id: &str| {
            let what = Failure { name: "shop".into(), ..Failure::default() };
            Message { id: id.into(), what, ..Message::default() }
        };
        for (channel, id) in [("ops", "02-a"), ("ops", "01-b"), ("op", "03-c")] {
            catalogue.keep_message(channel, &message(id)).unwrap();
        }
        let ids = |catalogue: &Catalogue| -> Vec<(String, String)> {
            let kept = catalogue.kept_messages().unwrap();
            kept.into_iter().map(|(channel, message)| (channel, message.id)).collect()
        };
        let pair = |channel: &str, id: &str| (channel.to_owned(), id.to_owned());
        assert_eq!(ids(&catalogue), [pair("op", "03-c"), pair("ops", "01-b"), pair("ops", "02-a")]);
        catalogue.forget_message("ops", "01-b").unwrap();
        assert_eq!(ids(&catalogue), [pair("op", "03-c"), pair("ops", "02-a")]);
    }
}
