//! User ids for jails: one for each sandbox, journaled with it.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Those that are in use.
#[derive(Debug, Default)]
pub struct Users(Mutex<BTreeSet<u32>>);

impl Users {
    /// Takes one that no sandbox has.
    ///
    /// # Errors
    /// When all are in use, for people.
    pub fn take(&self, range: Range<u32>) -> Result<u32, String> {
        let mut taken = self.taken();
        let free = range.clone().find(|user| !taken.contains(user)).ok_or_else(|| {
            let (first, last) = (range.start, range.end.saturating_sub(1));
            format!("all user ids for machines, {first} to {last}, are in use; raise users in [jail] or remove pods")
        })?;
        taken.insert(free);
        Ok(free)
    }

    /// One that a sandbox of the journal has.
    pub fn keep(&self, user: u32) {
        self.taken().insert(user);
    }

    /// The sandbox is gone.
    pub fn give_back(&self, user: u32) {
        self.taken().remove(&user);
    }

    fn taken(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_sandboxes_have_one() {
        let users = Users::default();
        users.keep(10);
        assert_eq!((users.take(10..12), users.take(10..12).is_err()), (Ok(11), true));
        users.give_back(10);
        assert_eq!(users.take(10..12), Ok(10));
    }
}
