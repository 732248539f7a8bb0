//! A kernel configuration fragment: the lines a `.config` must have.

use std::collections::HashMap;

/// One line of the fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted<'a> {
    symbol: &'a str,
    /// `None` for `# CONFIG_X is not set`.
    value: Option<&'a str>,
}

fn settings(text: &str) -> impl Iterator<Item = Wanted<'_>> {
    text.lines().filter_map(|line| {
        let line = line.trim();
        if let Some(symbol) = line.strip_prefix("# ").and_then(|rest| rest.strip_suffix(" is not set")) {
            return Some(Wanted { symbol, value: None });
        }
        let (symbol, value) = line.split_once('=')?;
        symbol.starts_with("CONFIG_").then_some(Wanted { symbol, value: Some(value) })
    })
}

/// What `fragment` asks for and `config`, a final `.config`, lacks; one sentence each.
pub fn lacking(fragment: &str, config: &str) -> Vec<String> {
    let have: HashMap<&str, Option<&str>> = settings(config).map(|line| (line.symbol, line.value)).collect();
    settings(fragment)
        .filter_map(|want| {
            let got = have.get(want.symbol).copied().flatten();
            (got != want.value).then(|| {
                let wanted = want.value.unwrap_or("not set");
                format!("{}: asked for {wanted}, is {}", want.symbol, got.unwrap_or("not set"))
            })
        })
        .collect()
}

/// Symbols that the fragment names twice; a second line would silently win.
#[cfg(test)]
fn repeated(fragment: &str) -> Vec<&str> {
    let mut seen = std::collections::HashSet::new();
    settings(fragment).filter(|line| !seen.insert(line.symbol)).map(|line| line.symbol).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complete_configuration_lacks_nothing() {
        let fragment = "# a comment\nCONFIG_A=y\n# CONFIG_B is not set\n# CONFIG_GONE is not set\nCONFIG_S=\"x=y\"\n";
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_S=\"x=y\"\nCONFIG_MORE=y\n";
        assert_eq!(lacking(fragment, config), Vec::<String>::new());
    }

    #[test]
    fn each_difference_is_told() {
        let fragment = "CONFIG_A=y\nCONFIG_N=64\n# CONFIG_B is not set\n";
        let config = "# CONFIG_A is not set\nCONFIG_N=8\nCONFIG_B=y\n";
        assert_eq!(
            lacking(fragment, config),
            ["CONFIG_A: asked for y, is not set", "CONFIG_N: asked for 64, is 8", "CONFIG_B: asked for not set, is y",]
        );
    }

    #[test]
    fn our_fragment_names_each_symbol_once() {
        assert_eq!(repeated(crate::kernel::FRAGMENT), Vec::<&str>::new());
    }
}
