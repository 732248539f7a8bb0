//! The conformance suite of cri-tools, whole, against a list of what is expected of each spec.
//!
//! `BULKHEAD_TEST_HANDLER` names the runtime handler, `BULKHEAD_CRITEST_FOCUS` a pattern of the specs to run; with
//! `BULKHEAD_CRITEST_SPECS` the outcome of every spec is printed.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bulkhead_tests::command;
use bulkhead_tests::environment::{Environment, Handler};
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::images::critest::{Catalogue, REGISTRIES};
use bulkhead_tests::skip;
use bulkhead_tests::suite::SuiteFixture;
use rustix::mount::{UnmountFlags, unmount};
use serde::Deserialize;

const EXPECTED: &str = include_str!("../critest/expected.toml");
/// Longest run; the lab emulates every instruction.
const LIMIT: Duration = Duration::from_secs(2 * 3600);
/// The specs that open streams.
const STREAMING: &str = "Streaming";
/// Words of the result line.
const OUTCOMES: [Outcome; 3] = [Outcome::Passed, Outcome::Failed, Outcome::Skipped];

/// The daemon and critest.
struct Suite {
    f: Fixture,
    critest: PathBuf,
    handler: Handler,
}

bulkhead_tests::suite!(
    Suite;
    every_spec_does_as_expected,
    streams_work_over_websocket,
);

impl SuiteFixture for Suite {
    fn start(environment: &Environment) -> Result<Self> {
        let Some(critest) = environment.critest.clone() else {
            skip!("there is no critest (scripts/tools.sh builds one where Go is found)");
        };
        let tools = critest.parent().unwrap_or(Path::new("/")).to_owned();
        for part in ["busybox", "nonewprivs"] {
            if !tools.join(part).exists() {
                skip!("{} is missing, of which critest's images are made", tools.join(part).display());
            }
        }
        let f = Fixture::start_with(environment, |registry, settings| {
            for name in REGISTRIES {
                let location = format!("{}/{name}", registry.address);
                settings.more.push_str(&format!("[[image.registry]]\nprefix = {name:?}\nlocation = {location:?}\n"));
            }
            Catalogue::new(&tools)?.push(&registry.target())
        })?;
        fs::create_dir(f.path("tmp"))?;
        Ok(Self { f, critest, handler: environment.handler })
    }

    fn after_case(&mut self, failed: bool) -> Result<()> {
        self.f.after_case(failed)
    }

    fn finish(self) -> Result<()> {
        self.f.finish()
    }
}

/// How a spec ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Passed,
    #[serde(alias = "refused")]
    Failed,
    Skipped,
}

/// A spec that was run.
#[derive(Debug)]
struct Ran {
    outcome: Outcome,
    /// Why it failed or was skipped.
    message: String,
}

/// One entry of the list: a spec that need not pass.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expectation {
    /// The spec's whole name.
    name: String,
    /// How it ends.
    outcome: Outcome,
    /// On which handlers; empty on all.
    #[serde(default)]
    handlers: Vec<String>,
    /// A feature of the host; where it is present the spec passes.
    #[serde(default)]
    needs: Option<Feature>,
    /// How it ends where that feature is present, if it does not pass there.
    #[serde(default)]
    present: Option<Outcome>,
    /// Part of the spec's message.
    #[serde(default)]
    says: String,
    /// For people.
    #[allow(dead_code)]
    reason: String,
}

/// What a host's kernel may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Feature {
    Apparmor,
    MemoryController,
}

impl Feature {
    fn present(self) -> bool {
        match self {
            Self::Apparmor => {
                fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|t| t.trim() == "Y")
            }
            Self::MemoryController => controllers().is_some_and(|text| text.split_whitespace().any(|c| c == "memory")),
        }
    }
}

/// Controllers of the host's cgroup v2.
fn controllers() -> Option<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mount = table.lines().find(|line| line.contains(" - cgroup2 "))?.split(' ').nth(4)?;
    fs::read_to_string(Path::new(mount).join("cgroup.controllers")).ok()
}

#[derive(Debug, Deserialize)]
struct List {
    spec: Vec<Expectation>,
}

fn every_spec_does_as_expected(s: &mut Suite) -> Result<()> {
    let focus = env::var("BULKHEAD_CRITEST_FOCUS").ok();
    let ran = run(s, "whole", focus.as_deref(), &[])?;
    let differences = differences(&expectations(s.handler)?, &ran, focus.is_none());
    ensure!(differences.is_empty(), "critest and tests/critest/expected.toml differ:\n{}", differences.join("\n"));
    Ok(())
}

fn streams_work_over_websocket(s: &mut Suite) -> Result<()> {
    if env::var_os("BULKHEAD_CRITEST_FOCUS").is_some() {
        skip!("BULKHEAD_CRITEST_FOCUS is set");
    }
    let ran =
        run(s, "websocket", Some(STREAMING), &["-websocket-exec", "-websocket-attach", "-websocket-portforward"])?;
    let differences = differences(&expectations(s.handler)?, &ran, false);
    ensure!(differences.is_empty(), "over WebSocket other specs pass:\n{}", differences.join("\n"));
    Ok(())
}

/// What is expected on this handler and host, by name.
fn expectations(handler: Handler) -> Result<BTreeMap<String, Expectation>> {
    let list: List = toml::from_str(EXPECTED).context("tests/critest/expected.toml")?;
    let of_handler =
        |entry: &Expectation| entry.handlers.is_empty() || entry.handlers.iter().any(|name| name == handler.name());
    let on_host = |entry: Expectation| match entry.needs {
        Some(feature) if feature.present() => {
            entry.present.map(|outcome| Expectation { outcome, says: String::new(), ..entry })
        }
        _ => Some(entry),
    };
    let expected = list.spec.into_iter().filter(of_handler).filter_map(on_host);
    Ok(expected.map(|entry| (entry.name.clone(), entry)).collect())
}

/// Where list and run disagree; with `whole`, entries without a spec are told too.
fn differences(expected: &BTreeMap<String, Expectation>, ran: &BTreeMap<String, Ran>, whole: bool) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, spec) in ran {
        let (outcome, says) =
            expected.get(name).map_or((Outcome::Passed, ""), |entry| (entry.outcome, entry.says.as_str()));
        if spec.outcome != outcome {
            lines.push(format!("{:?} instead of {outcome:?}: {name}\n    {}", spec.outcome, brief(&spec.message)));
        } else if !spec.message.contains(says) {
            lines.push(format!("{outcome:?} for another reason than {says:?}: {name}\n    {}", brief(&spec.message)));
        }
    }
    let names: BTreeSet<&String> = ran.keys().collect();
    let missing = expected.keys().filter(|name| whole && !names.contains(name));
    lines.extend(missing.map(|name| format!("in the list, and no such spec: {name}")));
    lines
}

/// The start of a message; Go prints whole structures behind it.
fn brief(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(500).collect()
}

/// Runs critest; gives the specs that were not filtered out.
fn run(s: &Suite, name: &str, focus: Option<&str>, more: &[&str]) -> Result<BTreeMap<String, Ran>> {
    let report = s.f.path(&format!("{name}.json"));
    let socket = format!("unix://{}", s.f.daemon.settings.socket().display());
    let mut command = Command::new(&s.critest);
    command
        .args(["-ginkgo.no-color", "-ginkgo.timeout=2h", "-ginkgo.seed=1", "-ginkgo.json-report"])
        .arg(&report)
        .args(["-runtime-endpoint", &socket, "-image-endpoint", &socket, "-runtime-handler", s.handler.name()])
        .args(focus.map(|pattern| format!("-ginkgo.focus={pattern}")))
        .args(more)
        .env("TMPDIR", s.f.path("tmp"))
        .current_dir(s.f.directory.path());
    let output = command::run_command(&mut command, LIMIT)?;
    unmount_below(&s.f.path("tmp"))?;
    let text = fs::read_to_string(&report).with_context(|| format!("critest left no report: {output}"))?;
    let ran = read(&text)?;
    let count = |outcome| ran.values().filter(|spec| spec.outcome == outcome).count();
    let counts = OUTCOMES.map(|outcome| format!("{} {outcome:?}", count(outcome)).to_lowercase());
    println!("    critest ({name}) on {}: {} of {}", s.handler.name(), counts.join(", "), ran.len());
    if env::var_os("BULKHEAD_CRITEST_SPECS").is_some() {
        ran.iter()
            .for_each(|(spec, ran)| println!("spec: {name}: {}: {spec}", format!("{:?}", ran.outcome).to_lowercase()));
    }
    ensure!(!ran.is_empty(), "critest ran no spec: {output}");
    Ok(ran)
}

/// Specs that fail leave their own mounts behind.
fn unmount_below(directory: &Path) -> Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().rev().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    for point in points.filter(|point| point.starts_with(directory)) {
        unmount(point, UnmountFlags::DETACH).with_context(|| format!("cannot unmount {}", point.display()))?;
    }
    Ok(())
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Report {
    spec_reports: Vec<SpecReport>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SpecReport {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    failure: Option<Failure>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    message: String,
}

fn read(report: &str) -> Result<BTreeMap<String, Ran>> {
    let suites: Vec<Report> = serde_json::from_str(report)?;
    let specs = suites.into_iter().flat_map(|suite| suite.spec_reports).filter(|spec| spec.leaf_node_type == "It");
    let ran = specs.filter_map(|spec| {
        let message = spec.failure.map(|failure| failure.message).unwrap_or_default();
        let outcome = match spec.state.as_str() {
            "passed" => Outcome::Passed,
            // Without a reason it was filtered out.
            "skipped" if message.is_empty() => return None,
            "skipped" => Outcome::Skipped,
            _ => Outcome::Failed,
        };
        let mut words = spec.container_hierarchy_texts.unwrap_or_default();
        words.push(spec.leaf_node_text);
        Some((words.join(" "), Ran { outcome, message }))
    });
    Ok(ran.collect())
}
