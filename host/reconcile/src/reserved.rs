//! Volumes that are for one pod alone, while the pod that is to have them is prepared: until then no other one sees who has
//! them. What is slow about that, on a disk that hangs say, holds up nobody else.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Claims that pods are being prepared with, by namespace and name.
#[derive(Default)]
pub(crate) struct Reserved(Mutex<BTreeSet<(String, String)>>);

/// Claims of one pod, given back when this is dropped.
#[must_use]
pub(crate) struct Reservation<'a> {
    of: &'a Reserved,
    claims: Vec<(String, String)>,
}

impl Reserved {
    fn claims(&self) -> MutexGuard<'_, BTreeSet<(String, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves the claims of these volumes, given as name and claim, in one step with the look whether another pod has one.
    /// The volume that another one has, or is being prepared with, is the error.
    pub(crate) fn take(
        &self,
        namespace: &str,
        volumes: &[(String, String)],
        is_taken: impl Fn(&str) -> bool,
    ) -> Result<Reservation<'_>, String> {
        let key = |claim: &str| (namespace.to_owned(), claim.to_owned());
        let mut reserved = self.claims();
        if let Some((volume, _)) = volumes.iter().find(|(_, claim)| reserved.contains(&key(claim)) || is_taken(claim)) {
            return Err(volume.clone());
        }
        let claims: Vec<(String, String)> = volumes.iter().map(|(_, claim)| key(claim)).collect();
        reserved.extend(claims.iter().cloned());
        Ok(Reservation { of: self, claims })
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut reserved = self.of.claims();
        for claim in &self.claims {
            reserved.remove(claim);
        }
    }
}
