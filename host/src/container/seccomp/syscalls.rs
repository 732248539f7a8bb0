//! Names and numbers of system calls.

use std::collections::HashMap;
use std::sync::LazyLock;

use bulkhead_proto::agent::SeccompAbi;

/// Numbers of one name; each ABI may lack it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Numbers {
    x86_64: Option<u32>,
    x32: Option<u32>,
    i386: Option<u32>,
}

static TABLE: LazyLock<HashMap<&'static str, Numbers>> = LazyLock::new(|| {
    let lines = include_str!("syscalls.txt").lines().filter(|line| !line.starts_with('#'));
    let parsed = lines.filter_map(|line| {
        let mut words = line.split(' ');
        let name = words.next()?;
        let mut number = || words.next().and_then(|word| word.parse().ok());
        Some((name, Numbers { x86_64: number(), x32: number(), i386: number() }))
    });
    parsed.collect()
});

impl Numbers {
    fn of(self, abi: SeccompAbi) -> Option<u32> {
        match abi {
            SeccompAbi::SECCOMP_ABI_X86_64 => self.x86_64,
            SeccompAbi::SECCOMP_ABI_X32 => self.x32,
            SeccompAbi::SECCOMP_ABI_I386 => self.i386,
        }
    }
}

/// The number of a system call; `None` where the ABI has none of this name, or nobody has.
pub(super) fn number(name: &str, abi: SeccompAbi) -> Option<u32> {
    TABLE.get(name)?.of(abi)
}

/// The largest number in the table.
pub(super) fn newest(abi: SeccompAbi) -> u32 {
    TABLE.values().filter_map(|numbers| numbers.of(abi)).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use SeccompAbi::*;

    #[test]
    fn numbers_are_those_of_the_headers() {
        for (name, numbers) in [
            ("read", [Some(0), Some(0), Some(3)]),
            ("ioctl", [Some(16), Some(514), Some(54)]),
            ("clone3", [Some(435); 3]),
            ("socketcall", [None, None, Some(102)]),
            ("nonsense", [None; 3]),
        ] {
            let seen = [SECCOMP_ABI_X86_64, SECCOMP_ABI_X32, SECCOMP_ABI_I386].map(|abi| number(name, abi));
            assert_eq!(seen, numbers, "{name}");
        }
        assert_eq!(newest(SECCOMP_ABI_X86_64), 462);
    }
}
