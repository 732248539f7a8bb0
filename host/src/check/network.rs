//! Whether pods can get a network: CNI configuration and plugins.

use std::path::PathBuf;

use super::{Finding, Level};
use crate::config::Config;
use crate::network::config::{Directory, Network};
use crate::sys::host::is_executable;

pub(super) async fn findings(config: &Config) -> Vec<Finding> {
    let (path, directories) = (&config.network.conf_dir, &config.network.bin_dirs);
    let loaded = Directory::new(path).current();
    let mut findings: Vec<Finding> = loaded
        .problems
        .iter()
        .map(|problem| {
            Finding::lacking("CNI configuration", Level::Warning, problem.to_string(), "correct or delete the file")
        })
        .collect();
    let Some(network) = loaded.network else {
        let found = format!("no valid configuration in {}; pods get no network", path.display());
        let to_do = "install a network plugin (its DaemonSet or package writes a .conflist there)";
        findings.push(Finding::lacking("CNI configuration", Level::Missing, found, to_do));
        return findings;
    };
    let version = network.versions.first().map(String::as_str).unwrap_or_default();
    let found = format!("network {} of {} (CNI {version})", network.name, network.file.display());
    findings.push(Finding::ok("CNI configuration", found));
    findings.push(plugins(&network, directories));
    findings
}

fn plugins(network: &Network, directories: &[PathBuf]) -> Finding {
    let searched = directories.iter().map(|d| d.display().to_string()).collect::<Vec<_>>().join(", ");
    let address = |configuration: &serde_json::Map<String, serde_json::Value>| {
        configuration.get("ipam").and_then(|ipam| ipam.get("type")).and_then(|kind| kind.as_str()).map(str::to_owned)
    };
    let kinds = network.plugins.iter().flat_map(|p| std::iter::once(p.kind.clone()).chain(address(&p.configuration)));
    let (present, missing): (Vec<String>, Vec<String>) =
        kinds.partition(|kind| directories.iter().any(|directory| is_executable(&directory.join(kind))));
    if missing.is_empty() {
        return Finding::ok("CNI plugins", present.join(", "));
    }
    let to_do = "apt-get install containernetworking-plugins, or set bin_dirs in [network]";
    Finding::lacking("CNI plugins", Level::Missing, format!("no {} in {searched}", missing.join(", ")), to_do)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn plugins_of_the_chain_and_of_address_management_are_looked_for() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("10.conflist");
        let text = r#"{"cniVersion": "1.0.0", "name": "pods",
            "plugins": [{"type": "no-such-bridge", "ipam": {"type": "no-such-ipam"}}]}"#;
        std::fs::write(&file, text).unwrap();
        let finding = plugins(&Network::load(&file).unwrap(), &["/opt/cni/bin".into(), "/bin".into()]);
        assert_eq!(finding.found, "no no-such-bridge, no-such-ipam in /opt/cni/bin, /bin");
        std::fs::write(&file, text.replace("no-such-bridge", "true").replace("no-such-ipam", "sh")).unwrap();
        assert_eq!(plugins(&Network::load(&file).unwrap(), &["/bin".into()]).found, "true, sh");
    }
}
