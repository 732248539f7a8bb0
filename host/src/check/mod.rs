//! `bulkhead check`: what this host has and lacks, line by line, and what to do about it.
//!
//! * [`kvm_selftest`]: whether KVM can run a stock kernel. * [`machine`]: KVM, QEMU, the guest's image.
//! * [`kernel`]: tun, tc, cgroups, nftables. * [`network`]: CNI.

mod kernel;
pub mod kvm_selftest;
mod machine;
mod network;

use crate::config::Config;

/// How good a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// As it should be.
    Ok,
    /// Pods run, but not all or not as well.
    Warning,
    /// Pods do not run.
    Missing,
}

/// One fact about the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub name: &'static str,
    /// How good it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What would change it; empty when nothing need be done.
    pub to_do: String,
}

impl Finding {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, level: Level::Ok, found: found.into(), to_do: String::new() }
    }

    fn lacking(name: &'static str, level: Level, found: impl Into<String>, to_do: impl Into<String>) -> Self {
        Self { name, level, found: found.into(), to_do: to_do.into() }
    }
}

/// Looks at everything that pods need. Takes as long as the slowest look: seconds where KVM hangs.
pub async fn run(config: &Config) -> Vec<Finding> {
    let (kvm, qemu, kernel, network) =
        tokio::join!(machine::kvm(config), machine::qemu(config), kernel::findings(), network::findings(config));
    [kvm, qemu, machine::files(config), kernel, network].concat()
}

/// As text, one finding a line, what to do on the next.
#[must_use]
pub fn render(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        let level = match finding.level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Missing => "MISSING",
        };
        text.push_str(&format!("{level:<9}{:<width$}  {}\n", finding.name, finding.found));
        if !finding.to_do.is_empty() {
            text.push_str(&format!("{:<9}{:<width$}  -> {}\n", "", "", finding.to_do));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_lines() {
        let findings = [
            Finding::ok("KVM", "/dev/kvm opens"),
            Finding::lacking("CNI plugins", Level::Missing, "no bridge in /opt/cni/bin", "apt-get install it"),
            Finding::lacking("nftables", Level::Warning, "no nft", "apt-get install nftables"),
        ];
        let expected = "ok       KVM          /dev/kvm opens\n\
                        MISSING  CNI plugins  no bridge in /opt/cni/bin\n                      -> apt-get install it\n\
                        warning  nftables     no nft\n                      -> apt-get install nftables\n";
        assert_eq!(render(&findings), expected);
    }
}
