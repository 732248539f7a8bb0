//! Names of slices, which are places in the tree of cgroups: `a-b.slice` is below `a.slice` (systemd.slice(5)).

use std::path::PathBuf;

const SUFFIX: &str = ".slice";

/// A slice by its unit's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    name: String,
}

impl Slice {
    /// For pods whose kubelet names none.
    #[must_use]
    pub fn own() -> Self {
        Self { name: "bulkhead.slice".to_owned() }
    }

    /// Of a kubelet's cgroup_parent: the unit's name, or its whole path.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn of_parent(parent: &str) -> Result<Self, String> {
        let parts: Vec<&str> = parent.trim_matches('/').split('/').collect();
        let name = parts.last().copied().unwrap_or_default();
        let Some(stem) = name.strip_suffix(SUFFIX) else {
            return Err(format!("{name:?} does not end with {SUFFIX}"));
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, ':' | '_' | '.' | '\\' | '@' | '-');
        if stem.split('-').any(str::is_empty) || !stem.chars().all(allowed) {
            return Err(format!("{name:?} is no name of a slice"));
        }
        let slice = Self { name: name.to_owned() };
        if parts.len() > 1 && slice.path() != parts.iter().collect::<PathBuf>() {
            return Err(format!("{name:?} lies at {:?}", slice.path()));
        }
        Ok(slice)
    }

    /// The unit's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its cgroup relative to the hierarchy's root.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        let stem = self.name.strip_suffix(SUFFIX).unwrap_or(&self.name);
        let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
        ends.map(|end| format!("{}{SUFFIX}", &stem[..end])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_paths() {
        for (parent, path) in [
            ("kubepods.slice", "kubepods.slice"),
            (
                "kubepods-besteffort-pod1_2.slice",
                "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice",
            ),
            ("/kubepods.slice/kubepods-pod1.slice", "kubepods.slice/kubepods-pod1.slice"),
        ] {
            assert_eq!(Slice::of_parent(parent).unwrap().path(), PathBuf::from(path), "{parent}");
        }
        assert_eq!(Slice::of_parent("/a.slice/a-b.slice/").unwrap().name(), "a-b.slice");
    }

    #[test]
    fn what_is_no_slice_is_told() {
        for (parent, words) in [
            ("", "does not end with .slice"),
            ("/kubepods/pod1", "does not end with .slice"),
            ("-.slice", "no name of a slice"),
            ("a--b.slice", "no name of a slice"),
            ("a b.slice", "no name of a slice"),
            ("/other.slice/a-b.slice", "lies at \"a.slice/a-b.slice\""),
            ("../a.slice", "lies at \"a.slice\""),
        ] {
            let told = Slice::of_parent(parent).unwrap_err();
            assert!(told.contains(words), "{parent}: {told}");
        }
    }
}
