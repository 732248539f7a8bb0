//! Which images there are: a snapshot in memory for readers, one atomically replaced file on disk.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::image::digest::Digest;
use crate::image::error::{OpenError, StoreError};
use crate::image::image::{Image, ImageId};
use crate::image::reference::Reference;

/// Of the index file.
const VERSION: u32 = 1;
/// An id prefix shorter than this is no id.
const MIN_ID_PREFIX: usize = 6;

/// One layer's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    /// Names them.
    pub diff_id: Digest,
    /// Bytes of the data blob, a multiple of 4096.
    pub blob_len: u64,
    /// Bytes of the saved tree.
    pub tree_len: u64,
    /// Bytes that both take on disk; less than their length if the blob has holes.
    pub disk_bytes: u64,
}

/// All images at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Index {
    images: BTreeMap<ImageId, Arc<Image>>,
    names: HashMap<String, ImageId>,
}

#[derive(Serialize)]
struct FileOut<'a> {
    version: u32,
    images: Vec<&'a Image>,
    layers: Vec<&'a LayerRecord>,
}

#[derive(Deserialize)]
struct FileIn {
    images: Vec<Image>,
    layers: Vec<LayerRecord>,
}

impl Index {
    /// All images, by id.
    pub fn images(&self) -> impl Iterator<Item = &Arc<Image>> {
        self.images.values()
    }

    /// An image by its id.
    pub fn get(&self, id: &ImageId) -> Option<&Arc<Image>> {
        self.images.get(id)
    }

    /// By a whole name.
    pub fn named(&self, name: &Reference) -> Option<&Arc<Image>> {
        let name = match name.digest() {
            Some(digest) => name.repo_digest(&digest),
            None => name.repo_tag()?,
        };
        self.get(self.names.get(&name)?)
    }

    /// By id or id prefix.
    pub fn by_id(&self, id: &str) -> Option<&Arc<Image>> {
        match id.parse() {
            Ok(id) => self.get(&id),
            Err(_) => self.by_prefix(id.strip_prefix("sha256:").unwrap_or(id)),
        }
    }

    /// The one image whose id begins so.
    fn by_prefix(&self, digits: &str) -> Option<&Arc<Image>> {
        if digits.len() < MIN_ID_PREFIX || !digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        let mut found = self.images.values().filter(|image| image.id.hex().starts_with(digits));
        let first = found.next()?;
        found.next().is_none().then_some(first)
    }

    /// Adds an image or names to one; a tag that another image has moves over.
    pub fn insert(&mut self, mut image: Image) {
        if let Some(old) = self.images.get(&image.id) {
            image.repo_tags.extend(old.repo_tags.iter().cloned());
            image.repo_digests.extend(old.repo_digests.iter().cloned());
        }
        for names in [&mut image.repo_tags, &mut image.repo_digests] {
            names.sort();
            names.dedup();
        }
        let moved: Vec<_> = image.repo_tags.iter().filter_map(|tag| self.names.get(tag)).copied().collect();
        for id in moved.into_iter().filter(|id| *id != image.id) {
            if let Some(old) = self.images.get_mut(&id) {
                Arc::make_mut(old).repo_tags.retain(|tag| !image.repo_tags.contains(tag));
            }
        }
        for name in image.repo_tags.iter().chain(&image.repo_digests) {
            self.names.insert(name.clone(), image.id);
        }
        self.images.insert(image.id, Arc::new(image));
    }

    /// Takes an image with all its names out.
    pub fn remove(&mut self, id: &ImageId) -> Option<Arc<Image>> {
        self.names.retain(|_, named| named != id);
        self.images.remove(id)
    }

    /// Whether an image is made of this layer.
    pub fn uses_layer(&self, diff_id: &Digest) -> bool {
        self.images.values().any(|image| image.layers.iter().any(|layer| layer.diff_id == *diff_id))
    }

    /// Replaces the index file; on return the disk has it.
    pub fn write(&self, root: &Path, layers: &HashMap<Digest, LayerRecord>) -> Result<(), StoreError> {
        let layers = layers.values().filter(|layer| self.uses_layer(&layer.diff_id)).collect();
        let file = FileOut { version: VERSION, images: self.images.values().map(|i| &**i).collect(), layers };
        let (path, next) = (root.join("index.json"), root.join("tmp/index.json"));
        let replace = || -> io::Result<()> {
            let mut out = File::create(&next)?;
            out.write_all(&serde_json::to_vec(&file)?)?;
            out.sync_all()?;
            std::fs::rename(&next, &path)?;
            File::open(root)?.sync_all()
        };
        replace().map_err(StoreError::io("writing", &path))
    }

    /// Reads the index file. One that is not there or not readable is an empty one: images can be pulled again.
    pub fn read(root: &Path) -> Result<(Self, HashMap<Digest, LayerRecord>), OpenError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let path = root.join("index.json");
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Default::default()),
            Err(error) => return Err(StoreError::io("reading", &path)(error).into()),
        };
        if let Ok(Version { version }) = serde_json::from_slice(&bytes)
            && version != VERSION
        {
            return Err(OpenError::Version { path, found: version, supported: VERSION });
        }
        match serde_json::from_slice::<FileIn>(&bytes) {
            Ok(file) => {
                let mut index = Self::default();
                file.images.into_iter().for_each(|image| index.insert(image));
                Ok((index, file.layers.into_iter().map(|layer| (layer.diff_id, layer)).collect()))
            }
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "image index is damaged, starting with an empty store");
                Ok(Default::default())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(config: &str, tags: &[&str], digests: &[&str]) -> Image {
        Image {
            id: Digest::of(config.as_bytes()),
            repo_tags: tags.iter().map(|t| (*t).into()).collect(),
            repo_digests: digests
                .iter()
                .map(|d| format!("docker.io/library/{d}@{}", Digest::of(d.as_bytes())))
                .collect(),
            size_bytes: 1,
            layers: Vec::new(),
            metadata_len: 0,
            config: Default::default(),
            created: None,
            platform: "linux/amd64".into(),
            pinned: false,
        }
    }

    fn find<'i>(index: &'i Index, text: &str) -> Option<&'i Arc<Image>> {
        Reference::parse(text).ok().and_then(|name| index.named(&name)).or_else(|| index.by_id(text))
    }

    #[test]
    fn a_moved_tag_leaves_the_old_image_its_digest() {
        let mut index = Index::default();
        index.insert(image("old", &["docker.io/library/x:1", "docker.io/library/x:latest"], &["x"]));
        index.insert(image("new", &["docker.io/library/x:latest"], &["y"]));
        let old = index.get(&Digest::of(b"old")).unwrap();
        assert_eq!(old.repo_tags, ["docker.io/library/x:1"]);
        assert_eq!(find(&index, "x").unwrap().id, Digest::of(b"new"));
        assert_eq!(find(&index, &old.repo_digests[0]).unwrap().id, old.id);
        assert_eq!(find(&index, &format!("x:9@{}", Digest::of(b"x"))).unwrap().id, old.id);
        assert_eq!(find(&index, &old.id.to_string()).unwrap().id, old.id);
        assert_eq!(find(&index, &old.id.hex()[..12]).unwrap().id, old.id);
        assert!(find(&index, "y").is_none() && find(&index, "").is_none() && find(&index, "abc").is_none());
    }

    #[test]
    fn survives_the_disk_and_refuses_the_future() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("tmp")).unwrap();
        let mut index = Index::default();
        index.insert(image("a", &["docker.io/library/a:1"], &["a"]));
        index.write(root.path(), &HashMap::new()).unwrap();
        let (again, _) = Index::read(root.path()).unwrap();
        assert_eq!(find(&again, "a:1").unwrap().id, Digest::of(b"a"));
        std::fs::write(root.path().join("index.json"), r#"{"version":2,"what":1}"#).unwrap();
        assert!(Index::read(root.path()).unwrap_err().to_string().contains("has version 2, this version reads 1"));
        std::fs::write(root.path().join("index.json"), "{").unwrap();
        assert_eq!(Index::read(root.path()).unwrap().0.images().count(), 0);
    }
}
