//! Runs the cases of one suite one after the other over one fixture, and reports as Rust's own test harness does.
//!
//! Starting a daemon and booting pods costs seconds, so the cases of a file share them; they run in the order in which
//! they are written. What cannot run prints `skipped: CASE: WHY` and counts as neither passed nor failed.

use std::any::Any;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::command;
use crate::environment::Environment;

/// Why a case did not run. As an error of a case it makes that case skipped.
#[derive(Debug)]
pub struct Skipped(
    /// For people: what is absent and what provides it.
    pub String,
);

impl Skipped {
    /// With a fixed text.
    #[must_use]
    pub fn because(why: &str) -> Self {
        Self(why.to_owned())
    }
}

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skipped {}

/// Leaves the case as skipped.
#[macro_export]
macro_rules! skip {
    ($($why:tt)*) => {
        return Err($crate::suite::Skipped(format!($($why)*)).into())
    };
}

/// What the cases of a suite share.
pub trait SuiteFixture: Sized {
    /// Starts it.
    ///
    /// # Errors
    /// [`Skipped`] when this machine lacks something; else every case has failed.
    fn start(environment: &Environment) -> Result<Self>;
    /// Called after each case: removes what it left, so that one failure stays one. `failed` asks for the logs.
    fn after_case(&mut self, failed: bool) -> Result<()>;
    /// Called once at the end: proves that nothing is left, and ends everything.
    ///
    /// # Errors
    /// What is left.
    fn finish(self) -> Result<()>;
}

/// One case: its name and its function.
pub type Case<F> = (&'static str, fn(&mut F) -> Result<()>);

/// Makes `main` of a suite: the fixture's type, then the functions that are its cases.
#[macro_export]
macro_rules! suite {
    ($fixture:ty; $($case:ident),+ $(,)?) => {
        fn main() -> std::process::ExitCode {
            $crate::suite::run::<$fixture>(&[$((stringify!($case), $case)),+])
        }
    };
}

/// Set in a suite that [`in_own_network`] started.
const OWN_NETWORK: &str = "BULKHEAD_TEST_OWN_NETWORK";

/// Runs the cases in a network namespace of the suite's own, so that ports and packet filter rules are nobody else's.
#[must_use]
pub fn in_own_network<F: SuiteFixture>(cases: &[Case<F>]) -> ExitCode {
    let mut arguments = std::env::args_os();
    let listing = std::env::args().any(|argument| argument == "--list");
    if listing || !rustix::process::geteuid().is_root() {
        return run(cases);
    }
    if std::env::var_os(OWN_NETWORK).is_some() {
        return match command::run("ip", &["link", "set", "lo", "up"], Duration::from_secs(10)) {
            Ok(_) => run(cases),
            Err(error) => fail(&error),
        };
    }
    let program = arguments.next().unwrap_or_default();
    let error = Command::new("unshare").arg("--net").arg(program).args(arguments).env(OWN_NETWORK, "1").exec();
    fail(&anyhow::anyhow!("cannot start unshare (package util-linux): {error}"))
}

fn fail(error: &anyhow::Error) -> ExitCode {
    say(&format!("{error:#}"));
    ExitCode::FAILURE
}

#[derive(Default)]
struct Tally {
    passed: usize,
    failed: Vec<String>,
    skipped: usize,
    filtered: usize,
}

/// Runs the cases that the command line selects.
#[must_use]
pub fn run<F: SuiteFixture>(cases: &[Case<F>]) -> ExitCode {
    let started = Instant::now();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        cases.iter().for_each(|(name, _)| say(&format!("{name}: test")));
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let selected: Vec<&Case<F>> = cases
        .iter()
        .filter(|(name, _)| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str())))
        .collect();
    let mut tally = Tally { filtered: cases.len() - selected.len(), ..Tally::default() };
    say(&format!("\nrunning {} tests", selected.len()));
    if !selected.is_empty() {
        run_selected(&selected, &mut tally);
    }
    let verdict = if tally.failed.is_empty() { "ok" } else { "FAILED" };
    if !tally.failed.is_empty() {
        say(&format!("\nfailures:\n    {}", tally.failed.join("\n    ")));
    }
    say(&format!(
        "\ntest result: {verdict}. {} passed; {} failed; 0 ignored; 0 measured; {} filtered out; {} skipped; finished in {:.2}s\n",
        tally.passed,
        tally.failed.len(),
        tally.filtered,
        tally.skipped,
        started.elapsed().as_secs_f64()
    ));
    if tally.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_selected<F: SuiteFixture>(selected: &[&Case<F>], tally: &mut Tally) {
    let begun = Environment::find().map_err(Into::into).and_then(|environment| F::start(&environment));
    let mut fixture = match begun {
        Ok(fixture) => fixture,
        Err(error) => {
            for (name, _) in selected {
                record(tally, name, Err(again(&error)), 0.0);
            }
            return;
        }
    };
    for (name, case) in selected {
        let started = Instant::now();
        let result = guarded(|| case(&mut fixture));
        let seconds = started.elapsed().as_secs_f64();
        let failed = result.as_ref().is_err_and(|error| !error.is::<Skipped>());
        record(tally, name, result, seconds);
        if let Err(error) = guarded(|| fixture.after_case(failed)) {
            record(tally, &format!("{name} (cleaning up)"), Err(error), 0.0);
        }
    }
    let started = Instant::now();
    record(tally, "nothing_is_left", guarded(|| fixture.finish()), started.elapsed().as_secs_f64());
}

/// The same error for another case; one that is [`Skipped`] stays that.
fn again(error: &anyhow::Error) -> anyhow::Error {
    match error.downcast_ref::<Skipped>() {
        Some(skipped) => Skipped(skipped.0.clone()).into(),
        None => anyhow::anyhow!("{error:#}"),
    }
}

fn guarded(work: impl FnOnce() -> Result<()>) -> Result<()> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(anyhow::anyhow!("{}", panic_text(panic.as_ref()))))
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panic without a message")
}

fn record(tally: &mut Tally, name: &str, result: Result<()>, seconds: f64) {
    match result {
        Ok(()) => {
            tally.passed += 1;
            say(&format!("test {name} ... ok ({seconds:.1} s)"));
        }
        Err(error) => match error.downcast_ref::<Skipped>() {
            Some(why) => {
                tally.skipped += 1;
                say(&format!("skipped: {name}: {why}"));
            }
            None => {
                say(&format!(
                    "test {name} ... FAILED ({seconds:.1} s)\n    {}",
                    format!("{error:#}").replace('\n', "\n    ")
                ));
                tally.failed.push(name.to_owned());
            }
        },
    }
}

/// Past Rust's capturing, so that skipped cases are seen.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody is left to tell when the output is gone.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
