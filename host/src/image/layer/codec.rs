//! The tree as a file: a header with length and checksum, then the inodes in order, numbers as LEB128.
//!
//! ```text
//! magic "BHTREE" | version u16 | payload length u64 | CRC-32C of the payload u32 | payload      (little endian)
//! ```

use super::BLOCK;
use super::content::MAX_CHUNKS;
use super::name::{NAME_LEN, PATH_LEN};
use super::tree::{Directory, Extent, FileData, Inode, InodeId, Kind, Name, Time, Tree, Xattr};

const MAGIC: &[u8; 6] = b"BHTREE";
const VERSION: u16 = 1;
const HEADER: usize = 20;

/// Why bytes are no tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// Not written by this.
    #[error("the layer tree does not begin as one: it is no tree file, or damaged")]
    Magic,
    /// Written by another release.
    #[error("the layer tree has version {found}, this release reads {VERSION}: the layer must be pulled again")]
    Version {
        /// In the file.
        found: u16,
    },
    /// Cut off or overlong.
    #[error("the layer tree is {found} bytes long instead of {expected}: it is damaged")]
    Length {
        /// As its header says.
        expected: u64,
        /// As it is.
        found: u64,
    },
    /// Bits changed.
    #[error("the layer tree's checksum is wrong: it is damaged")]
    Checksum,
    /// Sound bytes that make no tree.
    #[error("the layer tree contradicts itself at byte {offset}: {what}")]
    Malformed {
        /// In the payload.
        offset: usize,
        /// What was found.
        what: &'static str,
    },
}

impl Tree {
    /// The tree as bytes, the same for equal trees.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.inodes.len() * 32);
        bytes.extend_from_slice(&[0; HEADER]);
        put(&mut bytes, self.inodes.len() as u64);
        for inode in &self.inodes {
            put_inode(&mut bytes, inode);
        }
        let (header, payload) = bytes.split_at_mut(HEADER);
        header[..6].copy_from_slice(MAGIC);
        header[6..8].copy_from_slice(&VERSION.to_le_bytes());
        header[8..16].copy_from_slice(&(payload.len() as u64).to_le_bytes());
        header[16..].copy_from_slice(&crc32c::crc32c(payload).to_le_bytes());
        bytes
    }

    /// Reads what [`Self::to_bytes`] made. Memory is taken in proportion to `bytes`, whatever they say.
    ///
    /// # Errors
    /// See [`TreeError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TreeError> {
        let (header, payload) = bytes.split_first_chunk::<HEADER>().ok_or(TreeError::Magic)?;
        if !header.starts_with(MAGIC) {
            return Err(TreeError::Magic);
        }
        let field = |range: std::ops::Range<usize>| {
            header[range].iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte))
        };
        let found = field(6..8) as u16;
        if found != VERSION {
            return Err(TreeError::Version { found });
        }
        if field(8..16) != payload.len() as u64 {
            return Err(TreeError::Length { expected: field(8..16), found: payload.len() as u64 });
        }
        if field(16..20) != u64::from(crc32c::crc32c(payload)) {
            return Err(TreeError::Checksum);
        }
        Self::from_payload(payload)
    }

    fn from_payload(payload: &[u8]) -> Result<Self, TreeError> {
        let mut reader = Reader { bytes: payload, offset: 0 };
        let count = reader.count(8)?;
        let mut inodes = Vec::with_capacity(count);
        for _ in 0..count {
            inodes.push(reader.inode()?);
        }
        if reader.offset != payload.len() {
            return Err(reader.malformed("bytes behind the last inode"));
        }
        let tree = Self { inodes };
        check_links(&tree).map_err(|what| reader.malformed(what))?;
        Ok(tree)
    }
}

/// The root is a directory, every other inode has a name, directories exactly one and below a lower number: so the
/// directories form a tree and nothing that walks it can go round in circles.
fn check_links(tree: &Tree) -> Result<(), &'static str> {
    let mut names = vec![0u32; tree.inodes.len()];
    for (parent, inode) in tree.inodes.iter().enumerate() {
        for child in inode.directory().iter().flat_map(|directory| directory.entries.values()) {
            let count = names.get_mut(*child as usize).ok_or("an entry names no inode")?;
            *count = count.saturating_add(1);
            let is_directory = tree.get(*child).is_some_and(|inode| inode.directory().is_some());
            if is_directory && (*child as usize <= parent || *count > 1) {
                return Err("a directory has two names or is below itself");
            }
        }
    }
    match (tree.get(Tree::ROOT).map(|root| root.directory().is_some()), names.split_first()) {
        (Some(true), Some((0, others))) if others.iter().all(|count| *count > 0) => Ok(()),
        (Some(true), Some((0, _))) => Err("an inode has no name"),
        _ => Err("the root is no directory"),
    }
}

fn put(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn put_bytes(bytes: &mut Vec<u8>, value: &[u8]) {
    put(bytes, value.len() as u64);
    bytes.extend_from_slice(value);
}

fn put_inode(bytes: &mut Vec<u8>, inode: &Inode) {
    let seconds = inode.mtime.seconds;
    put(bytes, inode.mode.into());
    put(bytes, inode.uid.into());
    put(bytes, inode.gid.into());
    put(bytes, ((seconds << 1) ^ (seconds >> 63)) as u64);
    put(bytes, inode.mtime.nanoseconds.into());
    put(bytes, inode.xattrs.len() as u64);
    for xattr in &inode.xattrs {
        put_bytes(bytes, &xattr.name);
        put_bytes(bytes, &xattr.value);
    }
    match &inode.kind {
        Kind::Directory(directory) => {
            bytes.push(b'd');
            put_directory(bytes, directory);
        }
        Kind::File(file) => {
            bytes.push(b'f');
            put_file(bytes, file);
        }
        Kind::Symlink(target) => {
            bytes.push(b'l');
            put_bytes(bytes, target);
        }
        Kind::LowerLink(target) => {
            bytes.push(b'h');
            put_bytes(bytes, target);
        }
        Kind::CharDevice { major, minor } => put_device(bytes, b'c', *major, *minor),
        Kind::BlockDevice { major, minor } => put_device(bytes, b'b', *major, *minor),
        Kind::Fifo => bytes.push(b'p'),
    }
}

fn put_device(bytes: &mut Vec<u8>, tag: u8, major: u32, minor: u32) {
    bytes.push(tag);
    put(bytes, major.into());
    put(bytes, minor.into());
}

fn put_directory(bytes: &mut Vec<u8>, directory: &Directory) {
    bytes.push(u8::from(directory.opaque) | u8::from(directory.implied) << 1);
    put(bytes, directory.whiteouts.len() as u64);
    directory.whiteouts.iter().for_each(|name| put_bytes(bytes, name));
    put(bytes, directory.entries.len() as u64);
    for (name, id) in &directory.entries {
        put_bytes(bytes, name);
        put(bytes, (*id).into());
    }
}

fn put_file(bytes: &mut Vec<u8>, file: &FileData) {
    put(bytes, file.size);
    put(bytes, file.blob.into());
    bytes.push(file.chunk_bits);
    put(bytes, file.extents.len() as u64);
    for extent in &file.extents {
        put(bytes, extent.chunk.into());
        put(bytes, extent.chunks.into());
        put(bytes, extent.block.into());
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    fn malformed(&self, what: &'static str) -> TreeError {
        TreeError::Malformed { offset: self.offset, what }
    }

    fn byte(&mut self) -> Result<u8, TreeError> {
        let byte = self.bytes.get(self.offset).copied().ok_or_else(|| self.malformed("it ends too early"))?;
        self.offset += 1;
        Ok(byte)
    }

    fn number(&mut self) -> Result<u64, TreeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return Err(self.malformed("a number does not fit"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.malformed("a number does not end"))
    }

    fn number_as<T: TryFrom<u64>>(&mut self) -> Result<T, TreeError> {
        T::try_from(self.number()?).map_err(|_| self.malformed("a number does not fit"))
    }

    /// A number of things that each take at least `size` bytes more.
    fn count(&mut self, size: usize) -> Result<usize, TreeError> {
        let count: usize = self.number_as()?;
        if count > (self.bytes.len() - self.offset) / size {
            return Err(self.malformed("it is too short for what it says it holds"));
        }
        Ok(count)
    }

    fn text(&mut self, max: usize) -> Result<&'a [u8], TreeError> {
        let len = self.count(1)?;
        if len > max {
            return Err(self.malformed("a text is too long"));
        }
        let text = &self.bytes[self.offset..self.offset + len];
        self.offset += len;
        Ok(text)
    }

    /// A non-empty text without NUL.
    fn name(&mut self, max: usize) -> Result<Name, TreeError> {
        let text = self.text(max)?;
        if text.is_empty() || text.contains(&0) {
            Err(self.malformed("a name is empty or holds NUL"))
        } else {
            Ok(text.into())
        }
    }

    /// A name of a directory's entry, above the one before.
    fn entry_name(&mut self, last: Option<&Name>) -> Result<Name, TreeError> {
        let name = self.name(NAME_LEN)?;
        if name.contains(&b'/') || matches!(&*name, b"." | b"..") {
            return Err(self.malformed("a name is a path"));
        }
        if last.is_some_and(|last| *last >= name) {
            return Err(self.malformed("names are not in order"));
        }
        Ok(name)
    }

    fn inode(&mut self) -> Result<Inode, TreeError> {
        let mode: u16 = self.number_as()?;
        let (uid, gid) = (self.number_as()?, self.number_as()?);
        let seconds = self.number()?;
        let seconds = (seconds >> 1) as i64 ^ -((seconds & 1) as i64);
        let nanoseconds: u32 = self.number_as()?;
        if mode > 0o7777 || nanoseconds > 999_999_999 {
            return Err(self.malformed("a mode or time is out of range"));
        }
        let mtime = Time { seconds, nanoseconds };
        Ok(Inode { mode, uid, gid, mtime, xattrs: self.xattrs()?, kind: self.kind()? })
    }

    fn xattrs(&mut self) -> Result<Box<[Xattr]>, TreeError> {
        let count = self.count(2)?;
        let mut xattrs: Vec<Xattr> = Vec::new();
        for _ in 0..count {
            let name = self.name(NAME_LEN)?;
            let value = self.text(0xffff)?.into();
            if xattrs.last().is_some_and(|last| last.name >= name) {
                return Err(self.malformed("attributes are not in order"));
            }
            xattrs.push(Xattr { name, value });
        }
        Ok(xattrs.into())
    }

    fn kind(&mut self) -> Result<Kind, TreeError> {
        Ok(match self.byte()? {
            b'd' => Kind::Directory(Box::new(self.directory()?)),
            b'f' => Kind::File(self.file()?),
            b'l' => Kind::Symlink(self.name(PATH_LEN)?),
            b'h' => Kind::LowerLink(self.name(PATH_LEN)?),
            b'c' => self.device().map(|(major, minor)| Kind::CharDevice { major, minor })?,
            b'b' => self.device().map(|(major, minor)| Kind::BlockDevice { major, minor })?,
            b'p' => Kind::Fifo,
            _ => return Err(self.malformed("an inode's type is unknown")),
        })
    }

    fn device(&mut self) -> Result<(u32, u32), TreeError> {
        let (major, minor) = (self.number_as()?, self.number_as()?);
        if major >= 1 << 12 || minor >= 1 << 20 {
            return Err(self.malformed("a device number does not fit"));
        }
        Ok((major, minor))
    }

    fn directory(&mut self) -> Result<Directory, TreeError> {
        let flags = self.byte()?;
        if flags > 3 {
            return Err(self.malformed("a directory's flags are unknown"));
        }
        let mut directory = Directory { opaque: flags & 1 != 0, implied: flags & 2 != 0, ..Directory::default() };
        for _ in 0..self.count(2)? {
            let name = self.entry_name(directory.whiteouts.last())?;
            directory.whiteouts.insert(name);
        }
        for _ in 0..self.count(3)? {
            let name = self.entry_name(directory.entries.last_key_value().map(|(name, _)| name))?;
            let id: InodeId = self.number_as()?;
            directory.entries.insert(name, id);
        }
        Ok(directory)
    }

    fn file(&mut self) -> Result<FileData, TreeError> {
        let (size, blob, chunk_bits) = (self.number()?, self.number_as()?, self.byte()?);
        let mut file = FileData { size, blob, chunk_bits, extents: Box::default() };
        if chunk_bits > 31 || size > u64::from(u32::MAX) * BLOCK || file.chunk_count() > MAX_CHUNKS {
            return Err(self.malformed("a file's size or chunks are out of range"));
        }
        let count = self.count(3)?;
        let mut extents = Vec::with_capacity(count);
        let mut end = 0;
        for _ in 0..count {
            let extent = Extent { chunk: self.number_as()?, chunks: self.number_as()?, block: self.number_as()? };
            let start = u64::from(extent.chunk);
            if start < end || extent.chunks == 0 || start + u64::from(extent.chunks) > file.chunk_count() {
                return Err(self.malformed("a file's extents overlap or lie outside"));
            }
            end = start + u64::from(extent.chunks);
            extents.push(extent);
        }
        file.extents = extents.into();
        Ok(file)
    }
}
