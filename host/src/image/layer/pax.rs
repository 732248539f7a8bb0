//! Extended headers: `LENGTH KEYWORD=VALUE\n`, as POSIX's pax has them.
//!
//! The `tar` crate splits these records at line feeds, which breaks binary values such as file capabilities; this goes
//! by the lengths.

use super::error::EntryError;
use super::tree::{Time, Xattr};

/// Attributes of one entry.
const MAX_XATTRS: usize = 512;

/// What an extended header said about the entry behind it.
#[derive(Debug, Default)]
pub(super) struct Extended {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<Time>,
    pub xattrs: Vec<Xattr>,
    pub sparse: SparseKeys,
}

/// `GNU.sparse.*`
#[derive(Debug, Default)]
pub(super) struct SparseKeys {
    pub name: Option<Vec<u8>>,
    pub major: Option<u64>,
    pub minor: Option<u64>,
    pub real_size: Option<u64>,
    /// Offsets and lengths in turn, of formats 0.0 and 0.1.
    pub map: Vec<u64>,
    pub has_map: bool,
}

impl Extended {
    /// Adds the records of one extended header; later ones win.
    pub(super) fn parse(&mut self, mut bytes: &[u8]) -> Result<(), EntryError> {
        while !bytes.is_empty() {
            let record = Record::first(bytes)?;
            self.set(record.key, record.value)?;
            bytes = record.rest;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), EntryError> {
        let number = |field| number(value).ok_or(EntryError::Number { field });
        match key {
            b"path" => self.path = some(value),
            b"linkpath" => self.link = some(value),
            b"size" => self.size = Some(number("size")?),
            b"uid" => self.uid = Some(number("uid")?),
            b"gid" => self.gid = Some(number("gid")?),
            b"mtime" => self.mtime = Some(time(value).ok_or(EntryError::Number { field: "mtime" })?),
            b"GNU.sparse.name" => self.sparse.name = some(value),
            b"GNU.sparse.major" => self.sparse.major = Some(number("sparse version")?),
            b"GNU.sparse.minor" => self.sparse.minor = Some(number("sparse version")?),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.real_size = Some(number("sparse size")?),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                self.sparse.map.push(number("sparse map")?);
                self.sparse.has_map = true;
            }
            b"GNU.sparse.map" => {
                self.sparse.has_map = true;
                for part in value.split(|byte| *byte == b',').filter(|part| !part.is_empty()) {
                    self.sparse.map.push(super::pax::number(part).ok_or(EntryError::Number { field: "sparse map" })?);
                }
            }
            _ => self.set_xattr(key, value)?,
        }
        Ok(())
    }

    fn set_xattr(&mut self, key: &[u8], value: &[u8]) -> Result<(), EntryError> {
        let Some(name) = key.strip_prefix(b"SCHILY.xattr.").filter(|name| !name.contains(&0)) else { return Ok(()) };
        self.xattrs.retain(|xattr| &*xattr.name != name);
        if self.xattrs.len() == MAX_XATTRS {
            return Err(EntryError::ExtendedHeader("it has more than 512 attributes"));
        }
        // As in any record, an empty value takes an earlier one back.
        if !value.is_empty() {
            self.xattrs.push(Xattr { name: name.into(), value: value.into() });
        }
        Ok(())
    }
}

/// An empty value takes an earlier one back.
fn some(value: &[u8]) -> Option<Vec<u8>> {
    (!value.is_empty()).then(|| value.to_vec())
}

struct Record<'a> {
    key: &'a [u8],
    value: &'a [u8],
    /// What follows it.
    rest: &'a [u8],
}

impl<'a> Record<'a> {
    fn first(bytes: &'a [u8]) -> Result<Self, EntryError> {
        let wrong = EntryError::ExtendedHeader;
        let space = bytes.iter().take(20).position(|byte| *byte == b' ').ok_or(wrong("a record has no length"))?;
        let len = number(&bytes[..space]).and_then(|len| usize::try_from(len).ok());
        let len =
            len.filter(|len| *len <= bytes.len() && *len > space + 1).ok_or(wrong("a record's length is wrong"))?;
        let (record, rest) = bytes.split_at(len);
        let record = record[space + 1..].strip_suffix(b"\n").ok_or(wrong("a record does not end in a line feed"))?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or(wrong("a record has no '='"))?;
        Ok(Self { key: &record[..equals], value: &record[equals + 1..], rest })
    }
}

/// A plain decimal number.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |value, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

/// `-12.5`: seconds since 1970 with a fraction, which is cut after nine digits.
pub(super) fn time(text: &[u8]) -> Option<Time> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let whole = i64::try_from(number(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanoseconds =
        (0..9).fold(0, |value, i| value * 10 + fraction.get(i).map_or(0, |digit| u32::from(digit - b'0')));
    Some(match (negative, nanoseconds) {
        (false, _) => Time { seconds: whole, nanoseconds },
        (true, 0) => Time { seconds: -whole, nanoseconds: 0 },
        (true, _) => Time { seconds: -whole - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}
