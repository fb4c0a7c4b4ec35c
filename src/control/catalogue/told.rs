//! What people were told, and what they still have to hear: over restarts.
//!
//! | key | value |
//! |---|---|
//! | `alarm/BACKUP` | [`Alarm`]: something bad was told of it, and no good run came since |
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

    /// Takes the alarm of a backup back, if there is one.
    ///
    /// # Errors
    /// Of the store.
    pub fn clear_alarm(&self, backup: &str) -> Result<Option<Alarm>, CatalogueError> {
        let _change = self.lock();
        let key = format!("alarm/{backup}");
        let alarm = self.read(Space::Catalogue, &key)?;
        if alarm.is_some() {
            self.remove(&key)?;
        }
        Ok(alarm)
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
