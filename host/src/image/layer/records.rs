//! From tar blocks to records: headers, with what extended headers and long names say put in place.

use tar::Header;

use super::error::{EntryError, LayerError, printable};
use super::pax::Extended;
use super::sparse::{self, Failure, Segment};
use super::stream::Stream;
use super::tree::{Time, Xattr};

const BLOCK: u64 = 512;
/// Longest extended header or long name.
const MAX_EXTENDED: u64 = 1 << 20;

/// What an entry is, as far as contents and links go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// One entry; its contents are still in the stream.
#[derive(Debug)]
pub(super) struct Record {
    /// Where its header is.
    pub offset: u64,
    pub kind: Type,
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Time,
    pub xattrs: Vec<Xattr>,
    pub major: u64,
    pub minor: u64,
    /// Bytes of the file.
    pub size: u64,
    /// Bytes of contents in the stream, without padding.
    pub stored: u64,
    /// Where they belong; none if it is all of the file.
    pub segments: Option<Vec<Segment>>,
}

/// Reads one record after the other.
pub(super) struct Records<'s, 'a> {
    pub stream: &'s mut Stream<'a>,
}

impl Records<'_, '_> {
    /// The next record; none behind the last. The one before must have been passed with its padding.
    pub(super) fn next(&mut self) -> Result<Option<Record>, LayerError> {
        let offset = self.stream.position();
        let mut shown = Vec::new();
        self.read(&mut shown).map_err(|failure| match failure {
            Failure::Layer(error) => error,
            Failure::Entry(reason) => LayerError::Entry { name: printable(&shown), offset, reason },
        })
    }

    fn read(&mut self, shown: &mut Vec<u8>) -> Result<Option<Record>, Failure> {
        let mut extended = Extended::default();
        let (mut long_name, mut long_link) = (None, None);
        let (mut dangling, mut described) = (false, false);
        loop {
            let offset = self.stream.position();
            let Some(header) = self.header()? else {
                return if dangling { Err(EntryError::DanglingHeader.into()) } else { Ok(None) };
            };
            *shown = header.path_bytes().into_owned();
            match header.as_old().linkflag[0] {
                b'x' if described => return Err(EntryError::ExtendedHeader("it is the second for one entry").into()),
                b'x' => {
                    extended.parse(&self.payload(&header)?)?;
                    described = true;
                }
                b'L' => long_name = Some(until_nul(self.payload(&header)?)),
                b'K' => long_link = Some(until_nul(self.payload(&header)?)),
                // Global headers hold comments in practice; other runtimes pass over them too.
                b'g' => {
                    self.payload(&header)?;
                    continue;
                }
                flag => {
                    let path = extended.sparse.name.take().or(extended.path.take()).or(long_name);
                    let path = path.unwrap_or_else(|| shown.clone());
                    shown.clone_from(&path);
                    let link = extended.link.take().or(long_link);
                    let link = link.unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned());
                    return self.record(offset, &header, flag, path, link, extended).map(Some);
                }
            }
            dangling = true;
        }
    }

    /// The next header block, checked; none at the end mark or the stream's end.
    fn header(&mut self) -> Result<Option<Header>, Failure> {
        let mut header = Header::new_old();
        if !self.stream.read(header.as_mut_bytes(), "an entry's header")? {
            return Ok(None);
        }
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            let more = self.stream.read(header.as_mut_bytes(), "the end mark")?;
            let end = !more || header.as_bytes().iter().all(|byte| *byte == 0);
            return if end { Ok(None) } else { Err(EntryError::AfterEnd.into()) };
        }
        let claimed = signed(&header.as_old().cksum, "checksum").map_err(|_| EntryError::Checksum)?;
        let counted = |(i, byte): (usize, &u8)| if (148..156).contains(&i) { b' ' } else { *byte };
        let bytes = || header.as_bytes().iter().enumerate().map(counted);
        // Some old writers summed signed bytes.
        let unsigned: i64 = bytes().map(i64::from).sum();
        let as_signed: i64 = bytes().map(|byte| i64::from(byte as i8)).sum();
        if [unsigned, as_signed].contains(&claimed) { Ok(Some(header)) } else { Err(EntryError::Checksum.into()) }
    }

    /// The contents of an entry that describes another.
    fn payload(&mut self, header: &Header) -> Result<Vec<u8>, Failure> {
        let len = numeric(&header.as_old().size, "size")?;
        if len > MAX_EXTENDED {
            return Err(EntryError::ExtendedHeaderSize { len, limit: MAX_EXTENDED }.into());
        }
        let bytes = self.stream.take(len, "an extended header")?;
        self.stream.skip(padding(len), "an extended header")?;
        Ok(bytes)
    }

    fn record(
        &mut self,
        offset: u64,
        header: &Header,
        flag: u8,
        path: Vec<u8>,
        link: Vec<u8>,
        extended: Extended,
    ) -> Result<Record, Failure> {
        let old = header.as_old();
        let kind = kind(flag, &path)?;
        let mut record = Record {
            offset,
            kind,
            path,
            link,
            mode: (numeric(&old.mode, "mode")? & 0o7777) as u16,
            uid: owner(extended.uid, &old.uid, "uid")?,
            gid: owner(extended.gid, &old.gid, "gid")?,
            mtime: match extended.mtime {
                Some(time) => time,
                None => Time { seconds: signed(&old.mtime, "mtime")?, nanoseconds: 0 },
            },
            xattrs: extended.xattrs,
            major: 0,
            minor: 0,
            size: 0,
            stored: 0,
            segments: None,
        };
        match kind {
            Type::CharDevice | Type::BlockDevice => (record.major, record.minor) = device(header)?,
            Type::File => {
                record.stored = match extended.size {
                    Some(size) => size,
                    None => numeric(&old.size, "size")?,
                };
                record.size = record.stored;
                let map = if flag == b'S' {
                    Some(sparse::gnu(header, self.stream)?)
                } else {
                    self.pax_map(&mut record, &extended.sparse)?
                };
                if let Some((map, size)) = map {
                    record.size = size;
                    record.segments = Some(map.checked(size, record.stored)?);
                }
            }
            _ => {}
        }
        Ok(record)
    }

    fn pax_map(
        &mut self,
        record: &mut Record,
        keys: &super::pax::SparseKeys,
    ) -> Result<Option<(sparse::Map, u64)>, Failure> {
        let Some((map, taken)) = sparse::pax(keys, record.stored, self.stream)? else { return Ok(None) };
        record.stored -= taken;
        let size = keys.real_size.ok_or(EntryError::SparseMap("the file's size is missing"))?;
        Ok(Some((map, size)))
    }
}

/// Zeros between `len` bytes and the next header.
pub(super) fn padding(len: u64) -> u64 {
    len.wrapping_neg() % BLOCK
}

fn kind(flag: u8, path: &[u8]) -> Result<Type, EntryError> {
    Ok(match flag {
        // Before POSIX a directory was a file whose name ends in a slash.
        0 if path.ends_with(b"/") => Type::Directory,
        0 | b'0' | b'7' | b'S' => Type::File,
        b'1' => Type::HardLink,
        b'2' => Type::Symlink,
        b'3' => Type::CharDevice,
        b'4' => Type::BlockDevice,
        b'5' => Type::Directory,
        b'6' => Type::Fifo,
        _ => return Err(EntryError::Type(char::from(flag))),
    })
}

fn owner(extended: Option<u64>, field: &[u8], name: &'static str) -> Result<u32, EntryError> {
    let id = match extended {
        Some(id) => id,
        None => numeric(field, name)?,
    };
    // The highest is "no id" to every system call.
    u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or(EntryError::Number { field: name })
}

fn device(header: &Header) -> Result<(u64, u64), EntryError> {
    let (major, minor) = match (header.as_ustar(), header.as_gnu()) {
        (Some(ustar), _) => (&ustar.dev_major, &ustar.dev_minor),
        (_, Some(gnu)) => (&gnu.dev_major, &gnu.dev_minor),
        _ => return Ok((0, 0)),
    };
    let (major, minor) = (numeric(major, "device number")?, numeric(minor, "device number")?);
    if major >= 1 << 12 || minor >= 1 << 20 { Err(EntryError::Device { major, minor }) } else { Ok((major, minor)) }
}

fn until_nul(mut text: Vec<u8>) -> Vec<u8> {
    text.truncate(text.iter().position(|byte| *byte == 0).unwrap_or(text.len()));
    text
}

/// A header's number: octal digits, or binary with the first bit set. An empty field is 0.
pub(super) fn numeric(field: &[u8], name: &'static str) -> Result<u64, EntryError> {
    u64::try_from(signed(field, name)?).map_err(|_| EntryError::Number { field: name })
}

fn signed(field: &[u8], name: &'static str) -> Result<i64, EntryError> {
    let wrong = || EntryError::Number { field: name };
    match field.first() {
        Some(first) if first & 0x80 != 0 => {
            // Two's complement from bit 6 of the first byte on.
            let first = if first & 0x40 == 0 { i64::from(first & 0x3f) } else { i64::from(*first as i8) };
            field[1..].iter().try_fold(first, |value, byte| value.checked_mul(256)?.checked_add(i64::from(*byte)))
        }
        _ => {
            let blank = |byte: &u8| matches!(byte, b' ' | 0);
            let digits = field.iter().skip_while(|byte| blank(byte)).take_while(|byte| !blank(byte));
            let mut digits = digits.copied();
            digits.try_fold(0i64, |value, byte| {
                let digit = matches!(byte, b'0'..=b'7').then(|| i64::from(byte - b'0'))?;
                value.checked_mul(8)?.checked_add(digit)
            })
        }
    }
    .ok_or_else(wrong)
}
