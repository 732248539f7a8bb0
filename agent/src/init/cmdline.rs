//! Options of the agent on the kernel's command line.

/// Longest command line that is read.
const MAX: usize = 16 * 1024;

/// What the command line says to the agent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// `bulkhead.debug`: more lines on the console.
    pub(super) debug: bool,
    /// `bulkhead.debug_shell`: answers on the console.
    pub(super) debug_shell: bool,
}

/// Reads /proc/cmdline; what cannot be read says nothing.
pub(super) fn read() -> Options {
    parse(&std::fs::read_to_string("/proc/cmdline").unwrap_or_default())
}

fn parse(line: &str) -> Options {
    let words = line.get(..line.len().min(MAX)).unwrap_or_default().split_whitespace();
    let has = |option: &str| words.clone().any(|word| word == option);
    Options { debug: has("bulkhead.debug"), debug_shell: has("bulkhead.debug_shell") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_whole_words() {
        assert!(parse("quiet bulkhead.debug\n").debug);
        assert!(!parse("quiet bulkhead.debugger x=bulkhead.debug").debug);
        assert_eq!(parse("bulkhead.debug_shell"), Options { debug: false, debug_shell: true });
    }
}
