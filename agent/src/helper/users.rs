//! Users and groups, as the container's own /etc/passwd and /etc/group know them.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::paths::Root;
use super::spec::UserSpec;

/// Most bytes read of /etc/passwd or /etc/group.
const MAX_FILE: u64 = 4 << 20;
/// Most groups of one process, as the kernel has it.
const MAX_GROUPS: usize = 65536;

/// Highest user or group id: to the kernel -1 means "leave it as it is", which is root.
pub const MAX_ID: u32 = i32::MAX.cast_unsigned();

/// Why there is no such user.
#[derive(Debug, Error)]
pub enum UserError {
    /// A file exists and cannot be read.
    #[error("cannot read {path} of the container: {source}")]
    Read {
        /// Which.
        path: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A name without an entry.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    UnknownUser(String),
    /// A name without an entry.
    #[error("unable to find group {0}: no matching entries in group file")]
    UnknownGroup(String),
    /// A number that is no id.
    #[error("user or group id {0} is out of range: 0 to {MAX_ID}")]
    OutOfRange(String),
    /// More than the kernel takes.
    #[error("the user has {0} groups; the kernel allows {MAX_GROUPS}")]
    TooManyGroups(usize),
}

/// One line of /etc/passwd.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Account {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

/// One line of /etc/group.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// Whose rights a process gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All groups, the primary one included.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
}

/// Looks `user` up in the files of the current root.
///
/// # Errors
/// A name that is not there, or a file that cannot be read; numbers need no entry.
pub fn look_up(user: &UserSpec) -> Result<Identity, UserError> {
    resolve(user, &read("/etc/passwd")?, &read("/etc/group")?)
}

fn read(path: &'static str) -> Result<String, UserError> {
    let failed = |source: Errno| UserError::Read { path, source: source.into() };
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = Root::new(rustix::fs::open("/", directory, Mode::empty()).map_err(failed)?);
    // A fifo in its place must not hold the helper up.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = match root.open(Path::new(path), flags) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        other => other.map_err(failed)?,
    };
    let stat = rustix::fs::fstat(&fd).map_err(failed)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        let source = io::Error::new(io::ErrorKind::InvalidData, "it is no regular file");
        return Err(UserError::Read { path, source });
    }
    let mut bytes = Vec::new();
    File::from(fd).take(MAX_FILE).read_to_end(&mut bytes).map_err(|source| UserError::Read { path, source })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The id that `text` is if it is a number; anything else is a name.
fn number(text: &str) -> Option<Result<u32, UserError>> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let in_range = || text.parse().ok().filter(|id| *id <= MAX_ID);
    digits.then(|| in_range().ok_or_else(|| UserError::OutOfRange(text.into())))
}

fn entry_id(field: &str) -> Option<u32> {
    number(field)?.ok()
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account> + '_ {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let (uid, gid) = (entry_id(fields.nth(1)?)?, entry_id(fields.next()?)?);
        let home = fields.nth(1).unwrap_or_default();
        Some(Account { name: name.into(), uid, gid, home: home.into() })
    })
}

fn groups(group: &str) -> impl Iterator<Item = Group> + '_ {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let gid = entry_id(fields.nth(1)?)?;
        let members = fields.next().unwrap_or_default();
        let members = members.split(',').map(str::trim).filter(|m| !m.is_empty()).map(String::from).collect();
        Some(Group { name: name.into(), gid, members })
    })
}

fn resolve(spec: &UserSpec, passwd: &str, group: &str) -> Result<Identity, UserError> {
    let (image_user, image_group) = match spec.image_user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
        None => (spec.image_user.as_str(), None),
    };
    let wanted = match (spec.uid, spec.username.as_str()) {
        (Some(uid), _) => uid.to_string(),
        (None, "") if image_user.is_empty() => "0".into(),
        (None, "") => image_user.into(),
        (None, name) => name.into(),
    };
    let account = find_account(&wanted, passwd)?;
    let from_image = spec.uid.is_none() && spec.username.is_empty();
    let gid = match (spec.gid, image_group.filter(|_| from_image)) {
        (Some(gid), _) => gid,
        (None, Some(name)) => find_group(name, group)?,
        (None, None) => account.gid,
    };
    let mut all = vec![gid];
    if !spec.strict_groups && !account.name.is_empty() {
        all.extend(groups(group).filter(|g| g.members.contains(&account.name)).map(|g| g.gid));
    }
    all.extend(&spec.supplemental_groups);
    all.sort_unstable();
    all.dedup();
    if all.len() > MAX_GROUPS {
        return Err(UserError::TooManyGroups(all.len()));
    }
    let home = if account.home.is_empty() { "/".into() } else { account.home };
    Ok(Identity { uid: account.uid, gid, groups: all, home })
}

fn find_account(wanted: &str, passwd: &str) -> Result<Account, UserError> {
    // A number first: an entry named "1000" must not make a user that was checked not to be root root.
    let Some(uid) = number(wanted).transpose()? else {
        return accounts(passwd).find(|a| a.name == wanted).ok_or_else(|| UserError::UnknownUser(wanted.into()));
    };
    let anonymous = Account { name: String::new(), uid, gid: 0, home: String::new() };
    Ok(accounts(passwd).find(|a| a.uid == uid).unwrap_or(anonymous))
}

fn find_group(wanted: &str, group: &str) -> Result<u32, UserError> {
    if let Some(gid) = number(wanted) {
        return gid;
    }
    let found = groups(group).find(|g| g.name == wanted);
    found.map(|g| g.gid).ok_or_else(|| UserError::UnknownGroup(wanted.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# note\nbad line\nweb:x:33:34:www:/var/www:/bin/false\n\
        dup:x:33:99::/elsewhere:\nnohome:x:50:51\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\naudio:x:29:web,root\nvideo:x:44: web ,other\nbroken\n";

    fn identity(spec: UserSpec) -> Result<Identity, UserError> {
        resolve(&spec, PASSWD, GROUP)
    }

    #[test]
    fn nothing_asked_for_is_root() {
        let found = identity(UserSpec::default()).unwrap();
        assert_eq!(found, Identity { uid: 0, gid: 0, groups: vec![0, 29], home: "/root".into() });
    }

    #[test]
    fn names_are_looked_up_and_groups_merged() {
        let found = identity(UserSpec { username: "web".into(), ..Default::default() }).unwrap();
        assert_eq!(found, Identity { uid: 33, gid: 34, groups: vec![29, 34, 44], home: "/var/www".into() });
    }

    #[test]
    fn strict_groups_leave_the_image_out() {
        let spec = UserSpec { uid: Some(33), supplemental_groups: vec![7], strict_groups: true, ..Default::default() };
        assert_eq!(identity(spec).unwrap().groups, [7, 34]);
    }

    #[test]
    fn numbers_need_no_entry() {
        let found = identity(UserSpec { uid: Some(1234), gid: Some(5), ..Default::default() }).unwrap();
        assert_eq!(found, Identity { uid: 1234, gid: 5, groups: vec![5], home: "/".into() });
    }

    #[test]
    fn the_image_may_name_user_and_group() {
        for (image_user, uid, gid) in [
            ("web:audio", 33, 29),
            ("33:7", 33, 7),
            ("web", 33, 34),
            ("77", 77, 0),
            ("web:", 33, 34),
            ("nohome", 50, 51),
        ] {
            let found = identity(UserSpec { image_user: image_user.into(), ..Default::default() }).unwrap();
            assert_eq!((found.uid, found.gid), (uid, gid), "{image_user}");
        }
    }

    #[test]
    fn unknown_names_are_told() {
        let error = identity(UserSpec { username: "nobody9".into(), ..Default::default() }).unwrap_err();
        assert_eq!(error.to_string(), "unable to find user nobody9: no matching entries in passwd file");
        let error = identity(UserSpec { image_user: "web:nogroup9".into(), ..Default::default() }).unwrap_err();
        assert_eq!(error.to_string(), "unable to find group nogroup9: no matching entries in group file");
    }

    #[test]
    fn numbers_are_never_names() {
        let passwd = "1000:x:0:0::/root:\nall:x:4294967295:0::/:\nsome:x:5:4294967295::/:\n+5:x:7:7::/:\n";
        let group = "1000:x:0:\nall:x:4294967295:\n";
        let found = |user: &str| resolve(&UserSpec { image_user: user.into(), ..Default::default() }, passwd, group);
        let both = found("1000:1000").unwrap();
        assert_eq!((both.uid, both.gid), (1000, 1000));
        let spec = UserSpec { username: "1000".into(), ..Default::default() };
        assert_eq!(resolve(&spec, passwd, group).unwrap().uid, 1000);
        assert_eq!(found("2147483647").unwrap().uid, MAX_ID);
        assert_eq!(found("+5").unwrap().uid, 7);
        for out_of_range in ["2147483648", "4294967295", "99999999999999999999", "0:4294967295"] {
            assert!(matches!(found(out_of_range), Err(UserError::OutOfRange(_))), "{out_of_range}");
        }
        for unknown in ["all", "some", "-1", "0:all", "0:-1"] {
            assert!(found(unknown).is_err(), "{unknown}");
        }
    }

    proptest! {
        #[test]
        fn any_files_are_survived(passwd in ".{0,200}", group in ".{0,200}", user in "[a-z0-9:]{0,8}") {
            let _ = resolve(&UserSpec { image_user: user, ..Default::default() }, &passwd, &group);
        }
    }
}
