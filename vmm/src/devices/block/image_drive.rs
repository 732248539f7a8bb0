//! The image drive: a huge, read-only, mostly empty block space in which images appear while the guest runs.
//!
//! ```text
//! 0        1 MiB                                             64 TiB
//! | unused | part part part | gap | part part | gap | ...zeros... |
//!            `-- image A -'         `- image B -'
//! ```
//!
//! Addresses are never used twice: the guest's page cache may still hold what was there.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::sync::{Arc, RwLock};

use super::{BlockBackend, Place, SECTOR};

/// Bytes of the whole space.
const CAPACITY: u64 = 64 << 40;
/// Images start at multiples of this, and at least this much stays empty between two of them, so that the guest's
/// read-ahead behind one never caches zeros where another will appear.
const ALIGNMENT: u64 = 1 << 20;
/// Parts are whole EROFS blocks.
const PART_MULTIPLE: u64 = 4096;

/// Why an image cannot be mapped.
#[derive(Debug, thiserror::Error)]
pub enum ImageDriveError {
    /// A part that would put the next one off its block.
    #[error("map image {image}: part {part} has {len} bytes, not a positive multiple of {PART_MULTIPLE}")]
    PartLength {
        /// The image's id.
        image: String,
        /// Index of the part.
        part: usize,
        /// Its length in bytes.
        len: u64,
    },
    /// Nothing to map.
    #[error("map image {image}: it has no parts")]
    NoParts {
        /// The image's id.
        image: String,
    },
    /// The whole space was handed out.
    #[error(
        "map image {image}: its {len} bytes do not fit in what is left of the image drive; run new containers in a new pod"
    )]
    Full {
        /// The image's id.
        image: String,
        /// Bytes of all parts.
        len: u64,
    },
}

/// Where an image lies, in 512-byte sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First sector.
    pub start_sector: u64,
    /// Number of sectors.
    pub sectors: u64,
}

#[derive(Debug)]
struct Part {
    file: Arc<File>,
    len: u64,
}

#[derive(Debug)]
struct Map {
    /// By first byte.
    parts: BTreeMap<u64, Part>,
    images: HashMap<String, Extent>,
    /// First byte never handed out.
    next: u64,
}

/// The image drive's storage.
#[derive(Debug)]
pub struct ImageDrive {
    map: RwLock<Map>,
}

impl Default for ImageDrive {
    fn default() -> Self {
        Self::new()
    }
}

impl ImageDrive {
    /// An empty drive.
    #[must_use]
    pub fn new() -> Self {
        Self { map: RwLock::new(Map { parts: BTreeMap::new(), images: HashMap::new(), next: ALIGNMENT }) }
    }

    /// Maps the parts (file, bytes) one after the other. An image that is mapped already keeps its place, and the
    /// files given now are closed. Bytes past a file's end read as zeros.
    pub fn map(&self, image_id: &str, parts: Vec<(File, u64)>) -> Result<Extent, ImageDriveError> {
        let image = || image_id.to_owned();
        if parts.is_empty() {
            return Err(ImageDriveError::NoParts { image: image() });
        }
        let mut total = 0_u64;
        for (part, &(_, len)) in parts.iter().enumerate() {
            if len == 0 || !len.is_multiple_of(PART_MULTIPLE) {
                return Err(ImageDriveError::PartLength { image: image(), part, len });
            }
            total = total.saturating_add(len);
        }
        let mut map = self.map.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(extent) = map.images.get(image_id) {
            return Ok(*extent);
        }
        let start = map.next;
        let end = start.checked_add(total).filter(|end| *end <= CAPACITY - 2 * ALIGNMENT);
        let Some(end) = end else {
            return Err(ImageDriveError::Full { image: image(), len: total });
        };
        map.next = end.next_multiple_of(ALIGNMENT) + ALIGNMENT;
        let mut at = start;
        for (file, len) in parts {
            map.parts.insert(at, Part { file: Arc::new(file), len });
            at += len;
        }
        let extent = Extent { start_sector: start / SECTOR, sectors: total / SECTOR };
        map.images.insert(image(), extent);
        Ok(extent)
    }

    /// Forgets an image: what is read from its place from now on is zeros. False when it was not mapped.
    pub fn unmap(&self, image_id: &str) -> bool {
        let mut map = self.map.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(extent) = map.images.remove(image_id) else {
            return false;
        };
        let start = extent.start_sector * SECTOR;
        let end = start + extent.sectors * SECTOR;
        let gone: Vec<u64> = map.parts.range(start..end).map(|(at, _)| *at).collect();
        // Files are closed after the lock is dropped: closing may be slow.
        let closing: Vec<Part> = gone.iter().filter_map(|at| map.parts.remove(at)).collect();
        drop(map);
        drop(closing);
        true
    }
}

impl BlockBackend for ImageDrive {
    fn len(&self) -> u64 {
        CAPACITY
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn locate(&self, offset: u64) -> Place {
        let map = self.map.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((start, part)) = map.parts.range(..=offset).next_back() {
            let at = offset - start;
            if at < part.len {
                return Place::File { file: part.file.clone(), at, len: part.len - at };
            }
        }
        let next = map.parts.range(offset..).next().map_or(CAPACITY, |(start, _)| *start);
        Place::Hole { len: next.saturating_sub(offset) }
    }

    fn to_sync(&self) -> Option<Arc<File>> {
        None
    }
}
