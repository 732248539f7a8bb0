//! An image's files as a pod's image drive takes them.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Lease, METADATA, Store};
use crate::image::error::{RootError, StoreError};
use crate::image::image::{Image, ImageId};

/// One file of the flat device, opened read-only.
#[derive(Debug)]
pub struct ImageFile {
    /// Open for reading.
    pub file: File,
    /// Where it lies, for messages and for mounts by path.
    pub path: PathBuf,
    /// Bytes, a multiple of 4096.
    pub len: u64,
}

/// What makes up an image's root file system. The files stay on disk as long as this lives.
#[derive(Debug)]
pub struct ImageRoot {
    /// The image.
    pub id: ImageId,
    /// The EROFS metadata, then its devices: end to end they are one flat device.
    pub files: Vec<ImageFile>,
    _lease: Lease,
}

impl Store {
    /// Opens an image's files. Reads directories, no data.
    pub fn open_root(self: &Arc<Self>, id: &ImageId) -> Result<ImageRoot, RootError> {
        let (lease, image) = Lease::of_image(self, id).ok_or(RootError::NotFound(*id))?;
        let metadata = (self.image_path(id).join(METADATA), image.metadata_len);
        let blobs = image.devices().map(|(diff_id, len)| (self.blob_path(&diff_id), len));
        let files = std::iter::once(metadata).chain(blobs).map(|(path, len)| open(&image, path, len));
        Ok(ImageRoot { id: *id, files: files.collect::<Result<_, _>>()?, _lease: lease })
    }
}

fn open(image: &Image, path: PathBuf, len: u64) -> Result<ImageFile, RootError> {
    let failed = |error| RootError::Store { id: image.id, cause: StoreError::io("opening", &path)(error) };
    let file = File::open(&path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?.len();
    if found != len {
        return Err(RootError::Length { id: image.id, path, expected: len, found });
    }
    Ok(ImageFile { file, path, len })
}
