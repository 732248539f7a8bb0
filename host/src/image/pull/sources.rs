//! The places that serve an image: asked in order, the next one when one fails.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;

use super::Puller;
use crate::image::credentials::{Keyring, PullSecret};
use crate::image::error::PullError;
use crate::image::reference::Reference;
use crate::image::registries::Source;
use crate::image::registry::Session;

/// With another place to ask, a failing one is not asked as long.
const ATTEMPTS_OF_MIRROR: u32 = 2;

/// The places of one pull.
pub(super) struct Sources {
    /// The reference, for messages.
    pub image: String,
    puller: Arc<Puller>,
    secret: Option<PullSecret>,
    keyring: Keyring,
    places: Vec<Place>,
}

struct Place {
    source: Source,
    session: OnceCell<Arc<Session>>,
    /// Why nothing more is asked of it.
    failed: Mutex<Option<PullError>>,
}

impl Sources {
    /// Finds out who serves `reference`.
    pub async fn of(
        puller: &Arc<Puller>,
        reference: &Reference,
        secret: Option<PullSecret>,
    ) -> Result<Self, PullError> {
        let image = reference.to_string();
        let (registries, wanted) = (puller.registries(), reference.clone());
        let keyring = Keyring { files: puller.config.auth_files.clone(), helpers: registries.credential_helpers() };
        let found = tokio::task::spawn_blocking(move || registries.sources(&wanted)).await;
        let internal =
            |reason: tokio::task::JoinError| PullError::Internal { image: image.clone(), reason: reason.to_string() };
        let sources = found.map_err(internal)?.map_err(|cause| PullError::Source { image: image.clone(), cause })?;
        let place = |source| Place { source, session: OnceCell::new(), failed: Mutex::default() };
        let places = sources.into_iter().map(place).collect();
        Ok(Self { image, puller: puller.clone(), secret, keyring, places })
    }

    /// Begins to ask the places that `fits`.
    pub fn asking(&self, fits: fn(&Source) -> bool) -> Asking<'_> {
        Asking { sources: self, fits, next: 0, before: Vec::new(), place: None }
    }

    async fn session(&self, place: &Place) -> Result<Arc<Session>, PullError> {
        let open = async || {
            let (http, config) = (self.puller.http.clone(), &self.puller.config);
            let is_last = self.places.last().is_some_and(|last| std::ptr::eq(last, place));
            let attempts = if is_last { config.attempts } else { config.attempts.min(ATTEMPTS_OF_MIRROR) };
            let (registry, repository) = (&place.source.registry, &place.source.endpoint.repository);
            let credentials = match &self.secret {
                Some(secret) if secret.is_for(registry) => Some(secret.credentials.clone()),
                _ => {
                    let found = self.keyring.find(registry, repository).await;
                    found.map_err(|cause| PullError::Credentials { image: self.image.clone(), cause })?
                }
            };
            let session = Session::open(http, config, place.source.clone(), attempts, credentials).await;
            session.map(Arc::new).map_err(|cause| PullError::registry(&self.image, cause))
        };
        place.session.get_or_try_init(open).await.cloned()
    }
}

/// One question, put to one place after the other. A place that fails is not asked again in this pull.
pub(super) struct Asking<'s> {
    sources: &'s Sources,
    fits: fn(&Source) -> bool,
    next: usize,
    before: Vec<PullError>,
    place: Option<&'s Place>,
}

impl<'s> Asking<'s> {
    /// The next place; an error with all that went wrong when none is left.
    pub async fn next(&mut self) -> Result<Arc<Session>, PullError> {
        while let Some(place) = self.sources.places.get(self.next) {
            self.next += 1;
            if !(self.fits)(&place.source) {
                continue;
            }
            if let Some(error) = place.failure() {
                self.before.push(error);
                continue;
            }
            self.place = Some(place);
            match self.sources.session(place).await {
                Ok(session) => return Ok(session),
                Err(error) => self.failed(error)?,
            }
        }
        let before = std::mem::take(&mut self.before);
        Err(PullError::all(&self.sources.image, before))
    }

    /// The place had no good answer. An error that is not the registry's own is given back.
    pub fn failed(&mut self, error: PullError) -> Result<(), PullError> {
        if !error.is_the_registrys() {
            return Err(error);
        }
        if self.sources.places.len() > 1 {
            tracing::warn!(image = self.sources.image, error = crate::error_text(&error), "a registry failed");
        }
        if let Some(place) = self.place {
            *place.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
        }
        self.before.push(error);
        Ok(())
    }
}

impl Place {
    fn failure(&self) -> Option<PullError> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
