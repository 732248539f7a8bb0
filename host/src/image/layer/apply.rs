//! From a record to the tree.

use super::builder::{Missing, TreeBuilder};
use super::error::{EntryError, printable};
use super::name::{self, Marker};
use super::records::{Record, Type};
use super::tree::{FileData, Inode, InodeId, Kind, Name, Tree, Xattr};

/// Bytes that all attributes of an inode may take in an image: 16 bits count units of four.
const MAX_XATTRS: usize = 4 * 0xffff - 12;
/// Bytes of a value: 16 bits.
const MAX_XATTR_VALUE: usize = 0xffff;

/// Whether a record's contents are wanted.
pub(super) fn wants_content(record: &Record) -> Result<bool, EntryError> {
    let names = name::components(&record.path)?;
    Ok(record.kind == Type::File && !names.is_empty() && name::marker(&names)? == Marker::None)
}

/// Puts a record into the tree. `contents` are those of a regular file.
pub(super) fn apply(builder: &mut TreeBuilder, record: &mut Record, contents: FileData) -> Result<(), EntryError> {
    let path = std::mem::take(&mut record.path);
    let names = name::components(&path)?;
    let marker = name::marker(&names)?;
    let Some((last, parents)) = names.split_last() else {
        return apply_root(builder, record);
    };
    if marker == Marker::Bookkeeping {
        return Ok(());
    }
    let parent = builder.directory(parents.iter().copied(), Missing::Make)?;
    match marker {
        Marker::Whiteout(name) => {
            builder.charge(name.len())?;
            if let Some(directory) = builder.inode_mut(parent).and_then(Inode::directory_mut) {
                directory.whiteouts.insert(name.into());
            }
            Ok(())
        }
        Marker::Opaque => {
            if let Some(directory) = builder.inode_mut(parent).and_then(Inode::directory_mut) {
                directory.opaque = true;
            }
            Ok(())
        }
        Marker::Bookkeeping | Marker::None => apply_entry(builder, record, contents, parent, last),
    }
}

fn apply_root(builder: &mut TreeBuilder, record: &mut Record) -> Result<(), EntryError> {
    if record.kind != Type::Directory {
        return Err(EntryError::ReplacesRoot);
    }
    describe(builder, Tree::ROOT, record)
}

fn apply_entry(
    builder: &mut TreeBuilder,
    record: &mut Record,
    contents: FileData,
    parent: InodeId,
    last: &[u8],
) -> Result<(), EntryError> {
    let present = builder.child(parent, last);
    let kind = match record.kind {
        Type::Directory => match present {
            Some(id) if is_directory(builder, id) => return describe(builder, id, record),
            other => {
                // What was here hid the layers below, so nothing of them shows through the new directory either.
                if other.is_some()
                    && let Some(directory) = builder.inode_mut(parent).and_then(Inode::directory_mut)
                {
                    directory.whiteouts.insert(last.into());
                }
                let id = builder.add(Inode::implied_directory())?;
                builder.link(parent, last, id)?;
                return describe(builder, id, record);
            }
        },
        Type::HardLink => match link(builder, record)? {
            Linked::Here(id) => return Ok(builder.link(parent, last, id)?),
            Linked::Below(target) => Kind::LowerLink(target),
        },
        Type::File => {
            builder.charge(contents.extents.len() * 12)?;
            if contents.extents.len() > 1 || contents.chunk_count() > 1 {
                builder.charge(contents.chunk_count() as usize * 8)?;
            }
            Kind::File(contents)
        }
        Type::Symlink => {
            let target = name::link_target(&record.link)?;
            builder.charge(target.len())?;
            Kind::Symlink(target)
        }
        Type::CharDevice => Kind::CharDevice { major: record.major as u32, minor: record.minor as u32 },
        Type::BlockDevice => Kind::BlockDevice { major: record.major as u32, minor: record.minor as u32 },
        Type::Fifo => Kind::Fifo,
    };
    let mut inode = Inode { kind, ..Inode::implied_directory() };
    set_attributes(builder, &mut inode, record)?;
    let id = builder.add(inode)?;
    Ok(builder.link(parent, last, id)?)
}

fn is_directory(builder: &TreeBuilder, id: InodeId) -> bool {
    builder.tree().get(id).is_some_and(|inode| inode.directory().is_some())
}

/// Gives a directory the record's attributes.
fn describe(builder: &mut TreeBuilder, id: InodeId, record: &mut Record) -> Result<(), EntryError> {
    let mut inode = Inode::implied_directory();
    set_attributes(builder, &mut inode, record)?;
    if let Some(there) = builder.inode_mut(id) {
        (there.mode, there.uid, there.gid, there.mtime) = (inode.mode, inode.uid, inode.gid, inode.mtime);
        there.xattrs = inode.xattrs;
        if let Some(directory) = there.directory_mut() {
            directory.implied = false;
        }
    }
    Ok(())
}

fn set_attributes(builder: &mut TreeBuilder, inode: &mut Inode, record: &mut Record) -> Result<(), EntryError> {
    (inode.mode, inode.uid, inode.gid, inode.mtime) = (record.mode, record.uid, record.gid, record.mtime);
    let mut xattrs = std::mem::take(&mut record.xattrs);
    xattrs.retain(|xattr| keeps(&xattr.name));
    xattrs.sort_by(|a, b| a.name.cmp(&b.name));
    let too_long = |what, len: usize, limit: usize| EntryError::TooLong { what, len: len as u64, limit: limit as u64 };
    for xattr in &xattrs {
        if xattr.name.len() > name::NAME_LEN {
            return Err(too_long("attribute name", xattr.name.len(), name::NAME_LEN));
        }
        if xattr.value.len() > MAX_XATTR_VALUE {
            return Err(too_long("attribute", xattr.value.len(), MAX_XATTR_VALUE));
        }
    }
    let sum = xattrs.iter().map(|Xattr { name, value }| name.len() + value.len() + 8).sum();
    if sum > MAX_XATTRS {
        return Err(too_long("attributes", sum, MAX_XATTRS));
    }
    builder.charge(sum)?;
    inode.xattrs = xattrs.into();
    Ok(())
}

/// The attributes that an image may bring.
///
/// Not SELinux labels, which are the host's business as in other runtimes, and not overlayfs's own, with which an image
/// could tell the overlay above it to look elsewhere. Name spaces that Linux file systems do not have are left out.
fn keeps(name: &[u8]) -> bool {
    let after = |prefix: &[u8]| name.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty());
    let refused = name == b"security.selinux" || after(b"trusted.overlay.") || after(b"user.overlay.");
    let known = after(b"user.") || after(b"trusted.") || after(b"security.");
    !refused && (known || matches!(name, b"system.posix_acl_access" | b"system.posix_acl_default"))
}

enum Linked {
    Here(InodeId),
    Below(Name),
}

/// What a hard link means: something of this layer, or a path that a layer below must have.
fn link(builder: &mut TreeBuilder, record: &Record) -> Result<Linked, EntryError> {
    let target = name::link_target(&record.link)?;
    let names = name::components(&target)?;
    let to_directory = || EntryError::LinkToDirectory { target: printable(&target) };
    let (last, parents) = names.split_last().ok_or_else(to_directory)?;
    if name::marker(&names)? != Marker::None {
        return Err(EntryError::ReservedName);
    }
    let parent = builder.directory(parents.iter().copied(), Missing::Fail).ok();
    match parent.and_then(|parent| builder.child(parent, last)) {
        Some(id) if is_directory(builder, id) => Err(to_directory()),
        Some(id) => Ok(Linked::Here(id)),
        None => {
            builder.charge(target.len())?;
            Ok(Linked::Below(names.join(&b'/').into()))
        }
    }
}
