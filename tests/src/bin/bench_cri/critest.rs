//! `critest -benchmark`: cri-tools' own instrument, which knows neither side.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use bulkhead_tests::command;
use serde::Deserialize;

/// Longest run.
const LIMIT: Duration = Duration::from_secs(600);
/// What critest leaves, one file for each kind of object.
const RESULTS: [&str; 2] = ["pod_benchmark_data.json", "container_benchmark_data.json"];

/// How much is measured in one run.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Lifecycles of pods, and of containers in pods of their own.
    pub number: usize,
    /// How many of them at a time.
    pub parallel: usize,
}

/// Durations in milliseconds by critest's name of the operation.
pub type Durations = BTreeMap<String, Vec<f64>>;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Results {
    operations_names: Vec<String>,
    datapoints: Vec<Datapoint>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Datapoint {
    operations_durations_ns: Vec<u64>,
}

/// Runs it once against `socket`; its files go below `directory`.
///
/// # Errors
/// When an operation fails or a result is missing.
pub fn run(critest: &Path, socket: &Path, load: Load, directory: &Path) -> Result<Durations> {
    let Load { number, parallel } = load;
    fs::create_dir_all(directory)?;
    let parameters = directory.join("parameters.yaml");
    fs::write(
        &parameters,
        format!(
            "containersNumber: {number}\ncontainersNumberParallel: {parallel}\ncontainerBenchmarkTimeoutSeconds: 120\n\
             podsNumber: {number}\npodsNumberParallel: {parallel}\npodBenchmarkTimeoutSeconds: 120\n\
             podContainerStartBenchmarkTimeoutSeconds: 60\n"
        ),
    )?;
    let endpoint = format!("unix://{}", socket.display());
    let mut command = Command::new(critest);
    command
        .args(["-benchmark", "-ginkgo.no-color", "-ginkgo.seed=1", "-benchmarking-params-file"])
        .arg(&parameters)
        .arg("-benchmarking-output-dir")
        .arg(directory)
        .args(["-runtime-endpoint", &endpoint, "-image-endpoint", &endpoint])
        .env("TMPDIR", directory)
        .current_dir(directory);
    let output = command::run_command(&mut command, LIMIT)?.success()?;
    let mut all = Durations::new();
    for name in RESULTS {
        let path = directory.join(name);
        let bytes = fs::read(&path).with_context(|| format!("critest left no {name}: {output}"))?;
        // A later run that fails must not be answered with this one's numbers.
        fs::remove_file(&path)?;
        let results: Results = serde_json::from_slice(&bytes).with_context(|| format!("cannot read {name}"))?;
        anyhow::ensure!(
            results.datapoints.len() == number,
            "critest measured {} of {number}",
            results.datapoints.len()
        );
        for point in &results.datapoints {
            for (operation, ns) in results.operations_names.iter().zip(&point.operations_durations_ns) {
                all.entry(operation.clone()).or_default().push(Duration::from_nanos(*ns).as_secs_f64() * 1000.0);
            }
        }
    }
    Ok(all)
}
