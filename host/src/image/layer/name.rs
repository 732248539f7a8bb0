//! Paths of entries.

use super::error::EntryError;

/// Longest path and link target, as Linux has it without the closing NUL.
pub(super) const PATH_LEN: usize = 4095;
/// Longest name, `NAME_MAX`.
pub(crate) const NAME_LEN: usize = 255;

/// The names that lead from the root to an entry; none for the root itself.
///
/// As other runtimes do it, leading slashes, empty names and `.` are dropped, and `a/../b` is `b` whatever `a` is. A path
/// that leads out of the root is refused, which others do not all do: no tool writes one in good faith.
pub(super) fn components(path: &[u8]) -> Result<Vec<&[u8]>, EntryError> {
    if path.is_empty() {
        return Err(EntryError::NoName);
    }
    check_text("path", path)?;
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                names.pop().ok_or(EntryError::Escapes)?;
            }
            _ if name.len() > NAME_LEN => {
                return Err(EntryError::TooLong { what: "name", len: name.len() as u64, limit: NAME_LEN as u64 });
            }
            _ => names.push(name),
        }
    }
    Ok(names)
}

/// A link's target: any bytes but NUL.
pub(super) fn link_target(target: &[u8]) -> Result<Box<[u8]>, EntryError> {
    if target.is_empty() {
        return Err(EntryError::NoTarget);
    }
    check_text("link target", target)?;
    Ok(target.into())
}

fn check_text(what: &'static str, text: &[u8]) -> Result<(), EntryError> {
    if text.len() > PATH_LEN {
        return Err(EntryError::TooLong { what, len: text.len() as u64, limit: PATH_LEN as u64 });
    }
    if text.contains(&0) { Err(EntryError::Nul(what)) } else { Ok(()) }
}

/// What a name means for the layers below.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Marker<'a> {
    /// Nothing: an entry of its own.
    None,
    /// `.wh.NAME`
    Whiteout(&'a [u8]),
    /// `.wh..wh..opq`
    Opaque,
    /// `.wh..wh.*`: bookkeeping of a storage driver that no longer exists.
    Bookkeeping,
}

/// Reads the image specification's reserved names off the end of a path.
pub(super) fn marker<'a>(names: &[&'a [u8]]) -> Result<Marker<'a>, EntryError> {
    const PREFIX: &[u8] = b".wh.";
    const DOUBLE: &[u8] = b".wh..wh.";
    let Some((last, parents)) = names.split_last() else { return Ok(Marker::None) };
    if names.iter().any(|name| name.starts_with(DOUBLE) && *name != b".wh..wh..opq") {
        return Ok(Marker::Bookkeeping);
    }
    if parents.iter().any(|name| name.starts_with(PREFIX)) {
        return Err(EntryError::ReservedName);
    }
    match last.strip_prefix(PREFIX) {
        None => Ok(Marker::None),
        Some(b".wh..opq") => Ok(Marker::Opaque),
        Some(b"" | b"." | b"..") => Err(EntryError::WhiteoutOfNothing),
        Some(name) => Ok(Marker::Whiteout(name)),
    }
}
