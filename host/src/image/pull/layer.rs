//! One layer: from the network through the tar side into the store.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures_util::FutureExt;
use reqwest::StatusCode;

use super::Puller;
use super::channel::{self, Sender};
use super::document::LayerSource;
use super::ingest::{self, IngestError, Ingested};
use super::meter::Meter;
use super::sources::Sources;
use crate::image::background::Blocking;
use crate::image::digest::{Digest, Hasher};
use crate::image::error::PullError;
use crate::image::layer::Compression;
use crate::image::registry::{RegistryError, Request, Session};
use crate::image::store::Lease;

/// After the tar side gave up, so much more is read to tell altered bytes from a bad layer.
const READ_ON: u64 = 16 << 20;

/// All there is to know to get one layer.
#[derive(Clone)]
pub(super) struct LayerJob {
    pub sources: Arc<Sources>,
    /// The reference, for messages.
    pub image: String,
    /// "layer 2 of 5 (sha256:...)"
    pub what: String,
    pub source: LayerSource,
    pub meter: Arc<Meter>,
}

impl Puller {
    /// The layer, from the store, from a download under way, or from the registry.
    pub(super) async fn layer(self: &Arc<Self>, job: &LayerJob) -> Result<Arc<Lease>, PullError> {
        if let Some((lease, _)) = Lease::of_layer(&self.store, job.source.diff_id) {
            job.meter.layer_done(job.source.size);
            return Ok(Arc::new(lease));
        }
        let begin = || {
            let (puller, job) = (self.clone(), job.clone());
            async move { puller.download(&job).await.map(Arc::new) }.boxed()
        };
        let (work, joined) = self.layers.join(job.source.diff_id, begin);
        match work.await {
            Ok(lease) => {
                job.meter.layer_done(if joined { job.source.size } else { 0 });
                Ok(lease)
            }
            // It failed with another pull's registry and credentials.
            Err(_) if joined => {
                let lease = self.download(job).await?;
                job.meter.layer_done(0);
                Ok(Arc::new(lease))
            }
            Err(error) => Err(error),
        }
    }

    async fn download(self: &Arc<Self>, job: &LayerJob) -> Result<Lease, PullError> {
        let _permit = self.downloads.acquire().await.map_err(|e| job.internal(&e))?;
        if let Some((lease, _)) = Lease::of_layer(&self.store, job.source.diff_id) {
            job.meter.received(job.source.size);
            return Ok(lease);
        }
        let compression = ingest::compression(&job.source.media_type).map_err(|reason| job.bad_layer(reason))?;
        let mut asking = job.sources.asking(|source| source.pull);
        loop {
            let session = asking.next().await?;
            match self.download_from(job, &session, compression).await {
                Err(error) => asking.failed(error)?,
                done => return done,
            }
        }
    }

    async fn download_from(
        self: &Arc<Self>,
        job: &LayerJob,
        session: &Session,
        compression: Compression,
    ) -> Result<Lease, PullError> {
        let (sender, receiver) = channel::channel();
        let (store, source, limits) = (self.store.clone(), job.source.clone(), self.config.limits);
        let work = move || ingest::ingest(&store, &source, compression, &limits, receiver);
        let ingesting = Blocking::start(&self.ingesting, work);
        let mut stream = Stream::new(job, session);
        let streamed = stream.run(sender).await;
        let received = stream.received;
        let ingested = ingesting.finish().await.map_err(|e| job.internal(&e))?;
        let ingested = job.judge(session, streamed, ingested).inspect_err(|_| job.meter.lost(received))?;
        let (store, image) = (self.store.clone(), job.image.clone());
        let place = move || store.place_layer(ingested.record, ingested.blob, ingested.tree);
        let placed = Blocking::start(&self.placing, place).finish().await.map_err(|e| job.internal(&e))?;
        placed.map_err(PullError::store(&image))
    }
}

impl LayerJob {
    /// Which of the two ends of a download has the reason, when one or both failed.
    fn judge(
        &self,
        session: &Session,
        streamed: Result<Option<Digest>, PullError>,
        ingested: Result<Ingested, IngestError>,
    ) -> Result<Ingested, PullError> {
        let found = streamed?;
        if let Err(IngestError::Store(cause)) = ingested {
            return Err(PullError::Store { image: self.image.clone(), cause });
        }
        if let Some(found) = found.filter(|found| *found != self.source.digest) {
            return Err(self.mismatch(session, self.what.clone(), self.source.digest, found));
        }
        ingested.map_err(|error| match error {
            IngestError::Layer(reason) => self.bad_layer(reason),
            IngestError::DiffId(found) => {
                self.mismatch(session, format!("the uncompressed {}", self.what), self.source.diff_id, found)
            }
            IngestError::Store(cause) => PullError::Store { image: self.image.clone(), cause },
        })
    }

    fn mismatch(&self, session: &Session, what: String, expected: Digest, found: Digest) -> PullError {
        let (image, host) = (self.image.clone(), session.host().to_owned());
        let (expected, found) = (Box::new(expected), Box::new(found));
        PullError::DigestMismatch { image, host, what, expected, found }
    }

    fn bad_layer(&self, reason: String) -> PullError {
        PullError::Layer { image: self.image.clone(), what: self.what.clone(), reason }
    }

    fn internal(&self, error: &dyn std::fmt::Display) -> PullError {
        PullError::Internal { image: self.image.clone(), reason: error.to_string() }
    }
}

/// The network's side of one download.
struct Stream<'a> {
    job: &'a LayerJob,
    session: &'a Session,
    hasher: Hasher,
    received: u64,
}

impl<'a> Stream<'a> {
    fn new(job: &'a LayerJob, session: &'a Session) -> Self {
        Self { job, session, hasher: Hasher::default(), received: 0 }
    }

    /// Sends the whole layer to the tar side and returns its digest; none if the tar side gave up with much still to
    /// come. A connection that breaks is taken up again where it broke.
    async fn run(&mut self, sender: Sender) -> Result<Option<Digest>, PullError> {
        let (session, size) = (self.session, self.job.source.size);
        let path = format!("blobs/{}", self.job.source.digest);
        let mut backoff = session.backoff();
        let mut sender = Some(sender);
        while self.received < size {
            let request = Request { path: &path, what: &self.job.what, accept: None, from: self.received };
            let response = session.get(request, &mut backoff).await.map_err(|cause| self.failed(cause))?;
            match self.body(response, &mut sender).await? {
                End::Complete => {}
                End::GaveUp => return Ok(None),
                End::Broken(reason) => {
                    let reason = format!("{reason} after {} of {size} bytes", self.received);
                    let again = backoff.again(session.host(), &self.job.what, reason, None).await;
                    again.map_err(|cause| self.failed(cause))?;
                }
            }
        }
        if let Some(sender) = sender {
            // A tar side that is gone has said why.
            let _ = sender.end().await;
        }
        Ok(Some(std::mem::take(&mut self.hasher).finish()))
    }

    /// Reads one answer as far as it goes.
    async fn body(&mut self, mut response: reqwest::Response, sender: &mut Option<Sender>) -> Result<End, PullError> {
        let stall = self.session.stall();
        let mut skip = if response.status() == StatusCode::PARTIAL_CONTENT { 0 } else { self.received };
        while self.received < self.job.source.size {
            let chunk = match tokio::time::timeout(stall, response.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => return Ok(End::Broken("the registry ended the transfer".into())),
                Ok(Err(error)) => return Ok(End::Broken(crate::error_text(&error.without_url()))),
                Err(_) => return Ok(End::Broken(format!("no byte came for {} s", stall.as_secs()))),
            };
            let chunk = skipped(chunk, &mut skip);
            if !chunk.is_empty() && !self.take(chunk, sender).await? {
                return Ok(End::GaveUp);
            }
        }
        Ok(End::Complete)
    }

    /// Counts, hashes and passes on; false when reading on is not worth it.
    async fn take(&mut self, chunk: Bytes, sender: &mut Option<Sender>) -> Result<bool, PullError> {
        let (len, size) = (chunk.len() as u64, self.job.source.size);
        if len > size - self.received {
            let (image, host) = (self.job.image.clone(), self.session.host().to_owned());
            return Err(PullError::TooManyBytes { image, host, what: self.job.what.clone(), size });
        }
        self.hasher.update(&chunk);
        self.received += len;
        self.job.meter.received(len);
        if let Some(open) = sender
            && open.send(chunk).await.is_err()
        {
            *sender = None;
        }
        Ok(sender.is_some() || size - self.received <= READ_ON)
    }

    fn failed(&self, cause: RegistryError) -> PullError {
        let (received, size) = (self.received, self.job.source.size);
        if received == 0 && !cause.is_unavailable() {
            return PullError::registry(&self.job.image, cause);
        }
        let (image, what, cause) = (self.job.image.clone(), self.job.what.clone(), Box::new(cause));
        PullError::Interrupted { image, what, received, size, cause }
    }
}

/// How an answer's body ended.
enum End {
    Complete,
    Broken(String),
    GaveUp,
}

/// What is left of a chunk when bytes that came before are dropped.
fn skipped(mut chunk: Bytes, skip: &mut u64) -> Bytes {
    let drop = usize::try_from(*skip).unwrap_or(usize::MAX).min(chunk.len());
    chunk.advance(drop);
    *skip -= drop as u64;
    chunk
}
