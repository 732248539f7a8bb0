//! Rounds of critest on both sides, in turns.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bulkhead_tests::fixture::Fixture;

use super::critest::{self, Durations, Load};
use super::table::{Numbers, Row, median};

/// What a node does all day, and what it does when it starts.
const LOADS: [Load; 2] = [Load { number: 6, parallel: 1 }, Load { number: 20, parallel: 10 }];
const GOAL: &str = "at most 0.5 x";
/// critest's name, the CRI's, and what it should cost.
const VERBS: [(&str, &str, &str); 9] = [
    ("CreatePod", "RunPodSandbox", GOAL),
    ("StatusPod", "PodSandboxStatus", GOAL),
    ("CreateContainer", "CreateContainer", GOAL),
    ("StartContainer", "StartContainer", GOAL),
    ("StatusContainer", "ContainerStatus", GOAL),
    ("StopContainer", "StopContainer", "what the process needs"),
    ("RemoveContainer", "RemoveContainer", GOAL),
    ("StopPod", "StopPodSandbox", GOAL),
    ("RemovePod", "RemovePodSandbox", GOAL),
];

/// Where both serve the CRI.
#[derive(Debug)]
pub struct Sides {
    /// Our daemon.
    pub ours: PathBuf,
    /// containerd, where there is one.
    pub theirs: Option<PathBuf>,
}

/// One row for each verb and load.
///
/// # Errors
/// When a run fails.
pub fn measure(fixture: &Fixture, critest: &Path, sides: &Sides, rounds: usize) -> Result<Vec<Row>> {
    let directory = fixture.path("critest");
    let run = |socket: &Path, load| critest::run(critest, socket, load, &directory);
    let sockets = || std::iter::once(&sides.ours).chain(&sides.theirs);
    // The first run pulls the images.
    for socket in sockets() {
        run(socket, Load { number: 1, parallel: 1 }).with_context(|| format!("benchmark of {}", socket.display()))?;
    }
    let mut rows = Vec::new();
    for load in LOADS {
        let mut all: Vec<Vec<Durations>> = vec![Vec::new(); sockets().count()];
        for number in 1..=rounds {
            eprintln!("verbs, {} at a time: round {number} of {rounds}", load.parallel);
            for (side, socket) in all.iter_mut().zip(sockets()) {
                side.push(run(socket, load)?);
            }
        }
        for (name, verb, goal) in VERBS {
            let verb =
                if load.parallel == 1 { verb.to_owned() } else { format!("{verb}, {} at a time", load.parallel) };
            rows.push(row(verb, name, goal, &all)?);
        }
    }
    Ok(rows)
}

/// Times are of all operations, ratios of the rounds' medians.
fn row(verb: String, name: &str, goal: &'static str, sides: &[Vec<Durations>]) -> Result<Row> {
    let of = |round: &Durations| round.get(name).cloned().with_context(|| format!("critest measured no {name}"));
    let mut times = Vec::new();
    let mut medians = Vec::new();
    for side in sides {
        let rounds = side.iter().map(of).collect::<Result<Vec<_>>>()?;
        medians.push(rounds.iter().map(|round| median(round)).collect::<Vec<f64>>());
        times.push(Numbers(rounds.concat()));
    }
    let ratios = match medians.as_slice() {
        [ours, theirs] => ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect(),
        _ => Vec::new(),
    };
    let mut times = times.into_iter();
    let (ours, theirs) = (times.next().unwrap_or_default(), times.next().unwrap_or_default());
    Ok(Row { verb, ours, theirs, ratio: Numbers(ratios), goal })
}
